//! Exit codes of the program.

use sppo_core::ErrorCategory;

/// Shown below `sppo --help`.
pub(crate) const HELP: &str = "\
Exit codes: 0 success, 1 unexpected failure, 2 wrong usage, 3 configuration, 4 input file, \
5 run directory, 6 backend or oracle, 130 stopped on request";

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
    /// A backend or an oracle failed.
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
