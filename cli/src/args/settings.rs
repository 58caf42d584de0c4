//! Shared flags of most commands.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sppo_core::config::Preset;

use crate::flags::{self, GivenFlags};

/// The layers below the flags.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Settings")]
pub(crate) struct SettingsArguments {
    /// A named set of settings to start from [default: quick]
    #[arg(long, value_name = "NAME", value_enum, hide_default_value = true)]
    pub(crate) preset: Option<PresetName>,
    /// A TOML file with settings; may be given several times, the later wins
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Vec<PathBuf>,
    /// One setting, for instance training.eta=100; `sppo config schema` describes all
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// A library with plugins; may be given several times
    #[arg(long, value_name = "FILE", help_heading = "Plugins")]
    pub(crate) plugin: Vec<PathBuf>,
    /// Processes on this machine that hold the models together, each a whole replica (backend tch)
    #[arg(long, value_name = "N", help_heading = "Plugins")]
    pub(crate) processes: Option<usize>,
}

/// The presets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetName {
    /// A small model on a small machine, within minutes
    #[default]
    Quick,
    /// The released code of the paper
    Official,
    /// The paper's text, where it differs from the code
    Paper,
}

impl From<PresetName> for Preset {
    fn from(name: PresetName) -> Self {
        match name {
            PresetName::Quick => Self::Quick,
            PresetName::Official => Self::Official,
            PresetName::Paper => Self::Paper,
        }
    }
}

/// The model to start from.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    #[command(flatten)]
    pub(crate) given: GivenFlags<flags::Model>,
    /// Use only files on this machine
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Training, with the optimiser and adapters.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct TrainingArguments {
    #[command(flatten)]
    pub(crate) training: GivenFlags<flags::Training>,
    #[command(flatten)]
    pub(crate) optimizer: GivenFlags<flags::Optimizer>,
    #[command(flatten)]
    pub(crate) lora: LoraArguments,
}

pub(crate) type SeedArguments = GivenFlags<flags::Seed>;
pub(crate) type BackendArguments = GivenFlags<flags::Backend>;
pub(crate) type OracleArguments = GivenFlags<flags::Oracle>;
pub(crate) type SamplerArguments = GivenFlags<flags::Sampler>;
pub(crate) type SamplingArguments = GivenFlags<flags::Sampling>;
pub(crate) type LoraArguments = GivenFlags<flags::Lora>;

/// Form of the report.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ReportArguments {
    /// Write only the report, as JSON, to standard output
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
