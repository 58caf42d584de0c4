//! Arguments of `sppo oracle`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};

use super::{BackendArguments, OracleArguments, ReportArguments, SettingsArguments};

/// The oracle that judges
#[derive(Args, Clone, Debug)]
pub(crate) struct OracleCommandArguments {
    #[command(subcommand)]
    pub(crate) command: OracleCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum OracleCommand {
    /// Compare an oracle's verdicts with labelled pairs
    Check(OracleCheckArguments),
}

/// Compare an oracle's verdicts with labelled pairs
///
/// Asks any oracle about pairs of which the better answer is known, and prints how often it agrees, whether it
/// favours a place, whether its probabilities are as good as they say (calibration), and what it took.
/// Rows may name the `subset` that they belong to, as those of RewardBench do.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo oracle check pairs.jsonl                                    the oracle `rules`
  sppo oracle check rewardbench.parquet --oracle reward --set oracle.reward.model=path/to/model
  sppo oracle check pairs.jsonl --oracle http --config judge.toml --json")]
pub(crate) struct OracleCheckArguments {
    /// Pairs: JSONL or Parquet with `prompt` or `messages`, `chosen` and `rejected`
    #[arg(value_name = "PAIRS")]
    pub(crate) pairs: PathBuf,
    /// Take only the first so many pairs
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) limit: Option<u32>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
}
