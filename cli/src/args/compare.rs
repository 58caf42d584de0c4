//! Arguments of `sppo compare`.

use std::path::PathBuf;

use clap::Args;

use super::{
    BackendArguments, ModelArguments, OracleArguments, ReportArguments, SettingsArguments,
};

/// Compare runs that differ in some settings
///
/// A file or --axis names what runs differ in; every combination is a run, in a directory of its own. In the
/// end a judge compares the held-out answers of all runs with those of the starting model and with each
/// other's. Work that runs have in common is done once. Given again, the command goes on where it was
/// stopped, and adds what is new in the file.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo compare examples/paper-objectives.toml
  sppo compare examples/paper-k.toml --dry-run       the runs and their settings
  sppo compare --axis training.eta=10,100,1000 --axis seed=1,2,3 --output comparisons/eta
  sppo compare mine.toml --set iterations=2 --json")]
pub(crate) struct CompareArguments {
    /// A TOML file that describes the comparison
    #[arg(value_name = "FILE", required_unless_present = "axis")]
    pub(crate) file: Option<PathBuf>,
    /// A setting that runs differ in, and its values; may be given several times
    #[arg(long, value_name = "KEY=VALUE,...")]
    pub(crate) axis: Vec<String>,
    /// The directory of the comparison [default: comparisons/ and the file's name]
    #[arg(long, short, value_name = "DIRECTORY", required_unless_present = "file")]
    pub(crate) output: Option<PathBuf>,
    /// A setting in which runs may differ from their start, when they go on
    #[arg(long, value_name = "KEY")]
    pub(crate) allow: Vec<String>,
    /// Print the runs and their settings, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Start even if a run needs more memory than this machine has
    #[arg(long)]
    pub(crate) ignore_memory: bool,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
}
