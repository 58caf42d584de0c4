//! Comparing models.

use std::path::PathBuf;

use clap::{Args, value_parser};

use super::{
    BackendArguments, OracleArguments, ReportArguments, SamplingArguments, SeedArguments,
    SettingsArguments,
};

/// Win rate of one model against another
///
/// Both answer the same prompts, an oracle compares their answers, and the mean is given with its
/// bootstrap interval over prompts.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo eval --model runs/mine/iteration-3/checkpoint
  sppo eval --model a/ --against b/ --prompts questions.jsonl --samples 4
  sppo eval --model a/ --temperature 0 --json")]
pub(crate) struct EvalArguments {
    /// The model to judge: a directory, a .gguf file, or a hub id
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: String,
    /// The model to compare it with [default: smollm2-135m-instruct]
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// Prompts: JSONL or Parquet with `prompt` or `messages` [default: the 32 bundled held-out ones]
    #[arg(long, value_name = "FILE")]
    pub(crate) prompts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}

/// Talk to one model, or to several to compare them
///
/// With a prompt, every model answers it. Without one, prompts are read line by line from standard
/// input, and the conversation goes on until the input ends; an empty line starts a new one.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo chat \"Why is the sky blue?\"
  sppo chat --model smollm2-135m-instruct --model runs/mine/iteration-3/checkpoint
  sppo chat \"Name a colour.\" --samples 3 --temperature 0.7 --json
  sppo chat \"Name a colour.\" --best-of 8 --oracle rules")]
pub(crate) struct ChatArguments {
    /// The prompt
    #[arg(value_name = "PROMPT")]
    pub(crate) prompt: Option<String>,
    /// A model to talk to; may be given several times [default: smollm2-135m-instruct]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Vec<String>,
    /// Draw so many answers and give the one that the oracle likes best
    #[arg(long, value_name = "NUMBER", conflicts_with = "samples",
        value_parser = value_parser!(u32).range(2..))]
    pub(crate) best_of: Option<u32>,
    /// System message before the conversation
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}
