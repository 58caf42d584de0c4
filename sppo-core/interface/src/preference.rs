//! Preference matrices: who beats whom, with which probability.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::numpy;

/// Largest distance of a diagonal entry from 1/2.
const DIAGONAL_TOLERANCE: f64 = 1e-9;

/// Faults of numbers that are no preference matrix. Candidates are counted from 0.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PreferenceError {
    /// There are no candidates.
    #[error("a preference matrix needs at least one candidate")]
    Empty,
    /// The number of entries is not `size * size`.
    #[error(
        "{actual} preference values for {size} candidates, expected {size} x {size} = {}",
        size * size
    )]
    Length {
        /// Number of candidates.
        size: usize,
        /// Number of entries given.
        actual: usize,
    },
    /// An entry is NaN, infinite, below 0 or above 1.
    #[error("P[{row}][{column}] = {value} is not a probability in [0, 1]")]
    NotAProbability {
        /// The candidate that is preferred.
        row: usize,
        /// The candidate that it is preferred to.
        column: usize,
        /// The entry.
        value: f64,
    },
    /// A candidate does not draw with itself.
    #[error("P[{candidate}][{candidate}] = {value}, but a candidate against itself must be 0.5")]
    Diagonal {
        /// The candidate.
        candidate: usize,
        /// The entry.
        value: f64,
    },
    /// A score is NaN or infinite.
    #[error("the score of candidate {candidate} is {value}, which is not a finite number")]
    Score {
        /// The candidate.
        candidate: usize,
        /// The score.
        value: f64,
    },
    /// The Bradley-Terry temperature cannot divide a score.
    #[error("the Bradley-Terry temperature is {0}, but must be finite and above 0")]
    Temperature(f64),
}

/// `P[i][j]`: the probability that candidate `i` is preferred to candidate `j` for one prompt.
///
/// Every entry is finite and in `[0, 1]`, the diagonal is 1/2. Nothing else is assumed: preferences
/// may be intransitive (the point of the paper), and `P[i][j] + P[j][i]` may differ from 1, as it
/// does for a ranker with a position bias.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceMatrix {
    size: usize,
    values: Vec<f64>,
}

impl PreferenceMatrix {
    /// A matrix of `size` candidates from its row-major entries. Diagonal entries within `1e-9` of
    /// 1/2 become 1/2.
    ///
    /// # Errors
    /// When there is no candidate, the length is not `size * size`, an entry is not in `[0, 1]`, or
    /// a diagonal entry is not 1/2.
    pub fn new(size: usize, mut values: Vec<f64>) -> Result<Self, PreferenceError> {
        if size == 0 {
            return Err(PreferenceError::Empty);
        }
        if size.checked_mul(size) != Some(values.len()) {
            return Err(PreferenceError::Length { size, actual: values.len() });
        }
        for (index, value) in values.iter_mut().enumerate() {
            let (row, column) = (index / size, index % size);
            if !(0.0..=1.0).contains(value) {
                return Err(PreferenceError::NotAProbability { row, column, value: *value });
            }
            if row == column {
                if (*value - 0.5).abs() > DIAGONAL_TOLERANCE {
                    return Err(PreferenceError::Diagonal { candidate: row, value: *value });
                }
                *value = 0.5;
            }
        }
        Ok(Self { size, values })
    }

    /// The Bradley-Terry matrix `P[i][j] = sigma((s_i - s_j) / temperature)` of one score per
    /// candidate. Transitive by construction.
    ///
    /// # Errors
    /// When there is no score, a score is not finite, or the temperature is not finite and positive.
    pub fn from_scores(scores: &[f64], temperature: f64) -> Result<Self, PreferenceError> {
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(PreferenceError::Temperature(temperature));
        }
        if let Some(candidate) = scores.iter().position(|score| !score.is_finite()) {
            return Err(PreferenceError::Score { candidate, value: scores[candidate] });
        }
        Self::from_fn(scores.len(), |i, j| sigmoid((scores[i] - scores[j]) / temperature))
    }

    /// A matrix whose entries off the diagonal are `probability(i, j)`.
    ///
    /// # Errors
    /// As for [`Self::new`].
    pub fn from_fn(
        size: usize,
        probability: impl Fn(usize, usize) -> f64,
    ) -> Result<Self, PreferenceError> {
        let mut values = Vec::with_capacity(size * size);
        for i in 0..size {
            values.extend((0..size).map(|j| if i == j { 0.5 } else { probability(i, j) }));
        }
        Self::new(size, values)
    }

    /// Number of candidates (K).
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The entries, row-major, length `size * size`.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The rows, each of length [`Self::size`].
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f64]> {
        self.values.chunks_exact(self.size)
    }

    /// The probability that candidate `i` is preferred to candidate `j`.
    ///
    /// # Panics
    /// When `i` or `j` is not below [`Self::size`].
    #[must_use]
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.row(i)[j]
    }

    /// Estimated probability that candidate `i` beats the policy that the candidates were drawn from:
    /// the mean of row `i`, the candidate against itself (1/2) included (the paper's estimate from K samples;
    /// `chosen_probs_win` of the released `compute_prob.py`).
    ///
    /// # Panics
    /// When `i` is not below [`Self::size`].
    #[must_use]
    pub fn win_rate(&self, i: usize) -> f64 {
        mean(self.row(i))
    }

    /// [`Self::win_rate`] of every candidate.
    #[must_use]
    pub fn win_rates(&self) -> Vec<f64> {
        self.rows().map(mean).collect()
    }

    fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.size..(i + 1) * self.size]
    }
}

/// As the list of its rows.
impl Serialize for PreferenceMatrix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows())
    }
}

/// From the list of its rows. The diagonal says nothing, and is taken for 1/2: the columns of a table are
/// found out by reading rows of zeros.
impl<'de> Deserialize<'de> for PreferenceMatrix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rows = Vec::<Vec<f64>>::deserialize(deserializer)?;
        let size = rows.len();
        if let Some(row) = rows.iter().find(|row| row.len() != size) {
            let actual = row.len();
            return Err(D::Error::custom(format!("a row of {actual} values among {size} rows")));
        }
        Self::from_fn(size, |i, j| rows[i][j]).map_err(D::Error::custom)
    }
}

/// The logistic function `1 / (1 + exp(-x))`.
#[must_use]
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The inverse of [`sigmoid`], `log(p / (1 - p))`: infinite for 0 and 1.
#[must_use]
pub fn logit(probability: f64) -> f64 {
    (probability / (1.0 - probability)).ln()
}

fn mean(row: &[f64]) -> f64 {
    numpy::sum(row) / row.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn win_rate_includes_the_candidate_itself() {
        let matrix =
            PreferenceMatrix::new(3, vec![0.5, 1.0, 0.25, 0.0, 0.5, 0.75, 0.75, 0.25, 0.5])
                .unwrap();
        assert_eq!(matrix.win_rates(), [1.75 / 3.0, 1.25 / 3.0, 0.5]);
        assert_eq!(matrix.win_rate(1), matrix.win_rates()[1]);
        assert_eq!(matrix.get(1, 2), 0.75);
        assert_eq!(matrix.rows().last().unwrap(), [0.75, 0.25, 0.5]);
    }

    #[test]
    fn refuses_what_is_not_a_preference_and_names_the_entry() {
        let refusal = |size, values| PreferenceMatrix::new(size, values).unwrap_err().to_string();
        assert_eq!(
            refusal(2, vec![0.5; 3]),
            "3 preference values for 2 candidates, expected 2 x 2 = 4"
        );
        assert_eq!(
            refusal(2, vec![0.5, 0.5, 1.5, 0.5]),
            "P[1][0] = 1.5 is not a probability in [0, 1]"
        );
        assert_eq!(
            refusal(2, vec![0.5, f64::NAN, 0.5, 0.5]),
            "P[0][1] = NaN is not a probability in [0, 1]"
        );
        assert_eq!(
            refusal(2, vec![0.5, 0.5, 0.5, 0.6]),
            "P[1][1] = 0.6, but a candidate against itself must be 0.5"
        );
        assert_eq!(refusal(0, vec![]), "a preference matrix needs at least one candidate");
        assert!(PreferenceMatrix::new(1, vec![0.5 + 1e-10]).is_ok());
    }

    #[test]
    fn bradley_terry_depends_on_score_differences_over_temperature() {
        let matrix = PreferenceMatrix::from_scores(&[1.0, 1.0 - 3.0_f64.ln()], 1.0).unwrap();
        assert!((matrix.get(0, 1) - 0.75).abs() < 1e-15);
        assert!((matrix.get(1, 0) - 0.25).abs() < 1e-15);
        let cold = PreferenceMatrix::from_scores(&[1.0, 1.0 - 3.0_f64.ln()], 0.5).unwrap();
        assert!((cold.get(0, 1) - 0.9).abs() < 1e-15);
        let far = PreferenceMatrix::from_scores(&[1e300, -1e300], 1e-3).unwrap();
        assert_eq!(far.values(), [0.5, 1.0, 0.0, 0.5]);
        assert_eq!(
            PreferenceMatrix::from_scores(&[0.0, f64::INFINITY], 1.0),
            Err(PreferenceError::Score { candidate: 1, value: f64::INFINITY })
        );
        assert_eq!(
            PreferenceMatrix::from_scores(&[0.0], 0.0),
            Err(PreferenceError::Temperature(0.0))
        );
    }
}
