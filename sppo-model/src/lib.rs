//! Language models written once and run on any tensor library.
//!
//! A compute backend implements [`ops::Ops`], a small vocabulary of operations, each with its own
//! vector-Jacobian product. Everything else is generic over it: the decoder, the tape that runs its
//! backward pass, packed batches with shared prompts, sampling with a key-value cache, the
//! optimisers, and the adapter that turns any op set into a core [`Policy`](sppo_plugin::Policy).
//! With [`ops::encoder::EncoderOps`] it also serves rankers and reward models, which score text, as a
//! core [`Scorer`](sppo_plugin::Scorer); [`model_judge`] is what oracles do with one.
//! Checkpoint formats, tokenizers and chat templates live here too.

pub mod checkpoint;
pub mod decoder;
pub mod encoder;
pub mod error;
pub mod generation;
#[cfg(feature = "testing")]
pub mod golden;
pub mod lora;
pub mod measure;
pub mod memory;
pub mod memory_estimate;
pub mod model;
pub mod model_judge;
pub mod model_source;
pub mod ops;
pub mod packing;
pub mod parameters;
pub mod policy;
pub mod reward_model;
pub mod sampling;
pub mod scorer;
mod seeds;
mod settings;
pub mod synthetic;
pub mod tape;
pub mod text;
mod training;

pub use error::{ModelError, Result};
pub use generation::GenerationLimits;
pub use model::DecoderModel;
