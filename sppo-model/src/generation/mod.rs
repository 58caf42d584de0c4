//! Batched generation with a key-value cache.
//!
//! Each prompt is computed once and shared by its samples. All active rows decode together; a row
//! that is finished leaves at once, and the next sample takes its place.

mod sampler;
mod scheduler;
mod slots;

pub use sampler::{SampleKey, SampleRequest, Sampler};
pub(crate) use scheduler::planned_cache;
pub use scheduler::{GenerationLimits, generate};
