//! Output for people: errors, notes, progress, tables and colours.

mod forecast;
mod format;
mod progress;

use std::io::{self, IsTerminal, Write};

use indicatif::{MultiProgress, ProgressDrawTarget};

pub(crate) use forecast::ExpectedStage;
pub(crate) use format::{
    Alignment, Table, bytes, counted, duration, interval, number, percent, signed,
};
pub(crate) use progress::{ProgressDisplay, Transfer};

use crate::args::{ColorChoice, TerminalArguments};

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
    pub(crate) fn download(&self) -> Transfer {
        Transfer::new(self.clone(), "fetching")
    }

    /// Shows an upload until it is dropped.
    pub(crate) fn upload(&self) -> Transfer {
        Transfer::new(self.clone(), "uploading")
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

/// Colours of one stream, or none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Style {
    colored: bool,
}

impl Style {
    /// Colours when the user says so, or by default on a terminal unless `NO_COLOR` is set.
    pub(crate) fn new(choice: ColorChoice, is_terminal: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|value| value == "dumb");
        let colored = match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => is_terminal && !unwanted,
        };
        Self { colored }
    }

    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    pub(crate) fn yellow(self, text: &str) -> String {
        self.paint("1;33", text)
    }

    pub(crate) fn cyan(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colored { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}
