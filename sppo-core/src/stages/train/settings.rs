//! Settings of the training stage: the section `[training]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::config::zero_is_none;
use crate::objective::{Objective, ObjectiveSettings};
use crate::plugin::check::{self, Check};
use crate::plugin::{FrozenWeights, GradientDtype, LoraSettings, Optimizer, Sharding};
use crate::schedule::{Schedule, ScheduleShape};
use crate::stages::{TokenizationRule, TokenizationSettings};
use crate::target::{Baseline, TargetMeasure, TargetSettings};

use super::choices::{CommitInterval, Recomputation};

/// Settings of training: the loss, the optimiser and its schedule, lengths, and adapters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingSettings {
    /// The loss.
    pub objective: Objective,
    /// The step size of self-play, `1 / beta` (paper: 1000). A win rate of `P` asks for a change of
    /// `eta (P - 1/2)` in log-probability.
    pub eta: f64,
    /// Measure of a response that its target is made of, for `sppo` and `sppo_all`.
    pub target: TargetMeasure,
    /// Baseline that is taken off the measure, for `sppo` and `sppo_all`.
    pub baseline: Baseline,
    /// Largest logit of a pair in scores: certain preferences count as this much.
    pub score_limit: f64,
    /// Weight of the starting model among the policies that `inpo` and `mnpo` stay near to, from 0 to 1.
    pub reference_share: f64,
    /// Weights of the others, for `mnpo`: of the current policy, the one before it, and so on. `inpo` takes the
    /// current policy alone. Each but the first costs a pass over the training set.
    pub history_weights: Vec<f64>,
    /// Probability that a label is wrong, from 0 to below 1/2, for `dpo`.
    pub label_smoothing: f64,
    /// Passes over the training set.
    pub epochs: u32,
    /// Passes that the learning-rate schedule is laid out for, of which `epochs` are done (paper: 18
    /// and 1); 0 for as many as `epochs`.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "u32")]
    pub planned_epochs: Option<u32>,
    /// Examples (prompts with their responses) per optimiser step.
    pub global_batch_size: usize,
    /// Most tokens that go through the policy at once, at least one example. Changes memory and speed,
    /// not the result, except for the features that dropout leaves out.
    pub micro_batch_tokens: usize,
    /// Whether the backward pass computes activations again instead of keeping them (gradient
    /// checkpointing): less memory for more time, and the same result. `true`, `false`, or `"auto"`: where
    /// the work would not fit into memory otherwise, as far as the backend predicts it. May be changed when a
    /// run is resumed.
    pub recompute_activations: Recomputation,
    /// Meaning of `auto` in this process: no setting of its own.
    #[serde(skip)]
    pub recomputes_to_fit: bool,
    /// Number format that gradients are summed in: `f32`, or `bf16` for half the memory and sums that are
    /// rounded after each micro-batch. The backend `tch` has both.
    pub gradient_dtype: GradientDtype,
    /// What ranks divide among themselves of that which training keeps (ZeRO): less memory on each. May be
    /// changed when a run is resumed.
    pub sharding: ShardingChoice,
    /// The division that `auto` stands for in this process: no setting of its own.
    #[serde(skip)]
    pub fitting_sharding: Sharding,
    /// The optimiser and its constants.
    pub optimizer: Optimizer,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Course of the learning rate after the warm-up.
    pub schedule: ScheduleShape,
    /// Share of the planned steps in which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// Largest L2 norm of the gradient: a larger gradient is scaled down to it; 0 for no limit.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "f64")]
    pub max_gradient_norm: Option<f64>,
    /// Rule by which prompts and responses become tokens.
    pub tokenization: TokenizationRule,
    /// Longest prompt plus response, in tokens; 0 for the model's context length.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub max_length: Option<usize>,
    /// Longest prompt where prompt and response do not fit together, in tokens; 0 for no limit. Only
    /// the `official` tokenisation cuts prompts.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub max_prompt_length: Option<usize>,
    /// Steps between two commits of weights and optimiser state.
    pub commit_every_steps: u64,
    /// Steps, or time, between two commits of weights and optimiser state: a whole number, or a time such as
    /// `"15m"`, `"90s"` or `"2h"`. Commits by time take at most a twentieth of it, and come later if they are
    /// slow. 0 for `commit_every_steps`.
    pub commit_every: CommitInterval,
    /// Source of the reference log-probabilities.
    pub reference_log_probs: ReferenceLogProbs,
    /// Low-rank adapters to train in place of the weights.
    pub lora: LoraSettings,
    /// Form in which the weights are kept while adapters are trained: `dense`, or `quantized`, in the blocks of the
    /// model's file, which must be quantized (QLoRA). The backends `candle` and `tch` have both, in one process.
    pub frozen_weights: FrozenWeights,
}

/// Source of the log-probabilities under the reference policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceLogProbs {
    /// Those that were recorded while the responses were sampled, by the same weights.
    #[default]
    Recorded,
    /// One pass over the training set before the first step.
    Recomputed,
}

/// Choice of what ranks divide among themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShardingChoice {
    /// As little as lets the work fit into memory, as far as the backend predicts it.
    #[default]
    Auto,
    /// Nothing: each rank keeps everything.
    None,
    /// The state of the optimiser (ZeRO-1). The result is the same, to the bit.
    Optimizer,
    /// The state of the optimiser and the gradients (ZeRO-2). The result is the same to the bit where a step is
    /// one micro-batch of each rank, and up to rounding where it is several.
    Gradients,
}

impl Default for TrainingSettings {
    fn default() -> Self {
        Self {
            objective: Objective::default(),
            eta: 1000.0,
            target: TargetMeasure::default(),
            baseline: Baseline::default(),
            score_limit: 10.0,
            reference_share: 1.0 / 3.0,
            history_weights: vec![1.0, 1.0],
            label_smoothing: 0.0,
            epochs: 1,
            planned_epochs: None,
            global_batch_size: 64,
            micro_batch_tokens: 1024,
            recompute_activations: Recomputation::default(),
            recomputes_to_fit: false,
            gradient_dtype: GradientDtype::default(),
            sharding: ShardingChoice::default(),
            fitting_sharding: Sharding::default(),
            optimizer: Optimizer::default(),
            learning_rate: 5e-7,
            schedule: ScheduleShape::default(),
            warmup_ratio: 0.1,
            max_gradient_norm: None,
            tokenization: TokenizationRule::default(),
            max_length: None,
            max_prompt_length: None,
            commit_every_steps: 25,
            commit_every: CommitInterval::Steps(0),
            reference_log_probs: ReferenceLogProbs::default(),
            lora: LoraSettings::default(),
            frozen_weights: FrozenWeights::default(),
        }
    }
}

impl TrainingSettings {
    /// The loss and its constants.
    #[must_use]
    pub fn loss(&self) -> ObjectiveSettings {
        ObjectiveSettings {
            objective: self.objective,
            eta: self.eta,
            label_smoothing: self.label_smoothing,
        }
    }

    /// The way targets are made.
    #[must_use]
    pub fn targets(&self) -> TargetSettings {
        TargetSettings {
            measure: self.target,
            baseline: self.baseline,
            score_limit: self.score_limit,
            eta: self.eta,
        }
    }

    /// Weights of the current policy and of those before it in the objective; empty where it stays near to none.
    #[must_use]
    pub fn weights_of_earlier(&self) -> &[f64] {
        match self.objective {
            Objective::Inpo => self.history_weights.get(..1).unwrap_or_default(),
            Objective::Mnpo => &self.history_weights,
            _ => &[],
        }
    }

    /// Division of the training state among ranks.
    #[must_use]
    pub fn sharding(&self) -> Sharding {
        match self.sharding {
            ShardingChoice::Auto => self.fitting_sharding,
            ShardingChoice::None => Sharding::None,
            ShardingChoice::Optimizer => Sharding::Optimizer,
            ShardingChoice::Gradients => Sharding::Gradients,
        }
    }

    /// Whether activations are computed again.
    #[must_use]
    pub fn recompute_activations(&self) -> bool {
        match self.recompute_activations {
            Recomputation::Auto => self.recomputes_to_fit,
            Recomputation::Always => true,
            Recomputation::Never => false,
        }
    }

    /// Distance between two commits of weights and optimiser state.
    #[must_use]
    pub fn commit_interval(&self) -> CommitInterval {
        match self.commit_every {
            CommitInterval::Steps(0) => CommitInterval::Steps(self.commit_every_steps),
            given => given,
        }
    }

    /// Learning rate at optimiser step `step` (from 0) of a training set of `examples` examples.
    pub(super) fn learning_rate_at(&self, step: u64, examples: usize) -> f64 {
        let planned = u64::from(self.planned_epochs.unwrap_or(self.epochs).max(self.epochs));
        let schedule = Schedule { shape: self.schedule, warmup_ratio: self.warmup_ratio };
        let multiplier = schedule.multiplier(step, self.steps_per_epoch(examples) * planned);
        self.learning_rate * multiplier
    }

    /// Optimiser steps in one pass over `examples` examples.
    #[must_use]
    pub fn steps_per_epoch(&self, examples: usize) -> u64 {
        examples.div_ceil(self.global_batch_size.max(1)) as u64
    }

    /// Optimiser steps in all passes over `examples` examples.
    #[must_use]
    pub fn steps(&self, examples: usize) -> u64 {
        self.steps_per_epoch(examples) * u64::from(self.epochs)
    }

    /// Rule and lengths by which text becomes tokens for a model of this context length.
    #[must_use]
    pub fn tokenization_settings(&self, context_length: usize) -> TokenizationSettings {
        let max_length = self.max_length.unwrap_or(context_length).min(context_length);
        TokenizationSettings {
            rule: self.tokenization,
            max_length,
            max_prompt_length: self.max_prompt_length.unwrap_or(max_length),
        }
    }

    /// Checks ranges, and what the settings ask of each other.
    ///
    /// # Errors
    /// When a value is out of its range or contradicts another.
    pub fn check(&self) -> Check {
        check::positive("eta", self.eta)?;
        self.check_targets()?;
        check::require(
            (0.0..0.5).contains(&self.label_smoothing),
            "label_smoothing",
            format!("{} is not from 0 to below 0.5", self.label_smoothing),
            "give the probability that a label is wrong, for instance 0.1",
        )?;
        check::at_least_one("epochs", self.epochs.into())?;
        check::require(
            self.planned_epochs.is_none_or(|planned| planned >= self.epochs),
            "planned_epochs",
            format!("fewer epochs are planned than `training.epochs` ({})", self.epochs),
            "plan at least as many; 0 plans exactly as many",
        )?;
        check::at_least_one("global_batch_size", self.global_batch_size as u64)?;
        check::at_least_one("micro_batch_tokens", self.micro_batch_tokens as u64)?;
        check::at_least_one("commit_every_steps", self.commit_every_steps)?;
        check::positive("learning_rate", self.learning_rate)?;
        check::require(
            (0.0..=1.0).contains(&self.warmup_ratio),
            "warmup_ratio",
            format!("{} is not from 0 to 1", self.warmup_ratio),
            "give the share of steps, for instance 0.1",
        )?;
        check::not_negative("max_gradient_norm", self.max_gradient_norm.unwrap_or(0.0))?;
        self.check_tokenization()?;
        self.lora.check().map_err(|refusal| refusal.within("lora"))?;
        check::require(
            self.frozen_weights == FrozenWeights::Dense || self.lora.rank > 0,
            "frozen_weights",
            "`quantized` keeps weights that are not trained, and without adapters all are",
            "train adapters, for instance with `--lora-rank 16`, or set it to `dense`",
        )?;
        self.optimizer.check().map_err(|refusal| refusal.within("optimizer"))
    }

    fn check_targets(&self) -> Check {
        let is_default = self.target == TargetMeasure::WinRate && self.baseline == Baseline::Half;
        let key = if self.target == TargetMeasure::WinRate { "baseline" } else { "target" };
        check::require(
            is_default || matches!(self.objective, Objective::Sppo | Objective::SppoAll),
            key,
            format!("the objective `{}` has no target for each answer", self.objective),
            "set `training.objective` to `sppo` or `sppo_all`, or leave the setting out",
        )?;
        check::positive("score_limit", self.score_limit)?;
        check::require(
            (0.0..=1.0).contains(&self.reference_share),
            "reference_share",
            format!("{} is not from 0 to 1", self.reference_share),
            "give the weight of the starting model, for instance 0.333",
        )?;
        let are_weights =
            self.history_weights.iter().all(|weight| weight.is_finite() && *weight > 0.0);
        check::require(
            are_weights && !self.history_weights.is_empty(),
            "history_weights",
            "needs at least one number, and all of them above 0",
            "give for instance [1.0, 1.0]: the current policy and the one before it alike",
        )
    }

    fn check_tokenization(&self) -> Check {
        if let (Some(longest), Some(prompt)) = (self.max_length, self.max_prompt_length) {
            check::require(
                prompt < longest,
                "max_prompt_length",
                format!(
                    "{prompt} leaves no room for an answer within `training.max_length` ({longest})"
                ),
                "lower the one or raise the other",
            )?;
        }
        if self.tokenization != TokenizationRule::Official {
            return check::require(
                self.max_prompt_length.is_none(),
                "max_prompt_length",
                "only `official` tokenisation cuts prompts",
                "set it to 0 and leave long prompts out of the data, or set \
                 `training.tokenization = \"official\"`",
            );
        }
        check::require(
            self.max_length.is_some() && self.max_prompt_length.is_some(),
            "tokenization",
            "`official` cuts to fixed lengths and needs both of them",
            "set `training.max_length` (1024) and `training.max_prompt_length` (512)",
        )?;
        check::require(
            self.reference_log_probs == ReferenceLogProbs::Recomputed,
            "reference_log_probs",
            "`official` tokenisation makes new tokens of the text, which have no recorded \
             log-probabilities",
            "set it to `recomputed`",
        )
    }
}
