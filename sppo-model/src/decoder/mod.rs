//! Decoder language models.

mod config;
mod consistency;
mod forward;
mod from_gguf;
mod from_hugging_face;
mod rotary;
mod sequence_classifier;
mod to_hugging_face;
mod weights;

pub use config::{Activation, DecoderConfig, Family, NormPlacement, RotaryScaling};
pub use forward::{AttentionSource, Decoder};
pub use rotary::rotary_frequencies;
pub(crate) use sequence_classifier::DecoderClassifier;
pub use weights::{DecoderWeights, TensorSource};
