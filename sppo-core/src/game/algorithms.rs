//! Algorithms whose last policy approaches the equilibrium, to be seen beside SPPO, whose mixture does.
//!
//! With `g(pi) = P(y > pi)` for every answer `y`, all of them multiply the policy by an exponential:
//!
//! ```text
//! SPPO             pi_{t+1} ~ pi_t exp(eta g(pi_t))
//! optimistic       pi_{t+1} ~ pi_t exp(eta (2 g(pi_t) - g(pi_{t-1})))
//! extragradient    pi'      ~ pi_t exp(eta g(pi_t)),     pi_{t+1} ~ pi_t exp(eta g(pi'))
//! proximal point   pi_{t+1} ~ pi_t exp(eta g(pi_{t+1}))
//! ```
//!
//! Optimistic multiplicative weights are those of Daskalakis and Panageas (arXiv 1807.04252), the extragradient
//! that of Korpelevich (1976) in its mirror form (Nemirovski 2004), and the proximal point, which both
//! approximate, is found by iterating its equation. For language models see arXiv 2512.24818 (optimistic),
//! 2503.08942 (extragradient) and 2505.19731 (proximal point).

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{GameSettings, default_eta, duality_gap, replies, softmax};
use crate::error::{Error, Result};
use crate::preference::PreferenceMatrix;

/// Largest change of a weight between two iterations of the proximal point's equation that counts as none.
const CONVERGED: f64 = 1e-14;
/// Most iterations of that equation.
const MOST_ITERATIONS: usize = 10_000;

/// Algorithms beside SPPO.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GameAlgorithm {
    /// Optimistic multiplicative weights: the last gain counts twice, less the one before it.
    Optimistic,
    /// Extragradient: a step to look ahead, then a step by what is seen there.
    Extragradient,
    /// Proximal point: a step by the gain where it arrives.
    ProximalPoint,
}

/// As a chart calls it.
impl fmt::Display for GameAlgorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Optimistic => "optimistic",
            Self::Extragradient => "extragradient",
            Self::ProximalPoint => "proximal point",
        })
    }
}

/// Rounds of an algorithm beside SPPO.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AlgorithmPlay {
    /// The algorithm.
    pub algorithm: GameAlgorithm,
    /// Its rounds.
    pub rounds: Vec<AlgorithmRecord>,
}

/// State of an algorithm's play after some rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct AlgorithmRecord {
    /// Rounds played, from 1.
    pub iteration: usize,
    /// Duality gap of the policy that played this round.
    pub last_iterate_gap: f64,
    /// Duality gap of the uniform mixture of all policies so far.
    pub mixture_gap: f64,
}

impl AlgorithmPlay {
    /// Plays from `start` as [`super::play`] does, with the step size of SPPO.
    ///
    /// # Errors
    /// When the equation of the proximal point is not solved by iterating it: the step is too large.
    pub fn new(
        algorithm: GameAlgorithm,
        game: &PreferenceMatrix,
        start: &[f64],
        settings: &GameSettings,
    ) -> Result<Self> {
        let eta = settings.eta.unwrap_or_else(|| default_eta(start, settings.iterations));
        let mut state = State::new(game, start, eta);
        let mut sum = vec![0.0; start.len()];
        let mut rounds = Vec::with_capacity(settings.iterations);
        for iteration in 1..=settings.iterations {
            let policy = softmax(&state.log_weights);
            sum.iter_mut().zip(&policy).for_each(|(sum, weight)| *sum += weight);
            let mixture: Vec<f64> = sum.iter().map(|weight| weight / iteration as f64).collect();
            rounds.push(AlgorithmRecord {
                iteration,
                last_iterate_gap: duality_gap(game, &policy),
                mixture_gap: duality_gap(game, &mixture),
            });
            let gain = state.gain(algorithm, &policy)?;
            state.move_by(&gain);
        }
        Ok(Self { algorithm, rounds })
    }
}

struct State<'a> {
    game: &'a PreferenceMatrix,
    eta: f64,
    log_weights: Vec<f64>,
    /// The gain of the round before.
    earlier: Option<Vec<f64>>,
}

impl<'a> State<'a> {
    fn new(game: &'a PreferenceMatrix, start: &[f64], eta: f64) -> Self {
        let log_weights = start.iter().map(|weight| weight.ln()).collect();
        Self { game, eta, log_weights, earlier: None }
    }

    fn move_by(&mut self, gain: &[f64]) {
        self.log_weights = self.moved_by(gain);
    }

    fn moved_by(&self, gain: &[f64]) -> Vec<f64> {
        self.log_weights.iter().zip(gain).map(|(log, gain)| log + self.eta * gain).collect()
    }

    /// The gain by which the policy of this round is multiplied.
    fn gain(&mut self, algorithm: GameAlgorithm, policy: &[f64]) -> Result<Vec<f64>> {
        let game = self.game;
        let now: Vec<f64> = replies(game, policy).collect();
        match algorithm {
            GameAlgorithm::Optimistic => {
                let earlier = self.earlier.replace(now.clone()).unwrap_or_else(|| now.clone());
                Ok(now.iter().zip(earlier).map(|(now, earlier)| 2.0 * now - earlier).collect())
            }
            GameAlgorithm::Extragradient => {
                let ahead = softmax(&self.moved_by(&now));
                Ok(replies(game, &ahead).collect())
            }
            GameAlgorithm::ProximalPoint => self.gain_at_arrival(now),
        }
    }

    fn gain_at_arrival(&self, mut gain: Vec<f64>) -> Result<Vec<f64>> {
        for _ in 0..MOST_ITERATIONS {
            let next: Vec<f64> = replies(self.game, &softmax(&self.moved_by(&gain))).collect();
            let changes = next.iter().zip(&gain).map(|(next, gain)| (next - gain).abs());
            let change = changes.fold(0.0, f64::max);
            gain = next;
            if change <= CONVERGED {
                return Ok(gain);
            }
        }
        Err(Error::configuration(
            "--eta",
            format!("{} is too large for the proximal point: its equation is not solved", self.eta),
        )
        .with_hint("give a smaller one, for instance 1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::game::{cycle, play, random, slanted_start};

    const ALL: [GameAlgorithm; 3] =
        [GameAlgorithm::Optimistic, GameAlgorithm::Extragradient, GameAlgorithm::ProximalPoint];

    fn played(
        algorithm: GameAlgorithm,
        game: &PreferenceMatrix,
        iterations: usize,
        eta: f64,
    ) -> Vec<AlgorithmRecord> {
        let settings = GameSettings { iterations, eta: Some(eta) };
        AlgorithmPlay::new(algorithm, game, &slanted_start(game.size()), &settings).unwrap().rounds
    }

    #[test]
    fn in_a_cycle_their_last_policy_settles_while_that_of_sppo_circles() {
        let game = cycle(3).unwrap();
        let settings = GameSettings { iterations: 400, eta: Some(1.0) };
        let sppo = play(&game, &slanted_start(3), &settings);
        let late = sppo[200..].iter().map(|round| round.last_iterate_gap).fold(1.0, f64::min);
        assert!(late > 0.1, "{late}");
        for algorithm in ALL {
            let last = played(algorithm, &game, 400, 1.0)[399].last_iterate_gap;
            assert!(last < 1e-4, "{algorithm}: {last}");
        }
    }

    #[test]
    fn the_mixture_settles_in_random_games_too() {
        for seed in 0..5 {
            let game = random(8, seed).unwrap();
            for algorithm in ALL {
                let rounds = played(algorithm, &game, 2000, 0.5);
                let (first, last) = (rounds[0], rounds[1999]);
                assert!(last.mixture_gap < 0.1 * first.mixture_gap, "{algorithm} {seed}: {last:?}");
                assert!(
                    last.last_iterate_gap < first.last_iterate_gap,
                    "{algorithm} {seed}: {last:?}"
                );
            }
        }
    }

    /// The first step of each on rock, paper, scissors, worked out from the definitions in another way: weights
    /// are multiplied and normalised, without logarithms.
    #[test]
    fn first_steps_are_those_of_the_definitions() {
        let game = cycle(3).unwrap();
        let start = slanted_start(3);
        let gain = |policy: &[f64]| -> Vec<f64> {
            (0..3).map(|i| (0..3).map(|j| game.get(i, j) * policy[j]).sum()).collect()
        };
        let times = |gain: &[f64]| -> Vec<f64> {
            let weights: Vec<f64> = (0..3).map(|i| start[i] * (0.7 * gain[i]).exp()).collect();
            let sum: f64 = weights.iter().sum();
            weights.iter().map(|weight| weight / sum).collect()
        };
        for algorithm in ALL {
            let mut state = State::new(&game, &start, 0.7);
            let step = state.gain(algorithm, &start).unwrap();
            state.move_by(&step);
            let found = softmax(&state.log_weights);
            let expected = match algorithm {
                GameAlgorithm::Optimistic => times(&gain(&start)),
                GameAlgorithm::Extragradient => times(&gain(&times(&gain(&start)))),
                // It is where its own gain leads.
                GameAlgorithm::ProximalPoint => times(&gain(&found)),
            };
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 1e-12, "{algorithm}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn a_step_that_is_too_large_for_the_proximal_point_is_refused() {
        let settings = GameSettings { iterations: 5, eta: Some(1e4) };
        let game = cycle(3).unwrap();
        let refused =
            AlgorithmPlay::new(GameAlgorithm::ProximalPoint, &game, &slanted_start(3), &settings);
        assert!(refused.unwrap_err().to_string().contains("--eta"));
    }
}
