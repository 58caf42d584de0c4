//! What commands with a model share: a backend, the policies on it, and a display of what they do.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Instant;

use sppo_core::config::Config;
use sppo_core::observer::{Event, Observer, PluginServices, Stage, StageHost};
use sppo_core::plugin::{Backend, Oracle, Policy, PolicySpec};
use sppo_core::plugins::PluginRegistry;
use sppo_core::{Error, Result as CoreResult};

use crate::failure::Result;
use crate::interrupt;
use crate::models;
use crate::terminal::{ProgressDisplay, Terminal};
use crate::watchers::QuietWatcher;

/// A backend, and who watches it.
pub(crate) struct Session {
    pub(crate) config: Config,
    pub(crate) backend: Box<dyn Backend>,
    plugins: PluginRegistry,
    pub(crate) display: ProgressDisplay,
    terminal: Terminal,
}

impl Session {
    pub(crate) fn open(config: Config, terminal: &Terminal) -> Result<Self> {
        let plugins = models::plugins(&config)?;
        let backend = models::backend(&plugins, &config)?;
        Ok(Self {
            config,
            backend,
            plugins,
            display: terminal.progress(),
            terminal: terminal.clone(),
        })
    }

    fn services(&self) -> PluginServices<'_> {
        PluginServices {
            backend: Some(self.backend.as_ref()),
            plugins: &self.plugins,
            config: &self.config,
        }
    }

    /// What a plugin sees of this program in a call that belongs to no stage.
    pub(crate) fn quiet_host(&self) -> StageHost<'_> {
        StageHost::new(&QuietWatcher, self.services(), 0, 1)
    }

    /// The oracle of the settings, ready to judge.
    pub(crate) fn oracle(&self) -> CoreResult<Box<dyn Oracle>> {
        models::ready_oracle(self.services())
    }

    /// Who judges, for the record.
    pub(crate) fn describe_oracle(&self, oracle: &dyn Oracle) -> String {
        models::describe_oracle(&self.plugins, &self.config, oracle)
    }

    /// Finds the model of the settings, fetching it where that is needed and allowed.
    pub(crate) fn find_model(&self, offline: bool) -> Result<PathBuf> {
        Ok(models::find(&self.config.model, &self.config, offline, &self.terminal)?.path)
    }

    /// Finds the model of the settings and makes sure that it is whole.
    pub(crate) fn find_whole_model(&self, offline: bool) -> Result<PathBuf> {
        let path = self.find_model(offline)?;
        models::open(&path)?;
        Ok(path)
    }

    /// Loads a model. From now on Ctrl-C asks to stop.
    pub(crate) fn load(&self, path: PathBuf) -> Result<Box<dyn Policy>> {
        self.load_spec(&PolicySpec::new(path))
    }

    /// As [`Self::load`], to train what the settings say: all weights, or adapters.
    pub(crate) fn load_for_training(&self, path: PathBuf) -> Result<Box<dyn Policy>> {
        self.load_spec(&self.config.policy_spec(path))
    }

    fn load_spec(&self, spec: &PolicySpec) -> Result<Box<dyn Policy>> {
        interrupt::watch();
        Ok(models::load_policy(self.backend.as_ref(), spec, &self.display)?)
    }

    /// Starts a stage of `total` units.
    pub(crate) fn stage(&self, stage: Stage, total: usize, unit: &'static str) -> StageMeter<'_> {
        self.display.event(Event::StageStarted { stage, total: total as u64, unit });
        StageMeter {
            session: self,
            total: total as u64,
            completed: Cell::new(0),
            started: Instant::now(),
        }
    }

    /// Names the backend in an error that came out of a policy.
    pub(crate) fn blame_backend(&self, error: Error) -> Error {
        models::blame_backend(&self.config)(error)
    }
}

/// Tells the display how a stage gets on.
pub(crate) struct StageMeter<'a> {
    session: &'a Session,
    total: u64,
    completed: Cell<u64>,
    started: Instant,
}

impl StageMeter<'_> {
    /// The host that a plugin sees during its next call.
    pub(crate) fn host(&self) -> StageHost<'_> {
        let services = self.session.services();
        StageHost::new(&self.session.display, services, self.completed.get(), self.total)
    }

    /// Sets what is done so far; fails when the user asked to stop.
    pub(crate) fn reach(&self, completed: usize) -> CoreResult<()> {
        self.completed.set(completed as u64);
        let display = &self.session.display;
        display.event(Event::StageProgress { completed: completed as u64, total: self.total });
        if display.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn finish(self, summary: String) {
        let elapsed = self.started.elapsed();
        self.session.display.event(Event::StageFinished { elapsed, summary });
    }
}
