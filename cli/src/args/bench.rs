//! `sppo bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

use super::{BackendArguments, LoraArguments, ModelArguments, ReportArguments, SettingsArguments};

/// Measure sampling and training on this machine
///
/// Samples responses of a fixed length to eight prompts, lets the oracle judge them, then trains on sixteen
/// pairs (reference log-probabilities, forward, backward and RMSProp step). Prints the speed beside the
/// machine's rate of matrix products alone, and the memory beside the prediction. Each part runs once
/// untimed, then --repetitions times.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo bench
  sppo bench --backend candle --set backend.candle.threads=2
  sppo bench --model my-model/ --json
  sppo bench --shape 1b --lora-rank 16 --samples 1 --new-tokens 32 --repetitions 1")]
pub(crate) struct BenchArguments {
    /// Measure a model of random weights in the shape of SmolLM2-135M, Llama-3.2-1B or Llama-3.1-8B,
    /// which takes 2 bytes per parameter in the directory for temporary files ($TMPDIR)
    #[arg(long, value_name = "SIZE", value_enum, conflicts_with = "model")]
    pub(crate) shape: Option<ShapeChoice>,
    /// Responses per prompt
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = value_parser!(u16).range(1..))]
    pub(crate) samples: u16,
    /// Tokens per response
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = value_parser!(u16).range(1..))]
    pub(crate) new_tokens: u16,
    /// Pairs per optimiser step
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(1..))]
    pub(crate) global_batch_size: u16,
    /// Timed repetitions of each part
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u16).range(1..))]
    pub(crate) repetitions: u16,
    /// Pairs to train on instead of the bundled ones
    #[arg(long, value_name = "FILE")]
    pub(crate) pairs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) lora: LoraArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
}

/// The shape of a well-known model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapeChoice {
    #[value(name = "135m")]
    SmolLm135M,
    #[value(name = "1b")]
    Llama1B,
    #[value(name = "8b")]
    Llama8B,
}
