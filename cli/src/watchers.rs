//! Several observers at once, and the log of metrics as one of them.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};
use sppo_core::metrics::{MetricsEntry, MetricsLog};
use sppo_core::observer::{Event, IterationReport, Observer, Stage, TrainingStep};
use sppo_core::{Error, Result};

use crate::interrupt;

const TRAINING_STEP: &str = "training_step";
const ITERATION: &str = "iteration";
const STAGE: &str = "stage";

/// Shows nothing, and stops when the user asks to.
pub(crate) struct QuietWatcher;

impl Observer for QuietWatcher {
    fn event(&self, _event: Event<'_>) {}

    fn is_cancelled(&self) -> bool {
        interrupt::requested()
    }
}

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

/// Writes every optimiser step, every iteration, and what plugins say of themselves in a stage to
/// `metrics.jsonl` and to a TensorBoard file.
///
/// Work that is redone after a crash is logged anew: the log is opened when the first entry comes, and
/// earlier entries about that step or later ones are dropped.
pub(crate) struct MetricsWatcher {
    directory: PathBuf,
    log: RefCell<Option<MetricsLog>>,
    failure: RefCell<Option<Error>>,
    iteration: Cell<u32>,
    /// The stages under way, each with its plugin's numbers.
    stages: RefCell<Vec<(Stage, Map<String, Value>)>>,
}

/// What a plugin said of itself in a stage.
#[derive(Serialize)]
struct StageEntry<'a> {
    iteration: u32,
    stage: Stage,
    #[serde(flatten)]
    metrics: &'a Map<String, Value>,
}

impl MetricsWatcher {
    /// A log in this directory.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            log: RefCell::new(None),
            failure: RefCell::new(None),
            iteration: Cell::new(0),
            stages: RefCell::default(),
        }
    }

    /// The outcome of the work that was watched, unless the log could not be written, which stopped it.
    pub(crate) fn outcome<T>(self, outcome: Result<T>) -> Result<T> {
        match self.failure.into_inner() {
            Some(failure) => Err(failure),
            None => outcome,
        }
    }

    fn stage_finished(&self) {
        let finished = self.stages.borrow_mut().pop();
        if let Some((stage, metrics)) = &finished
            && !metrics.is_empty()
        {
            let iteration = self.iteration.get();
            // Nothing that its iteration has logged so far becomes void by it.
            let position = Position { iteration: iteration.into(), step: u64::MAX };
            self.log(STAGE, position, &StageEntry { iteration, stage: *stage, metrics });
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
            Event::IterationStarted { iteration, .. } => self.iteration.set(iteration),
            Event::StageStarted { stage, .. } => {
                self.stages.borrow_mut().push((stage, Map::new()));
            }
            Event::StageMetrics(values) => {
                if let Some((_, metrics)) = self.stages.borrow_mut().last_mut() {
                    metrics.extend(
                        values
                            .iter()
                            .map(|(name, value)| ((*name).to_owned(), Value::from(*value))),
                    );
                }
            }
            Event::StageFinished { .. } => self.stage_finished(),
            Event::StageProgress { .. } | Event::Notice(_) => {}
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
        let step = match entry.kind.as_str() {
            ITERATION => Some(u64::MAX),
            STAGE => Some(0),
            _ => number("step"),
        };
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

    #[test]
    fn the_last_numbers_of_a_stage_are_logged_when_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let watcher = MetricsWatcher::new(directory.path());
        watcher.event(Event::IterationStarted { iteration: 2, iterations: 3 });
        let start = |stage| watcher.event(Event::StageStarted { stage, total: 1, unit: "prompts" });
        let finish = || {
            let elapsed = std::time::Duration::ZERO;
            watcher.event(Event::StageFinished { elapsed, summary: String::new() });
        };
        start(Stage::Judge);
        watcher.event(Event::StageMetrics(&[("requests", 3.0), ("retries", 1.0)]));
        start(Stage::Load);
        finish();
        watcher.event(Event::StageMetrics(&[("requests", 7.0)]));
        finish();
        watcher.outcome(Ok(())).unwrap();
        let log = MetricsLog::open(directory.path(), |_| true).unwrap();
        let [entry] = log.entries() else { panic!("{:?}", log.entries()) };
        assert_eq!(entry.kind, "stage");
        let expected = serde_json::json!({
            "iteration": 2, "stage": "judge", "requests": 7.0, "retries": 1.0
        });
        assert_eq!(Value::Object(entry.values.clone()), expected);
    }
}
