//! Encoders that score text, for inference: DeBERTa v3, the head of PairRM and that of a sequence
//! classifier.

mod config;
mod forward;
mod pair_ranker;
mod reward_model;
mod weights;

pub use config::EncoderConfig;
pub use forward::{Encoder, EncoderBatch};
pub use pair_ranker::{PairMarkers, PairRanker, PairRankerConfig};
pub(crate) use reward_model::architectures;
pub use reward_model::{RewardModel, RewardModelConfig};
