//! Which plugin is being called, so that a program that waits for one can say for which.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Host, ModelSpec, Oracle, PluginError, Scorer};

/// The calls under way, the innermost last.
static UNDER_WAY: Mutex<Vec<Arc<Call>>> = Mutex::new(Vec::new());

struct Call {
    plugin: &'static str,
    has_noticed: AtomicBool,
}

/// The plugin that is at work in a long call, and whether it has been told that the user asked to stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginAtWork {
    /// For instance ``oracle `rules` ``.
    pub plugin: &'static str,
    /// Whether it has asked its host, and heard that it should stop.
    pub has_noticed: bool,
}

/// The plugin from a library that is being called now, if there is one.
#[must_use]
pub fn plugin_at_work() -> Option<PluginAtWork> {
    let calls = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
    calls.last().map(|call| PluginAtWork {
        plugin: call.plugin,
        has_noticed: call.has_noticed.load(Ordering::Relaxed),
    })
}

/// A long call into a library, and the host that it sees.
pub(super) struct PluginCall<'a> {
    call: Arc<Call>,
    host: &'a dyn Host,
}

impl<'a> PluginCall<'a> {
    pub(super) fn enter(plugin: &'static str, host: &'a dyn Host) -> Self {
        let call = Arc::new(Call { plugin, has_noticed: AtomicBool::new(false) });
        UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner).push(call.clone());
        Self { call, host }
    }
}

impl Drop for PluginCall<'_> {
    fn drop(&mut self) {
        let mut calls = UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner);
        calls.retain(|call| !Arc::ptr_eq(call, &self.call));
    }
}

impl Host for PluginCall<'_> {
    fn is_cancelled(&self) -> bool {
        let cancelled = self.host.is_cancelled();
        if cancelled {
            self.call.has_noticed.store(true, Ordering::Relaxed);
        }
        cancelled
    }

    fn progress(&self, completed: u64, total: u64) {
        self.host.progress(completed, total);
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.host.metrics(values);
    }

    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        self.host.scorer(model)
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        self.host.scorer_on(backend, model)
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        self.host.oracle(name)
    }
}
