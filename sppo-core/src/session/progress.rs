//! A stage under way: its progress, and the program as a plugin sees it meanwhile.

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Instant;

use super::{LentPolicy, Session};
use crate::error::Error;
use crate::observer::{Event, Stage};
use crate::plugin::{ModelSpec, Oracle, PluginError, PluginErrorKind, Progress, Scorer, Services};

/// A stage under way, which tells the session's observer how far it is.
pub struct StageMeter<'a> {
    session: Session<'a>,
    total: u64,
    completed: Cell<u64>,
    /// Tokens that were sampled in this stage.
    tokens: Cell<u64>,
    started: Instant,
}

impl<'a> StageMeter<'a> {
    pub(super) fn start(
        session: Session<'a>,
        stage: Stage,
        total: u64,
        unit: &'static str,
    ) -> Self {
        session.observer.event(Event::StageStarted { stage, total, unit });
        Self {
            session,
            total,
            completed: Cell::new(0),
            tokens: Cell::new(0),
            started: Instant::now(),
        }
    }

    /// The host of the next call: what the plugin reports is added to what is done.
    #[must_use]
    pub fn host(&self) -> StageHost<'a> {
        StageHost::new(self.session, self.completed.get(), self.total)
    }

    /// Adds units to what is done.
    pub fn advance(&self, units: u64) {
        let completed = self.completed.get() + units;
        self.completed.set(completed);
        self.session.observer.event(Event::StageProgress { completed, total: self.total });
    }

    /// Sets the units that are done so far.
    ///
    /// # Errors
    /// [`Cancelled`](crate::Error::Cancelled) when the observer asks to stop.
    pub fn reach(&self, completed: u64) -> crate::Result<()> {
        self.completed.set(completed);
        self.advance(0);
        self.session.require_running()
    }

    /// Counts tokens that were sampled, for the log.
    pub(super) fn count_tokens(&self, tokens: u64) {
        self.tokens.set(self.tokens.get() + tokens);
    }

    /// Ends the stage with one line on its outcome.
    pub fn finish(self, summary: String) {
        let (elapsed, sampled_tokens) = (self.started.elapsed(), self.tokens.get());
        self.session.observer.event(Event::StageFinished { elapsed, summary, sampled_tokens });
    }
}

/// The host of one call: the plugin's progress is added to what the stage has done, and other plugins are
/// made with the settings that the session has for them.
pub struct StageHost<'a> {
    session: Session<'a>,
    completed_before: u64,
    total: u64,
}

impl<'a> StageHost<'a> {
    /// A host for one call within a stage of `total` units, `completed_before` of them already done.
    pub(super) fn new(session: Session<'a>, completed_before: u64, total: u64) -> Self {
        Self { session, completed_before, total }
    }
}

impl<'a> StageHost<'a> {
    fn lent_policy(&self) -> Result<&'a LentPolicy<'a>, PluginError> {
        self.session.lent_policy.ok_or_else(|| {
            PluginError::configuration("no policy is trained here that could judge")
                .with_hint("name the model that judges, a checkpoint of a run for instance")
        })
    }
}

impl Progress for StageHost<'_> {
    fn is_cancelled(&self) -> bool {
        self.session.observer.is_cancelled()
    }

    fn progress(&self, completed: u64, _total: u64) {
        let completed = self.completed_before + completed;
        let total = self.total.max(completed);
        self.session.observer.event(Event::StageProgress { completed, total });
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.session.observer.event(Event::StageMetrics(values));
    }
}

impl Services for StageHost<'_> {
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        self.session.backend.load_scorer(model)
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        let Session { plugins, config, .. } = self.session;
        if backend == config.backend.name {
            return self.scorer(model);
        }
        let settings = config.backend.settings_of(backend);
        plugins.create_backend(backend, settings).map_err(as_plugin_error)?.load_scorer(model)
    }

    fn starting_model(&self) -> Result<PathBuf, PluginError> {
        self.lent_policy()?.starting_model()
    }

    fn policy_scorer(&self, next_tokens: &[u32]) -> Result<Box<dyn Scorer>, PluginError> {
        Ok(self.lent_policy()?.scorer(next_tokens))
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        let Session { plugins, config, .. } = self.session;
        plugins.create_oracle(name, config.oracle.settings_of(name)).map_err(as_plugin_error)
    }
}

/// An error about another plugin, for the plugin that asked for it.
fn as_plugin_error(error: Error) -> PluginError {
    let kind = match &error {
        Error::Plugin { source, .. } => source.kind,
        _ => PluginErrorKind::Configuration,
    };
    let mut told = PluginError::new(kind, error.to_string());
    told.hint = error.hint().map(String::from);
    told
}
