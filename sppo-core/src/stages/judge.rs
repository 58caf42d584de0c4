//! Stage 2: the oracle compares the responses, and its verdicts become preferences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plugin::check::{self, Check};
use crate::plugin::{Candidate, Comparison, Oracle, Progress};
use crate::records::Rollout;
use crate::win_rate::{self, Preferences, WinRateEstimator};

/// Settings of the section `[preference]`: the way an oracle's verdicts become probabilities.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceSettings {
    /// Estimator of win rates from the pairwise logits of a ranker.
    pub estimator: WinRateEstimator,
    /// Temperature for oracles that return scores: `P(i > j) = sigmoid((s_i - s_j) / temperature)`.
    pub bradley_terry_temperature: f64,
}

impl Default for PreferenceSettings {
    fn default() -> Self {
        Self { estimator: WinRateEstimator::default(), bradley_terry_temperature: 1.0 }
    }
}

impl PreferenceSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When the temperature is not above 0.
    pub fn check(&self) -> Check {
        check::positive("bradley_terry_temperature", self.bradley_terry_temperature)
    }
}

/// A rollout as the oracle sees it.
#[must_use]
pub fn comparison(rollout: &Rollout) -> Comparison<'_> {
    let candidates = rollout
        .responses
        .iter()
        .map(|response| Candidate {
            text: response.text.as_str().into(),
            finish_reason: Some(response.finish_reason),
            token_count: Some(response.tokens.len()),
        })
        .collect();
    Comparison {
        prompt: rollout.prompt.messages.as_slice().into(),
        rendered_prompt: Some(rollout.rendered_prompt.as_str().into()),
        candidates,
    }
}

/// Asks the oracle about each comparison and validates what it says (Algorithm 1, line 5).
///
/// # Errors
/// When the oracle fails, or returns the wrong number of verdicts or an impossible one.
pub fn judge(
    oracle: &mut dyn Oracle,
    comparisons: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Preferences>> {
    let PreferenceSettings { estimator, bradley_terry_temperature } = *settings;
    Ok(win_rate::ask(oracle, comparisons, estimator, bradley_terry_temperature, progress)?)
}
