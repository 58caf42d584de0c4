//! Decoder language models.

mod config;
mod consistency;
mod from_gguf;
mod from_hugging_face;

pub use config::{Activation, DecoderConfig, Family, NormPlacement, RotaryScaling};
