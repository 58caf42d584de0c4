//! Events of a run, for a terminal, a log or a test that follows it.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::oracle_quality::{ServiceCounters, VerdictCounts};
use crate::records::{ResponseStatistics, Rollout};
use crate::statistics::Interval;

/// Stages of an iteration, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Loading the model.
    Load,
    /// Handing the weights to the engine that samples, and comparing its numbers with the policy's.
    Refresh,
    /// Sampling K responses per prompt.
    Sample,
    /// Asking the oracle.
    Judge,
    /// Log-probabilities under the reference policy.
    Reference,
    /// Training the policy.
    Train,
    /// Writing the checkpoint.
    Save,
    /// Comparing with the starting model on held-out prompts.
    Evaluate,
}

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingStep {
    /// Steps taken in this iteration, this one included (from 1).
    pub step: u64,
    /// Steps that this iteration will take.
    pub steps: u64,
    /// Mean loss over the global batch, before the update.
    pub loss: f64,
    /// L2 norm of the gradient, before clipping.
    pub gradient_norm: f64,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Mean summed log-probability of the first (chosen) responses.
    pub log_prob_chosen: f64,
    /// Mean summed log-probability of the last (rejected) responses.
    pub log_prob_rejected: f64,
    /// Mean of `beta * log ratio` of the chosen responses.
    pub reward_chosen: f64,
    /// Mean of `beta * log ratio` of the rejected responses.
    pub reward_rejected: f64,
    /// Share of examples whose chosen response has the larger reward.
    pub reward_accuracy: f64,
    /// Tokens (prompt once, every response) that went through the policy.
    pub tokens: u64,
    /// Seconds that the step took.
    pub seconds: f64,
    /// Seconds of these in which rank 0 waited for other processes, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub communication_seconds: Option<f64>,
    /// The rank that computed longest, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowest_rank: Option<usize>,
}

/// Results of one iteration.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct IterationReport {
    /// The iteration, from 1; 0 is the starting model.
    pub iteration: u32,
    /// Path of its checkpoint.
    pub checkpoint: PathBuf,
    /// Win rate against the starting model on the held-out prompts.
    pub win_rate: Option<Interval>,
    /// Mean length of held-out responses, in tokens.
    pub mean_response_tokens: Option<f64>,
    /// Share of held-out responses that the model ended itself.
    #[serde(rename = "ended_share")]
    pub stop_rate: Option<f64>,
    /// Mean change of the chosen responses' log-probability on the training pairs.
    pub chosen_log_prob_change: Option<f64>,
    /// Mean change of the rejected responses' log-probability on the training pairs.
    pub rejected_log_prob_change: Option<f64>,
    /// Examples trained on.
    pub examples: usize,
    /// Prompts skipped because the best and worst responses read the same.
    pub skipped_identical: usize,
    /// Prompts skipped because every response scored the same.
    pub skipped_equal: usize,
    /// Examples of which a response was cut, because it did not fit into `training.max_length`.
    #[serde(default)]
    pub cut_examples: usize,
    /// Mean difference per token between the log-probabilities of the engine that samples and the policy's own,
    /// when they were compared last; `None` where the policy samples itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_prob_difference: Option<f64>,
    /// The oracle's verdicts on the sampled responses, and what they took; `None` for the starting model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oracle: Option<OracleUse>,
    /// Seconds that the iteration took in this process.
    pub seconds: f64,
}

/// An oracle's work in one iteration.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct OracleUse {
    /// Its verdicts on the sampled responses.
    #[serde(flatten)]
    pub verdicts: VerdictCounts,
    /// Counters of the service or the model that it asked in this process, held-out duels included; empty without
    /// one.
    #[serde(default, skip_serializing_if = "ServiceCounters::is_empty")]
    pub service: ServiceCounters,
    /// Money that the service took in this process, by `preference.prices`; `None` without prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

impl IterationReport {
    pub(crate) fn new(iteration: u32, checkpoint: PathBuf) -> Self {
        Self {
            iteration,
            checkpoint,
            win_rate: None,
            mean_response_tokens: None,
            stop_rate: None,
            chosen_log_prob_change: None,
            rejected_log_prob_change: None,
            examples: 0,
            skipped_identical: 0,
            skipped_equal: 0,
            cut_examples: 0,
            log_prob_difference: None,
            oracle: None,
            seconds: 0.0,
        }
    }

    pub(crate) fn describe_responses(&mut self, held_out: &[Rollout]) {
        if !held_out.is_empty() {
            let statistics = ResponseStatistics::of(held_out);
            self.mean_response_tokens = Some(statistics.mean_tokens);
            self.stop_rate = Some(statistics.stop_rate);
        }
    }
}

/// One event of a run.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// An iteration begins (from 1).
    IterationStarted {
        /// Its number.
        iteration: u32,
        /// Number of iterations.
        iterations: u32,
    },
    /// A stage begins; `total` counts `unit`s.
    StageStarted {
        /// The stage.
        stage: Stage,
        /// The amount of work.
        total: u64,
        /// Unit of the count: `tokens`, `prompts`, `pairs`.
        unit: &'static str,
    },
    /// The stage under way has done this much in all.
    StageProgress {
        /// Units done.
        completed: u64,
        /// The amount of work, which may turn out smaller than announced.
        total: u64,
    },
    /// Numbers that the plugin at work in the stage under way reports, by name.
    StageMetrics(&'a [(&'a str, f64)]),
    /// The stage under way is done.
    StageFinished {
        /// Duration of the stage.
        elapsed: Duration,
        /// One line on the outcome.
        summary: String,
        /// Tokens that were sampled in the stage; 0 in stages that sample none.
        sampled_tokens: u64,
    },
    /// The optimiser took a step.
    TrainingStep(&'a TrainingStep),
    /// An iteration is complete and committed.
    IterationFinished(&'a IterationReport),
    /// A message for the user.
    Notice(String),
}

/// Follows a run and may stop it.
pub trait Observer {
    /// Takes note of an event.
    fn event(&self, event: Event<'_>);

    /// Whether the user asked to stop.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Ignores every event, and never cancels.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentObserver;

impl Observer for SilentObserver {
    fn event(&self, _event: Event<'_>) {}
}

/// Several observers as one: each gets every event, and any of them may cancel.
#[derive(Clone, Copy)]
pub struct Observers<'a>(pub &'a [&'a dyn Observer]);

impl Observer for Observers<'_> {
    fn event(&self, event: Event<'_>) {
        for observer in self.0 {
            observer.event(event.clone());
        }
    }

    fn is_cancelled(&self) -> bool {
        self.0.iter().any(|observer| observer.is_cancelled())
    }
}
