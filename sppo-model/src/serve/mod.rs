//! A model behind the core's plugin interface: as a policy, as a scorer, and as an oracle's judge.

mod allocator;
mod backend;
pub mod judge;
mod memory_estimate;
mod policy;
mod scorer;

pub use allocator::keep_large_buffers;
pub use backend::{MatrixRate, ModelBackend};
pub use memory_estimate::MemoryTraits;
pub use policy::DecoderPolicy;
pub use scorer::{ScorerKind, load_scorer};
