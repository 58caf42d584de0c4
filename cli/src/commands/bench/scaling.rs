//! The same work on one rank, to compare several with, and the time in which these wait for each other.

use std::cell::Cell;
use std::process::Stdio;

use serde::Serialize;
use serde_json::Value;
use sppo_core::config::Config;
use sppo_core::observer::{Event, Observer};
use sppo_core::plugin::PluginKind;
use sppo_core::plugins::schema_of;
use sppo_core::{Error, Result};

use crate::{interrupt, team};

/// Units of work per second.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Speeds {
    pub(super) sampling: f64,
    pub(super) judging: f64,
    pub(super) training: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ranking: Option<f64>,
}

/// Several ranks beside one.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Scaling {
    pub(super) ranks: usize,
    /// CPU threads of the one rank, where the backend was told a number.
    pub(super) threads: Option<u64>,
    pub(super) one_rank: Speeds,
    /// Speeds of all ranks over those of one.
    pub(super) factors: Speeds,
    /// Part of the training steps' time in which rank 0 waited for the others.
    pub(super) waiting: f64,
}

impl Speeds {
    fn over(self, other: Self) -> Self {
        Self {
            sampling: self.sampling / other.sampling,
            judging: self.judging / other.judging,
            training: self.training / other.training,
            ranking: self.ranking.zip(other.ranking).map(|(own, other)| own / other),
        }
    }
}

/// Speeds on one rank, with as many threads as each of several has.
pub(super) struct OneRank {
    threads: Option<u64>,
    speeds: Speeds,
}

impl OneRank {
    /// Runs this program once more, alone, with the same arguments.
    ///
    /// # Errors
    /// When it cannot be started, or fails.
    pub(super) fn measure(config: &Config) -> Result<Self> {
        let failed = |message: String| Error::configuration("bench", message);
        let mut program = team::one_process().map_err(|error| failed(error.to_string()))?;
        program.arg("--json").stdin(Stdio::null()).stderr(Stdio::inherit());
        let threads = threads(config);
        if let Some(threads) = threads {
            let setting = format!("backend.{}.threads={threads}", config.backend.name);
            program.args(["--set", &setting]);
        }
        let output = program.output().map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!(
                "the measurement of one rank ended with {}",
                output.status
            )));
        }
        let speeds = speeds_in(&output.stdout);
        let unreadable = || failed("the measurement of one rank printed no report".into());
        Ok(Self { threads, speeds: speeds.ok_or_else(unreadable)? })
    }

    /// Compares speeds of several ranks with those of one.
    pub(super) fn compare(&self, ranks: usize, speeds: Speeds, times: &StepTimes) -> Scaling {
        let Self { threads, speeds: one_rank } = *self;
        let waiting = times.waiting.get() / times.seconds.get();
        Scaling { ranks, threads, one_rank, factors: speeds.over(one_rank), waiting }
    }
}

fn speeds_in(report: &[u8]) -> Option<Speeds> {
    let report: Value = serde_json::from_slice(report).ok()?;
    let speed = |place: &str| report.pointer(place)?.get("per_second")?.as_f64();
    Some(Speeds {
        sampling: speed("/measurements/generation")?,
        judging: speed("/judging")?,
        training: speed("/measurements/training")?,
        ranking: speed("/ranking"),
    })
}

/// CPU threads of a rank: those of the settings, or else its part of the cores. `None` for a backend that
/// has no such setting.
fn threads(config: &Config) -> Option<u64> {
    let name = &config.backend.name;
    let schema = schema_of(PluginKind::BACKEND, name, &config.plugins)?;
    schema.pointer("/properties/threads")?;
    let chosen = config.backend.chosen_settings();
    let chosen = chosen.get("threads").and_then(Value::as_u64).filter(|threads| *threads > 0);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Some(chosen.unwrap_or((cores / team::processes_here()).max(1) as u64))
}

/// Sums of the time that training steps take, and of that in which rank 0 waits. Cancels when the user asks
/// to stop.
#[derive(Debug, Default)]
pub(super) struct StepTimes {
    seconds: Cell<f64>,
    waiting: Cell<f64>,
}

impl Observer for StepTimes {
    fn event(&self, event: Event<'_>) {
        if let Event::TrainingStep(step) = event {
            self.seconds.set(self.seconds.get() + step.seconds);
            self.waiting.set(self.waiting.get() + step.communication_seconds.unwrap_or(0.0));
        }
    }

    fn is_cancelled(&self) -> bool {
        interrupt::requested()
    }
}
