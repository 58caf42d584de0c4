//! Logistic regression on probabilities instead of yes and no.

/// Observations of a logistic regression: features, the probability that was observed with them, in `[0, 1]`,
/// and a weight that is not negative. There is no intercept but a feature that is always 1.
#[derive(Clone, Debug, PartialEq)]
pub struct LogisticData {
    columns: usize,
    /// Row by row.
    features: Vec<f64>,
    labels: Vec<f64>,
    weights: Vec<f64>,
}

/// Newton steps before the likelihood is taken to have no maximum: each step of a divergent fit moves it by
/// about 1 on the scale of log-odds.
const MOST_STEPS: usize = 100;
/// A fit is finished by a step shorter than this, for steps shrink quadratically.
const LAST_STEP: f64 = 1e-7;
/// Relative differences of likelihoods below this are rounding.
const ROUNDING: f64 = 1e-12;

/// The coefficients `b` that maximise
///
/// ```text
/// sum_i w_i [ y_i log sigmoid(x_i b) + (1 - y_i) log sigmoid(-x_i b) ] - 1/2 sum_j penalties_j b_j^2
/// ```
///
/// by Newton's method. `None` when there is no such maximum: an unpenalised feature separates the labels or
/// depends on the other features.
#[must_use]
pub fn logistic_regression(data: &LogisticData, penalties: &[f64]) -> Option<Vec<f64>> {
    let mut coefficients = vec![0.0; penalties.len()];
    let mut likelihood = data.log_likelihood(&coefficients, penalties);
    for _ in 0..MOST_STEPS {
        let (gradient, hessian) = data.derivatives(&coefficients, penalties);
        let mut step = solve(hessian, gradient)?;
        let length = step.iter().fold(0.0, |longest: f64, change| longest.max(change.abs()));
        loop {
            let moved: Vec<f64> =
                coefficients.iter().zip(&step).map(|(value, change)| value + change).collect();
            let reached = data.log_likelihood(&moved, penalties);
            let rounding = ROUNDING * (1.0 + likelihood.abs());
            if reached >= likelihood - rounding || length < LAST_STEP {
                (coefficients, likelihood) = (moved, reached);
                break;
            }
            step.iter_mut().for_each(|change| *change /= 2.0);
            if step.iter().all(|change| change.abs() < f64::EPSILON) {
                return None;
            }
        }
        if length < LAST_STEP {
            return Some(coefficients);
        }
    }
    None
}

impl LogisticData {
    /// No observations yet, of so many features, at least one.
    #[must_use]
    pub fn new(columns: usize) -> Self {
        Self { columns, features: Vec::new(), labels: Vec::new(), weights: Vec::new() }
    }

    /// Adds an observation, with as many features as there are columns.
    pub fn push(&mut self, features: &[f64], label: f64, weight: f64) {
        debug_assert_eq!(features.len(), self.columns);
        self.features.extend_from_slice(features);
        self.labels.push(label);
        self.weights.push(weight);
    }

    /// Adds the observations of other data with the same features.
    pub fn extend(&mut self, other: &Self) {
        self.features.extend_from_slice(&other.features);
        self.labels.extend_from_slice(&other.labels);
        self.weights.extend_from_slice(&other.weights);
    }

    /// The weighted mean of the labels; NaN without observations.
    #[must_use]
    pub fn mean_label(&self) -> f64 {
        dot(&self.labels, &self.weights) / self.weights.iter().sum::<f64>()
    }

    fn rows(&self) -> impl Iterator<Item = (&[f64], f64, f64)> {
        let labels = self.labels.iter().zip(&self.weights);
        let rows = self.features.chunks_exact(self.columns.max(1));
        rows.zip(labels).map(|(row, (&label, &weight))| (row, label, weight))
    }

    fn log_likelihood(&self, coefficients: &[f64], penalties: &[f64]) -> f64 {
        let of_row = |(row, label, weight): (&[f64], f64, f64)| {
            let odds = dot(row, coefficients);
            // log sigmoid(x) = x + log sigmoid(-x).
            weight * (label * odds + log_sigmoid(-odds))
        };
        let squares =
            coefficients.iter().zip(penalties).map(|(value, penalty)| penalty * value * value);
        self.rows().map(of_row).sum::<f64>() - 0.5 * squares.sum::<f64>()
    }

    /// The gradient of the log-likelihood, and its negated Hessian.
    fn derivatives(&self, coefficients: &[f64], penalties: &[f64]) -> (Vec<f64>, Vec<Vec<f64>>) {
        let size = coefficients.len();
        let mut gradient: Vec<f64> =
            coefficients.iter().zip(penalties).map(|(value, penalty)| -penalty * value).collect();
        let mut hessian = vec![vec![0.0; size]; size];
        penalties.iter().enumerate().for_each(|(index, penalty)| hessian[index][index] = *penalty);
        for (row, label, weight) in self.rows() {
            let odds = dot(row, coefficients);
            let (win, loss) = win_and_loss(odds);
            let residual = weight * (label * loss - (1.0 - label) * win);
            for first in (0..size).filter(|&first| row[first] != 0.0) {
                gradient[first] += residual * row[first];
                for second in 0..size {
                    hessian[first][second] += weight * win * loss * row[first] * row[second];
                }
            }
        }
        (gradient, hessian)
    }
}

/// Solves `matrix x = right` by Cholesky's method; `None` if the matrix is not positive definite.
fn solve(mut matrix: Vec<Vec<f64>>, mut right: Vec<f64>) -> Option<Vec<f64>> {
    let size = right.len();
    for row in 0..size {
        for column in 0..=row {
            let known = dot(&matrix[row][..column], &matrix[column][..column]);
            let rest = matrix[row][column] - known;
            if row > column {
                matrix[row][column] = rest / matrix[column][column];
                continue;
            }
            // What rounding leaves of a matrix that is singular is no curvature.
            if rest.is_nan() || rest <= 1e-13 * matrix[row][row] {
                return None;
            }
            matrix[row][row] = rest.sqrt();
        }
        right[row] = (right[row] - dot(&matrix[row][..row], &right[..row])) / matrix[row][row];
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|below| matrix[below][row] * right[below]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    Some(right)
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(a, b)| a * b).sum()
}

/// `1 / (1 + exp(-odds))`.
pub(super) fn sigmoid(odds: f64) -> f64 {
    win_and_loss(odds).0
}

/// `sigmoid(odds)` and `sigmoid(-odds)`, neither of which is lost to rounding near certainty.
fn win_and_loss(odds: f64) -> (f64, f64) {
    let unlikely = (-odds.abs()).exp();
    let (likely, unlikely) = (1.0 / (1.0 + unlikely), unlikely / (1.0 + unlikely));
    if odds >= 0.0 { (likely, unlikely) } else { (unlikely, likely) }
}

fn log_sigmoid(odds: f64) -> f64 {
    odds.min(0.0) - (-odds.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden::golden;

    #[test]
    fn it_agrees_with_statsmodels() {
        for case in golden().logistic {
            let mut data = LogisticData::new(case.coefficients.len());
            let labels = case.labels.iter().zip(&case.weights);
            for (row, (&label, &weight)) in case.features.iter().zip(labels) {
                data.push(row, label, weight);
            }
            let fit = logistic_regression(&data, &vec![0.0; case.coefficients.len()]).unwrap();
            for (ours, theirs) in fit.iter().zip(&case.coefficients) {
                assert!((ours - theirs).abs() < 1e-8, "{fit:?}, not {:?}", case.coefficients);
            }
        }
    }

    #[test]
    fn without_a_maximum_there_is_no_answer() {
        let fit = |rows: &[(f64, f64)], penalty| {
            let mut data = LogisticData::new(2);
            rows.iter().for_each(|&(feature, label)| data.push(&[1.0, feature], label, 1.0));
            logistic_regression(&data, &[0.0, penalty])
        };
        let separated = [(-2.0, 0.0), (-1.0, 0.0), (0.5, 1.0), (3.0, 1.0)];
        assert_eq!(fit(&separated, 0.0), None);
        assert!(fit(&separated, 0.01).unwrap()[1] > 1.0);
        let the_same = [(2.0, 0.2), (2.0, 0.7)];
        assert_eq!(fit(&the_same, 0.0), None);
    }
}
