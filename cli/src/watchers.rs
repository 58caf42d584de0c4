//! Several observers at once, and the log of metrics as one of them.

use std::cell::RefCell;
use std::path::PathBuf;

use serde_json::Value;
use sppo_core::metrics::{MetricsEntry, MetricsLog};
use sppo_core::observer::{Event, IterationReport, Observer, TrainingStep};
use sppo_core::{Error, Result};

const TRAINING_STEP: &str = "training_step";
const ITERATION: &str = "iteration";

/// Tells each of its observers everything; any of them may cancel.
pub(crate) struct Watchers<'a>(pub(crate) &'a [&'a dyn Observer]);

impl Observer for Watchers<'_> {
    fn event(&self, event: Event<'_>) {
        for observer in self.0 {
            observer.event(event.clone());
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.iter().any(|observer| observer.is_cancelled())
    }
}

/// Writes every optimiser step and every iteration to `metrics.jsonl` and to a TensorBoard file.
///
/// Work that is redone after a crash is logged anew: the log is opened when the first entry comes, and
/// earlier entries about that step or later ones are dropped.
pub(crate) struct MetricsWatcher {
    directory: PathBuf,
    log: RefCell<Option<MetricsLog>>,
    failure: RefCell<Option<Error>>,
}

impl MetricsWatcher {
    /// A log in this directory.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), log: RefCell::new(None), failure: RefCell::new(None) }
    }

    /// The outcome of the work that was watched, unless the log could not be written, which stopped it.
    pub(crate) fn outcome<T>(self, outcome: Result<T>) -> Result<T> {
        match self.failure.into_inner() {
            Some(failure) => Err(failure),
            None => outcome,
        }
    }

    fn log(&self, kind: &str, position: Position, values: &impl serde::Serialize) {
        let mut slot = self.log.borrow_mut();
        let opened = match slot.take() {
            Some(log) => Ok(log),
            None => MetricsLog::open(&self.directory, |entry| {
                Position::of(entry).is_some_and(|earlier| earlier < position)
            }),
        };
        let appended = opened.and_then(|log| {
            let log = slot.insert(log);
            let global_step = next_global_step(log, kind);
            log.append(kind, global_step, values)
        });
        if let Err(error) = appended {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }
}

impl Observer for MetricsWatcher {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::TrainingStep(step) => self.log(TRAINING_STEP, Position::of_step(step), step),
            Event::IterationFinished(report) => {
                self.log(ITERATION, Position::of_report(report), report);
            }
            _ => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.failure.borrow().is_some()
    }
}

/// When in a run an entry belongs: the report of an iteration follows its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    iteration: u64,
    step: u64,
}

impl Position {
    fn of_step(step: &TrainingStep) -> Self {
        Self { iteration: step.iteration.into(), step: step.step }
    }

    fn of_report(report: &IterationReport) -> Self {
        Self { iteration: report.iteration.into(), step: u64::MAX }
    }

    fn of(entry: &MetricsEntry) -> Option<Self> {
        let number = |name: &str| entry.values.get(name).and_then(Value::as_u64);
        let step = if entry.kind == ITERATION { Some(u64::MAX) } else { number("step") };
        Some(Self { iteration: number("iteration")?, step: step? })
    }
}

fn next_global_step(log: &MetricsLog, kind: &str) -> u64 {
    let of_kind = log.entries().iter().rev().find(|entry| entry.kind == kind);
    of_kind.map_or(1, |entry| entry.global_step + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(iteration: u32, step: u64, loss: f64) -> TrainingStep {
        TrainingStep {
            iteration,
            step,
            steps: 2,
            loss,
            gradient_norm: 1.0,
            learning_rate: 1e-6,
            log_prob_chosen: -1.0,
            log_prob_rejected: -2.0,
            reward_chosen: 0.0,
            reward_rejected: 0.0,
            reward_accuracy: 0.0,
            tokens: 3,
            seconds: 0.1,
        }
    }

    fn losses(directory: &std::path::Path) -> Vec<(u64, f64)> {
        let log = MetricsLog::open(directory, |_| true).unwrap();
        let loss = |entry: &MetricsEntry| entry.values["loss"].as_f64().unwrap();
        log.entries().iter().map(|entry| (entry.global_step, loss(entry))).collect()
    }

    #[test]
    fn steps_that_are_redone_are_logged_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = MetricsWatcher::new(directory.path());
        for (iteration, number) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            first.event(Event::TrainingStep(&step(iteration, number, 5.0)));
        }
        first.outcome(Ok(())).unwrap();
        let resumed = MetricsWatcher::new(directory.path());
        for number in 1..=2 {
            resumed.event(Event::TrainingStep(&step(2, number, 7.0)));
        }
        resumed.outcome(Ok(())).unwrap();
        assert_eq!(losses(directory.path()), [(1, 5.0), (2, 5.0), (3, 7.0), (4, 7.0)]);
    }
}
