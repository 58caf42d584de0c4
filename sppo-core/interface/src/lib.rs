//! The interfaces of everything that can be swapped in `sppo` at run time: [`Backend`]s that hold the
//! policy, [`Oracle`]s that judge its responses, and [`RolloutEngine`]s that draw them in its place.
//!
//! Authors implement ordinary traits over std types and export their plugin with [`export_oracle!`],
//! [`export_backend!`] or [`export_sampler!`]. No tensor crosses this boundary: tokens and text go in, log-probabilities and
//! preferences come out. [`conformance`] checks a plugin from its own tests.
//!
//! This crate is the ground floor: it holds the words that both sides of the boundary speak, and
//! nothing of files, settings or the algorithm.

#[doc(hidden)]
pub mod abi;
mod backend;
#[doc(hidden)]
pub mod calls;
pub mod check;
pub mod conformance;
mod error;
mod generation;
mod host;
mod learning;
mod macros;
mod memory;
mod numpy;
mod oracle;
pub mod order;
pub mod pairwise;
mod plugin;
mod policy;
pub mod preference;
mod rollout_engine;
pub mod thought;
pub mod win_rate;

pub use abi::IntoObject;
pub use backend::{Backend, ModelSpec, PolicySpec, Scorer, TeamPlace};
pub use calls::{PluginAtWork, plugin_at_work};
pub use error::{PluginError, PluginErrorKind};
pub use generation::{
    FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, SamplingParameters,
};
pub use host::{Progress, Services, SilentHost};
pub use learning::{
    FrozenWeights, GradientDtype, LoraSettings, Optimizer, Sharding, StepReport, StepSettings,
};
pub use memory::{
    DeviceMemory, MemoryEstimate, MemoryUse, PlannedSampling, PlannedTraining, PlannedWork,
};
pub use oracle::{Candidate, Comparison, Conversation, List, Message, Oracle, Verdict};
#[doc(hidden)]
pub use plugin::{CreateObject, EmbeddedPlugin, deserialize_config, inventory, schema_of};
pub use plugin::{Manifest, Plugin, PluginKind, create_backend, create_oracle, label};
pub use policy::{Codec, Learner, Policy, PolicyInfo, Sampler, Segment, SequenceBatch};
pub use rollout_engine::{EndpointProbe, EnginePlan, RolloutEngine, ServedWeights};

/// The code in the guide compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-plugin.md")]
mod guide {}
