//! The program's log, on standard error: warnings by default, more with `-v` or `SPPO_LOG`.

use std::collections::HashSet;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::args::TerminalArguments;
use crate::terminal::{Style, Terminal};

/// Environment variable with a filter such as `debug` or `sppo_model=trace`.
const FILTER_VARIABLE: &str = "SPPO_LOG";
/// All that may be shown: at the level `trace` the HTTP client shows whole addresses, and those of uploads are signed.
const EVERYTHING: &str = "trace,ureq=debug,ureq_proto=debug";

/// Starts the log.
pub(crate) fn start(arguments: &TerminalArguments, terminal: &Terminal) {
    let by_flags = match (arguments.quiet, arguments.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, 2) => "debug",
        (false, _) => "trace",
    };
    let filter = std::env::var(FILTER_VARIABLE).ok().filter(|text| !text.is_empty());
    let filter = match filter.as_deref().unwrap_or(by_flags) {
        "trace" => EVERYTHING,
        other => other,
    };
    let filter = EnvFilter::new(filter);
    // Only a second call could fail, and there is none.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AroundBars { terminal: terminal.clone(), said: Arc::default() })
        .event_format(ForPeople { style: terminal.stderr_style() })
        .try_init();
}

/// `warning: message`, as errors are written.
struct ForPeople {
    style: Style,
}

impl<S, N> FormatEvent<S, N> for ForPeople
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = match *event.metadata().level() {
            Level::ERROR => self.style.red("error"),
            Level::WARN => self.style.yellow("warning"),
            Level::INFO => "info".into(),
            Level::DEBUG => format!("debug ({})", event.metadata().target()),
            Level::TRACE => format!("trace ({})", event.metadata().target()),
        };
        write!(writer, "{level}: ")?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

/// Warnings that were written.
type Said = Arc<Mutex<HashSet<Vec<u8>>>>;

/// Writes above the progress bars, so that they stay whole, and each warning once: a model, for instance, is
/// opened by the program and by its backend.
struct AroundBars {
    terminal: Terminal,
    said: Said,
}

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { terminal: self.terminal.clone(), said: None }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        let is_warning = *metadata.level() == Level::WARN;
        LineWriter { said: is_warning.then(|| Arc::clone(&self.said)), ..self.make_writer() }
    }
}

struct LineWriter {
    terminal: Terminal,
    /// For a warning.
    said: Option<Said>,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let is_new = self.said.as_ref().is_none_or(|said| {
            said.lock().unwrap_or_else(PoisonError::into_inner).insert(bytes.to_vec())
        });
        if is_new {
            self.terminal.around_bars(|| io::stderr().write_all(bytes))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
