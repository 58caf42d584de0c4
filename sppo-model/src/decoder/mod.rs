//! Decoder language models: configuration, weights and forward pass.

mod config;
mod consistency;
mod forward;
mod from_gguf;
mod from_hugging_face;
mod gguf_names;
pub(crate) mod lora;
mod packing;
mod rotary;
mod sequence_classifier;
mod to_hugging_face;
mod weights;

pub use config::{DecoderConfig, Family, NormPlacement, RotaryScaling};
pub use forward::{AttentionSource, Decoder};
pub(crate) use gguf_names::hugging_face_name;
pub use lora::{AdapterSource, merge};
pub use packing::{InputLimits, PackedBatch};
pub use rotary::rotary_frequencies;
pub(crate) use sequence_classifier::DecoderClassifier;
pub(crate) use weights::adapter_shapes;
pub use weights::{DecoderWeights, TensorLayout, TensorSource, tensor_layout};
