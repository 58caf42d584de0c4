//! `sppo completions`: what a shell needs to complete commands and flags.

use clap::CommandFactory;

use crate::args::{Arguments, CompletionsArguments};
use crate::failure::Result;
use crate::output;

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "sppo", &mut script);
    output::text(&String::from_utf8_lossy(&script))
}
