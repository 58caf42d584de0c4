//! Failures of commands, with their messages (what, why, and the next step) and exit codes.

use std::io::{self, ErrorKind};
use std::panic::{self, AssertUnwindSafe};

use sppo_core::plugin::PluginError;
use sppo_core::{Error, ErrorCategory};
use sppo_model::ModelError;
use sppo_model::hub::HubError;

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

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        let hint = error.hint().unwrap_or_default();
        let setting = match &error {
            HubError::Cancelled => return Self::Stopped { go_on: None },
            HubError::NoToken | HubError::WrongToken => "HF_TOKEN",
            HubError::Offline => "HF_HUB_OFFLINE",
            HubError::InvalidName(_)
            | HubError::NoPermission { .. }
            | HubError::NoSuchRepository(_) => "--repo",
            HubError::File { path, cause } => {
                return Error::input(path, cause.to_string()).with_hint(hint).into();
            }
            HubError::Unreachable(_)
            | HubError::Refused { .. }
            | HubError::Malformed(_)
            | HubError::Damaged => {
                let told = PluginError::failed(error.to_string()).with_hint(hint);
                return Error::of_plugin("push", told).into();
            }
        };
        Error::configuration(setting, error.to_string()).with_hint(hint).into()
    }
}

impl Failure {
    /// The failure as the answer to a plugin that asked for something.
    pub(crate) fn into_plugin_error(self) -> PluginError {
        match self {
            Self::Core(error) => {
                let mut told = PluginError::input(error.to_string());
                told.hint = error.hint().map(String::from);
                told
            }
            Self::Stopped { .. } => PluginError::cancelled(),
            Self::Output(error) => PluginError::failed(error.to_string()),
            Self::Bug(message) => PluginError::failed(message),
        }
    }

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

/// Shown below `sppo --help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes: 0 success, 1 unexpected failure, 2 wrong usage, 3 configuration, 4 input file, \
5 run directory, 6 backend, oracle or model hub, 130 stopped on request";

/// The exit codes; clap uses 2 for arguments that it cannot parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCode {
    /// Success.
    Success = 0,
    /// An unexpected error, possibly a bug.
    Unexpected = 1,
    /// A configuration file, a flag's value, or a combination of settings.
    Configuration = 3,
    /// A file that the user gave: prompts, pairs, a model.
    Input = 4,
    /// The run directory: in use, altered, not writable, disk full.
    RunDirectory = 5,
    /// A backend, an oracle or the model hub failed.
    Plugin = 6,
    /// Ctrl-C; committed work is kept.
    Cancelled = 130,
}

impl From<ErrorCategory> for ExitCode {
    fn from(category: ErrorCategory) -> Self {
        match category {
            ErrorCategory::Configuration => Self::Configuration,
            ErrorCategory::Input => Self::Input,
            ErrorCategory::RunDirectory => Self::RunDirectory,
            ErrorCategory::Plugin => Self::Plugin,
            ErrorCategory::Cancelled => Self::Cancelled,
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
