//! Models of well-known shapes with random weights, to measure what such a model costs.

mod decoder;
#[cfg(feature = "testing")]
mod ranker;

pub use decoder::{Shape, write_synthetic_model};
#[cfg(feature = "testing")]
pub use ranker::{SYNTHETIC_RANKER_MARKERS, write_synthetic_ranker};
