//! Messages between a rank's own thread and its watching thread, and the words for what can happen.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::connection::Deadline;
use super::fault::{Fault, GroupError, seconds};
use super::roster::Roster;

/// Time between two looks at the connections.
pub(super) const LOOK: Duration = Duration::from_millis(25);
/// Time between two messages that say where a rank is.
pub(super) const HEARTBEAT: Duration = Duration::from_millis(200);
/// Silence from which on a rank is suspected when an operation has failed.
pub(super) const SUSPICIOUS_SILENCE: Duration = Duration::from_secs(1);
/// Time to hear from everybody before a verdict.
pub(super) const SETTLING: Duration = Duration::from_millis(400);
/// Time to wait for a verdict.
pub(super) const VERDICT: Duration = Duration::from_secs(5);
/// Operations that rank 0 remembers, to compare them with those of the others.
const HISTORY: usize = 1024;

/// An operation as ranks tell each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Step {
    /// Position among all operations of a rank, from 1.
    pub(super) number: u64,
    /// Name of the operation, for instance "all_reduce of 1000 Float".
    pub(super) what: String,
}

impl Step {
    pub(super) fn to_line(&self) -> String {
        format!("step\t{}\t{}", self.number, self.what)
    }

    pub(super) fn from_parts(number: &str, what: &str) -> Self {
        Self { number: number.parse().unwrap_or(0), what: what.into() }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            0 => formatter.write_str("the beginning"),
            number => write!(formatter, "{} (operation {number})", self.what),
        }
    }
}

/// An operation that failed on a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) step: Step,
    /// The time that was waited, where time was the trouble.
    pub(super) timeout: Option<Duration>,
    /// Words of the engine.
    pub(super) text: String,
}

impl Trouble {
    pub(super) fn to_line(&self) -> String {
        let Self { step, timeout, text } = self;
        let timeout = timeout.map_or(-1.0, |timeout| timeout.as_secs_f64());
        format!("trouble\t{}\t{}\t{timeout}\t{}", step.number, step.what, text.replace('\t', " "))
    }

    pub(super) fn from_parts([number, what, timeout, text]: [&str; 4]) -> Self {
        let timeout =
            timeout.parse().ok().and_then(|timeout| Duration::try_from_secs_f64(timeout).ok());
        Self { step: Step::from_parts(number, what), timeout, text: text.into() }
    }
}

/// The state that a rank's own thread and its watching thread share.
#[derive(Default)]
pub(super) struct Board {
    pub(super) step: Step,
    pub(super) history: VecDeque<Step>,
    pub(super) trouble: Option<Trouble>,
    /// Set when this rank leaves, with the reason if it is a bad one.
    pub(super) leaving: Option<String>,
    pub(super) verdict: Option<GroupError>,
}

/// A board, and a bell that rings when it changes.
#[derive(Default)]
pub(super) struct Shared {
    board: Mutex<Board>,
    changed: Condvar,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down that this rank begins an operation.
    pub(super) fn begin(&self, step: Step) {
        let mut board = self.lock();
        if board.history.len() == HISTORY {
            board.history.pop_front();
        }
        board.history.push_back(step.clone());
        board.step = step;
    }

    /// Writes down that an operation failed here.
    pub(super) fn report(&self, trouble: &Trouble) {
        self.lock().trouble.get_or_insert_with(|| trouble.clone());
        self.changed.notify_all();
    }

    /// Writes down that this rank leaves.
    pub(super) fn leave(&self, reason: &str) {
        self.lock().leaving.get_or_insert_with(|| reason.into());
        self.changed.notify_all();
    }

    /// The verdict that comes in time.
    pub(super) fn wait_for_verdict(&self, deadline: Deadline) -> Option<GroupError> {
        let mut board = self.lock();
        while board.verdict.is_none() && !deadline.is_over() {
            let waited = self.changed.wait_timeout(board, deadline.remaining());
            board = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        board.verdict.clone()
    }

    /// Writes a verdict down, unless there is one.
    pub(super) fn publish(&self, verdict: GroupError) {
        self.lock().verdict.get_or_insert(verdict);
        self.changed.notify_all();
    }

    /// Waits until the board changes, and not for long.
    pub(super) fn rest(&self) {
        let board = self.lock();
        drop(self.changed.wait_timeout(board, LOOK).unwrap_or_else(PoisonError::into_inner));
    }
}

/// A place in the group, as the watching thread knows it.
#[derive(Clone)]
pub(super) struct Post {
    pub(super) rank: usize,
    pub(super) roster: Roster,
    /// Silence that is a fault whatever the ranks are doing.
    pub(super) longest_silence: Duration,
}

/// A rank whose process ended.
pub(super) fn died(rank: usize, name: &str, step: Option<&Step>) -> GroupError {
    let during = step.map(|step| format!(" after {step}")).unwrap_or_default();
    let message =
        format!("{name} ended without leaving the group{during}: it crashed or was killed");
    GroupError::new(Fault::Died, Some(rank), message)
}

/// A rank that left while others need it.
pub(super) fn left(rank: usize, name: &str, reason: &str) -> GroupError {
    let message = match reason {
        "" => format!("{name} has left the group"),
        reason => format!("{name} has failed: {reason}"),
    };
    GroupError::new(Fault::Left, Some(rank), message)
}

/// A rank of which nothing is heard.
pub(super) fn silent(rank: usize, name: &str, silence: Duration, here: &str) -> GroupError {
    let message = format!(
        "{name} has not answered for {} s: it is stopped, or the network between it and host {here} \
         is down",
        seconds(silence)
    );
    GroupError::new(Fault::Silent, Some(rank), message)
}

/// A rank on which the engine failed, without any other explanation.
pub(super) fn failed(rank: usize, name: &str, trouble: &Trouble) -> GroupError {
    let message = format!("{name} failed in {}: {}", trouble.step, trouble.text);
    GroupError::new(Fault::Engine, Some(rank), message)
}
