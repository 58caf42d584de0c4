//! The progress of a stage.

use std::cell::Cell;
use std::time::Instant;

use super::{Session, StageHost};
use crate::error::Result;
use crate::observer::{Event, Stage};

/// A stage under way, which tells the session's observer how far it is.
pub struct StageMeter<'a> {
    session: Session<'a>,
    total: u64,
    completed: Cell<u64>,
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
        Self { session, total, completed: Cell::new(0), started: Instant::now() }
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
    pub fn reach(&self, completed: u64) -> Result<()> {
        self.completed.set(completed);
        self.advance(0);
        self.session.require_running()
    }

    /// Ends the stage with one line on its outcome.
    pub fn finish(self, summary: String) {
        let elapsed = self.started.elapsed();
        self.session.observer.event(Event::StageFinished { elapsed, summary });
    }
}
