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

/// Differences of scores below this are rounding.
pub(crate) const ROUNDING: f64 = 1e-9;

/// A warning, if the oracle tells none of different candidates apart on any of several comparisons (or on one
/// of three candidates and more): nothing can be learned from that.
#[must_use]
pub fn without_signal(
    comparisons: &[Comparison<'_>],
    preferences: &[Preferences],
) -> Option<String> {
    let differ = |comparison: &Comparison<'_>| {
        comparison.candidates.iter().any(|one| one.text != comparison.candidates[0].text)
    };
    let asked: Vec<&Preferences> = comparisons
        .iter()
        .zip(preferences)
        .filter(|(comparison, _)| differ(comparison))
        .map(|(_, preferences)| preferences)
        .collect();
    let are_equal = |Preferences { scores, .. }: &&Preferences| {
        scores.iter().all(|score| (score - scores[0]).abs() < ROUNDING)
    };
    let enough = asked.len() > 1 || asked.iter().any(|one| one.scores.len() > 2);
    (enough && asked.iter().all(are_equal)).then(|| {
        format!(
            "the oracle calls all answers to each of {} prompts equal, different as they are: nothing can be \
             learned from that; see whether it gets the answers and how its scores are made",
            asked.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Message, Verdict};

    #[test]
    fn an_oracle_that_tells_nothing_apart_is_found_out() {
        let comparison = |texts: &[&'static str]| Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(*text)).collect(),
        };
        let warned = |all: &[(&[&'static str], Vec<f64>)]| {
            let comparisons: Vec<_> = all.iter().map(|(texts, _)| comparison(texts)).collect();
            let of = |scores: &Vec<f64>| {
                let verdict = Verdict::Scores(scores.clone());
                win_rate::judge(verdict, scores.len(), WinRateEstimator::default(), 1.0).unwrap()
            };
            let preferences: Vec<_> = all.iter().map(|(_, scores)| of(scores)).collect();
            without_signal(&comparisons, &preferences).is_some()
        };
        assert!(warned(&[(&["a", "b"], vec![1.0, 1.0]), (&["c", "d"], vec![2.0, 2.0])]));
        assert!(warned(&[(&["a", "b", "c"], vec![0.0; 3])]));
        assert!(!warned(&[(&["a", "b"], vec![1.0, 1.0])]), "one pair may be a tie");
        assert!(!warned(&[(&["a", "a", "a"], vec![1.0; 3])]), "they read the same");
        assert!(!warned(&[(&["a", "b"], vec![1.0, 1.0]), (&["c", "d"], vec![2.0, 2.1])]));
        assert!(!warned(&[]));
    }
}
