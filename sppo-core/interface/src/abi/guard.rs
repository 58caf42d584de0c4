//! Panics stop at the boundary: unwinding out of an `extern "C"` function would abort the program.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use super::mirror::{AbiResult, Crosses};
use crate::PluginError;

thread_local! {
    /// Last panic on this thread, with its place in the source.
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs code that may panic, and makes an error of a panic.
pub fn guarded<T>(body: impl FnOnce() -> Result<T, PluginError>) -> AbiResult<T> {
    // What a panic leaves half-done belongs to the plugin, which is not called again for this run.
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    let outcome = outcome.unwrap_or_else(|payload| Err(panicked(&*payload)));
    outcome.map_err(PluginError::cross).into()
}

/// Drops a value whose destructor may panic, which is logged.
pub(super) fn drop_guarded<T: ?Sized>(value: Box<T>) {
    if let Err(payload) = panic::catch_unwind(AssertUnwindSafe(|| drop(value))) {
        tracing::error!("{} while it was released", panicked(&*payload));
        // The payload's own destructor may panic too.
        std::mem::forget(payload);
    }
}

fn panicked(payload: &(dyn Any + Send)) -> PluginError {
    let seen = LAST_PANIC.with(|last| last.borrow_mut().take());
    let text = seen.or_else(|| text_of(payload));
    let message = match text {
        Some(text) => format!("it panicked: {text}"),
        None => "it panicked for an unknown reason".into(),
    };
    PluginError::failed(message)
        .with_hint("this is a defect of the plugin: report it to its author, with this message")
}

/// Keeps a library's panic messages for the error instead of printing them. A library has a standard
/// library, and so a hook, of its own.
pub(super) fn remember_panics() {
    panic::set_hook(Box::new(|information| {
        let text = text_of(information.payload()).unwrap_or_else(|| "no reason given".into());
        let place = information.location().map(|place| format!(" ({place})")).unwrap_or_default();
        LAST_PANIC.with(|last| *last.borrow_mut() = Some(format!("{text}{place}")));
    }));
}

fn text_of(payload: &(dyn Any + Send)) -> Option<String> {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
}
