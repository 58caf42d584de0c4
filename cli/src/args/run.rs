//! Arguments of `sppo run`, and of its stages alone on files.

use std::path::PathBuf;

use clap::Args;

use super::{
    BackendArguments, ModelArguments, OracleArguments, ReportArguments, SamplerArguments,
    SamplingArguments, SeedArguments, SettingsArguments, TrainingArguments,
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
    #[arg(long, group = "continues")]
    pub(crate) resume: bool,
    /// Continue the run named by --name if it is there, or else start it: for launchers that restart
    #[arg(long, group = "continues", requires = "name")]
    pub(crate) resume_or_start: bool,
    /// With --resume, a setting that may differ from the run's start
    #[arg(long, value_name = "KEY", requires = "continues")]
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
    pub(crate) sampler: SamplerArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
    #[command(flatten)]
    pub(crate) training: TrainingArguments,
}

/// Answer prompts: prompts in, candidates out
///
/// Each line of the result holds the prompt and `candidates`, K sampled responses, ready for `sppo rank`.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo generate questions.jsonl --output candidates.jsonl --samples 5
  sppo generate questions.jsonl --model runs/mine/iteration-3/checkpoint | head -1
  sppo generate questions.jsonl --output c.jsonl --rollouts rollouts.parquet")]
pub(crate) struct GenerateArguments {
    /// Prompts: JSONL or Parquet with `prompt` or `messages`; the bundled training prompts if left out
    #[arg(value_name = "PROMPTS")]
    pub(crate) prompts: Option<PathBuf>,
    /// Output file of the candidates, .jsonl or .parquet [default: JSON lines on standard output]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Also write tokens, log-probabilities and finish reasons of the responses
    #[arg(long, value_name = "FILE")]
    pub(crate) rollouts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) sampler: SamplerArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}

/// Judge candidates: candidates in, the same lines with preferences out
///
/// Adds `probability` to each line, whose row i and column j hold the probability that candidate i beats
/// candidate j, and `rm_scores` if the oracle scores.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo rank candidates.jsonl --output ranked.jsonl
  sppo rank candidates.jsonl --output ranked.jsonl --pairs pairs.jsonl   for `sppo train`
  sppo rank candidates.jsonl --set oracle.rules.length.max_words=25")]
pub(crate) struct RankArguments {
    /// Candidates: JSONL or Parquet with `prompt` or `messages`, and `candidates`
    #[arg(value_name = "CANDIDATES")]
    pub(crate) candidates: PathBuf,
    /// Output file of the ranked lines, .jsonl or .parquet [default: JSON lines on standard output]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Also write the best and the worst candidate of each line, as pairs to train on
    #[arg(long, value_name = "FILE")]
    pub(crate) pairs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
}

/// Train on preference pairs: pairs in, a checkpoint out
///
/// Pairs may come from any source. The checkpoint has the Hugging Face layout; `metrics.jsonl` beside it
/// holds the loss, log-probabilities, gradient norm and learning rate of every step.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo train pairs.jsonl --output trained
  sppo train pairs.jsonl --output trained --objective dpo --eta 10 --learning-rate 1e-6
  sppo train pairs.parquet --output trained --preset official")]
pub(crate) struct TrainArguments {
    /// Pairs: JSONL or Parquet with `prompt` or `messages`, `chosen`, `rejected`, `chosen_probs`,
    /// `chosen_probs_win`, `chosen_probs_lose`; or `prompt_tokens`, `chosen_tokens`, `rejected_tokens`
    #[arg(value_name = "PAIRS")]
    pub(crate) pairs: PathBuf,
    /// The directory for the checkpoint, without a model in it
    #[arg(long, short, value_name = "DIRECTORY")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) training: TrainingArguments,
}

/// Per-token log-probabilities of given responses
///
/// One line per response: `tokens`, `log_probs` (one for each token), `log_prob` (their sum).
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo score responses.jsonl --output scores.jsonl
  sppo score responses.jsonl --model runs/mine/iteration-3/checkpoint")]
pub(crate) struct ScoreArguments {
    /// Responses: JSONL or Parquet with `prompt` or `messages`, and `response`; or `prompt_tokens` and
    /// `response_tokens`
    #[arg(value_name = "RESPONSES")]
    pub(crate) responses: PathBuf,
    /// Output file of the scores, .jsonl or .parquet [default: JSON lines on standard output]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
}
