//! Which tensors a model has, by their Hugging Face names.

use crate::decoder::{DecoderConfig, DecoderWeights};

/// The name and shape of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// The Hugging Face name, for instance `model.embed_tokens.weight`.
    pub name: String,
    /// Outermost dimension first; a projection is `[outputs, inputs]`.
    pub shape: Vec<usize>,
}

/// All weights of a model, in the order in which they are loaded and written.
#[must_use]
pub fn tensor_layout(config: &DecoderConfig) -> Vec<TensorLayout> {
    DecoderWeights::names_and_shapes(config)
        .into_iter()
        .map(|(name, shape)| TensorLayout { name, shape })
        .collect()
}
