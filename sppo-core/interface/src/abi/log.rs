//! A plugin's `tracing` events appear in the program's log under the plugin's name. A library has a
//! `tracing` of its own, so this side hands it a function to call.

use std::fmt::{self, Write};

use abi_stable::StableAbi;
use abi_stable::std_types::RStr;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use super::guard::remember_panics;

/// The target of all events that come from a library.
const TARGET: &str = "plugin";

/// The program's end of the log, handed to a library after opening it.
#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiConnection {
    /// For instance ``oracle `rules` ``.
    pub plugin: RStr<'static>,
    /// Least important level that is logged; 0 for none.
    pub most_verbose: u8,
    pub log: extern "C" fn(plugin: RStr<'static>, level: u8, target: RStr<'_>, text: RStr<'_>),
}

/// The program's end of a connection.
pub fn connection_for(plugin: &'static str) -> AbiConnection {
    AbiConnection {
        plugin: plugin.into(),
        most_verbose: LevelFilter::current().into_level().map_or(0, number),
        log: write_to_log,
    }
}

extern "C" fn write_to_log(plugin: RStr<'static>, level: u8, target: RStr<'_>, text: RStr<'_>) {
    // A subscriber that panics must not unwind into the plugin; a lost line is the lesser evil.
    let _ = std::panic::catch_unwind(|| match level {
        1 => tracing::error!(target: TARGET, "{plugin}: {text}"),
        2 => tracing::warn!(target: TARGET, "{plugin}: {text}"),
        3 => tracing::info!(target: TARGET, "{plugin}: {text}"),
        4 => tracing::debug!(target: TARGET, "{plugin}: {target}: {text}"),
        _ => tracing::trace!(target: TARGET, "{plugin}: {target}: {text}"),
    });
}

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// The library's end of a connection: its log lines and panic messages go to the program from now on.
pub(super) extern "C" fn connect(connection: AbiConnection) {
    remember_panics();
    // Fails for the second plugin of a library, whose events then go by the first one's name.
    let _ = tracing::subscriber::set_global_default(Bridge(connection));
}

/// Sends a library's events to the program.
struct Bridge(AbiConnection);

impl Subscriber for Bridge {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && number(*metadata.level()) <= self.0.most_verbose
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.0.most_verbose {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let metadata = event.metadata();
        let text = format!("{}{}", line.message, line.fields);
        (self.0.log)(
            self.0.plugin,
            number(*metadata.level()),
            metadata.target().into(),
            text.as_str().into(),
        );
    }

    // Spans are not bridged.
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// An event as one line: its message, then its fields as `name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a `String` cannot fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
