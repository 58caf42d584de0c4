//! Tensor operations: the vocabulary that a backend implements, the tape that differentiates it, a plain
//! reference of every op, and the checks that compare a backend with that reference.

pub mod conformance;
pub mod encoder;
pub mod encoder_conformance;
mod logits;
mod memo;
mod parameter_state;
mod parameters;
pub(crate) mod random;
pub mod reference;
mod tape;
mod vocabulary;

pub use logits::LogitsLimits;
pub use memo::Memo;
pub use parameter_state::{Accumulation, GradientSlot, ensure_state, state_count};
pub use parameters::{NamedParameter, ParameterId, ParameterStore};
pub use tape::{AdapterUse, Graph, Tape, Variable};
pub use vocabulary::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, DeviceSampling, Ops,
    RotaryFrequencies, SampledToken, UpdateRule, not_finite,
};
