//! The compute backend `candle`: language models on [candle](candle_core) tensors, in f32 on the CPU.
//!
//! candle's own normalisation, softmax, rotary embedding and attention have no backward pass, and
//! most of what surrounds its matrix products runs on one thread. So every op of
//! [`sppo_model::ops::Ops`] is here a fused, multi-threaded kernel over the tensors' memory, with a
//! backward pass of its own, and gradients of weights accumulate in place.

mod backend;
mod encoder_ops;
mod head;
mod ops;
mod parameter;
mod tensors;

pub use backend::{CandleBackend, CandleConfig};
pub use encoder_ops::RelativeTables;
pub use ops::{CandleOps, KeyValueCache};
pub use parameter::Parameter;
