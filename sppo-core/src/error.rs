//! The error type of the core: the fault, its cause, and the next step.

use std::path::PathBuf;

use crate::plugin::{PluginError, PluginErrorKind};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Kind of an error; the command line turns it into an exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorCategory {
    /// A configuration file, a flag or a combination of settings.
    Configuration,
    /// A file of the user: prompts, pairs, a model.
    Input,
    /// The run directory: in use, altered, not writable, disk full.
    RunDirectory,
    /// A backend or an oracle failed or returned something invalid.
    Plugin,
    /// The user asked to stop; committed work is kept.
    Cancelled,
}

/// Everything that can go wrong in the core.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is unknown, malformed or contradicts another.
    #[error("{key}: {message}")]
    Configuration {
        /// The file and key (`sppo.toml: training.eta`) or the flag at fault.
        key: String,
        /// Description of the fault.
        message: String,
        /// Advice for the user.
        hint: Option<String>,
    },
    /// A file of the user cannot be used.
    #[error("{}{}: {message}", path.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Input {
        /// The file at fault.
        path: PathBuf,
        /// The line at fault, counted from 1.
        line: Option<u64>,
        /// Description of the fault.
        message: String,
        /// Advice for the user.
        hint: Option<String>,
    },
    /// The run directory cannot be created, locked, read or written.
    #[error("{}: {message}", path.display())]
    RunDirectory {
        /// The file or directory at fault.
        path: PathBuf,
        /// Description of the fault.
        message: String,
        /// Advice for the user.
        hint: Option<String>,
    },
    /// A backend or an oracle failed.
    #[error("{plugin}: {source}")]
    Plugin {
        /// The plugin at fault: ``oracle `rules` ``.
        plugin: String,
        /// The plugin's error.
        source: PluginError,
    },
    /// The user asked to stop.
    #[error("stopped on request")]
    Cancelled,
}

impl Error {
    /// A configuration error without a hint.
    pub fn configuration(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Configuration { key: key.into(), message: message.into(), hint: None }
    }

    /// An error about an input file as a whole.
    pub fn input(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::Input { path: path.into(), line: None, message: message.into(), hint: None }
    }

    /// An error about the run directory.
    pub fn run_directory(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::RunDirectory { path: path.into(), message: message.into(), hint: None }
    }

    /// An error of the plugin with this label.
    #[must_use]
    pub fn of_plugin(plugin: impl Into<String>, source: PluginError) -> Self {
        match source.kind {
            PluginErrorKind::Cancelled => Self::Cancelled,
            _ => Self::Plugin { plugin: plugin.into(), source },
        }
    }

    /// Adds advice for the user.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        match &mut self {
            Self::Configuration { hint, .. }
            | Self::Input { hint, .. }
            | Self::RunDirectory { hint, .. } => *hint = Some(text.into()),
            Self::Plugin { source, .. } => source.hint = Some(text.into()),
            Self::Cancelled => {}
        }
        self
    }

    /// Advice for the user, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Configuration { hint, .. }
            | Self::Input { hint, .. }
            | Self::RunDirectory { hint, .. } => hint.as_deref(),
            Self::Plugin { source, .. } => source.hint.as_deref(),
            Self::Cancelled => None,
        }
    }

    /// Kind of the error.
    #[must_use]
    pub fn category(&self) -> ErrorCategory {
        match self {
            Self::Configuration { .. } => ErrorCategory::Configuration,
            Self::Input { .. } => ErrorCategory::Input,
            Self::RunDirectory { .. } => ErrorCategory::RunDirectory,
            Self::Plugin { source, .. } => category_of(source.kind),
            Self::Cancelled => ErrorCategory::Cancelled,
        }
    }
}

fn category_of(kind: PluginErrorKind) -> ErrorCategory {
    match kind {
        PluginErrorKind::Configuration => ErrorCategory::Configuration,
        PluginErrorKind::Input => ErrorCategory::Input,
        PluginErrorKind::Cancelled => ErrorCategory::Cancelled,
        PluginErrorKind::Unsupported | PluginErrorKind::OutOfMemory | PluginErrorKind::Failed => {
            ErrorCategory::Plugin
        }
    }
}

/// The plugin is named by the error, as objects that the registry has made do.
impl From<PluginError> for Error {
    fn from(source: PluginError) -> Self {
        Self::of_plugin(source.plugin().unwrap_or("plugin"), source)
    }
}
