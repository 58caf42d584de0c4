//! Preferences from an oracle's verdicts: a preference matrix, and scores that select best and worst.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::numpy;
use crate::order::OrderMatrix;
use crate::preference::{PreferenceError, PreferenceMatrix, sigmoid};
use crate::{Comparison, Oracle, PluginError, Progress, Verdict};

/// Estimators of probabilities from the logits `L[i][j]` of a pairwise ranker (candidate `i` shown first,
/// `j` second).
///
/// Paper and released code differ here. The selection scores are the same for all four: the released
/// code's `s_i = (1/K) sum_j (L[i][j] - L[j][i])`. (The paper selects by `(1/K) sum_j L[i][j]`, which
/// sees each candidate in the first position only.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WinRateEstimator {
    /// `P[i][j] = sigma(s_i - s_j)`: what the released `compute_prob.py` does. Transitive, whatever
    /// the ranker says; twice as sharp as `pairwise` where the ranker is a Bradley-Terry model.
    #[default]
    Aggregate,
    /// `P[i][j] = sigma(L[i][j])`: what the paper says. Keeps the ranker's position bias.
    Pairwise,
    /// `P[i][j] = sigma(L[i][j] - L[j][i])`: both orders, added.
    PairwiseSum,
    /// `P[i][j] = sigma((L[i][j] - L[j][i]) / 2)`: both orders, averaged.
    PairwiseSymmetric,
}

/// The preferences among the K candidates of one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Preferences {
    /// `P[i][j]` = P(candidate `i` beats candidate `j`).
    pub matrix: PreferenceMatrix,
    /// One score per candidate, by which best and worst are chosen.
    pub scores: Vec<f64>,
    /// The oracle's word in each order of presentation; `None` where it told of no order.
    pub orders: Option<OrderMatrix>,
    /// Kind of the verdict that they come from.
    pub kind: VerdictKind,
}

impl Preferences {
    /// Preferences whose scores are win rates.
    #[must_use]
    pub fn of_probabilities(matrix: PreferenceMatrix, orders: Option<OrderMatrix>) -> Self {
        let scores = matrix.win_rates();
        Self { matrix, scores, orders, kind: VerdictKind::Probabilities }
    }
}

/// Kind of an oracle's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerdictKind {
    /// [`Verdict::Probabilities`] or [`Verdict::Orders`]: the scores of the preferences are win rates.
    Probabilities,
    /// [`Verdict::Logits`]: the scores are aggregates of the logits.
    Logits,
    /// [`Verdict::Scores`]: the scores are the oracle's own.
    Scores,
}

/// Faults of a verdict. Candidates are counted from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum JudgmentError {
    /// The logit table has the wrong size.
    #[error(
        "{actual} logits for {candidates} candidates, expected {candidates} x {candidates} = {}",
        candidates * candidates
    )]
    LogitCount {
        /// Number of candidates.
        candidates: usize,
        /// Number of logits given.
        actual: usize,
    },
    /// A logit is NaN or infinite.
    #[error(
        "the logit of candidate {first} shown before candidate {second} is {value}, which is not a \
         finite number"
    )]
    Logit {
        /// The candidate shown first.
        first: usize,
        /// The candidate shown second.
        second: usize,
        /// The logit.
        value: f32,
    },
    /// There is not one score per candidate.
    #[error("{actual} scores for {candidates} candidates")]
    ScoreCount {
        /// Number of candidates.
        candidates: usize,
        /// Number of scores given.
        actual: usize,
    },
    /// The numbers are no preference matrix.
    #[error(transparent)]
    Preference(#[from] PreferenceError),
}

impl WinRateEstimator {
    /// Probabilities and selection scores from the row-major `size x size` logit table of a ranker.
    /// The table's diagonal has no influence.
    ///
    /// # Errors
    /// When the table has the wrong length or a logit is not finite.
    pub fn estimate(self, logits: &[f32], size: usize) -> Result<Preferences, JudgmentError> {
        check_logits(logits, size)?;
        let scores = aggregate_scores(logits, size);
        let logit = |i: usize, j: usize| f64::from(logits[i * size + j]);
        let matrix = PreferenceMatrix::from_fn(size, |i, j| match self {
            Self::Aggregate => aggregate_probability(scores[i], scores[j]),
            Self::Pairwise => sigmoid(logit(i, j)),
            Self::PairwiseSum => sigmoid(logit(i, j) - logit(j, i)),
            Self::PairwiseSymmetric => sigmoid((logit(i, j) - logit(j, i)) / 2.0),
        })?;
        let scores = scores.into_iter().map(f64::from).collect();
        let orders = PreferenceMatrix::from_fn(size, |i, j| sigmoid(logit(i, j)))?;
        let orders = OrderMatrix::of_matrix(&orders);
        Ok(Preferences { matrix, scores, orders, kind: VerdictKind::Logits })
    }
}

/// Turns an oracle's verdict on `size` candidates into preferences.
///
/// Probabilities are taken as they are, and orders averaged, with win rates as scores. Logits go through `estimator`.
/// Scores are taken as they are, with the Bradley-Terry matrix at `bradley_terry_temperature`.
///
/// # Errors
/// When the verdict has the wrong length or a number that makes no sense; the message says which.
/// The caller adds whose verdict it was.
pub fn judge(
    verdict: Verdict,
    size: usize,
    estimator: WinRateEstimator,
    bradley_terry_temperature: f64,
) -> Result<Preferences, JudgmentError> {
    match verdict {
        Verdict::Probabilities(values) => {
            let matrix = PreferenceMatrix::new(size, values)?;
            let orders = OrderMatrix::of_matrix(&matrix);
            Ok(Preferences::of_probabilities(matrix, orders))
        }
        Verdict::Orders(values) => {
            let orders = OrderMatrix::new(size, values)?;
            Ok(Preferences::of_probabilities(orders.average()?, Some(orders)))
        }
        Verdict::Logits(logits) => estimator.estimate(&logits, size),
        Verdict::Scores(scores) if scores.len() != size => {
            Err(JudgmentError::ScoreCount { candidates: size, actual: scores.len() })
        }
        Verdict::Scores(scores) => {
            let matrix = PreferenceMatrix::from_scores(&scores, bradley_terry_temperature)?;
            Ok(Preferences { matrix, scores, orders: None, kind: VerdictKind::Scores })
        }
    }
}

/// Asks an oracle about each comparison and turns its verdicts into preferences.
///
/// # Errors
/// When the oracle fails, or returns the wrong number of verdicts or an impossible one.
pub fn ask(
    oracle: &mut dyn Oracle,
    comparisons: &[Comparison<'_>],
    estimator: WinRateEstimator,
    bradley_terry_temperature: f64,
    progress: &dyn Progress,
) -> Result<Vec<Preferences>, PluginError> {
    let verdicts = oracle.preferences(comparisons, progress)?;
    let invalid = |message: String| PluginError::failed(message).of_plugin(oracle.plugin());
    if verdicts.len() != comparisons.len() {
        return Err(invalid(format!(
            "asked for {} verdicts, it returned {}",
            comparisons.len(),
            verdicts.len()
        )));
    }
    let preferences =
        verdicts.into_iter().zip(comparisons).enumerate().map(|(index, (verdict, comparison))| {
            judge(verdict, comparison.candidates.len(), estimator, bradley_terry_temperature)
                .map_err(|error| invalid(format!("verdict {index}: {error}")))
        });
    preferences.collect()
}

fn check_logits(logits: &[f32], size: usize) -> Result<(), JudgmentError> {
    if size.checked_mul(size) != Some(logits.len()) {
        return Err(JudgmentError::LogitCount { candidates: size, actual: logits.len() });
    }
    match logits.iter().position(|logit| !logit.is_finite()) {
        Some(index) => Err(JudgmentError::Logit {
            first: index / size,
            second: index % size,
            value: logits[index],
        }),
        None => Ok(()),
    }
}

/// `s_i = (1/K) sum_j (L[i][j] - L[j][i])` in float32 with NumPy's order of summation (LLM-Blender's
/// `get_scores_from_cmps` with `max_logits`).
fn aggregate_scores(logits: &[f32], size: usize) -> Vec<f32> {
    (0..size)
        .map(|i| {
            let differences: Vec<f32> =
                (0..size).map(|j| logits[i * size + j] - logits[j * size + i]).collect();
            numpy::sum(&differences) / size as f32
        })
        .collect()
}

/// `1 / (1 + exp(s_j - s_i))` as NumPy 1.26 evaluates it on float32 scalars: the difference and the
/// exponential in float32, the rest in float64.
fn aggregate_probability(score: f32, other: f32) -> f64 {
    1.0 / (1.0 + f64::from(numpy::exp_f32(other - score)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A logit table with exact float32 entries; the expected numbers below are NumPy 1.26.4's.
    const LOGITS: [f32; 25] = [
        0.0, 1.25, -0.5, 2.0, 0.75, //
        -1.0, 0.0, -1.5, 0.5, -0.25, //
        0.625, 1.75, 0.0, 2.5, 1.0, //
        -2.25, -0.5, -2.0, 0.0, -1.0, //
        -0.5, 0.25, -1.25, 1.125, 0.0,
    ];
    const BEST: usize = 2;
    const WORST: usize = 3;

    #[test]
    fn aggregate_equals_the_released_code_bit_for_bit() {
        let judged = WinRateEstimator::Aggregate.estimate(&LOGITS, 5).unwrap();
        assert_eq!(
            judged.scores,
            [1.3250000476837158, -1.0, 2.2249999046325684, -2.375, -0.17499999701976776]
        );
        assert_eq!(
            judged.matrix.rows().next().unwrap(),
            [0.5, 0.9109264765710149, 0.28905052063225944, 0.9758729824918719, 0.8175744818879699]
        );
        assert_eq!(judged.matrix.get(BEST, WORST), 0.9900481967153879);
        assert_eq!(
            judged.matrix.win_rates(),
            [
                0.6986848923166233,
                0.3460398656099878,
                0.8159178532813354,
                0.16712850423118186,
                0.4722288874512256
            ]
        );
    }

    /// Eleven candidates, so that NumPy's order of summation matters.
    #[test]
    fn aggregate_equals_the_released_code_for_more_candidates() {
        let size = 11;
        let logits: Vec<f32> = (0..size * size)
            .map(|index| (index / size, index % size))
            .map(|(i, j)| if i == j { 0.0 } else { ((i * 37 + j * 101) % 97) as f64 / 13.0 - 3.3 })
            .map(|logit| logit as f32)
            .collect();
        let judged = WinRateEstimator::Aggregate.estimate(&logits, size).unwrap();
        assert_eq!(
            judged.scores.iter().map(|&score| (score as f32).to_bits()).collect::<Vec<_>>(),
            [
                3219876255, 1060308319, 3189606871, 3212895527, 1069811498, 3207439999, 1057023271,
                1065411877, 3214538050, 1068168973, 3192422634
            ]
        );
        assert_eq!(
            judged.matrix.win_rates(),
            [
                0.18138727569135227,
                0.6340714312929125,
                0.4675547295365164,
                0.3076084247777031,
                0.7760642947278747,
                0.36670050213937544,
                0.5967633304257679,
                0.6902353949751507,
                0.2745923108247906,
                0.7457170675526971,
                0.45930524923431143
            ]
        );
    }

    #[test]
    fn paper_and_symmetric_estimators_read_the_raw_table() {
        for (estimator, versus, win, lose) in [
            (
                WinRateEstimator::Pairwise,
                0.9241418199787566,
                0.7317016130486252,
                0.2722068954178735,
            ),
            (
                WinRateEstimator::PairwiseSymmetric,
                0.9046505351008906,
                0.7264159707104678,
                0.26728254380608496,
            ),
        ] {
            let judged = estimator.estimate(&LOGITS, 5).unwrap();
            let matrix = &judged.matrix;
            let actual = [matrix.get(BEST, WORST), matrix.win_rate(BEST), matrix.win_rate(WORST)];
            for (actual, expected) in actual.into_iter().zip([versus, win, lose]) {
                assert!((actual - expected).abs() < 1e-15, "{estimator:?}: {actual} {expected}");
            }
            assert_eq!(judged.scores[BEST], 2.2249999046325684);
        }
        let sum = WinRateEstimator::PairwiseSum.estimate(&LOGITS, 5).unwrap();
        assert!((sum.matrix.get(0, 1) - 1.0 / (1.0 + (-2.25_f64).exp())).abs() < 1e-15);
    }

    #[test]
    fn every_kind_of_verdict_is_judged() {
        let judge = |verdict| judge(verdict, 2, WinRateEstimator::Pairwise, 2.0).unwrap();
        let given = judge(Verdict::Probabilities(vec![0.5, 0.9, 0.2, 0.5]));
        assert_eq!(given.matrix.values(), [0.5, 0.9, 0.2, 0.5]);
        assert_eq!(given.scores, [0.7, 0.35]);
        let by_order = judge(Verdict::Orders(vec![None, Some(0.9), Some(0.4), None]));
        assert_eq!(by_order.matrix.values(), [0.5, 0.75, 0.25, 0.5]);
        assert_eq!(by_order.orders.unwrap().get(1, 0), Some(0.4));
        let ranked = judge(Verdict::Logits(vec![0.0, 3.0_f32.ln(), 0.0, 0.0]));
        assert!((ranked.matrix.get(0, 1) - 0.75).abs() < 1e-7);
        assert_eq!(ranked.orders.unwrap().get(1, 0), Some(0.5));
        let scored = judge(Verdict::Scores(vec![0.0, 2.0 * 3.0_f64.ln()]));
        assert!((scored.matrix.get(1, 0) - 0.75).abs() < 1e-15);
        assert_eq!(scored.scores, [0.0, 2.0 * 3.0_f64.ln()]);
    }

    #[test]
    fn an_unusable_verdict_is_refused_with_what_is_wrong() {
        let refusal =
            |verdict| judge(verdict, 2, WinRateEstimator::Aggregate, 1.0).unwrap_err().to_string();
        assert_eq!(
            refusal(Verdict::Logits(vec![0.0; 5])),
            "5 logits for 2 candidates, expected 2 x 2 = 4"
        );
        assert_eq!(
            refusal(Verdict::Logits(vec![0.0, 1.0, f32::NAN, 0.0])),
            "the logit of candidate 1 shown before candidate 0 is NaN, which is not a finite number"
        );
        assert_eq!(refusal(Verdict::Scores(vec![1.0])), "1 scores for 2 candidates");
        assert_eq!(
            refusal(Verdict::Probabilities(vec![0.5, -0.1, 1.1, 0.5])),
            "P[0][1] = -0.1 is not a probability in [0, 1]"
        );
    }
}
