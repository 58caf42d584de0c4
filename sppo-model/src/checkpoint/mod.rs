//! Models on disk: found or fetched, opened with their text side, and written.

mod open;
pub mod source;
mod weights;
mod write;

pub use open::{Checkpoint, CheckpointIdentity, TensorData, scorer_identity};
pub use write::{WeightFiles, WeightFormat, write_checkpoint};
