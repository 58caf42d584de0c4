//! Everything without a model.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};
use clap_complete::Shell;

use super::{BackendArguments, OracleArguments, ReportArguments, SettingsArguments};

/// Self-play on a small game, exactly, beside the theorem's bound
///
/// The multiplicative-weights update of SPPO on a finite preference matrix. Per iteration it prints by
/// how much the best response beats the last policy, and by how much it beats the uniform mixture of
/// all policies so far, which the theorem bounds by O(1/sqrt(T)).
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo game                                        rock, paper, scissors
  sppo game --kind cycle --actions 5 --iterations 1000
  sppo game --kind random --actions 20 --seed 7 --svg gap.svg
  sppo game --matrix preferences.csv --csv gaps.csv")]
pub(crate) struct GameArguments {
    /// A built-in game: `cycle`, where each action beats the next half of the others; or `random`
    #[arg(long, value_name = "KIND", value_parser = ["cycle", "random"], default_value = "cycle")]
    pub(crate) kind: String,
    /// Actions of a built-in game [default: 3 for cycle, 10 for random]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(2..=2000))]
    pub(crate) actions: Option<u16>,
    /// Draws a random game
    #[arg(long, value_name = "SEED", default_value_t = 42)]
    pub(crate) seed: u64,
    /// A game of your own: a CSV file, where row i and column j hold P(i beats j)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["actions", "seed"])]
    pub(crate) matrix: Option<PathBuf>,
    /// Iterations of self-play
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub(crate) iterations: u32,
    /// The step size [default: as the theorem sets it for these iterations]
    #[arg(long, value_name = "ETA")]
    pub(crate) eta: Option<f64>,
    /// Draw the gaps and the bound, on logarithmic axes
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write the gaps and the bound of every iteration
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// The backends and oracles at hand
#[derive(Args, Clone, Debug)]
pub(crate) struct PluginArguments {
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum PluginCommand {
    /// List all plugins
    List {
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Describe a plugin and its settings
    Info {
        /// The plugin's name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        report: ReportArguments,
    },
}

/// The settings of a run
#[derive(Args, Clone, Debug)]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum ConfigCommand {
    /// Print the settings that a run with these flags would have, as TOML
    Show {
        /// Say where each setting comes from
        #[arg(long)]
        sources: bool,
        #[command(flatten)]
        settings: SettingsArguments,
        #[command(flatten)]
        backend: BackendArguments,
        #[command(flatten)]
        oracle: OracleArguments,
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Print the JSON Schema of all settings
    Schema,
}

/// Completions for a shell
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo completions bash > ~/.local/share/bash-completion/completions/sppo
  sppo completions fish > ~/.config/fish/completions/sppo.fish")]
pub(crate) struct CompletionsArguments {
    /// The shell
    #[arg(value_name = "SHELL", value_enum)]
    pub(crate) shell: Shell,
}

/// Manual pages
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Example:
  sppo man ~/.local/share/man/man1")]
pub(crate) struct ManArguments {
    /// The directory to write them to
    #[arg(value_name = "DIRECTORY")]
    pub(crate) directory: PathBuf,
}
