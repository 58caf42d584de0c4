//! The numbers of a run, gathered from its directory.

mod held_out;
mod oracle;
mod origin;
mod reader;
mod time;

use std::path::PathBuf;

use serde::Serialize;
use sppo_core::observer::IterationReport;
use sppo_core::run_directory::{PluginIdentity, ProcessRecord};
use sppo_core::statistics::Interval;

pub(crate) use held_out::HeldOutPrompt;
pub(crate) use oracle::{OracleReport, OrderReport};
pub use origin::shell_quoted;
pub(crate) use origin::{Origin, Setting};
pub use reader::RunReader;
pub(crate) use time::{StageSeconds, Throughput};

/// Everything that a report shows of a run. `sppo report --json` prints it without the texts.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Name of the run.
    pub(crate) name: String,
    /// Its directory.
    pub(crate) directory: PathBuf,
    /// Its progress.
    pub(crate) state: RunState,
    /// Iterations that it is to have.
    pub(crate) planned_iterations: u32,
    /// The model that it started from.
    pub(crate) model: String,
    /// The judge.
    pub(crate) oracle_name: String,
    /// The loss.
    pub(crate) objective: String,
    /// Scale of the targets.
    pub(crate) eta: f64,
    /// Responses per prompt.
    pub(crate) samples_per_prompt: usize,
    /// Confidence of the intervals.
    pub(crate) confidence: f64,
    /// The starting model (iteration 0), then the finished iterations.
    pub(crate) iterations: Vec<IterationSummary>,
    /// The optimiser steps, in order.
    pub(crate) steps: Vec<StepSummary>,
    /// Win rates of the model after each iteration (row) against each other (column), where they were judged.
    pub(crate) win_rate_matrix: Vec<Vec<Option<f64>>>,
    /// The judge's verdicts.
    pub(crate) oracle: OracleReport,
    /// The held-out prompts with all models' answers.
    #[serde(skip)]
    pub(crate) held_out: Vec<HeldOutPrompt>,
    /// Prompts that were not trained on, with the reason.
    pub(crate) skipped: Vec<SkippedPrompt>,
    /// Time of each stage of each iteration.
    pub(crate) stages: Vec<StageSeconds>,
    /// Tokens per second.
    pub(crate) throughput: Throughput,
    /// The processes that played the run.
    pub(crate) processes: Vec<ProcessRecord>,
    /// The notices of the run, without repetitions.
    pub(crate) notices: Vec<String>,
    /// Settings, hashes and the command that repeats the run.
    pub(crate) origin: Origin,
    /// Backend, oracle and what they use.
    pub(crate) plugins: Vec<PluginIdentity>,
}

impl RunReport {
    /// Name of the run.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls the run by its directory, where another run has the same name.
    pub fn name_by_directory(&mut self) {
        self.name = self.directory.display().to_string();
    }
}

/// Progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunState {
    /// A process is playing it.
    Running,
    /// It has all its iterations.
    Finished,
    /// It was stopped before its end.
    Stopped,
}

/// An iteration.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct IterationSummary {
    /// The results that the run reported.
    #[serde(flatten)]
    pub(crate) report: IterationReport,
    /// The win rate against the model of the iteration before, where it was judged.
    pub(crate) against_previous: Option<Interval>,
    /// The win rate against the starting model if both gave answers of the same length.
    pub(crate) length_controlled: Option<Interval>,
    /// Mean of the targets of the chosen responses' log-ratios, where the objective has such targets.
    pub(crate) chosen_target: Option<f64>,
    /// The same for the rejected responses.
    pub(crate) rejected_target: Option<f64>,
    /// Prompts that were sampled.
    pub(crate) prompts: usize,
}

/// An optimiser step.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StepSummary {
    /// The iteration.
    pub(crate) iteration: u32,
    /// Number of the step in the whole run, from 1.
    pub(crate) number: u64,
    /// Mean loss of its batch, before the update.
    pub(crate) loss: Option<f64>,
    /// L2 norm of the gradient, before clipping.
    pub(crate) gradient_norm: Option<f64>,
    /// Learning rate.
    pub(crate) learning_rate: Option<f64>,
    /// Mean log-ratio `log(pi / pi_t)` of the chosen responses of its batch.
    pub(crate) chosen_log_ratio: Option<f64>,
    /// The same of the rejected responses.
    pub(crate) rejected_log_ratio: Option<f64>,
}

/// A prompt that was not trained on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct SkippedPrompt {
    /// The iteration.
    pub(crate) iteration: u32,
    /// The prompt's id.
    pub(crate) id: u64,
    /// Its last turn.
    pub(crate) text: String,
    /// The reason.
    pub(crate) reason: &'static str,
}
