//! Arguments of the commands, as typed; `settings` and the commands decide.

mod compare;
mod export;
mod oracle;
mod run;
mod settings;
mod tools;
mod trials;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub(crate) use compare::CompareArguments;
pub(crate) use export::{
    BenchmarkArguments, ExportArguments, ExportTarget, GgufArguments, GgufFormatChoice,
    LmEvalArguments,
};
pub(crate) use oracle::{OracleCheckArguments, OracleCommand, OracleCommandArguments};
pub(crate) use run::{
    GenerateArguments, RankArguments, RunArguments, ScoreArguments, TrainArguments,
};
pub(crate) use settings::{
    BackendArguments, LoraArguments, ModelArguments, OracleArguments, ReportArguments,
    SamplerArguments, SamplingArguments, SeedArguments, SettingsArguments, TrainingArguments,
};
pub(crate) use tools::{
    CompletionsArguments, ConfigArguments, ConfigCommand, GameArguments, GameKind, ManArguments,
    MergeArguments, PluginArguments, PluginCommand, PushArguments, RunReportArguments,
};
pub(crate) use trials::{BenchArguments, ChatArguments, EvalArguments, ShapeChoice};

use crate::failure;

/// Self-play preference optimisation (SPPO, arXiv 2405.00675) of language models.
///
/// The model answers each prompt several times, an oracle says which answers it prefers, and the
/// model's log-probabilities are regressed onto the win rates. `sppo run` does all of it; its stages
/// are commands of their own that work on files.
#[derive(Parser)]
#[command(
    name = "sppo",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100,
    after_help = failure::EXIT_CODES
)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) terminal: TerminalArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Arguments {
    /// The arguments of a process that serves rank 0, which speaks for all.
    pub(crate) fn of_a_server(mut self) -> Self {
        self.terminal.quiet = self.terminal.verbose == 0;
        self
    }
}

/// Output for people.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct TerminalArguments {
    /// Use of colours; NO_COLOR is respected too
    #[arg(long, value_name = "WHEN", value_enum, default_value_t, global = true)]
    pub(crate) color: ColorChoice,
    /// Say nothing but errors
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
    /// Log more; -vv and -vvv still more (SPPO_LOG takes a filter, such as debug)
    #[arg(long, short, action = ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
}

/// Use of colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorChoice {
    /// On a terminal
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Play: sample, judge, train and evaluate, iteration after iteration
    Run(Box<RunArguments>),
    /// Answer prompts: prompts in, candidates out
    Generate(Box<GenerateArguments>),
    /// Judge candidates: candidates in, the same lines with preferences out
    Rank(RankArguments),
    /// Train on preference pairs: pairs in, a checkpoint out
    Train(Box<TrainArguments>),
    /// Merge low-rank adapters into their model: a PEFT directory in, a whole checkpoint out
    Merge(MergeArguments),
    /// Write a model for llama.cpp and Ollama, or its answers for a benchmark
    Export(Box<ExportArguments>),
    /// Upload a checkpoint to the Hugging Face hub
    Push(PushArguments),
    /// Per-token log-probabilities of given responses
    Score(ScoreArguments),
    /// One run, or several side by side, as a page to look at
    Report(RunReportArguments),
    /// Win rates of two or more models against each other
    Eval(EvalArguments),
    /// Compare runs that differ in some settings
    Compare(Box<CompareArguments>),
    /// Talk to one model, or to several to compare them
    #[command(alias = "sample")]
    Chat(ChatArguments),
    /// Measure sampling and training on this machine
    Bench(BenchArguments),
    /// Self-play on a small game, exactly, beside the theorem's bound
    Game(GameArguments),
    /// The oracle that judges: its agreement with labels
    Oracle(Box<OracleCommandArguments>),
    /// The backends and oracles at hand
    Plugin(PluginArguments),
    /// The settings of a run
    Config(ConfigArguments),
    /// Completions for a shell
    Completions(CompletionsArguments),
    /// Manual pages
    Man(ManArguments),
}

impl Command {
    /// The arguments that choose the backend, of a command that has models.
    pub(crate) fn backend(&self) -> Option<(&SettingsArguments, &BackendArguments)> {
        Some(match self {
            Self::Run(arguments) => (&arguments.settings, &arguments.backend),
            Self::Generate(arguments) => (&arguments.settings, &arguments.backend),
            Self::Rank(arguments) => (&arguments.settings, &arguments.backend),
            Self::Train(arguments) => (&arguments.settings, &arguments.backend),
            Self::Score(arguments) => (&arguments.settings, &arguments.backend),
            Self::Eval(arguments) => (&arguments.settings, &arguments.backend),
            Self::Chat(arguments) => (&arguments.settings, &arguments.backend),
            Self::Export(arguments) => return arguments.backend(),
            Self::Bench(arguments) => (&arguments.settings, &arguments.backend),
            Self::Oracle(arguments) => {
                let OracleCommand::Check(arguments) = &arguments.command;
                (&arguments.settings, &arguments.backend)
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed_and_documented() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no description", command.get_name());
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {} has no help",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        let command = Arguments::command();
        command.clone().debug_assert();
        check(&command);
    }
}
