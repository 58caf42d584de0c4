//! Which plugin is being called, so that a program that waits for one can say for which.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Host, ModelSpec, Oracle, PluginError, Scorer};

/// The calls under way, the innermost last.
static UNDER_WAY: Mutex<UnderWay> = Mutex::new(UnderWay { calls: Vec::new(), entered: 0 });

struct UnderWay {
    calls: Vec<(u64, PluginAtWork)>,
    /// How many calls there have been, which tells them apart.
    entered: u64,
}

fn under_way() -> MutexGuard<'static, UnderWay> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
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
    under_way().calls.last().map(|(_, plugin)| plugin.clone())
}

/// A long call into a library, and the host that it sees.
pub(super) struct PluginCall<'a> {
    number: u64,
    host: &'a dyn Host,
}

impl<'a> PluginCall<'a> {
    pub(super) fn enter(plugin: &'static str, host: &'a dyn Host) -> Self {
        let mut under_way = under_way();
        under_way.entered += 1;
        let number = under_way.entered;
        under_way.calls.push((number, PluginAtWork { plugin, has_noticed: false }));
        Self { number, host }
    }
}

impl Drop for PluginCall<'_> {
    fn drop(&mut self) {
        under_way().calls.retain(|(number, _)| *number != self.number);
    }
}

impl Host for PluginCall<'_> {
    fn is_cancelled(&self) -> bool {
        let cancelled = self.host.is_cancelled();
        if cancelled {
            let mut under_way = under_way();
            let own = under_way.calls.iter_mut().find(|(number, _)| *number == self.number);
            if let Some((_, plugin)) = own {
                plugin.has_noticed = true;
            }
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
