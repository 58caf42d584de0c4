//! What a run tells whoever watches it: a terminal, a log, a test.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::error::Error;
use crate::plugin::{
    Backend, ModelSpec, Oracle, PluginError, PluginErrorKind, Progress, Scorer, Services,
};
use crate::plugins::PluginRegistry;
use crate::records::Rollout;
use crate::stages::length_statistics;
use crate::statistics::Interval;

/// The parts of an iteration, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Loading the model.
    Load,
    /// Sampling K answers per prompt.
    Sample,
    /// Asking the oracle.
    Judge,
    /// Log-probabilities under the reference policy.
    Reference,
    /// Regressing the policy.
    Train,
    /// Writing the checkpoint.
    Save,
    /// Comparing with the starting model on held-out prompts.
    Evaluate,
}

/// One optimiser step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingStep {
    /// The iteration, from 1; 0 when training alone on a file.
    pub iteration: u32,
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
    /// Mean summed log-probability of the first (chosen) answers.
    pub log_prob_chosen: f64,
    /// Mean summed log-probability of the last (rejected) answers.
    pub log_prob_rejected: f64,
    /// Mean of `beta * log ratio` of the chosen answers.
    pub reward_chosen: f64,
    /// Mean of `beta * log ratio` of the rejected answers.
    pub reward_rejected: f64,
    /// Share of examples whose chosen answer has the larger reward.
    pub reward_accuracy: f64,
    /// Tokens (prompt once, every answer) that went through the policy.
    pub tokens: u64,
    /// Seconds that the step took.
    pub seconds: f64,
}

/// What one iteration achieved.
#[derive(Clone, Debug, PartialEq, Serialize, serde::Deserialize)]
pub struct IterationReport {
    /// The iteration, from 1; 0 is the starting model.
    pub iteration: u32,
    /// Where its checkpoint lies.
    pub checkpoint: PathBuf,
    /// Win rate against the starting model on the held-out prompts.
    pub win_rate: Option<Interval>,
    /// Mean length of held-out answers, in tokens.
    pub mean_response_tokens: Option<f64>,
    /// Share of held-out answers that ended by themselves.
    pub ended_share: Option<f64>,
    /// Mean change of the chosen answers' log-probability on the training pairs.
    pub chosen_log_prob_change: Option<f64>,
    /// Mean change of the rejected answers' log-probability on the training pairs.
    pub rejected_log_prob_change: Option<f64>,
    /// Examples trained on.
    pub examples: usize,
    /// Prompts skipped because the best and worst answers read the same.
    pub skipped_identical: usize,
    /// Prompts skipped because every answer scored the same.
    pub skipped_equal: usize,
    /// Seconds that the iteration took in this process.
    pub seconds: f64,
}

impl IterationReport {
    pub(crate) fn new(iteration: u32, checkpoint: PathBuf) -> Self {
        Self {
            iteration,
            checkpoint,
            win_rate: None,
            mean_response_tokens: None,
            ended_share: None,
            chosen_log_prob_change: None,
            rejected_log_prob_change: None,
            examples: 0,
            skipped_identical: 0,
            skipped_equal: 0,
            seconds: 0.0,
        }
    }

    pub(crate) fn describe_answers(&mut self, held_out: &[Rollout]) {
        if !held_out.is_empty() {
            let (mean_tokens, ended_share) = length_statistics(held_out);
            self.mean_response_tokens = Some(mean_tokens);
            self.ended_share = Some(ended_share);
        }
    }
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// An iteration begins (from 1).
    IterationStarted {
        /// Its number.
        iteration: u32,
        /// How many there will be.
        iterations: u32,
    },
    /// A stage begins; `total` counts `unit`s.
    StageStarted {
        /// Which.
        stage: Stage,
        /// The amount of work.
        total: u64,
        /// What is counted: `tokens`, `prompts`, `pairs`.
        unit: &'static str,
    },
    /// The stage under way has done this much in all.
    StageProgress {
        /// Units done.
        completed: u64,
        /// The amount of work, which may turn out smaller than announced.
        total: u64,
    },
    /// What the plugin at work in the stage under way says of itself, by name.
    StageMetrics(&'a [(&'a str, f64)]),
    /// The stage under way is done.
    StageFinished {
        /// How long it took.
        elapsed: Duration,
        /// One line on what came of it.
        summary: String,
    },
    /// The optimiser took a step.
    TrainingStep(&'a TrainingStep),
    /// An iteration is complete and committed.
    IterationFinished(&'a IterationReport),
    /// Something that people should know.
    Notice(String),
}

/// Watches a run and may stop it.
pub trait Observer {
    /// Takes note of an event.
    fn event(&self, event: Event<'_>);

    /// Whether the user asked to stop.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Watches nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct SilentObserver;

impl Observer for SilentObserver {
    fn event(&self, _event: Event<'_>) {}
}

/// What plugins may use of one another.
#[derive(Clone, Copy)]
pub struct PluginServices<'a> {
    /// The run's backend, if there is one.
    pub backend: Option<&'a dyn Backend>,
    /// All plugins by name.
    pub plugins: &'a PluginRegistry,
    /// The settings that they get.
    pub config: &'a Config,
}

/// The host that plugins see during one stage: their progress is added to what the stage has done.
pub struct StageHost<'a> {
    observer: &'a dyn Observer,
    services: PluginServices<'a>,
    completed_before: u64,
    total: u64,
}

impl<'a> StageHost<'a> {
    /// A host for one call within a stage of `total` units, `completed_before` of them already done.
    #[must_use]
    pub fn new(
        observer: &'a dyn Observer,
        services: PluginServices<'a>,
        completed_before: u64,
        total: u64,
    ) -> Self {
        Self { observer, services, completed_before, total }
    }
}

impl Progress for StageHost<'_> {
    fn is_cancelled(&self) -> bool {
        self.observer.is_cancelled()
    }

    fn progress(&self, completed: u64, _total: u64) {
        let completed = self.completed_before + completed;
        self.observer.event(Event::StageProgress { completed, total: self.total.max(completed) });
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.observer.event(Event::StageMetrics(values));
    }
}

impl Services for StageHost<'_> {
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        match self.services.backend {
            Some(backend) => backend.load_scorer(model),
            None => Err(PluginError::unsupported("this command runs without a backend")),
        }
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        let PluginServices { plugins, config, .. } = self.services;
        let settings = config.backend.settings_of(backend);
        plugins.create_backend(backend, settings).map_err(told_to_plugin)?.load_scorer(model)
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        let PluginServices { plugins, config, .. } = self.services;
        plugins.create_oracle(name, config.oracle.settings_of(name)).map_err(told_to_plugin)
    }
}

/// An error about another plugin, as the plugin that asked for it sees it.
fn told_to_plugin(error: Error) -> PluginError {
    let kind = match &error {
        Error::Plugin { source, .. } => source.kind,
        _ => PluginErrorKind::Configuration,
    };
    let mut told = PluginError::new(kind, error.to_string());
    told.hint = error.hint().map(String::from);
    told
}
