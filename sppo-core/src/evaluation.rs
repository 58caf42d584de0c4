//! Duels of one model's responses with another's, judged by an oracle, and the win rates that they give.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plugin::check::{self, Check};
use crate::plugin::{Candidate, Comparison, Oracle, Progress};
use crate::records::{DuelVerdict, Rollout};
use crate::stages::{self, PreferenceSettings};
use crate::statistics::Bootstrap;

/// Settings of the section `[evaluation]`: held-out prompts, answered by two models, judged by the run's
/// oracle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSettings {
    /// Whether each iteration is compared with the starting model.
    pub enabled: bool,
    /// Responses per held-out prompt and model.
    pub samples_per_prompt: usize,
    /// Resamples of the bootstrap over prompts.
    pub bootstrap_resamples: usize,
    /// Confidence of the interval, between 0 and 1.
    pub confidence: f64,
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        Self { enabled: true, samples_per_prompt: 1, bootstrap_resamples: 2000, confidence: 0.95 }
    }
}

impl EvaluationSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn check(&self) -> Check {
        check::at_least_one("samples_per_prompt", self.samples_per_prompt as u64)?;
        check::at_least_one("bootstrap_resamples", self.bootstrap_resamples as u64)?;
        check::require(
            self.confidence > 0.0 && self.confidence < 1.0,
            "confidence",
            format!("{} is not between 0 and 1", self.confidence),
            "give for instance 0.95",
        )
    }

    /// Intervals as these settings say.
    #[must_use]
    pub fn bootstrap(&self, seed: u64) -> Bootstrap {
        let Self { bootstrap_resamples: resamples, confidence, .. } = *self;
        Bootstrap { resamples, confidence, seed }
    }
}

/// Lets the challenger's answers meet the baseline's, sample against sample: for each prompt, one duel per
/// sample. Both lists answer the same prompts with the same number of samples.
///
/// # Errors
/// When the oracle fails.
pub fn duels(
    oracle: &mut dyn Oracle,
    challenger: &[Rollout],
    baseline: &[Rollout],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Vec<DuelVerdict>>> {
    let pairs: Vec<Vec<Comparison<'_>>> =
        challenger.iter().zip(baseline).map(|(ours, theirs)| pairs(ours, theirs)).collect();
    let judged = stages::judge(oracle, &pairs.concat(), settings, progress)?;
    let mut judged = judged.iter();
    let of_one_prompt = |pairs: &Vec<Comparison<'_>>| {
        judged.by_ref().take(pairs.len()).map(|pair| DuelVerdict::of(&pair.matrix)).collect()
    };
    Ok(pairs.iter().map(of_one_prompt).collect())
}

/// For each prompt, the mean probability that the challenger's answer is preferred.
#[must_use]
pub fn win_rates(duels: &[Vec<DuelVerdict>]) -> Vec<f64> {
    let mean = |of_one_prompt: &Vec<DuelVerdict>| {
        let wins: f64 = of_one_prompt.iter().map(DuelVerdict::win_probability).sum();
        wins / of_one_prompt.len().max(1) as f64
    };
    duels.iter().map(mean).collect()
}

/// One two-candidate comparison per sample, the challenger first.
fn pairs<'a>(challenger: &'a Rollout, baseline: &'a Rollout) -> Vec<Comparison<'a>> {
    let ours = stages::comparison(challenger);
    let theirs = stages::comparison(baseline);
    let pairs = ours.candidates.iter().zip(&theirs.candidates);
    let duel = |(a, b): (&Candidate<'a>, &Candidate<'a>)| Comparison {
        prompt: ours.prompt.clone(),
        rendered_prompt: ours.rendered_prompt.clone(),
        candidates: [a.clone(), b.clone()].into(),
    };
    pairs.map(duel).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{FinishReason, PluginError, SilentHost, Verdict};
    use crate::records::{Prompt, Response};
    use crate::win_rate::WinRateEstimator;

    /// Prefers the answer that it reads first, and the longer one.
    struct Hasty;

    impl Oracle for Hasty {
        fn preferences(
            &mut self,
            comparisons: &[Comparison<'_>],
            _progress: &dyn Progress,
        ) -> std::result::Result<Vec<Verdict>, PluginError> {
            let logits = |comparison: &Comparison<'_>| {
                let [a, b] = [0, 1].map(|place| comparison.candidates[place].text.len() as f32);
                Verdict::Logits(vec![0.0, 2.0 + a - b, 2.0 + b - a, 0.0])
            };
            Ok(comparisons.iter().map(logits).collect())
        }
    }

    fn rollout(answers: [&str; 2]) -> Rollout {
        let response = |text: &str| Response {
            text: text.into(),
            tokens: vec![1],
            log_probs: vec![0.0],
            finish_reason: FinishReason::Stop,
        };
        Rollout {
            prompt: Prompt { id: 0, messages: Vec::new() },
            rendered_prompt: String::new(),
            prompt_tokens: Vec::new(),
            responses: answers.map(response).into(),
        }
    }

    #[test]
    fn whoever_is_read_first_has_no_advantage() {
        let settings = PreferenceSettings {
            estimator: WinRateEstimator::Pairwise,
            bradley_terry_temperature: 1.0,
            ..PreferenceSettings::default()
        };
        let win_rate = |a, b| {
            let (a, b) = ([rollout(a)], [rollout(b)]);
            win_rates(&duels(&mut Hasty, &a, &b, &settings, &SilentHost).unwrap())[0]
        };
        assert!((win_rate(["same", "too"], ["same", "too"]) - 0.5).abs() < 1e-12);
        let better = win_rate(["longer", "too"], ["short", "too"]);
        let worse = win_rate(["short", "too"], ["longer", "too"]);
        assert!(better > 0.5 && (better + worse - 1.0).abs() < 1e-12, "{better} and {worse}");
    }
}
