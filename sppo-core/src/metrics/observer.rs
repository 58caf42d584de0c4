//! The log of metrics as an observer of a run.

use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{MetricsEntry, MetricsLog};
use crate::error::{Error, Result};
use crate::observer::{Event, Observer, Stage, TrainingStep};

const TRAINING_STEP: &str = "training_step";
const ITERATION: &str = "iteration";
const STAGE: &str = "stage";
const NOTICE: &str = "notice";

/// Writes every optimiser step, every iteration, and the numbers that plugins report in a stage to
/// `metrics.jsonl`, and the numbers among these to a TensorBoard file; of a run, also every stage with its time
/// and every notice.
///
/// Work that is redone after a crash is logged anew: the first step or iteration that is logged drops earlier
/// entries about it and later ones. Stages and notices of the earlier process stay: they took their time.
pub struct MetricsObserver {
    directory: PathBuf,
    /// Whether stages without numbers and notices are logged too.
    is_of_run: bool,
    log: RefCell<Option<MetricsLog>>,
    /// Whether entries about work that this process does again were dropped.
    has_caught_up: Cell<bool>,
    failure: RefCell<Option<Error>>,
    /// The iteration under way, from 1; 0 outside of self-play.
    iteration: Cell<u32>,
    /// The stages under way, each with the numbers of its plugin.
    stages: RefCell<Vec<(Stage, Map<String, Value>)>>,
}

/// An optimiser step of an iteration.
#[derive(Serialize)]
struct StepEntry<'a> {
    iteration: u32,
    #[serde(flatten)]
    step: &'a TrainingStep,
}

/// The time of a stage in this process, and the numbers that were reported in it.
#[derive(Serialize)]
struct StageEntry<'a> {
    iteration: u32,
    stage: Stage,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampled_tokens: Option<u64>,
    #[serde(flatten)]
    metrics: &'a Map<String, Value>,
}

/// A message for the user.
#[derive(Serialize)]
struct NoticeEntry<'a> {
    iteration: u32,
    text: &'a str,
}

impl MetricsObserver {
    /// A log in this directory.
    #[must_use]
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            is_of_run: false,
            log: RefCell::new(None),
            has_caught_up: Cell::new(false),
            failure: RefCell::new(None),
            iteration: Cell::new(0),
            stages: RefCell::default(),
        }
    }

    /// A log of a run, in its directory.
    #[must_use]
    pub fn of_run(directory: impl Into<PathBuf>) -> Self {
        Self { is_of_run: true, ..Self::new(directory) }
    }

    /// The outcome of the work that was observed, unless the log could not be written, which stopped it.
    ///
    /// # Errors
    /// Why the log could not be written, or else the error of the work.
    pub fn outcome<T>(self, outcome: Result<T>) -> Result<T> {
        match self.failure.into_inner() {
            Some(failure) => Err(failure),
            None => outcome,
        }
    }

    fn stage_finished(&self, elapsed: Duration, sampled_tokens: u64) {
        let finished = self.stages.borrow_mut().pop();
        if let Some((stage, metrics)) = &finished
            && (self.is_of_run || !metrics.is_empty())
        {
            let (iteration, seconds) = (self.iteration.get(), elapsed.as_secs_f64());
            let sampled_tokens = Some(sampled_tokens).filter(|tokens| *tokens > 0);
            self.log(
                STAGE,
                None,
                &StageEntry { iteration, stage: *stage, seconds, sampled_tokens, metrics },
            );
        }
    }

    /// Logs an entry. One with a position takes the place of what is logged about that position and later ones.
    fn log(&self, kind: &str, position: Option<Position>, values: &impl serde::Serialize) {
        let mut slot = self.log.borrow_mut();
        let must_catch_up = position.filter(|_| !self.has_caught_up.get());
        let opened = match (slot.take(), must_catch_up) {
            (Some(log), None) => Ok(log),
            (_, must_catch_up) => MetricsLog::open(&self.directory, |entry| {
                let logged = Position::of(entry);
                logged.is_some_and(|logged| must_catch_up.is_none_or(|now| logged < now))
            }),
        };
        let appended = opened.and_then(|log| {
            let log = slot.insert(log);
            let global_step = next_global_step(log, kind);
            log.append(kind, global_step, values)
        });
        self.has_caught_up.set(self.has_caught_up.get() || position.is_some());
        if let Err(error) = appended {
            self.failure.borrow_mut().get_or_insert(error);
        }
    }
}

impl Observer for MetricsObserver {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::TrainingStep(step) => {
                let iteration = self.iteration.get();
                let position = Position { iteration: iteration.into(), step: step.step };
                self.log(TRAINING_STEP, Some(position), &StepEntry { iteration, step });
            }
            Event::IterationFinished(report) => {
                let position = Position { iteration: report.iteration.into(), step: u64::MAX };
                self.log(ITERATION, Some(position), report);
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
            Event::StageFinished { elapsed, sampled_tokens, .. } => {
                self.stage_finished(elapsed, sampled_tokens);
            }
            Event::Notice(text) if self.is_of_run => {
                let iteration = self.iteration.get();
                self.log(NOTICE, None, &NoticeEntry { iteration, text: &text });
            }
            Event::StageProgress { .. } | Event::Notice(_) => {}
        }
    }

    fn is_cancelled(&self) -> bool {
        self.failure.borrow().is_some()
    }
}

/// Position of an entry in a run: the report of an iteration follows its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    iteration: u64,
    step: u64,
}

impl Position {
    fn of(entry: &MetricsEntry) -> Option<Self> {
        let number = |name: &str| entry.values.get(name).and_then(Value::as_u64);
        let step = match entry.kind.as_str() {
            ITERATION => Some(u64::MAX),
            STAGE | NOTICE => Some(0),
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

    fn step(step: u64, loss: f64) -> TrainingStep {
        TrainingStep {
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
            communication_seconds: None,
            slowest_rank: None,
        }
    }

    fn losses(directory: &std::path::Path) -> Vec<(u64, f64)> {
        let log = MetricsLog::open(directory, |_| true).unwrap();
        let loss =
            |entry: &MetricsEntry| Some((entry.global_step, entry.values.get("loss")?.as_f64()?));
        log.entries().iter().filter_map(loss).collect()
    }

    #[test]
    fn steps_that_are_redone_are_logged_once() {
        let directory = tempfile::tempdir().unwrap();
        let first = MetricsObserver::new(directory.path());
        for iteration in 1..=2 {
            first.event(Event::IterationStarted { iteration, iterations: 2 });
            for number in 1..=2 {
                first.event(Event::TrainingStep(&step(number, 5.0)));
            }
        }
        first.outcome(Ok(())).unwrap();
        let resumed = MetricsObserver::of_run(directory.path());
        resumed.event(Event::IterationStarted { iteration: 2, iterations: 2 });
        resumed.event(Event::Notice("what is logged before the steps keeps none of them".into()));
        for number in 1..=2 {
            resumed.event(Event::TrainingStep(&step(number, 7.0)));
        }
        resumed.outcome(Ok(())).unwrap();
        assert_eq!(losses(directory.path()), [(1, 5.0), (2, 5.0), (3, 7.0), (4, 7.0)]);
    }

    #[test]
    fn the_last_numbers_of_a_stage_are_logged_when_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let observer = MetricsObserver::of_run(directory.path());
        observer.event(Event::IterationStarted { iteration: 2, iterations: 3 });
        let start =
            |stage| observer.event(Event::StageStarted { stage, total: 1, unit: "prompts" });
        let finish = || {
            let elapsed = Duration::from_millis(1500);
            observer.event(Event::StageFinished {
                elapsed,
                summary: String::new(),
                sampled_tokens: 0,
            });
        };
        start(Stage::Judge);
        observer.event(Event::StageMetrics(&[("requests", 3.0), ("retries", 1.0)]));
        start(Stage::Load);
        finish();
        observer.event(Event::StageMetrics(&[("requests", 7.0)]));
        finish();
        observer.outcome(Ok(())).unwrap();
        let log = MetricsLog::open(directory.path(), |_| true).unwrap();
        let [load, entry] = log.entries() else { panic!("{:?}", log.entries()) };
        assert_eq!((&*load.kind, &load.values["stage"]), ("stage", &serde_json::json!("load")));
        let expected = serde_json::json!({
            "iteration": 2, "stage": "judge", "seconds": 1.5, "requests": 7.0, "retries": 1.0
        });
        assert_eq!(Value::Object(entry.values.clone()), expected);
    }
}
