//! Ctrl-C: the first asks to stop at the next good moment, the second stops at once.

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sppo_core::plugin::{PluginAtWork, plugin_at_work};

use crate::failure::ExitCode;

/// Time for a plugin that polls for cancellation to stop.
const PATIENCE: Duration = Duration::from_secs(2);

static REQUESTED: AtomicBool = AtomicBool::new(false);
static WATCHING: Once = Once::new();

/// From now on Ctrl-C (or a termination signal) sets a flag that long work polls. Commands that do not
/// poll it must not call this.
pub(crate) fn watch() {
    WATCHING.call_once(|| set_handler(true));
}

/// As [`watch`], in a process that leaves it to another to say so.
pub(crate) fn watch_silently() {
    WATCHING.call_once(|| set_handler(false));
}

fn set_handler(speaks: bool) {
    let outcome = ctrlc::set_handler(move || {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(ExitCode::Cancelled as i32);
        }
        if !speaks {
            return;
        }
        // Nobody to tell when standard error is closed.
        let _ = writeln!(
            std::io::stderr(),
            "\nstopping as soon as the work so far is safe; press Ctrl-C again to stop at once"
        );
        // Fails only where no thread is to be had; then nobody is told.
        let _ = std::thread::Builder::new().name("patience".into()).spawn(name_who_is_waited_for);
    });
    if let Err(error) = outcome {
        tracing::warn!("Ctrl-C will stop at once: {error}");
    }
}

/// Names the plugin that the program waits for, after a while.
fn name_who_is_waited_for() {
    std::thread::sleep(PATIENCE);
    if let Some(PluginAtWork { plugin, has_noticed }) = plugin_at_work() {
        let why = if has_noticed {
            "knows that it should stop, and goes on"
        } else {
            "does not ask whether it should stop"
        };
        let _ = writeln!(
            std::io::stderr(),
            "still waiting: {plugin} {why}; press Ctrl-C again to stop at once"
        );
    }
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
