//! The program's log, on standard error: warnings by default, more with `-v` or `SPPO_LOG`.

use std::fmt;
use std::io::{self, Write};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::args::TerminalArguments;
use crate::terminal::{Style, Terminal};

/// Environment variable with a filter such as `debug` or `sppo_model=trace`.
const FILTER_VARIABLE: &str = "SPPO_LOG";

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
    let filter = EnvFilter::new(filter.as_deref().unwrap_or(by_flags));
    // Only a second call could fail, and there is none.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AroundBars { terminal: terminal.clone() })
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

/// Writes above the progress bars, so that they stay whole.
struct AroundBars {
    terminal: Terminal,
}

impl<'a> MakeWriter<'a> for AroundBars {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter { terminal: self.terminal.clone() }
    }
}

struct LineWriter {
    terminal: Terminal,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.terminal.around_bars(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
