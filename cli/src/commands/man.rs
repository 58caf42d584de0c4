//! `sppo man`: manual pages, one per command.

use clap::CommandFactory;
use sppo_core::Error;

use crate::args::{Arguments, ManArguments};
use crate::failure::Result;
use crate::terminal::Terminal;

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
