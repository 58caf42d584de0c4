//! Probabilities by the order in which two candidates are shown.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::pairwise;
use crate::preference::{PreferenceError, PreferenceMatrix};

/// Sums closer than this to 1 miss it by rounding.
const ROUNDING: f64 = 1e-9;

/// `O[i][j]`: the probability that candidate `i`, shown first, is preferred to candidate `j`, shown second;
/// `None` where nobody was asked in this order, or gave no answer. The diagonal is `None`.
#[derive(Clone, Debug, PartialEq)]
pub struct OrderMatrix {
    size: usize,
    values: Vec<Option<f64>>,
}

impl OrderMatrix {
    /// A matrix of `size` candidates from its row-major entries, whose diagonal has no influence.
    ///
    /// # Errors
    /// When there is no candidate, the length is not `size * size`, or an entry is not in `[0, 1]`.
    pub fn new(size: usize, mut values: Vec<Option<f64>>) -> Result<Self, PreferenceError> {
        if size == 0 {
            return Err(PreferenceError::Empty);
        }
        if size.checked_mul(size) != Some(values.len()) {
            return Err(PreferenceError::Length { size, actual: values.len() });
        }
        for (index, entry) in values.iter_mut().enumerate() {
            let (row, column) = (index / size, index % size);
            *entry = entry.filter(|_| row != column);
            if let Some(value) = entry.filter(|value| !(0.0..=1.0).contains(value)) {
                return Err(PreferenceError::NotAProbability { row, column, value });
            }
        }
        Ok(Self { size, values })
    }

    /// The orders that a matrix of preferences tells apart; `None` where each pair sums to 1, so that no order
    /// has left a trace.
    #[must_use]
    pub fn of_matrix(matrix: &PreferenceMatrix) -> Option<Self> {
        let size = matrix.size();
        let misses =
            |i: usize, j: usize| (matrix.get(i, j) + matrix.get(j, i) - 1.0).abs() > ROUNDING;
        let has_orders = (0..size).any(|i| (0..i).any(|j| misses(i, j)));
        let values = matrix.values().iter().copied().map(Some).collect();
        has_orders.then(|| Self::new(size, values).ok()).flatten()
    }

    /// Number of candidates (K).
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// The probability that the candidate shown first is preferred, where it is known.
    ///
    /// # Panics
    /// When an index is not below [`Self::size`].
    #[must_use]
    pub fn get(&self, first: usize, second: usize) -> Option<f64> {
        self.rows_of(first)[second]
    }

    /// The preferences without regard to the order: both orders averaged, one taken for both where the other
    /// is not known, and 1/2 where neither is.
    ///
    /// # Errors
    /// None for probabilities that this matrix holds.
    pub fn average(&self) -> Result<PreferenceMatrix, PreferenceError> {
        let averaged = pairwise::probabilities(self.size, |first, second| self.get(first, second));
        PreferenceMatrix::new(self.size, averaged.values)
    }

    fn rows_of(&self, row: usize) -> &[Option<f64>] {
        &self.values[row * self.size..(row + 1) * self.size]
    }
}

/// As the list of its rows.
impl Serialize for OrderMatrix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.values.chunks_exact(self.size))
    }
}

/// From the list of its rows.
impl<'de> Deserialize<'de> for OrderMatrix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let rows = Vec::<Vec<Option<f64>>>::deserialize(deserializer)?;
        Self::new(rows.len(), rows.concat()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_averaged_and_one_stands_for_both() {
        let values =
            vec![None, Some(0.9), None, Some(0.4), None, None, Some(0.75), None, Some(1.0)];
        let orders = OrderMatrix::new(3, values).unwrap();
        assert_eq!((orders.get(0, 1), orders.get(2, 2)), (Some(0.9), None));
        let average = orders.average().unwrap();
        assert_eq!(average.values(), [0.5, 0.75, 0.25, 0.25, 0.5, 0.5, 0.75, 0.5, 0.5]);
        assert!(OrderMatrix::new(2, vec![None, Some(1.5), None, None]).is_err());
    }

    #[test]
    fn a_matrix_has_orders_where_a_pair_does_not_sum_to_1() {
        let matrix = |p, q| PreferenceMatrix::new(2, vec![0.5, p, q, 0.5]).unwrap();
        assert_eq!(OrderMatrix::of_matrix(&matrix(0.75, 0.25)), None);
        let orders = OrderMatrix::of_matrix(&matrix(0.75, 0.5)).unwrap();
        assert_eq!((orders.get(0, 1), orders.get(1, 0)), (Some(0.75), Some(0.5)));
    }

    #[test]
    fn rows_are_written_and_read() {
        let orders = OrderMatrix::new(2, vec![None, Some(0.25), None, None]).unwrap();
        let text = serde_json::to_string(&orders).unwrap();
        assert_eq!(text, "[[null,0.25],[null,null]]");
        assert_eq!(serde_json::from_str::<OrderMatrix>(&text).unwrap(), orders);
    }
}
