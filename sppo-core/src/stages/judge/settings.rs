//! Settings of the judging stage: the section `[preference]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pair_rules::PairRule;
use crate::oracle_quality::Prices;
use crate::plugin::check::{self, Check};
use crate::win_rate::WinRateEstimator;

/// Settings of the section `[preference]`: what an oracle sees, what it is asked, and the way its verdicts become
/// probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// Estimator of win rates from the pairwise logits of a ranker.
    pub estimator: WinRateEstimator,
    /// Temperature for oracles that return scores: `P(i > j) = sigmoid((s_i - s_j) / temperature)`.
    pub bradley_terry_temperature: f64,
    /// What the oracle sees of an answer.
    pub oracle_sees: OracleView,
    /// Pairs of answers that the oracle is asked about. Held-out duels are always asked.
    pub pairs: PairRule,
    /// Labels that training makes of the probabilities. Held-out duels keep the probabilities.
    pub labels: LabelRule,
    /// Price of length: `P(i > j)` becomes `sigmoid(logit P(i > j) - length_penalty (z_i - z_j))`, where `z` is the
    /// length of an answer in characters, in standard deviations over the answers to its prompt. Certain
    /// preferences stay certain. Held-out duels are without it.
    pub length_penalty: f64,
    /// Prices of the service that the oracle asks, to tell what a run costs.
    pub prices: Prices,
}

/// What an oracle sees of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OracleView {
    /// What follows the thought (`<think>...</think>` and its like); an answer that was cut off within its
    /// thought is empty.
    #[default]
    Answer,
    /// The whole text, thoughts included.
    Everything,
}

/// Labels of pairs, made of the oracle's probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LabelRule {
    /// The probabilities themselves.
    #[default]
    Soft,
    /// A certain win of whichever answer is preferred, over both orders; a tie stays a tie.
    Hard,
    /// A certain win, drawn with the probability over both orders. The draw follows from the seed, the iteration,
    /// the prompt and the pair. Answers that read the same stay a tie.
    Sampled,
}

impl Default for PreferenceSettings {
    fn default() -> Self {
        Self {
            estimator: WinRateEstimator::default(),
            bradley_terry_temperature: 1.0,
            oracle_sees: OracleView::default(),
            pairs: PairRule::default(),
            labels: LabelRule::default(),
            length_penalty: 0.0,
            prices: Prices::default(),
        }
    }
}

impl PreferenceSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a number is out of its range.
    pub fn check(&self) -> Check {
        check::positive("bradley_terry_temperature", self.bradley_terry_temperature)?;
        check::require(
            self.length_penalty.is_finite(),
            "length_penalty",
            format!("{} is not a finite number", self.length_penalty),
            "give for instance 0.5; 0 switches it off, and below 0 longer answers are favoured",
        )?;
        self.prices.check().map_err(|refusal| refusal.within("prices"))
    }

    /// Cost of judging `answers` responses to each of `prompts` prompts for training, where `cost` is that of so many
    /// comparisons of so many answers; `None` where it is.
    #[must_use]
    pub fn expected_cost(
        &self,
        cost: &dyn Fn(u64, u64) -> Option<u64>,
        prompts: u64,
        answers: u64,
    ) -> Option<u64> {
        match self.pairs.asked_of(answers as usize) {
            None => cost(prompts, answers),
            Some(pairs) => cost(prompts * pairs as u64, 2),
        }
    }
}
