//! Language models written once and run on any tensor library.
//!
//! A compute backend implements [`ops::Ops`], a small vocabulary of operations, each with its own
//! vector-Jacobian product. Everything else is generic over it. With [`ops::encoder::EncoderOps`] a
//! backend also runs encoders that score text.
//!
//! Each room imports only from rooms above it in this list:
//!
//! - [`formats`]: file formats, to tensors and metadata and back.
//! - [`ops`]: the op vocabulary, the tape that runs its backward pass, and the reference of every op.
//! - [`text`]: tokenizer, chat template and special tokens.
//! - [`decoder`]: decoder language models: families, weights and the forward pass.
//! - [`encoder`]: encoders and reward models that score text.
//! - [`checkpoint`]: models on disk, found, opened and written.
//! - [`generation`]: sampling with a key-value cache.
//! - [`training`]: a decoder that is trained, with its optimiser.
//! - [`serve`]: a model as a core [`Policy`](sppo_plugin::Policy),
//!   [`Scorer`](sppo_plugin::Scorer) or judge.
//! - [`synthetic`]: models with random weights, for measurements.

pub mod checkpoint;
pub mod decoder;
pub mod encoder;
mod error;
pub mod formats;
pub mod generation;
pub mod golden;
pub mod ops;
pub mod serve;
pub mod synthetic;
pub mod text;
pub mod training;

pub use error::{ModelError, Result};
pub use generation::GenerationLimits;
pub use training::DecoderModel;
