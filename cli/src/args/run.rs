//! `sppo run`.

use std::path::PathBuf;

use clap::Args;

use super::{
    BackendArguments, ModelArguments, OracleArguments, ReportArguments, SamplingArguments,
    SeedArguments, SettingsArguments, TrainingArguments,
};
use crate::flags::{self, GivenFlags};

/// Play: sample, judge, train and evaluate, iteration after iteration
///
/// Without any flag this plays three iterations of a small model on the bundled prompts. It commits every
/// result to a run directory, so that --resume continues a run that was stopped in any way.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo run                                          the defaults
  sppo run --name mine --model my-model/ --prompts questions.jsonl
  sppo run --preset official --dry-run              what would be done, without doing it
  sppo run --resume --name mine                     go on with a run
  sppo run --set oracle.rules.length.max_words=25   a setting of the oracle")]
pub(crate) struct RunArguments {
    /// The run's name, its directory within --run-directory [default: MODEL-ORACLE-NUMBER]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// The directory that holds all runs [default: runs]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) run_directory: Option<PathBuf>,
    /// Continue the run named by --name, or else the latest, with its settings
    #[arg(long)]
    pub(crate) resume: bool,
    /// With --resume, a setting that may differ from the run's start
    #[arg(long, value_name = "KEY", requires = "resume")]
    pub(crate) allow: Vec<String>,
    /// Print the plan with its memory, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Start even if the run needs more memory than this machine has
    #[arg(long)]
    pub(crate) ignore_memory: bool,
    #[command(flatten)]
    pub(crate) length: GivenFlags<flags::Run>,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    /// Prompts to train on: JSONL or Parquet with `prompt` or `messages` [default: 128 bundled ones]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    /// Prompts to compare models on, never trained on [default: 32 bundled ones]
    #[arg(long, value_name = "FILE")]
    pub(crate) held_out: Option<PathBuf>,
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
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) training: TrainingArguments,
}
