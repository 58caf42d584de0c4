//! Output for people: errors, notes, progress and tables.

mod forecast;
mod format;
mod progress;
mod style;
mod table;

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};

pub(crate) use forecast::ExpectedStage;
pub(crate) use format::{bytes, counted, duration, number, percent, signed};
pub(crate) use progress::{Download, ProgressDisplay};
pub(crate) use style::Style;
pub(crate) use table::{Alignment, Table};

use crate::args::TerminalArguments;

/// Standard error, for people, and how both streams are styled.
#[derive(Clone)]
pub(crate) struct Terminal {
    quiet: bool,
    /// Whether standard error is a terminal, so that bars can move.
    interactive: bool,
    bars: MultiProgress,
    stdout_style: Style,
    stderr_style: Style,
}

impl Terminal {
    pub(crate) fn new(arguments: &TerminalArguments) -> Self {
        let interactive = io::stderr().is_terminal();
        let draws = interactive && !arguments.quiet;
        Self {
            quiet: arguments.quiet,
            interactive,
            bars: MultiProgress::with_draw_target(if draws {
                ProgressDrawTarget::stderr()
            } else {
                ProgressDrawTarget::hidden()
            }),
            stdout_style: Style::new(arguments.color, io::stdout().is_terminal()),
            stderr_style: Style::new(arguments.color, interactive),
        }
    }

    /// Style of text on standard output.
    pub(crate) fn stdout_style(&self) -> Style {
        self.stdout_style
    }

    /// Style of text on standard error.
    pub(crate) fn stderr_style(&self) -> Style {
        self.stderr_style
    }

    /// Prints a note.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// Prints an error with its remedy.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        self.say(&format!("{} {message}", self.stderr_style.red("error:")));
        if let Some(hint) = hint {
            self.say(&format!("{} {hint}", self.stderr_style.cyan("hint:")));
        }
    }

    /// Progress display of a command.
    pub(crate) fn progress(&self) -> ProgressDisplay {
        ProgressDisplay::new(self.clone())
    }

    /// Shows a download until it is dropped.
    pub(crate) fn download(&self) -> Download {
        Download::new(self.clone())
    }

    /// Runs `act` with the moving bars out of the way.
    pub(crate) fn around_bars<T>(&self, act: impl FnOnce() -> T) -> T {
        self.bars.suspend(act)
    }

    fn say(&self, text: &str) {
        // Nobody to tell when standard error is closed.
        self.around_bars(|| {
            let _ = writeln!(io::stderr(), "{text}");
        });
    }
}
