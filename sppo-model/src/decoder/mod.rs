//! Decoder language models: configuration, weights and forward pass.

mod config;
mod families;
mod forward;
pub(crate) mod lora;
mod packing;
mod rotary;
mod sequence_classifier;
mod weights;

pub use config::{DecoderConfig, Family, NormPlacement, QueryKeyNorm, RotaryScaling};
pub use families::FAMILIES;
pub(crate) use families::gguf_name;
pub use forward::{AttentionSource, Decoder};
pub use lora::{AdapterSource, merge};
pub use packing::{InputLimits, PackedBatch};
pub use rotary::rotary_frequencies;
pub(crate) use sequence_classifier::DecoderClassifier;
pub(crate) use weights::adapter_shapes;
pub use weights::{DecoderWeights, TensorLayout, TensorSource, tensor_layout};
