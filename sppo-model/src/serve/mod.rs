//! A model behind the core's plugin interface: as a policy, as a scorer, and as an oracle's judge.

mod allocator;
pub mod judge;
mod matrix_rate;
mod memory_estimate;
mod policy;
mod scorer;

pub use allocator::keep_large_buffers;
pub use matrix_rate::measure_matrix_products;
pub use memory_estimate::MemoryTraits;
pub use policy::{DecoderPolicy, estimate_policy_memory};
pub use scorer::{ScorerKind, load_scorer};
