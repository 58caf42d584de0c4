//! Errors of plugins.

use abi_stable::StableAbi;
use serde::{Deserialize, Serialize};

/// Kind of a failure.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, StableAbi)]
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
    /// Kind of the failure.
    pub kind: PluginErrorKind,
    /// The failure and its cause, naming the file, key or value at fault.
    pub message: String,
    /// Advice to the user.
    pub hint: Option<String>,
    /// The plugin at fault, for instance ``oracle `rules` ``; set where its object was made.
    plugin: Option<&'static str>,
}

impl PluginError {
    /// An error of the given kind.
    pub fn new(kind: PluginErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, plugin: None }
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

    /// Names the plugin at fault. Its objects do so by themselves where the program made them.
    #[must_use]
    pub fn of_plugin(mut self, plugin: impl Into<Option<&'static str>>) -> Self {
        self.plugin = plugin.into().or(self.plugin);
        self
    }

    /// The plugin at fault, if its object was made by the program.
    #[must_use]
    pub fn plugin(&self) -> Option<&'static str> {
        self.plugin
    }

    /// Adds advice to the user.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}
