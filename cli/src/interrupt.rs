//! Ctrl-C: the first asks to stop at the next good moment, the second stops at once.

use std::io::Write;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::exit_code::ExitCode;

static REQUESTED: AtomicBool = AtomicBool::new(false);
static WATCHING: Once = Once::new();

/// From now on Ctrl-C (and a termination signal) sets a flag that long work asks for. Commands that
/// do not ask must not call this.
pub(crate) fn watch() {
    WATCHING.call_once(set_handler);
}

fn set_handler() {
    let outcome = ctrlc::set_handler(|| {
        if REQUESTED.swap(true, Ordering::SeqCst) {
            std::process::exit(ExitCode::Cancelled as i32);
        }
        // Nobody to tell when standard error is closed.
        let _ = writeln!(
            std::io::stderr(),
            "\nstopping as soon as the work so far is safe; press Ctrl-C again to stop at once"
        );
    });
    if let Err(error) = outcome {
        tracing::warn!("Ctrl-C will stop at once: {error}");
    }
}

/// Whether the user asked to stop.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::SeqCst)
}
