//! Targets of the log-ratios: the worth of a response, before it is multiplied by eta.
//!
//! SPPO regresses `log(pi / pi_t)` onto `eta (P(y > pi_t) - 1/2)`. Two parts of this may be others:
//!
//! - the *measure* of a response: its win rate `P(y > pi_t)`, or its score, the mean of the logits of its
//!   pairwise probabilities (the objective GPO of arXiv 2410.02197);
//! - the *baseline* that is taken off: 1/2 for win rates and 0 for scores, or the log-partition of the prompt,
//!   `1/eta log mean_k exp(eta r_k)` over the measures `r_k` of all K responses. The exact update
//!   `pi_{t+1} = pi_t exp(eta r) / Z` has `log(pi_{t+1} / pi_t) = eta r - log Z`, of which SPPO takes `log Z` to be
//!   `eta / 2`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::preference::{PreferenceMatrix, logit};
use crate::records::{TrainingExample, TrainingResponse};

/// Measures of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetMeasure {
    /// Its estimated win rate against the policy.
    #[default]
    WinRate,
    /// Its mean logit against all K responses, itself included (GPO, arXiv 2410.02197).
    Score,
}

/// Baselines of the measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The measure of a response that is as good as the policy: 1/2 for win rates, 0 for scores.
    #[default]
    Half,
    /// The log-partition over all K responses to the prompt.
    LogPartition,
}

/// The way targets are made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TargetSettings {
    /// The measure of a response.
    pub measure: TargetMeasure,
    /// The baseline.
    pub baseline: Baseline,
    /// Largest logit of a pair, in either direction: certain preferences count as this much.
    pub score_limit: f64,
    /// Scale of the targets.
    pub eta: f64,
}

/// An example without what its targets are made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A response has no score.
    #[error("the target `score` needs the score of each answer, which prompt {0} lacks")]
    NoScore(u64),
    /// The measures of the other responses to the prompt are not known.
    #[error(
        "the baseline `log_partition` needs the values of all answers to a prompt, which prompt {0} lacks"
    )]
    NoValues(u64),
}

impl TargetSettings {
    /// Worth of each response of an example: its measure less the baseline. Times eta, it is the target of the
    /// log-ratio.
    ///
    /// # Errors
    /// When the example lacks what the settings ask for.
    pub fn advantages(&self, example: &TrainingExample) -> Result<Vec<f64>, TargetError> {
        let baseline = self.baseline_of(example)?;
        let advantage = |response| Ok(self.measure_of(example, response)? - baseline);
        example.responses.iter().map(advantage).collect()
    }

    fn measure_of(
        &self,
        example: &TrainingExample,
        response: &TrainingResponse,
    ) -> Result<f64, TargetError> {
        match self.measure {
            TargetMeasure::WinRate => Ok(response.win_rate),
            TargetMeasure::Score => response.score.ok_or(TargetError::NoScore(example.prompt_id)),
        }
    }

    fn baseline_of(&self, example: &TrainingExample) -> Result<f64, TargetError> {
        match (self.baseline, self.measure) {
            (Baseline::Half, TargetMeasure::WinRate) => Ok(0.5),
            (Baseline::Half, TargetMeasure::Score) => Ok(0.0),
            (Baseline::LogPartition, _) => match example.values_of_all.as_deref() {
                Some(values) if !values.is_empty() => Ok(log_partition(values, self.eta)),
                _ => Err(TargetError::NoValues(example.prompt_id)),
            },
        }
    }

    /// The measures of all K responses to a prompt.
    pub(crate) fn measures(&self, matrix: &PreferenceMatrix) -> Vec<f64> {
        match self.measure {
            TargetMeasure::WinRate => matrix.win_rates(),
            TargetMeasure::Score => scores(matrix, self.score_limit),
        }
    }
}

/// `1/eta log mean_k exp(eta r_k)`.
fn log_partition(values: &[f64], eta: f64) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = values.iter().map(|value| (eta * (value - largest)).exp()).sum();
    largest + (sum / values.len() as f64).ln() / eta
}

/// The mean logit of each response against all, itself (0) included, over both orders of presentation.
fn scores(matrix: &PreferenceMatrix, limit: f64) -> Vec<f64> {
    let size = matrix.size();
    let of = |i: usize, j: usize| {
        let probability = 0.5 * (matrix.get(i, j) + (1.0 - matrix.get(j, i)));
        logit(probability).clamp(-limit, limit)
    };
    (0..size).map(|i| (0..size).map(|j| of(i, j)).sum::<f64>() / size as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objective::golden::{golden, near};

    fn example(case: &crate::objective::golden::TargetCase) -> TrainingExample {
        let matrix = PreferenceMatrix::new(case.size, case.probability.concat()).unwrap();
        let settings = settings(case);
        let responses = (0..case.size).map(|index| TrainingResponse {
            win_rate: matrix.win_rate(index),
            score: Some(scores(&matrix, case.score_limit)[index]),
            ..TrainingResponse::default()
        });
        TrainingExample {
            responses: responses.collect(),
            values_of_all: Some(settings.measures(&matrix)),
            ..TrainingExample::default()
        }
    }

    fn settings(case: &crate::objective::golden::TargetCase) -> TargetSettings {
        TargetSettings {
            measure: case.measure,
            baseline: case.baseline,
            score_limit: case.score_limit,
            eta: case.eta,
        }
    }

    #[test]
    fn targets_are_those_of_the_python_reference() {
        for case in golden().targets {
            let advantages = settings(&case).advantages(&example(&case)).unwrap();
            let targets: Vec<f64> = advantages.iter().map(|value| case.eta * value).collect();
            assert!(near(&targets, &case.targets), "{case:?}: {targets:?}");
        }
    }

    #[test]
    fn exact_targets_sum_to_probabilities() {
        let values = [0.9, 0.2, 0.55, 0.35];
        for eta in [0.1, 3.0, 1000.0] {
            let baseline = log_partition(&values, eta);
            // The update of a policy that draws each response equally often.
            let mass: f64 = values.iter().map(|value| (eta * (value - baseline)).exp() / 4.0).sum();
            assert!((mass - 1.0).abs() < 1e-9, "eta {eta}: {mass}");
        }
    }

    #[test]
    fn an_example_that_lacks_its_values_is_refused() {
        let plain = TrainingExample { prompt_id: 7, ..TrainingExample::default() };
        let of =
            |measure, baseline| TargetSettings { measure, baseline, score_limit: 10.0, eta: 1.0 };
        let partition = of(TargetMeasure::WinRate, Baseline::LogPartition);
        assert_eq!(partition.advantages(&plain), Err(TargetError::NoValues(7)));
        let responses = vec![TrainingResponse::default()];
        let score = of(TargetMeasure::Score, Baseline::Half);
        let scoreless = TrainingExample { responses, ..plain };
        assert_eq!(score.advantages(&scoreless), Err(TargetError::NoScore(7)));
    }
}
