//! Language models written once and run on any tensor library.
//!
//! A compute backend implements [`ops::Ops`], a small vocabulary of operations, each with its own
//! vector-Jacobian product. Everything else is generic over it: the decoder, the tape that runs its
//! backward pass, packed batches with shared prompts, sampling with a key-value cache, the
//! optimisers, and the adapter that turns any op set into a core [`Policy`](sppo_core::plugin::Policy).
//! Checkpoint formats, tokenizers and chat templates live here too.

pub mod checkpoint;
pub mod decoder;
pub mod error;
pub mod model_source;
pub mod ops;
pub mod text;

pub use error::{ModelError, Result};
