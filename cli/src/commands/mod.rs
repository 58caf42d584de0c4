//! The commands, one file each; `shell` has two.

mod bench;
mod chat;
mod compare;
mod config;
mod eval;
mod export;
mod game;
mod generate;
mod merge;
mod oracle;
mod plugin;
mod push;
mod rank;
mod report;
mod run;
mod score;
mod session;
mod shell;
mod train;
mod win_rates;

use crate::args::Command;
use crate::failure::Result;
use crate::terminal::Terminal;

pub(crate) use run::earlier_settings;

/// Does what was asked for.
pub(crate) fn dispatch(command: Command, terminal: &Terminal) -> Result<()> {
    match command {
        Command::Run(arguments) => run::run(&arguments, terminal),
        Command::Generate(arguments) => generate::generate(&arguments, terminal),
        Command::Rank(arguments) => rank::rank(&arguments, terminal),
        Command::Train(arguments) => train::train(&arguments, terminal),
        Command::Merge(arguments) => merge::merge(&arguments, terminal),
        Command::Export(arguments) => export::export(&arguments, terminal),
        Command::Push(arguments) => push::push(&arguments, terminal),
        Command::Score(arguments) => score::score(&arguments, terminal),
        Command::Report(arguments) => report::report(&arguments),
        Command::Eval(arguments) => eval::eval(&arguments, terminal),
        Command::Compare(arguments) => compare::compare(&arguments, terminal),
        Command::Chat(arguments) => chat::chat(&arguments, terminal),
        Command::Bench(arguments) => bench::bench(&arguments, terminal),
        Command::Game(arguments) => game::game(&arguments, terminal),
        Command::Oracle(arguments) => oracle::oracle(&arguments.command, terminal),
        Command::Plugin(arguments) => plugin::plugin(&arguments, terminal),
        Command::Config(arguments) => config::config(&arguments.command),
        Command::Completions(arguments) => shell::completions(&arguments),
        Command::Man(arguments) => shell::man(&arguments, terminal),
    }
}
