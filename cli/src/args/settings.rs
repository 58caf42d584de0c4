//! Flags that most commands share.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use sppo_core::config::Preset;

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
}

/// The presets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum PresetName {
    /// A small model on a small machine, within minutes
    #[default]
    Quick,
    /// What the released code of the paper does
    Official,
    /// What the paper's text says, where it differs
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

/// Which model.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArguments {
    /// A model directory, a .gguf file, or a Hugging Face hub id [default: smollm2-135m-instruct]
    #[arg(long, value_name = "MODEL")]
    pub(crate) model: Option<String>,
    /// Branch, tag or commit of a hub model
    #[arg(long, value_name = "REVISION")]
    pub(crate) revision: Option<String>,
    /// Use only what is on this machine
    #[arg(long)]
    pub(crate) offline: bool,
}

/// Which backend.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Plugins")]
pub(crate) struct BackendArguments {
    /// What computes; `sppo plugin list` shows what there is [default: candle]
    #[arg(long, value_name = "NAME")]
    pub(crate) backend: Option<String>,
}

/// Which oracle.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Plugins")]
pub(crate) struct OracleArguments {
    /// What judges; `sppo plugin list` shows what there is [default: rules]
    #[arg(long, value_name = "NAME")]
    pub(crate) oracle: Option<String>,
}

/// In which form a command reports.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct ReportArguments {
    /// Write the report as JSON, and nothing else, to standard output
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}
