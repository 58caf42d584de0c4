//! From an oracle's verdict to a preference matrix and the scores that candidates are chosen by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numpy_exp::numpy_exp;
use crate::plugin::Verdict;
use crate::preference::{PreferenceError, PreferenceMatrix, sigmoid};

/// How the logit table of a pairwise ranker, `L[i][j]` with candidate `i` shown first, becomes
/// probabilities. A ranker is not antisymmetric: `L[i][j]` differs from `-L[j][i]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WinRateEstimator {
    /// What the released code does (`scripts/rank.py`, `scripts/compute_prob.py`): each candidate's
    /// score is `(1/K) sum_j (L[i][j] - L[j][i])`, and `P[i][j] = sigmoid(s_i - s_j)`. Transitive by
    /// construction.
    #[default]
    Aggregate,
    /// What the paper says: `P[i][j] = sigmoid(L[i][j])`.
    Pairwise,
    /// `sigmoid(L[i][j] - L[j][i])`, as the general preference model's code and TRL's former judge.
    PairwiseSum,
    /// `sigmoid((L[i][j] - L[j][i]) / 2)`: the mean of both orders.
    PairwiseSymmetric,
}

/// A verdict, made sense of.
#[derive(Clone, Debug, PartialEq)]
pub struct Judged {
    /// Who beats whom.
    pub matrix: PreferenceMatrix,
    /// By which the best and the worst candidate are chosen.
    pub scores: Vec<f64>,
}

impl WinRateEstimator {
    /// Probabilities of `size` candidates from their logit table, row-major. The scores are the
    /// aggregated ones under every estimator, as in the released code.
    ///
    /// # Errors
    /// When the table is not `size * size` or holds a value that is not finite.
    pub fn estimate(self, logits: &[f32], size: usize) -> Result<Judged, PreferenceError> {
        if logits.len() != size * size {
            return Err(PreferenceError::WrongLength { candidates: size, found: logits.len() });
        }
        if let Some(index) = logits.iter().position(|logit| !logit.is_finite()) {
            let value = f64::from(logits[index]);
            return Err(PreferenceError::NotFinite {
                what: "logit",
                candidate: index / size,
                value,
            });
        }
        let scores = aggregated_scores(logits, size);
        let probability = |i: usize, j: usize| {
            let (forward, backward) = (logits[i * size + j], logits[j * size + i]);
            let (forward, backward) = (f64::from(forward), f64::from(backward));
            match self {
                _ if i == j => 0.5,
                Self::Aggregate => official_probability(scores[i], scores[j]),
                Self::Pairwise => sigmoid(forward),
                Self::PairwiseSum => sigmoid(forward - backward),
                Self::PairwiseSymmetric => sigmoid((forward - backward) / 2.0),
            }
        };
        let values = (0..size).flat_map(|i| (0..size).map(move |j| (i, j)));
        let matrix = PreferenceMatrix::new(size, values.map(|(i, j)| probability(i, j)).collect())?;
        Ok(Judged { matrix, scores: scores.iter().map(|&score| f64::from(score)).collect() })
    }
}

/// `(1/K) sum_j (L[i][j] - L[j][i])` in f32, summed from left to right like numpy below 8 terms.
fn aggregated_scores(logits: &[f32], size: usize) -> Vec<f32> {
    (0..size)
        .map(|i| {
            let sum: f32 = (0..size).map(|j| logits[i * size + j] - logits[j * size + i]).sum();
            sum / size as f32
        })
        .collect()
}

/// `1 / (1 + exp(s_j - s_i))` as numpy 1.26 promotes it: the exponential in f32, the rest in f64.
fn official_probability(score: f32, other: f32) -> f64 {
    1.0 / (1.0 + f64::from(numpy_exp(other - score)))
}

/// Makes sense of any verdict on `size` candidates.
///
/// # Errors
/// When it is not a preference matrix, a logit table or a score list of that size.
pub fn judge(
    verdict: &Verdict,
    size: usize,
    estimator: WinRateEstimator,
    bradley_terry_temperature: f64,
) -> Result<Judged, PreferenceError> {
    match verdict {
        Verdict::Probabilities(values) => {
            let matrix = PreferenceMatrix::new(size, values.clone())?;
            let scores = matrix.win_rates();
            Ok(Judged { matrix, scores })
        }
        Verdict::Logits(logits) => estimator.estimate(logits, size),
        Verdict::Scores(scores) => {
            if scores.len() != size {
                let candidates = size;
                return Err(PreferenceError::WrongLength { candidates, found: scores.len() });
            }
            let matrix = PreferenceMatrix::from_scores(scores, bradley_terry_temperature)?;
            Ok(Judged { matrix, scores: scores.clone() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 25] = [
        0.0, 1.25, -0.5, 2.0, 0.75, //
        -1.0, 0.0, -1.5, 0.5, -0.25, //
        0.625, 1.75, 0.0, 2.5, 1.0, //
        -2.25, -0.5, -2.0, 0.0, -1.0, //
        -0.5, 0.25, -1.25, 1.125, 0.0,
    ];

    #[test]
    fn aggregate_is_bit_faithful_to_the_released_code() {
        let judged = WinRateEstimator::Aggregate.estimate(&LOGITS, 5).unwrap();
        let scores = [1.3250000476837158, -1.0, 2.2249999046325684, -2.375, -0.17499999701976776];
        assert_eq!(judged.scores, scores);
        assert_eq!(judged.matrix.get(2, 3), 0.9900481967153879);
        assert_eq!(judged.matrix.win_rate(2), 0.8159178532813354);
        assert_eq!(judged.matrix.win_rate(3), 0.16712850423118186);
        let row =
            [0.5, 0.9109264765710149, 0.28905052063225944, 0.9758729824918719, 0.8175744818879699];
        assert_eq!(judged.matrix.rows().next().unwrap(), row);
    }

    #[test]
    fn paper_and_symmetric_estimators_match_their_formulas() {
        let check = |estimator: WinRateEstimator, expected: [f64; 3]| {
            let matrix = estimator.estimate(&LOGITS, 5).unwrap().matrix;
            let found = [matrix.get(2, 3), matrix.win_rate(2), matrix.win_rate(3)];
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() < 1e-12,
                    "{estimator:?}: {found} is not {expected}"
                );
            }
        };
        check(
            WinRateEstimator::Pairwise,
            [0.9241418199787566, 0.7317016130486252, 0.2722068954178735],
        );
        check(
            WinRateEstimator::PairwiseSymmetric,
            [0.9046505351008906, 0.7264159707104678, 0.26728254380608496],
        );
    }

    #[test]
    fn verdicts_of_the_wrong_size_or_without_a_value_are_refused() {
        let estimator = WinRateEstimator::Aggregate;
        assert!(estimator.estimate(&[0.0, f32::NAN, 0.0, 0.0], 2).is_err());
        assert!(judge(&Verdict::Scores(vec![1.0]), 2, estimator, 1.0).is_err());
        assert!(judge(&Verdict::Scores(vec![1.0, f64::INFINITY]), 2, estimator, 1.0).is_err());
    }
}
