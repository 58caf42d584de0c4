//! Models of well-known shapes with random weights, to measure what such a model costs.

mod decoder;
mod ranker;

pub use decoder::{Shape, write_synthetic_model};
pub use ranker::{SYNTHETIC_RANKER_MARKERS, write_synthetic_ranker};
