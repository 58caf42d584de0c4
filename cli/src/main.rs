//! The program `sppo`: self-play preference optimisation of language models from the command line.

mod args;
mod commands;
mod failure;
mod flags;
mod interrupt;
mod logging;
mod memory;
mod models;
mod openmp;
mod output;
mod prompts;
mod settings;
mod team;
mod terminal;

use clap::Parser;
// Built-in plugins register themselves when they are linked.
use sppo_backend_candle as _;
use sppo_oracle_http as _;
use sppo_oracle_judge as _;
use sppo_oracle_mixture as _;
use sppo_oracle_pairrm as _;
use sppo_oracle_reward as _;
use sppo_oracle_rules as _;
use sppo_sampler_http as _;

use args::Arguments;
use failure::ExitCode;
use terminal::Terminal;

fn main() -> std::process::ExitCode {
    openmp::let_idle_threads_sleep();
    let arguments = Arguments::parse();
    let arguments = if team::serves() { arguments.of_a_server() } else { arguments };
    let terminal = Terminal::new(&arguments.terminal);
    logging::start(&arguments.terminal, &terminal);
    let outcome = failure::catch_bugs(|| {
        // Rank 0 takes over the standard output, so that comes first.
        team::launch(&arguments)?;
        output::keep_for_data();
        if team::serves() {
            return team::serve(&arguments.command);
        }
        commands::dispatch(arguments.command, &terminal)
    });
    match outcome {
        Ok(()) => ExitCode::Success.into(),
        Err(failure) => {
            if !team::is_told_by_rank_0(&failure) {
                failure.explain(&terminal);
            }
            failure.exit_code().into()
        }
    }
}
