//! Decoder language models.

mod config;

pub use config::{Activation, DecoderConfig, Family, NormPlacement, RotaryScaling};
