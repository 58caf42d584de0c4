//! Choices that the algorithm's modules define.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a ranker's logits become win rates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WinRateEstimator {
    /// Scores are summed over both orders and all opponents first (the released code).
    #[default]
    Aggregate,
    /// The logistic function of each pairwise logit (the paper).
    Pairwise,
    /// The logistic function of the sum of both orders' logits.
    PairwiseSum,
    /// The mean of both orders' probabilities.
    PairwiseSymmetric,
}

/// Which answers are trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionStrategy {
    /// The best and the worst answer of each prompt.
    #[default]
    BestAndWorst,
    /// All K answers.
    All,
}

/// Which answers are trained on, and which prompts are skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelectionRule {
    /// Which answers are trained on.
    pub strategy: SelectionStrategy,
    /// Keep prompts whose best and worst answers read the same, or whose answers all score the same.
    pub keep_degenerate: bool,
}

/// The loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// SPPO with soft win rates (paper, equation 4.7, over the pair).
    #[default]
    Sppo,
    /// SPPO with the probability of this pair alone.
    SppoSingle,
    /// SPPO with hard labels (TRL).
    SppoHard,
    /// Direct preference optimisation.
    Dpo,
    /// Identity preference optimisation.
    Ipo,
    /// SLiC's hinge loss.
    Hinge,
    /// KTO on pairs.
    KtoPair,
    /// SPPO on all K answers.
    SppoAll,
}

/// How the learning rate falls after warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Linearly to 0.
    #[default]
    Linear,
    /// Along half a cosine to 0.
    Cosine,
    /// Not at all.
    Constant,
}

/// How text becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizationRule {
    /// One begin token, one end token, and truncation only of what does not fit.
    #[default]
    Clean,
    /// What the released code does.
    Official,
}
