//! Tracks the plugin call in progress, so that a waiting program can name the plugin it waits for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Progress;

/// The calls under way, the innermost last.
static UNDER_WAY: Mutex<UnderWay> = Mutex::new(UnderWay { calls: Vec::new(), entered: 0 });

struct UnderWay {
    calls: Vec<(u64, PluginAtWork)>,
    /// Number of calls so far, which tells them apart.
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
    /// Whether it has asked its watcher, and heard that it should stop.
    pub has_noticed: bool,
}

/// The plugin that is being called now, if there is one.
#[must_use]
pub fn plugin_at_work() -> Option<PluginAtWork> {
    under_way().calls.last().map(|(_, plugin)| plugin.clone())
}

/// A long call into a plugin.
pub struct PluginCall(u64);

impl PluginCall {
    /// Begins a call, which ends when the value is dropped.
    #[must_use]
    pub fn enter(plugin: &'static str) -> Self {
        let mut under_way = under_way();
        under_way.entered += 1;
        let number = under_way.entered;
        under_way.calls.push((number, PluginAtWork { plugin, has_noticed: false }));
        Self(number)
    }

    fn notice(&self) {
        let mut under_way = under_way();
        let own = under_way.calls.iter_mut().find(|(number, _)| *number == self.0);
        if let Some((_, plugin)) = own {
            plugin.has_noticed = true;
        }
    }
}

impl Drop for PluginCall {
    fn drop(&mut self) {
        under_way().calls.retain(|(number, _)| *number != self.0);
    }
}

/// A call whose watcher is asked through this, to see whether the plugin notices that it should stop.
pub struct WatchedCall<'a> {
    call: PluginCall,
    progress: &'a dyn Progress,
}

impl<'a> WatchedCall<'a> {
    /// Begins a call, which ends when the value is dropped.
    #[must_use]
    pub fn enter(plugin: &'static str, progress: &'a dyn Progress) -> Self {
        Self { call: PluginCall::enter(plugin), progress }
    }
}

impl Progress for WatchedCall<'_> {
    fn is_cancelled(&self) -> bool {
        let cancelled = self.progress.is_cancelled();
        if cancelled {
            self.call.notice();
        }
        cancelled
    }

    fn progress(&self, completed: u64, total: u64) {
        self.progress.progress(completed, total);
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.progress.metrics(values);
    }
}
