//! The settings of the regression.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::zero_is_none;
use crate::objective::{Objective, ObjectiveSettings};
use crate::plugin::{LoraSettings, Optimizer};
use crate::schedule::{Schedule, ScheduleShape};
use crate::stages::{TokenizationRule, TokenizationSettings, TrainingSettings};

/// The regression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingTable {
    /// The loss.
    pub objective: Objective,
    /// The step size of self-play, `1 / beta` (paper: 1000). A win rate of `P` asks for a change of
    /// `eta (P - 1/2)` in log-probability.
    pub eta: f64,
    /// Probability that a label is wrong, from 0 to below 1/2; for `dpo`.
    pub label_smoothing: f64,
    /// Passes over the training set.
    pub epochs: u32,
    /// Passes that the learning-rate schedule is laid out for, of which `epochs` are done (paper: 18
    /// and 1); 0 for as many as `epochs`.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "u32")]
    pub planned_epochs: Option<u32>,
    /// Examples (prompts with their answers) per optimiser step.
    pub global_batch_size: usize,
    /// Most tokens that go through the policy at once. Changes memory and speed, not the result, but for
    /// which features dropout leaves out.
    pub micro_batch_tokens: usize,
    /// Keep only what enters each layer for the backward pass, and compute the rest again: less memory
    /// for more time, and the same result.
    pub recompute_activations: bool,
    /// The optimiser and its constants.
    pub optimizer: Optimizer,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate falls after warm-up.
    pub schedule: ScheduleShape,
    /// Share of the planned steps in which the learning rate rises from 0.
    pub warmup_ratio: f64,
    /// Scales larger gradients down to this L2 norm; 0 leaves them.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "f64")]
    pub max_gradient_norm: Option<f64>,
    /// How prompts and answers become tokens.
    pub tokenization: TokenizationRule,
    /// Longest prompt plus answer, in tokens; 0 for the model's context length.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub max_length: Option<usize>,
    /// Longest prompt where prompt and answer do not fit together, in tokens; 0 for no limit. The
    /// `official` tokenisation alone cuts prompts.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub max_prompt_length: Option<usize>,
    /// Weights and optimiser state are committed every so many steps.
    pub commit_every_steps: u64,
    /// Where the reference log-probabilities come from.
    pub reference_log_probs: ReferenceLogProbs,
    /// Low-rank adapters to train in place of the weights.
    pub lora: LoraTable,
}

/// Low-rank adapters (LoRA, arXiv 2106.09685), trained while the model's own weights stay as they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraTable {
    /// The rank of the adapters; 0 trains all weights and no adapters.
    pub rank: usize,
    /// The adapters' product is multiplied by alpha over the rank.
    pub alpha: f64,
    /// Probability that a feature is left out of an adapter's input while training.
    pub dropout: f64,
    /// The matrices that are adapted in every layer.
    pub target_modules: Vec<String>,
    /// Divide alpha by the root of the rank instead (rsLoRA).
    pub rank_stabilized: bool,
}

impl Default for LoraTable {
    fn default() -> Self {
        let all = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        Self {
            rank: 0,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: all.map(String::from).to_vec(),
            rank_stabilized: false,
        }
    }
}

impl LoraTable {
    /// What a backend is told, if there are adapters at all; `seed` draws their first values.
    #[must_use]
    pub fn settings(&self, seed: u64) -> Option<LoraSettings> {
        (self.rank > 0).then(|| LoraSettings {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            target_modules: self.target_modules.clone(),
            rank_stabilized: self.rank_stabilized,
            seed,
        })
    }
}

/// Where the log-probabilities under the reference policy come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceLogProbs {
    /// Those that were recorded while the answers were sampled, by the same weights.
    #[default]
    Recorded,
    /// One pass over the training set before the first step.
    Recomputed,
}

impl Default for TrainingTable {
    fn default() -> Self {
        Self {
            objective: Objective::default(),
            eta: 1000.0,
            label_smoothing: 0.0,
            epochs: 1,
            planned_epochs: None,
            global_batch_size: 64,
            micro_batch_tokens: 1024,
            recompute_activations: false,
            optimizer: Optimizer::default(),
            learning_rate: 5e-7,
            schedule: ScheduleShape::default(),
            warmup_ratio: 0.1,
            max_gradient_norm: None,
            tokenization: TokenizationRule::default(),
            max_length: None,
            max_prompt_length: None,
            commit_every_steps: 25,
            reference_log_probs: ReferenceLogProbs::default(),
            lora: LoraTable::default(),
        }
    }
}

impl TrainingTable {
    /// The settings of one training stage whose examples are ordered by `seed`.
    #[must_use]
    pub fn settings(&self, seed: u64) -> TrainingSettings {
        TrainingSettings {
            objective: ObjectiveSettings {
                objective: self.objective,
                eta: self.eta,
                label_smoothing: self.label_smoothing,
            },
            epochs: self.epochs,
            planned_epochs: self.planned_epochs.unwrap_or(self.epochs),
            global_batch_size: self.global_batch_size,
            micro_batch_tokens: self.micro_batch_tokens,
            learning_rate: self.learning_rate,
            schedule: Schedule { shape: self.schedule, warmup_ratio: self.warmup_ratio },
            max_gradient_norm: self.max_gradient_norm,
            seed,
        }
    }

    /// How text pairs become tokens for a model of this context length.
    #[must_use]
    pub fn tokenization_settings(&self, context_length: usize) -> TokenizationSettings {
        let max_length = self.max_length.unwrap_or(context_length).min(context_length);
        TokenizationSettings {
            rule: self.tokenization,
            max_length,
            max_prompt_length: self.max_prompt_length.unwrap_or(max_length),
        }
    }
}
