//! The interfaces of everything that can be swapped at run time: [`Backend`]s that hold the policy
//! and [`Oracle`]s that judge its answers.
//!
//! Authors implement ordinary traits over std types. No tensor crosses this boundary: tokens and
//! text go in, log-probabilities and preferences come out.

#[doc(hidden)]
pub mod abi;
mod backend;
mod calls;
pub mod conformance;
mod library;
mod list;
mod lora;
mod macros;
mod memory;
mod oracle;
mod registry;
mod settings;

pub use backend::{
    Backend, FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, ModelSpec,
    Optimizer, Policy, PolicyInfo, SamplingParameters, Scorer, Segment, SequenceBatch, StepReport,
    StepSettings,
};
pub use calls::{PluginAtWork, plugin_at_work};
pub use library::{AddedPlugin, AddedPlugins, SearchStep, Trouble};
pub use list::List;
pub use lora::LoraSettings;
pub use memory::{MemoryEstimate, MemoryUse, PlannedSampling, PlannedTraining, PlannedWork};
pub use oracle::{Candidate, Comparison, Conversation, Message, Oracle, Verdict};
pub use registry::{
    BackendPlugin, Manifest, OraclePlugin, PluginEntry, PluginKind, PluginRegistry, UsedPlugin,
    create_backend, create_oracle,
};
#[doc(hidden)]
pub use registry::{EmbeddedBackend, EmbeddedOracle, deserialize_config, inventory, schema_of};

/// The code in the guide compiles.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/writing-a-plugin.md")]
mod guide {}

use crate::error::ErrorCategory;

/// What a plugin may ask of the program that runs it.
pub trait Host {
    /// Whether the user asked to stop. Long calls poll this and return [`PluginErrorKind::Cancelled`].
    fn is_cancelled(&self) -> bool;

    /// Reports progress of the call under way, in the call's own unit (tokens, comparisons, pairs).
    fn progress(&self, completed: u64, total: u64);

    /// Reports numbers about the plugin's work, for instance how many requests it has made. Each is a
    /// total since the plugin was made, or a value of the moment; the latest of each name counts. They
    /// are shown beside the progress and kept in `metrics.jsonl`. Names are in `snake_case`.
    fn metrics(&self, _values: &[(&str, f64)]) {}

    /// Loads a neural scorer on the run's backend, for oracles that need one.
    ///
    /// # Errors
    /// When the backend cannot serve this model.
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError>;

    /// As [`Self::scorer`], on another backend, with the settings that the run has for it.
    ///
    /// # Errors
    /// When there is no such backend, or it cannot serve this model.
    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        let _ = model;
        Err(PluginError::unsupported(format!("the backend `{backend}` is not to be had here")))
    }

    /// Makes another oracle, with the settings that the run has for it (`[oracle.<name>]`).
    ///
    /// # Errors
    /// When there is no such oracle, or its settings are refused.
    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        Err(PluginError::unsupported(format!("the oracle `{name}` is not to be had here")))
    }
}

/// A host without a user: nothing is cancelled, nobody watches, there are no scorers.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentHost;

impl Host for SilentHost {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn progress(&self, _completed: u64, _total: u64) {}

    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        Err(PluginError::unsupported(format!(
            "no backend is at hand to score with {}",
            model.path.display()
        )))
    }
}

/// Why a plugin could not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginErrorKind {
    /// The plugin's own settings are wrong.
    Configuration,
    /// A file or text that the user gave cannot be used.
    Input,
    /// The plugin does not support what was asked.
    Unsupported,
    /// Memory (of the host or of a device) ran out.
    OutOfMemory,
    /// The host asked to stop.
    Cancelled,
    /// Anything else.
    Failed,
}

/// An error from a plugin: one sentence on what and why, and a hint on what to do.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct PluginError {
    /// What kind of thing went wrong.
    pub kind: PluginErrorKind,
    /// What went wrong and why, naming the file, key or value at fault.
    pub message: String,
    /// What the user should do about it.
    pub hint: Option<String>,
}

impl PluginError {
    /// An error of the given kind.
    pub fn new(kind: PluginErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None }
    }

    /// Wrong settings.
    pub fn configuration(message: impl Into<String>) -> Self {
        Self::new(PluginErrorKind::Configuration, message)
    }

    /// A file or text that cannot be used.
    pub fn input(message: impl Into<String>) -> Self {
        Self::new(PluginErrorKind::Input, message)
    }

    /// Something the plugin cannot do.
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self::new(PluginErrorKind::Unsupported, message)
    }

    /// Any other failure.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(PluginErrorKind::Failed, message)
    }

    /// The answer of a call that was asked to stop.
    #[must_use]
    pub fn cancelled() -> Self {
        Self::new(PluginErrorKind::Cancelled, "stopped on request")
    }

    /// Adds what the user should do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn category(&self) -> ErrorCategory {
        match self.kind {
            PluginErrorKind::Configuration => ErrorCategory::Configuration,
            PluginErrorKind::Input => ErrorCategory::Input,
            PluginErrorKind::Cancelled => ErrorCategory::Cancelled,
            PluginErrorKind::Unsupported
            | PluginErrorKind::OutOfMemory
            | PluginErrorKind::Failed => ErrorCategory::Plugin,
        }
    }
}
