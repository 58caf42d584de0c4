//! Errors of plugins.

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
}
