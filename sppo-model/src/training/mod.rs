//! Training: a decoder whose weights or adapters are changed, and its optimiser.

mod decoder_model;
mod optimizer;

pub use decoder_model::DecoderModel;
