//! The interfaces of everything that can be swapped in `sppo` at run time: [`Backend`]s that hold the
//! policy and [`Oracle`]s that judge its responses.
//!
//! Authors implement ordinary traits over std types and export their plugin with [`export_oracle!`] or
//! [`export_backend!`]. No tensor crosses this boundary: tokens and text go in, log-probabilities and
//! preferences come out. [`conformance`] checks a plugin from its own tests.
//!
//! This crate is the ground floor: it holds the words that both sides of the boundary speak, and
//! nothing of files, settings or the algorithm.

#[doc(hidden)]
pub mod abi;
mod backend;
#[doc(hidden)]
pub mod calls;
pub mod conformance;
mod error;
mod host;
mod list;
mod lora;
mod macros;
mod memory;
mod numpy;
mod oracle;
mod plugin;
pub mod preference;
pub mod win_rate;

pub use backend::{
    Backend, FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, ModelSpec,
    Optimizer, Policy, PolicyInfo, SamplingParameters, Scorer, Segment, SequenceBatch, StepReport,
    StepSettings,
};
pub use calls::{PluginAtWork, plugin_at_work};
pub use error::{PluginError, PluginErrorKind};
pub use host::{Host, SilentHost};
pub use list::List;
pub use lora::LoraSettings;
pub use memory::{MemoryEstimate, MemoryUse, PlannedSampling, PlannedTraining, PlannedWork};
pub use oracle::{Candidate, Comparison, Conversation, Message, Oracle, Verdict};
pub use plugin::{
    BackendPlugin, Manifest, OraclePlugin, PluginKind, create_backend, create_oracle, label,
};
#[doc(hidden)]
pub use plugin::{EmbeddedBackend, EmbeddedOracle, deserialize_config, inventory, schema_of};

/// The code in the guide compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-plugin.md")]
mod guide {}
