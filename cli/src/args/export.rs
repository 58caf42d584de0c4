//! Arguments of `sppo export`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    BackendArguments, SamplerArguments, SamplingArguments, SeedArguments, SettingsArguments,
};

/// Write a model for another program: for llama.cpp and Ollama, or its answers for a benchmark
#[derive(Args, Clone, Debug)]
pub(crate) struct ExportArguments {
    #[command(subcommand)]
    pub(crate) target: ExportTarget,
}

impl ExportArguments {
    /// The arguments that choose the backend, where a model answers.
    pub(crate) fn backend(&self) -> Option<(&SettingsArguments, &BackendArguments)> {
        match &self.target {
            ExportTarget::AlpacaEval(arguments)
            | ExportTarget::ArenaHard(arguments)
            | ExportTarget::MtBench(arguments) => Some((&arguments.settings, &arguments.backend)),
            ExportTarget::Gguf(_) | ExportTarget::LmEval(_) => None,
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
pub(crate) enum ExportTarget {
    /// A GGUF file, for llama.cpp, Ollama and LM Studio
    Gguf(GgufArguments),
    /// Answers to the instructions of AlpacaEval
    AlpacaEval(BenchmarkArguments),
    /// Answers to the questions of Arena-Hard-Auto
    ArenaHard(BenchmarkArguments),
    /// Answers to the questions of MT-Bench, two turns each
    MtBench(BenchmarkArguments),
    /// The command that evaluates a model with lm-evaluation-harness
    LmEval(LmEvalArguments),
}

/// A GGUF file, for llama.cpp, Ollama and LM Studio
///
/// Adapters are merged into their model. The file's settings and its tokenizer are read back before the weights
/// are written: a model that llama.cpp would compute or tokenise otherwise is refused.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo export gguf runs/mine/iteration-3/checkpoint --type q8_0
  sppo export gguf runs/mine/iteration-3/checkpoint --base start.gguf --output mine.gguf
  sppo export gguf model.gguf --type q4_k                    a file in another number format")]
pub(crate) struct GgufArguments {
    /// The model: a directory, adapters, a .gguf file or a hub id
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: String,
    /// The number format of matrices
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t)]
    pub(crate) format: GgufFormatChoice,
    /// A GGUF file of the model that training began with: its metadata are taken as they are
    #[arg(long, value_name = "FILE")]
    pub(crate) base: Option<PathBuf>,
    /// The file, which must not exist [default: named after the checkpoint and the type, in the working directory]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
}

/// The number format of matrices in a GGUF file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[expect(non_camel_case_types, reason = "these are the formats' names")]
pub(crate) enum GgufFormatChoice {
    /// 32 bits: exact
    #[value(name = "f32")]
    F32,
    /// 16 bits, 11 of them of precision
    #[default]
    #[value(name = "f16")]
    F16,
    /// 16 bits, 8 of them of precision, with the range of f32
    #[value(name = "bf16")]
    Bf16,
    /// 8.5 bits per weight
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits per weight; the output head has 8.5
    #[value(name = "q4_0")]
    Q4_0,
    /// 4.5 bits per weight, more exact than q4_0; the output head has 8.5
    #[value(name = "q4_k")]
    Q4_K,
}

/// Answers of a model to the questions of a benchmark
///
/// The file has the benchmark's own format, and is what its judging takes.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchmarkArguments {
    /// The model: a directory, adapters, a .gguf file or a hub id
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: String,
    /// The benchmark's questions, in its own format
    #[arg(long, value_name = "FILE")]
    pub(crate) questions: PathBuf,
    /// The answers [default: NAME.json or NAME.jsonl in the working directory]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The model's name in the benchmark [default: after the checkpoint]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
    #[command(flatten)]
    pub(crate) seed: SeedArguments,
    #[command(flatten)]
    pub(crate) backend: BackendArguments,
    #[command(flatten)]
    pub(crate) sampler: SamplerArguments,
    #[command(flatten)]
    pub(crate) settings: SettingsArguments,
    #[command(flatten)]
    pub(crate) sampling: SamplingArguments,
}

/// The command that evaluates a model with lm-evaluation-harness
///
/// Prints the command line of `lm_eval` for a checkpoint, and runs nothing.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo export lm-eval runs/mine/iteration-3/checkpoint
  sppo export lm-eval runs/mine/iteration-3/checkpoint --tasks gsm8k | sh")]
pub(crate) struct LmEvalArguments {
    /// The model: a directory, adapters, a .gguf file or a hub id
    #[arg(value_name = "CHECKPOINT")]
    pub(crate) checkpoint: String,
    /// Tasks of lm-evaluation-harness, separated by commas
    #[arg(long, value_name = "TASKS", default_value = "leaderboard,ifeval")]
    pub(crate) tasks: String,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
}
