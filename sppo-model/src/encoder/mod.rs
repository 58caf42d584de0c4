//! Encoders that score text, for inference: DeBERTa v3 and the head of PairRM.

mod config;
mod forward;
mod pair_ranker;
mod weights;

pub use config::EncoderConfig;
pub use forward::{Encoder, EncoderBatch};
pub use pair_ranker::{PairMarkers, PairRanker, PairRankerConfig};
