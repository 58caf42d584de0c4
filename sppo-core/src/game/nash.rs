//! An exact Nash equilibrium of a symmetric game, by linear programming.
//!
//! A mixture `m` of answers that no single answer beats, `sum_j P[i][j] m_j <= 1/2` for all `i`, is `y / sum y`
//! for a solution `y` of
//!
//! ```text
//! maximise sum_j y_j   subject to   sum_j P[i][j] y_j <= 1,   y >= 0
//! ```
//!
//! whose largest sum is 2, because the game is worth 1/2. The simplex method starts at `y = 0`, which is
//! feasible. A game may have several equilibria, of which this finds one.

use crate::preference::PreferenceMatrix;

/// Entries of the tableau below this are rounding.
const ROUNDING: f64 = 1e-12;
/// Bland's rule comes to an end, after about as many pivots as there are answers; rounding might make it go
/// round in circles.
const MOST_PIVOTS: usize = 100_000;

/// A mixture that no answer beats: an equilibrium strategy of the game, where
/// `P[i][j] + P[j][i] = 1`. Its [`duality_gap`](super::duality_gap) is 0 up to rounding.
#[must_use]
pub fn nash_mixture(game: &PreferenceMatrix) -> Vec<f64> {
    let mut tableau = Tableau::new(game);
    let pivots = (0..MOST_PIVOTS).take_while(|_| tableau.pivot()).count();
    tracing::debug!("a game of {} answers is solved after {pivots} pivots", game.size());
    let solution = tableau.solution();
    let sum: f64 = solution.iter().sum();
    solution.iter().map(|value| value / sum).collect()
}

/// The simplex tableau: one row per answer, whose columns are the answers, the slacks, and the right side;
/// then the row of reduced costs.
struct Tableau {
    rows: Vec<Vec<f64>>,
    costs: Vec<f64>,
    /// The variable that each row determines.
    basis: Vec<usize>,
}

impl Tableau {
    fn new(game: &PreferenceMatrix) -> Self {
        let size = game.size();
        let slacks = |row: usize| (0..size).map(move |slack| f64::from(u8::from(slack == row)));
        let rows = game.rows().enumerate();
        let rows =
            rows.map(|(row, wins)| wins.iter().copied().chain(slacks(row)).chain([1.0]).collect());
        let costs = (0..=2 * size).map(|column| if column < size { -1.0 } else { 0.0 }).collect();
        Self { rows: rows.collect(), costs, basis: (size..2 * size).collect() }
    }

    /// Brings the first variable that improves the sum into the basis, in place of the one that it first
    /// drives to 0. Returns false at the optimum.
    fn pivot(&mut self) -> bool {
        let right = self.costs.len() - 1;
        let Some(entering) = (0..right).find(|&column| self.costs[column] < -ROUNDING) else {
            return false;
        };
        let ratio = |row: usize| self.rows[row][right] / self.rows[row][entering];
        let candidates = (0..self.rows.len()).filter(|&row| self.rows[row][entering] > ROUNDING);
        let leaving = candidates.min_by(|&one, &other| {
            ratio(one).total_cmp(&ratio(other)).then(self.basis[one].cmp(&self.basis[other]))
        });
        // Every column has a positive entry, since the sum is bounded.
        let Some(leaving) = leaving else { return false };
        self.basis[leaving] = entering;
        self.eliminate(leaving, entering);
        true
    }

    fn eliminate(&mut self, row: usize, column: usize) {
        let mut pivot = std::mem::take(&mut self.rows[row]);
        let divisor = pivot[column];
        pivot.iter_mut().for_each(|value| *value /= divisor);
        for other in self.rows.iter_mut().chain([&mut self.costs]) {
            let factor = other.get(column).copied().unwrap_or(0.0);
            other.iter_mut().zip(&pivot).for_each(|(value, part)| *value -= factor * part);
        }
        self.rows[row] = pivot;
    }

    /// The values of the answers' variables.
    fn solution(&self) -> Vec<f64> {
        let mut values = vec![0.0; self.basis.len()];
        for (row, &variable) in self.rows.iter().zip(&self.basis) {
            if let (Some(value), Some(right)) = (values.get_mut(variable), row.last()) {
                *value = right.max(0.0);
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::game::{cycle, duality_gap, random};

    #[test]
    fn no_answer_beats_the_mixture_in_a_hundred_random_games() {
        for seed in 0..100 {
            let game = random(2 + seed as usize % 40, seed).unwrap();
            let mixture = nash_mixture(&game);
            let gap = duality_gap(&game, &mixture);
            assert!(gap.abs() < 1e-9, "game {seed}: {gap}");
            assert!((mixture.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            assert!(mixture.iter().all(|weight| *weight >= 0.0));
        }
    }

    #[test]
    fn known_equilibria_are_found() {
        for weight in nash_mixture(&cycle(7).unwrap()) {
            assert!((weight - 1.0 / 7.0).abs() < 1e-12, "{weight}");
        }
        let strengths = [0.2, 1.5, -3.0];
        let transitive = PreferenceMatrix::from_scores(&strengths, 1.0).unwrap();
        assert_eq!(nash_mixture(&transitive), [0.0, 1.0, 0.0]);
    }

    #[test]
    fn degenerate_games_come_to_an_end() {
        let even = PreferenceMatrix::from_fn(12, |_, _| 0.5).unwrap();
        // Certain wins in a circle of nine, each of which beats the four that follow it.
        let certain = PreferenceMatrix::from_fn(9, |i, j| match (j + 9 - i) % 9 {
            0 => 0.5,
            1..=4 => 1.0,
            _ => 0.0,
        })
        .unwrap();
        let alone = PreferenceMatrix::from_fn(1, |_, _| 0.5).unwrap();
        for game in [even, certain, alone] {
            assert!(duality_gap(&game, &nash_mixture(&game)).abs() < 1e-9);
        }
    }
}
