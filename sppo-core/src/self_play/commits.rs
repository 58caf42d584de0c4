//! Times at which the state of training is committed.

use std::time::{Duration, Instant};

use crate::stages::CommitInterval;

/// Times the last commit's cost that must pass before the next, so that commits by time take a twentieth at most.
const COSTS_BETWEEN: u32 = 19;

/// The commits of one training so far.
pub(super) struct Commits {
    interval: CommitInterval,
    /// End of the last commit, or the beginning.
    last: Instant,
    /// Time that the last one took.
    cost: Duration,
}

impl Commits {
    pub(super) fn new(interval: CommitInterval) -> Self {
        Self { interval, last: Instant::now(), cost: Duration::ZERO }
    }

    /// Whether the state after so many steps is to be committed.
    pub(super) fn is_due(&self, step: u64) -> bool {
        is_due(self.interval, step, self.last.elapsed(), self.cost)
    }

    /// Notes what a commit costs.
    pub(super) fn timed<T>(&mut self, commit: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = commit();
        (self.last, self.cost) = (Instant::now(), started.elapsed());
        done
    }
}

fn is_due(interval: CommitInterval, step: u64, passed: Duration, cost: Duration) -> bool {
    match interval {
        CommitInterval::Steps(steps) => step.is_multiple_of(steps.max(1)),
        CommitInterval::Time(time) => passed >= time.max(cost * COSTS_BETWEEN),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_by_time_take_a_twentieth_at_most_and_those_by_steps_are_exact() {
        let seconds = Duration::from_secs;
        let quarter = CommitInterval::Time(seconds(900));
        assert!(!is_due(quarter, 25, seconds(899), seconds(3)));
        assert!(is_due(quarter, 7, seconds(900), seconds(3)));
        // A commit of a minute: after nineteen others.
        assert!(!is_due(quarter, 7, seconds(1139), seconds(60)));
        assert!(is_due(quarter, 7, seconds(1140), seconds(60)));
        let every_third = CommitInterval::Steps(3);
        assert!(is_due(every_third, 6, Duration::ZERO, seconds(60)));
        assert!(!is_due(every_third, 7, seconds(9000), Duration::ZERO));
    }
}
