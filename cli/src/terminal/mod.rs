//! What people see: errors, notes, progress and tables.

mod forecast;
mod format;
mod progress;
mod style;
mod table;

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};

pub(crate) use forecast::ExpectedStage;
pub(crate) use format::{bytes, duration, number, percent, signed};
pub(crate) use progress::{Download, ProgressDisplay};
pub(crate) use style::Style;
pub(crate) use table::{Alignment, Table};

use crate::args::TerminalArguments;

/// Standard error, for people, and how both streams are styled.
#[derive(Clone)]
pub(crate) struct Terminal {
    quiet: bool,
    /// Whether somebody watches standard error, so that bars can move.
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

    /// How text on standard output is styled.
    pub(crate) fn stdout_style(&self) -> Style {
        self.stdout_style
    }

    /// How text on standard error is styled.
    pub(crate) fn stderr_style(&self) -> Style {
        self.stderr_style
    }

    /// Tells of something worth knowing.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            self.say(text);
        }
    }

    /// Tells what went wrong and what to do about it.
    pub(crate) fn error(&self, message: &str, hint: Option<&str>) {
        self.say(&format!("{} {message}", self.stderr_style.red("error:")));
        if let Some(hint) = hint {
            self.say(&format!("{} {hint}", self.stderr_style.cyan("hint:")));
        }
    }

    /// A display of what a command is doing.
    pub(crate) fn progress(&self) -> ProgressDisplay {
        ProgressDisplay::new(self.clone())
    }

    /// Shows a download until it is dropped.
    pub(crate) fn download(&self) -> Download {
        Download::new(self.clone())
    }

    /// Does something to the terminal with the moving bars out of the way.
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
