//! The error type of models, checkpoints and op sets.

use std::path::PathBuf;

use sppo_plugin::{PluginError, PluginErrorKind};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, ModelError>;

/// An error of a model, a checkpoint or an op set.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A model file cannot be read or holds something that cannot be used.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or directory at fault.
        path: PathBuf,
        /// The problem.
        message: String,
        /// The remedy, where there is one.
        hint: Option<String>,
    },
    /// The model's architecture or one of its settings is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Text, tokens or a batch that this model cannot take.
    #[error("{0}")]
    Input(String),
    /// A chat template failed or refused a conversation.
    #[error("chat template: {0}")]
    Template(String),
    /// The tensor library failed.
    #[error("{0}")]
    Backend(String),
    /// A weight has become infinite or not a number.
    #[error("the weight `{0}` is no longer finite: training has diverged")]
    Diverged(String),
    /// Memory ran out.
    #[error("out of memory: {0}")]
    OutOfMemory(String),
    /// The host asked to stop.
    #[error("stopped on request")]
    Cancelled,
    /// The processes that hold a model together cannot go on together.
    #[error("{0}")]
    Team(PluginError),
}

impl ModelError {
    /// An error about a model file.
    pub fn file(path: impl Into<PathBuf>, message: impl Into<String>) -> Self {
        Self::File { path: path.into(), message: message.into(), hint: None }
    }

    /// Adds a remedy to an error about a file.
    #[must_use]
    pub fn with_hint(mut self, text: impl Into<String>) -> Self {
        if let Self::File { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }
}

impl From<ModelError> for PluginError {
    fn from(error: ModelError) -> Self {
        let kind = match &error {
            ModelError::Team(error) => return error.clone(),
            ModelError::File { .. } | ModelError::Input(_) | ModelError::Template(_) => {
                PluginErrorKind::Input
            }
            ModelError::Unsupported(_) => PluginErrorKind::Unsupported,
            ModelError::Backend(_) | ModelError::Diverged(_) => PluginErrorKind::Failed,
            ModelError::OutOfMemory(_) => PluginErrorKind::OutOfMemory,
            ModelError::Cancelled => PluginErrorKind::Cancelled,
        };
        let message = error.to_string();
        let hint = match error {
            ModelError::File { hint, .. } => hint,
            ModelError::Diverged(_) => Some(
                "resume from the last commit with a smaller `training.learning_rate`, which needs \
                 --allow training.learning_rate"
                    .into(),
            ),
            _ => None,
        };
        let mut told = Self::new(kind, message);
        told.hint = hint;
        told
    }
}
