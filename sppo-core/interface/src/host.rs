//! The program as a plugin sees it: someone who watches a call and may stop it, and services to use.

use std::path::PathBuf;

use crate::{ModelSpec, Oracle, PluginError, Scorer};

/// The watcher of one call.
pub trait Progress {
    /// Whether the user asked to stop. Long calls poll this and return
    /// [`PluginErrorKind::Cancelled`](crate::PluginErrorKind::Cancelled).
    fn is_cancelled(&self) -> bool;

    /// Takes the progress of the call, in the call's own unit (tokens, comparisons, pairs).
    fn progress(&self, completed: u64, total: u64);

    /// Takes numbers about the plugin's work, for instance how many requests it has made. Each is a
    /// total since the plugin was made, or a value of the moment; the latest of each name counts. They
    /// are shown beside the progress and kept in `metrics.jsonl`. Names are in `snake_case`.
    fn metrics(&self, _values: &[(&str, f64)]) {}
}

/// Parts of the program that an oracle may use.
pub trait Services {
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
        Err(PluginError::unsupported(format!("the backend `{backend}` is not available here")))
    }

    /// Path of the model that the run starts from, on this machine.
    ///
    /// # Errors
    /// When no policy is trained here, or its model cannot be found.
    fn starting_model(&self) -> Result<PathBuf, PluginError> {
        Err(PluginError::unsupported("no policy is trained here that could judge"))
    }

    /// The policy of the run as a scorer: log-probabilities of these tokens as the one after a sequence, by
    /// the newest policy whenever it is asked. It can be asked while responses are judged, and not before.
    ///
    /// # Errors
    /// When no policy is trained here.
    fn policy_scorer(&self, next_tokens: &[u32]) -> Result<Box<dyn Scorer>, PluginError> {
        let _ = next_tokens;
        Err(PluginError::unsupported("no policy is trained here that could judge"))
    }

    /// Makes another oracle, with the settings that the run has for it (`[oracle.<name>]`).
    ///
    /// # Errors
    /// When there is no such oracle, or its settings are refused.
    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        Err(PluginError::unsupported(format!("the oracle `{name}` is not available here")))
    }
}

/// A program without a user: nothing is cancelled, nobody watches, there are no services.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentHost;

impl Progress for SilentHost {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn progress(&self, _completed: u64, _total: u64) {}
}

impl Services for SilentHost {
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        Err(PluginError::unsupported(format!(
            "there is no backend to score with {}",
            model.path.display()
        )))
    }
}
