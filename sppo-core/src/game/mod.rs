//! Exact self-play on a finite preference game, where the policy is a table and nothing is sampled.
//!
//! This is the iteration that SPPO approximates with a language model (paper, equation 4.1):
//!
//! ```text
//! pi_{t+1}(y) proportional to pi_t(y) exp(eta P(y > pi_t))
//! ```
//!
//! Theorem 4.1 is about the *mixture* of the iterates, not the last one: in an intransitive game the
//! last iterate circles the equilibrium while the mixture approaches it.
//!
//! # The bound
//! Write `g(mu) = max_y P(y > mu) - 1/2` for how far the best reply beats `mu`; in a symmetric game the
//! duality gap `max_y P(y > mu) - min_y P(mu > y)` is `2 g(mu)`. Hedge with gains in `[0, 1]` satisfies
//! (Freund and Schapire 1999), for every fixed reply `y` and after `T` rounds against its own iterates,
//!
//! ```text
//! sum_t P(y > pi_t) - sum_t P(pi_t > pi_t) <= log(1 / pi_1(y)) / eta + eta T / 8
//! ```
//!
//! and `P(pi_t > pi_t) = 1/2`, so dividing by `T` gives for the mixture
//! `gap <= 2 (|log pi_1|_inf / (eta T) + eta / 8)`, which is `O(1 / sqrt T)` at `eta` of that order.

mod algorithms;
mod games;
mod nash;

pub use algorithms::{AlgorithmPlay, AlgorithmRecord, GameAlgorithm};
pub use games::{cycle, random, read_matrix};
pub use nash::nash_mixture;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::preference::PreferenceMatrix;

/// Settings of a play.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct GameSettings {
    /// Number of updates (T).
    pub iterations: usize,
    /// The step size; `None` takes the one with the smallest bound after `iterations`,
    /// `sqrt(8 |log pi_1|_inf / T)`.
    pub eta: Option<f64>,
}

/// State of the play after some rounds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GameRecord {
    /// Rounds played, from 1.
    pub iteration: usize,
    /// Duality gap of the policy that played this round.
    pub last_iterate_gap: f64,
    /// Duality gap of the uniform mixture of all policies so far.
    pub mixture_gap: f64,
    /// Bound of the theorem on the duality gap of the mixture.
    pub bound: f64,
    /// The policy that played this round.
    pub policy: Vec<f64>,
}

/// A start away from every equilibrium: the weight of answer `i` falls geometrically, to 1/4 at the
/// last. From a uniform start, a symmetric cycle would not move.
#[must_use]
pub fn slanted_start(size: usize) -> Vec<f64> {
    let last = size.saturating_sub(1).max(1) as f64;
    let weights: Vec<f64> = (0..size).map(|index| 0.25f64.powf(index as f64 / last)).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// The step size that [`play`] uses by default.
#[must_use]
pub fn default_eta(start: &[f64], iterations: usize) -> f64 {
    (8.0 * largest_surprise(start) / iterations.max(1) as f64).sqrt()
}

/// Plays from `start`, a positive distribution over the game's answers, and reports every round. The
/// game is symmetric: `P[i][j] + P[j][i] = 1`.
#[must_use]
pub fn play(game: &PreferenceMatrix, start: &[f64], settings: &GameSettings) -> Vec<GameRecord> {
    let eta = settings.eta.unwrap_or_else(|| default_eta(start, settings.iterations));
    let surprise = largest_surprise(start);
    let mut log_weights: Vec<f64> = start.iter().map(|weight| weight.ln()).collect();
    let mut sum = vec![0.0; start.len()];
    (1..=settings.iterations)
        .map(|iteration| {
            let policy = softmax(&log_weights);
            sum.iter_mut().zip(&policy).for_each(|(sum, weight)| *sum += weight);
            let rounds = iteration as f64;
            let mixture: Vec<f64> = sum.iter().map(|weight| weight / rounds).collect();
            let record = GameRecord {
                iteration,
                last_iterate_gap: duality_gap(game, &policy),
                mixture_gap: duality_gap(game, &mixture),
                bound: 2.0 * (surprise / (eta * rounds) + eta / 8.0),
                policy: policy.clone(),
            };
            let win_rates = replies(game, &policy);
            log_weights.iter_mut().zip(win_rates).for_each(|(log, rate)| *log += eta * rate);
            record
        })
        .collect()
}

/// `max_y P(y > policy) - min_y P(policy > y)`: 0 at a Nash equilibrium, never negative.
#[must_use]
pub fn duality_gap(game: &PreferenceMatrix, policy: &[f64]) -> f64 {
    let best_reply = replies(game, policy).fold(f64::NEG_INFINITY, f64::max);
    let worst_case = (0..game.size())
        .map(|reply| {
            let wins =
                policy.iter().enumerate().map(|(answer, weight)| weight * game.get(answer, reply));
            wins.sum::<f64>()
        })
        .fold(f64::INFINITY, f64::min);
    best_reply - worst_case
}

/// `P(y > policy)` of every answer `y`.
fn replies(game: &PreferenceMatrix, policy: &[f64]) -> impl Iterator<Item = f64> {
    game.rows().map(move |row| row.iter().zip(policy).map(|(p, weight)| p * weight).sum())
}

fn largest_surprise(start: &[f64]) -> f64 {
    start.iter().map(|weight| -weight.ln()).fold(0.0, f64::max)
}

fn softmax(log_weights: &[f64]) -> Vec<f64> {
    let largest = log_weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = log_weights.iter().map(|log| (log - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn games() -> Vec<PreferenceMatrix> {
        [cycle(3), cycle(7), random(5, 1), random(20, 2), random(50, 3)].map(Result::unwrap).into()
    }

    fn played(game: &PreferenceMatrix, iterations: usize) -> Vec<GameRecord> {
        play(game, &slanted_start(game.size()), &GameSettings { iterations, eta: None })
    }

    #[test]
    fn the_mixture_stays_below_the_bound_in_every_round() {
        for game in games() {
            for record in played(&game, 500) {
                assert!(record.mixture_gap <= record.bound + 1e-12, "{record:?}");
                assert!(record.mixture_gap >= -1e-12 && record.last_iterate_gap >= -1e-12);
            }
        }
    }

    /// Slope of `log(gap)` over `log(T)` by least squares.
    fn slope(points: &[(f64, f64)]) -> f64 {
        let count = points.len() as f64;
        let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
        let mean_x = logs.iter().map(|(x, _)| x).sum::<f64>() / count;
        let mean_y = logs.iter().map(|(_, y)| y).sum::<f64>() / count;
        let covariance: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        covariance / logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum::<f64>()
    }

    #[test]
    fn the_mixture_approaches_equilibrium_at_the_theorems_rate() {
        for game in games() {
            let at = |iterations: usize| played(&game, iterations).pop().unwrap();
            let lengths = [16, 64, 256, 1024, 4096];
            let points = |value: fn(&GameRecord) -> f64| {
                lengths.map(|length| (length as f64, value(&at(length)))).to_vec()
            };
            let bound = slope(&points(|record| record.bound));
            let gap = slope(&points(|record| record.mixture_gap));
            assert!((bound + 0.5).abs() < 1e-9, "the bound falls with slope {bound}");
            assert!(gap < -0.4, "size {}: the gap falls with slope {gap}", game.size());
        }
    }

    #[test]
    fn in_a_cycle_the_last_iterate_circles_while_the_mixture_settles() {
        let records = played(&cycle(3).unwrap(), 4096);
        let last = &records[records.len() - 1];
        let late_worst =
            records[2048..].iter().map(|record| record.last_iterate_gap).fold(0.0, f64::max);
        assert!(last.mixture_gap < 0.01, "{}", last.mixture_gap);
        assert!(late_worst > 10.0 * last.mixture_gap, "{late_worst} against {}", last.mixture_gap);
    }
}
