//! Arguments of commands that load no model.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, value_parser};
use clap_complete::Shell;
use sppo_core::game::GameAlgorithm;

use super::{
    BackendArguments, ModelArguments, OracleArguments, ReportArguments, SamplerArguments,
    SettingsArguments,
};

/// Self-play on a small game, exactly, beside the theorem's bound
///
/// Plays the update that SPPO approximates with a language model, on a finite table of preferences. Each
/// iteration prints the duality gap (0 at the equilibrium) of the last policy and of the uniform mixture of
/// all policies so far, for which the theorem promises O(1/sqrt(T)).
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo game                                        rock, paper, scissors
  sppo game --kind cycle --size 5 --iterations 10000
  sppo game --kind random --size 20 --seed 7 --svg gaps.svg
  sppo game --matrix preferences.csv --csv gaps.csv
  sppo game --algorithm extragradient --algorithm optimistic --eta 1 --html gaps.html")]
pub(crate) struct GameArguments {
    /// A built-in game: in a cycle, each answer beats the half of the others that follow it
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    pub(crate) kind: GameKind,
    /// Answers of a built-in game [default: 3 for cycle, 10 for random]
    #[arg(long, allow_hyphen_values = true, value_name = "N", value_parser = value_parser!(u16).range(2..=1000))]
    pub(crate) size: Option<u16>,
    /// Seed of a random game
    #[arg(long, allow_hyphen_values = true, value_name = "SEED", default_value_t = 42)]
    pub(crate) seed: u64,
    /// A game of your own: a CSV file whose row i and column j hold P(i beats j)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kind", "size", "seed"])]
    pub(crate) matrix: Option<PathBuf>,
    /// Iterations of self-play
    #[arg(long, allow_hyphen_values = true, value_name = "N", default_value_t = 1000, value_parser = value_parser!(u32).range(1..=100_000))]
    pub(crate) iterations: u32,
    /// The step size [default: the one with the smallest bound]
    #[arg(long, allow_hyphen_values = true, value_name = "ETA")]
    pub(crate) eta: Option<f64>,
    /// Also play another algorithm, whose last policy settles, with the same step size; may be given several times
    #[arg(long, value_name = "ALGORITHM", value_enum)]
    pub(crate) algorithm: Vec<AlgorithmChoice>,
    /// Draw the gaps and the bound, on logarithmic axes
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Write a page with the gaps, the bound, the policies and the preferences
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// Write the gaps, the bound and the policy of every iteration
    #[arg(long, value_name = "FILE")]
    pub(crate) csv: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// The algorithms beside SPPO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlgorithmChoice {
    /// Optimistic multiplicative weights
    Optimistic,
    /// Two steps per iteration, the second by what the first sees
    Extragradient,
    /// A step by the gain where it arrives
    ProximalPoint,
}

impl From<AlgorithmChoice> for GameAlgorithm {
    fn from(choice: AlgorithmChoice) -> Self {
        match choice {
            AlgorithmChoice::Optimistic => Self::Optimistic,
            AlgorithmChoice::Extragradient => Self::Extragradient,
            AlgorithmChoice::ProximalPoint => Self::ProximalPoint,
        }
    }
}

/// The built-in games.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum GameKind {
    /// Rock, paper, scissors of any odd size
    #[default]
    Cycle,
    /// Probabilities drawn by --seed
    Random,
}

/// Upload a checkpoint to the Hugging Face hub
///
/// Uploads the last checkpoint of a run, or that of --iteration, with its model card; or a directory with a model as
/// it is. The repository and the branch are made if they are not there. The token is that of HF_TOKEN or of
/// `hf auth login`. Repeated after an interruption, it sends nothing that the hub has.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo push mine --repo my-model                   the last checkpoint of the run runs/mine
  sppo push mine --repo my-org/my-model --iteration 2 --revision iteration-2 --private
  sppo push merged/ --repo my-model                a directory from sppo merge")]
pub(crate) struct PushArguments {
    /// The run or the checkpoint: a directory, or the name of a run within --run-directory
    #[arg(value_name = "RUN|CHECKPOINT")]
    pub(crate) source: PathBuf,
    /// The repository: a name of your own account, or owner/name
    #[arg(long, value_name = "NAME")]
    pub(crate) repo: String,
    /// Make the repository private, if it is made
    #[arg(long)]
    pub(crate) private: bool,
    /// The iteration whose checkpoint is uploaded [default: the last that is finished]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub(crate) iteration: Option<u32>,
    /// The branch
    #[arg(long, value_name = "BRANCH", default_value = "main")]
    pub(crate) revision: String,
    /// Upload the run's report too, and link it in the card: it shows prompts, answers and paths
    #[arg(long)]
    pub(crate) with_report: bool,
    /// Hub id of the starting model, for the card and for adapters [default: the run's, if it came from the hub]
    #[arg(long, value_name = "ID")]
    pub(crate) base_model: Option<String>,
    /// Licence, as the hub spells it, for the card [default: that which the starting model declares]
    #[arg(long, value_name = "LICENSE")]
    pub(crate) license: Option<String>,
    /// Hub id of a data set that the prompts come from, for the card; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) dataset: Vec<String>,
    /// The directory that holds all runs
    #[arg(long, value_name = "DIRECTORY", default_value = "runs")]
    pub(crate) run_directory: PathBuf,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// One run, or several side by side, as a page to look at
///
/// Reads run directories, of runs that are being played too, and writes one HTML file that needs no other and no
/// network. `sppo run` writes the same file for its run after every iteration.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo report mine                                 the run runs/mine, into runs/mine/report.html
  sppo report runs/a runs/b runs/c --output abc.html
  sppo report mine --json                          its numbers instead, without the answers")]
pub(crate) struct RunReportArguments {
    /// The runs: directories, or names within --run-directory
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The page [default: report.html in the run's directory; of several runs, in the working directory]
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// The directory that holds all runs
    #[arg(long, value_name = "DIRECTORY", default_value = "runs")]
    pub(crate) run_directory: PathBuf,
    #[command(flatten)]
    pub(crate) report: ReportArguments,
}

/// Merge low-rank adapters into their model
///
/// Reads a directory in the layout of Python's PEFT, as written by training with --lora-rank, and the
/// adapters' base model, which must be on this machine. Writes a complete checkpoint in f32. With --untied-head it
/// takes a whole model too, and writes it as servers need it that reload weights.
#[derive(Args, Clone, Debug)]
#[command(after_help = "\
Examples:
  sppo merge runs/sppo/iteration-3/checkpoint --output merged/
  sppo merge smollm2-135m-instruct --output served/ --untied-head      a model to start vLLM from")]
pub(crate) struct MergeArguments {
    /// The directory of the adapters, or with --untied-head of a model
    #[arg(value_name = "ADAPTERS")]
    pub(crate) adapters: PathBuf,
    /// The directory for the checkpoint; it must not hold one
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) output: PathBuf,
    /// Write the output head as a tensor of its own where it is tied to the embeddings: vLLM reloads a tied head
    /// wrongly
    #[arg(long)]
    pub(crate) untied_head: bool,
}

/// The available backends, samplers and oracles
///
/// sppo searches for plugins in this order: files and directories named here or in a configuration file
/// (`plugins.files`, `plugins.path`), the directories of SPPO_PLUGIN_PATH, those added with
/// `sppo plugin add`, the built-in ones, and the directory of the program, with `lib/sppo` beside it. The first of a
/// name counts.
#[derive(Args, Clone, Debug)]
pub(crate) struct PluginArguments {
    /// A TOML file with settings; may be given several times, the later wins
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) config: Vec<PathBuf>,
    /// A library with plugins; may be given several times
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) plugin: Vec<PathBuf>,
    #[command(subcommand)]
    pub(crate) command: PluginCommand,
}

#[derive(Subcommand, Clone, Debug)]
pub(crate) enum PluginCommand {
    /// List all plugins, without opening one
    List {
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Describe a plugin and its settings
    Info {
        /// The plugin's name, or its library
        #[arg(value_name = "PLUGIN", id = "named_plugin")]
        plugin: String,
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Print the JSON Schema of a plugin's settings
    Schema {
        /// The plugin's name, or its library
        #[arg(value_name = "PLUGIN", id = "named_plugin")]
        plugin: String,
    },
    /// Check the requirements of every plugin of its kind
    Check {
        /// The plugin's name, or its library
        #[arg(value_name = "PLUGIN", id = "named_plugin")]
        plugin: String,
        /// One setting of the plugin, for instance oracle.my-oracle.target_words=40
        #[arg(long = "set", value_name = "KEY=VALUE")]
        settings: Vec<String>,
        #[command(flatten)]
        model: ModelArguments,
        #[command(flatten)]
        report: ReportArguments,
    },
    /// Write the crate of an oracle to start from
    New {
        /// Directory of the crate; the oracle gets its name
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
        /// The source of sppo-core to build with [default: that of this program]
        #[arg(long, value_name = "DIRECTORY")]
        sppo_core: Option<PathBuf>,
    },
    /// Register a plugin by its name, until its file changes
    Add {
        /// The plugin's library, which is not copied
        #[arg(value_name = "FILE")]
        library: PathBuf,
    },
    /// Unregister an added plugin; its file stays
    Remove {
        /// The plugin's name
        #[arg(value_name = "NAME")]
        name: String,
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
        sampler: SamplerArguments,
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
