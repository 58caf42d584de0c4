//! Failures of commands and their messages: what, why, and the next step.

use std::io::{self, ErrorKind};
use std::panic::{self, AssertUnwindSafe};

use sppo_core::{Error, ErrorCategory};
use sppo_model::ModelError;

use crate::exit_code::ExitCode;
use crate::terminal::Terminal;

/// Shorthand for results of commands.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Reasons for a command to fail.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The core, a plugin or a file.
    Core(Error),
    /// Stopped on request.
    Stopped {
        /// The command that continues the work, if there is one.
        go_on: Option<String>,
    },
    /// Standard output cannot be written.
    Output(io::Error),
    /// A defect of this program.
    Bug(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Cancelled => Self::Stopped { go_on: None },
            other => Self::Core(other),
        }
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::File { path, message, hint } => {
                Self::Core(Error::Input { path, line: None, message, hint })
            }
            other => Error::of_plugin("model", other.into()).into(),
        }
    }
}

impl Failure {
    /// The exit code. A closed pipe, as `head` leaves it, is no failure.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Core(error) => error.category().into(),
            Self::Stopped { .. } => ErrorCategory::Cancelled.into(),
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::Success,
            Self::Output(_) | Self::Bug(_) => ExitCode::Unexpected,
        }
    }

    /// Prints the failure.
    pub(crate) fn explain(&self, terminal: &Terminal) {
        match self {
            Self::Core(error) => terminal.error(&error.to_string(), error.hint()),
            Self::Stopped { go_on: Some(command) } => {
                terminal.error("stopped on request", Some(&format!("go on with `{command}`")))
            }
            Self::Stopped { go_on: None } => terminal.error("stopped on request", None),
            Self::Output(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Self::Output(error) => {
                terminal.error(&format!("cannot write to standard output: {error}"), None);
            }
            Self::Bug(what) => terminal.error(
                &format!("this is a defect of sppo: {what}"),
                Some("please report it with the command that led to it"),
            ),
        }
    }
}

/// Runs a command; a panic, which only a defect can cause, becomes an error like any other.
pub(crate) fn catch_bugs(command: impl FnOnce() -> Result<()>) -> Result<()> {
    panic::set_hook(Box::new(|information| {
        tracing::debug!("{information}");
    }));
    panic::catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned());
        Err(Failure::Bug(text.unwrap_or_else(|| "no reason known".into())))
    })
}
