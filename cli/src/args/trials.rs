//! Arguments of the commands that try models out: `sppo eval`, `sppo chat` and `sppo bench`.

use std::path::PathBuf;

use clap::{Args, ValueEnum, value_parser};

use super::{
    BackendArguments, LoraArguments, ModelArguments, OracleArguments, ReportArguments,
    SamplerArguments, SamplingArguments, SeedArguments, SettingsArguments,
};

/// Win rates of two or more models against each other
///
/// All answer the same prompts, an oracle compares their answers two by two in both orders, and each mean is
/// given with its bootstrap interval over prompts. Of more than two models there is a ranking, too, and the
/// mixture of them that no single one beats.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo eval --model runs/mine/iteration-3/checkpoint
  sppo eval --model a/ --against b/ --prompts questions.jsonl --samples 4
  sppo eval --model a/ --model b.gguf --model answers.jsonl    all against each other
  sppo eval --model a/ --temperature 0 --json")]
pub(crate) struct EvalArguments {
    /// A model to judge: a directory, a .gguf file, a hub id, or a file of ready answers (JSONL or Parquet with
    /// `prompt` or `messages`, and `response` or `candidates`); may be given several times
    #[arg(long, value_name = "MODEL", required = true)]
    pub(crate) model: Vec<String>,
    /// One more model to compare with [default for a single --model: smollm2-135m-instruct]
    #[arg(long, value_name = "MODEL")]
    pub(crate) against: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    /// Prompts: JSONL or Parquet with `prompt` or `messages` [default: those of the first file of answers, or
    /// else the 32 bundled held-out ones]
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
    pub(crate) sampler: SamplerArguments,
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
    #[arg(long, allow_hyphen_values = true, value_name = "NUMBER", conflicts_with = "samples",
        value_parser = value_parser!(u32).range(2..))]
    pub(crate) best_of: Option<u32>,
    /// System message before the conversation
    #[arg(long, allow_hyphen_values = true, value_name = "TEXT")]
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
    pub(crate) sampler: SamplerArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}

/// Measure sampling and training on this machine
///
/// Samples responses of a fixed length to eight prompts, lets the oracle judge them, then trains on sixteen
/// pairs (reference log-probabilities, forward, backward and RMSProp step). Prints the speed beside the
/// machine's rate of matrix products alone (on a CPU, around each repetition), and the memory beside the
/// prediction. Each part runs once untimed, then --repetitions times. Several processes (--processes, or a
/// launcher) are compared with one.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo bench
  sppo bench --oracle judge
  sppo bench --backend candle --set backend.candle.threads=2
  sppo bench --model my-model/ --json
  sppo bench --shape 1b --lora-rank 16 --samples 1 --new-tokens 32 --repetitions 1")]
pub(crate) struct BenchArguments {
    /// Measure a model of random weights in the shape of a well-known one, which takes 2 bytes per
    /// parameter in the directory for temporary files ($TMPDIR)
    #[arg(long, value_name = "SIZE", value_enum, conflicts_with = "model")]
    pub(crate) shape: Option<ShapeChoice>,
    /// Measure ranking as well, by random weights in the shape of PairRM, which take 1.6 GiB in that directory
    #[arg(long)]
    pub(crate) ranker: bool,
    /// Responses per prompt
    #[arg(long, allow_hyphen_values = true, value_name = "K", default_value_t = 5, value_parser = value_parser!(u16).range(1..))]
    pub(crate) samples: u16,
    /// Tokens per response
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = 128, value_parser = value_parser!(u16).range(1..))]
    pub(crate) new_tokens: u16,
    /// Pairs per optimiser step
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = 4, value_parser = value_parser!(u16).range(1..))]
    pub(crate) global_batch_size: u16,
    /// Timed repetitions of each part
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = 3, value_parser = value_parser!(u16).range(1..))]
    pub(crate) repetitions: u16,
    /// Pairs to train on instead of the bundled ones
    #[arg(long, value_name = "FILE")]
    pub(crate) pairs: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) oracle: OracleArguments,
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
    /// SmolLM2-135M.
    #[value(name = "135m")]
    SmolLm135M,
    /// Llama-3.2-1B.
    #[value(name = "1b")]
    Llama1B,
    /// Llama-3.1-8B.
    #[value(name = "8b")]
    Llama8B,
    /// SmolLM3-3B.
    #[value(name = "smollm3-3b")]
    SmolLm3B,
    /// gemma-3-270m.
    #[value(name = "gemma3-270m")]
    Gemma270M,
    /// gemma-3-1b.
    #[value(name = "gemma3-1b")]
    Gemma1B,
    /// OLMo-2-0425-1B.
    #[value(name = "olmo2-1b")]
    Olmo1B,
    /// Olmo-3-7B.
    #[value(name = "olmo3-7b")]
    Olmo7B,
    /// Phi-4-mini.
    #[value(name = "phi4-mini")]
    Phi4Mini,
    /// Qwen3-30B-A3B.
    #[value(name = "qwen3-30b-a3b")]
    Qwen30B,
}
