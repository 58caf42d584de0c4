//! `sppo completions` and `sppo man`: completions and manual pages, made from the arguments.

use clap::CommandFactory;
use sppo_core::Error;

use crate::args::{Arguments, CompletionsArguments, ManArguments};
use crate::failure::Result;
use crate::output;
use crate::terminal::Terminal;

/// Prints the script with which a shell completes commands and flags.
pub(super) fn completions(arguments: &CompletionsArguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "sppo", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}

/// Writes manual pages, one per command.
pub(super) fn man(arguments: &ManArguments, terminal: &Terminal) -> Result<()> {
    let directory = &arguments.directory;
    let unwritable = |error: std::io::Error| {
        Error::input(directory, format!("cannot write manual pages here: {error}"))
            .with_hint("choose a directory that this user may write")
    };
    std::fs::create_dir_all(directory).map_err(unwritable)?;
    clap_mangen::generate_to(Arguments::command(), directory).map_err(unwritable)?;
    terminal.note(&format!("wrote manual pages to {}", directory.display()));
    Ok(())
}
