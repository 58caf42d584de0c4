//! Rank 0: asks all ranks, itself among them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Instant;

use sppo_plugin::{PluginError, Progress, SilentHost};

use super::member::{Member, OwnFiles};
use super::protocol::{Command, Handle, Outcome, Reply};
use crate::ops::encoder::EncoderOps;

type Answer<T> = Result<T, PluginError>;

/// The voice of a team, on rank 0. It lasts as long as the backend and everything that it has loaded.
pub(crate) struct Controller<O: EncoderOps + Clone> {
    member: RefCell<Member<O>>,
    next_handle: Cell<Handle>,
    /// Whether the ranks no longer act together, so that nothing can be asked any more.
    broken: Cell<bool>,
    times: RefCell<Times>,
}

/// Times of the commands since they were last taken.
#[derive(Default)]
struct Times {
    /// Seconds in which rank 0 computed nothing itself.
    waiting: f64,
    /// Seconds that each rank computed.
    busy: Vec<f64>,
}

impl<O: EncoderOps + Clone> Controller<O> {
    pub(crate) fn new(member: Member<O>) -> Rc<Self> {
        Rc::new(Self {
            member: RefCell::new(member),
            next_handle: Cell::new(0),
            broken: Cell::new(false),
            times: RefCell::default(),
        })
    }

    pub(crate) fn size(&self) -> usize {
        self.member.borrow().collective().size()
    }

    /// A number for a model that all ranks will hold.
    pub(super) fn new_handle(&self) -> Handle {
        self.next_handle.replace(self.next_handle.get() + 1)
    }

    /// The replies of all ranks to a command.
    ///
    /// # Errors
    /// The first failure of a rank, or the team's.
    pub(super) fn ask(&self, command: &Command) -> Answer<Vec<Reply>> {
        self.ask_about(command, OwnFiles::None, &SilentHost)
    }

    /// As [`Self::ask`], with the files that the command is about, and a watcher.
    pub(super) fn ask_about(
        &self,
        command: &Command,
        files: OwnFiles<'_>,
        progress: &dyn Progress,
    ) -> Answer<Vec<Reply>> {
        if self.broken.get() {
            return Err(PluginError::failed("the processes of the team no longer work together"));
        }
        let started = Instant::now();
        let mut member = self.member.borrow_mut();
        let told = command.encode().and_then(|bytes| member.collective().broadcast(bytes));
        let outcomes = told.and_then(|_| member.answer(command, files, progress));
        let outcomes = outcomes.inspect_err(|_| self.broken.set(true))?;
        self.times.borrow_mut().add(started.elapsed().as_secs_f64(), &outcomes);
        member.replies(outcomes)
    }

    /// Seconds since the last call in which rank 0 waited for the others, and the rank that computed longest.
    pub(super) fn take_times(&self) -> (f64, usize) {
        let Times { waiting, busy } = self.times.take();
        let slowest = busy.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
        (waiting, slowest.map_or(0, |(rank, _)| rank))
    }

    /// Looks at rank 0's own replica.
    pub(super) fn with_member<T>(&self, look: impl FnOnce(&Member<O>) -> T) -> T {
        look(&self.member.borrow())
    }

    /// What the last [`Command::Gather`] brought to rank 0.
    pub(super) fn take_gathered(&self) -> Vec<Vec<f32>> {
        self.member.borrow_mut().take_gathered()
    }

    /// Name of a rank in messages.
    pub(super) fn name(&self, rank: usize) -> String {
        self.member.borrow().collective().name(rank)
    }

    /// Has all ranks give up a model. Nothing is left to be done where that fails.
    pub(super) fn give_up(&self, handle: Handle) {
        if let Err(error) = self.ask(&Command::Drop(handle)) {
            tracing::debug!("a model of the team was not given up: {error}");
        }
    }
}

impl Times {
    fn add(&mut self, seconds: f64, outcomes: &[Outcome]) {
        self.busy.resize(outcomes.len(), 0.0);
        for (busy, outcome) in self.busy.iter_mut().zip(outcomes) {
            *busy += outcome.seconds;
        }
        self.waiting += seconds - outcomes.first().map_or(0.0, |own| own.seconds);
    }
}

impl<O: EncoderOps + Clone> Drop for Controller<O> {
    fn drop(&mut self) {
        if self.broken.get() {
            return;
        }
        let member = self.member.borrow();
        let left = Command::Leave.encode().and_then(|bytes| member.collective().broadcast(bytes));
        if let Err(error) = left {
            tracing::debug!("the team was not told that its work is done: {error}");
        }
    }
}
