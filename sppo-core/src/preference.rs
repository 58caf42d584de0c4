//! Preference matrices: who beats whom, with what probability.

/// Why a matrix is not one of preferences.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PreferenceError {
    /// The number of values is not a square of the number of candidates.
    #[error("{found} values for {candidates} candidates, expected {}", candidates * candidates)]
    WrongLength {
        /// How many candidates there are.
        candidates: usize,
        /// How many values came.
        found: usize,
    },
    /// A value is not a probability.
    #[error("P({first} beats {second}) is {value}, not a probability")]
    NotAProbability {
        /// The row.
        first: usize,
        /// The column.
        second: usize,
        /// The value.
        value: f64,
    },
    /// A candidate does not tie with itself.
    #[error("P({candidate} beats {candidate}) is {value}, not 1/2")]
    Diagonal {
        /// The candidate.
        candidate: usize,
        /// The value.
        value: f64,
    },
    /// A score, a logit or a temperature is not a finite number.
    #[error("the {what} of candidate {candidate} is {value}")]
    NotFinite {
        /// What it is.
        what: &'static str,
        /// Whose it is.
        candidate: usize,
        /// The value.
        value: f64,
    },
}

const DIAGONAL_TOLERANCE: f64 = 1e-9;

/// `P[i][j]`: the probability that candidate `i` is preferred to candidate `j`, row-major `K x K`.
/// Every value is in `[0, 1]` and the diagonal is 1/2. Nothing is assumed about transitivity, nor
/// that `P[i][j] + P[j][i] = 1`.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferenceMatrix {
    size: usize,
    values: Vec<f64>,
}

impl PreferenceMatrix {
    /// Checks and takes the values of `size` candidates.
    ///
    /// # Errors
    /// When there are not `size * size` values, one is not a probability, or the diagonal is not 1/2.
    pub fn new(size: usize, values: Vec<f64>) -> Result<Self, PreferenceError> {
        if values.len() != size * size {
            return Err(PreferenceError::WrongLength { candidates: size, found: values.len() });
        }
        for (index, &value) in values.iter().enumerate() {
            let (first, second) = (index / size, index % size);
            if !(0.0..=1.0).contains(&value) {
                return Err(PreferenceError::NotAProbability { first, second, value });
            }
            if first == second && (value - 0.5).abs() > DIAGONAL_TOLERANCE {
                return Err(PreferenceError::Diagonal { candidate: first, value });
            }
        }
        Ok(Self { size, values })
    }

    /// The Bradley-Terry matrix `P[i][j] = sigmoid((s_i - s_j) / temperature)`.
    ///
    /// # Errors
    /// When a score is not finite or the temperature is not positive.
    pub fn from_scores(scores: &[f64], temperature: f64) -> Result<Self, PreferenceError> {
        for (candidate, &value) in scores.iter().enumerate() {
            if !value.is_finite() {
                return Err(PreferenceError::NotFinite { what: "score", candidate, value });
            }
        }
        let size = scores.len();
        let values = scores
            .iter()
            .flat_map(|a| scores.iter().map(move |b| sigmoid((a - b) / temperature)))
            .collect();
        Self::new(size, values)
    }

    /// For values that are probabilities with a diagonal of 1/2 by construction.
    pub(crate) fn from_checked(size: usize, values: Vec<f64>) -> Self {
        Self { size, values }
    }

    /// Number of candidates (K).
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// P(`first` beats `second`).
    #[must_use]
    pub fn get(&self, first: usize, second: usize) -> f64 {
        self.values[first * self.size + second]
    }

    /// All values, row-major.
    #[must_use]
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The rows: what each candidate does against all.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.size.max(1))
    }

    /// `P(y > pi_t) = (1/K) sum_k P(y > y_k)`, the candidate itself included with 1/2 (paper,
    /// section 4.2).
    #[must_use]
    pub fn win_rate(&self, candidate: usize) -> f64 {
        let row = &self.values[candidate * self.size..(candidate + 1) * self.size];
        row.iter().sum::<f64>() / self.size as f64
    }

    /// The win rate of every candidate.
    #[must_use]
    pub fn win_rates(&self) -> Vec<f64> {
        (0..self.size).map(|candidate| self.win_rate(candidate)).collect()
    }
}

pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_matrices_are_refused_by_name() {
        let refused =
            |size, values: &[f64]| PreferenceMatrix::new(size, values.to_vec()).unwrap_err();
        assert_eq!(
            refused(2, &[0.5, 1.2, -0.2, 0.5]).to_string(),
            "P(0 beats 1) is 1.2, not a probability"
        );
        assert!(matches!(
            refused(2, &[0.5, f64::NAN, 0.5, 0.5]),
            PreferenceError::NotAProbability { .. }
        ));
        assert!(matches!(refused(2, &[0.4, 0.5, 0.5, 0.5]), PreferenceError::Diagonal { .. }));
        assert!(matches!(refused(2, &[0.5]), PreferenceError::WrongLength { .. }));
    }

    #[test]
    fn win_rates_include_the_candidate_itself() {
        let matrix = PreferenceMatrix::new(2, vec![0.5, 0.9, 0.1, 0.5]).unwrap();
        assert_eq!(matrix.win_rates(), [0.7, 0.3]);
    }
}
