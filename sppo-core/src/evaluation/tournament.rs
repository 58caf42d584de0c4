//! Several models, each compared with every other: their win rates, a ranking by Bradley and Terry, and the
//! mixture of them that no single one beats.

use serde::Serialize;

use crate::game::{duality_gap, nash_mixture};
use crate::preference::PreferenceMatrix;
use crate::statistics::{Bootstrap, Duels, Interval, STRENGTH_PENALTY, bradley_terry, crossed};

/// The duels of several models, at least two, each with every other.
#[derive(Clone, Debug, PartialEq)]
pub struct Tournament {
    models: Vec<String>,
    /// `duels[i][j - i - 1]` are those of model `i` with model `j > i`.
    duels: Vec<Vec<Duels>>,
}

/// Results of a tournament.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TournamentReport {
    /// The models, the strongest first.
    pub ranking: Vec<Standing>,
    /// Every two models, in the order in which they were given.
    pub pairs: Vec<PairReport>,
    /// The mixture of models that no single one beats.
    pub nash: NashReport,
}

/// The place of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// The model.
    pub model: String,
    /// Mean win rate against all others.
    pub win_rate: Interval,
    /// Strength by the model of Bradley and Terry, in log-odds; the mean of all is 0.
    pub strength: Interval,
}

/// Comparison of two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairReport {
    /// The one model.
    pub first: String,
    /// The other model.
    pub second: String,
    /// Mean probability that the first model's answer is preferred.
    pub win_rate: Interval,
    /// The same at equal length; `None` when length cannot be told from quality.
    pub length_controlled_win_rate: Option<Interval>,
    /// Mean length of the first model's answers less that of the second's, in characters.
    pub mean_length_difference: f64,
}

/// An equilibrium of the game in which two players each choose a model, and the win rate decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NashReport {
    /// The probability of each model, in the order in which they were given. Other equilibria may exist.
    pub mixture: Vec<Share>,
    /// The duality gap, which is 0 at an equilibrium.
    pub gap: f64,
}

/// Probability of a model in a mixture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The model.
    pub model: String,
    /// Its probability.
    pub share: f64,
}

impl PairReport {
    /// The report about these duels.
    #[must_use]
    pub fn new(first: &str, second: &str, duels: &Duels, bootstrap: &Bootstrap) -> Self {
        Self {
            first: first.into(),
            second: second.into(),
            win_rate: duels.win_rate(bootstrap),
            length_controlled_win_rate: duels.length_controlled_win_rate(bootstrap),
            mean_length_difference: duels.mean_length_difference(),
        }
    }
}

impl Tournament {
    /// The duels of these models, in the order (0, 1), (0, 2), ..., (1, 2), ...; all with the same seeds and
    /// prompts. `None` when there are fewer than two models, or not as many duels as pairs of models.
    #[must_use]
    pub fn new(models: Vec<String>, duels: Vec<Duels>) -> Option<Self> {
        let counts = duels.first()?.counts();
        let pairs = models.len() * (models.len() - 1) / 2;
        if duels.len() != pairs || duels.iter().any(|duels| duels.counts() != counts) {
            return None;
        }
        let mut duels = duels.into_iter();
        let rows = (1..models.len()).rev().map(|others| duels.by_ref().take(others).collect());
        Some(Self { duels: rows.collect(), models })
    }

    /// Win rates, ranking and equilibrium, with intervals over prompts and seeds.
    #[must_use]
    pub fn report(&self, bootstrap: &Bootstrap) -> TournamentReport {
        let pair = |(first, second, duels): (usize, usize, &Duels)| {
            PairReport::new(&self.models[first], &self.models[second], duels, bootstrap)
        };
        TournamentReport {
            ranking: self.ranking(bootstrap),
            pairs: self.pairs().map(pair).collect(),
            nash: self.nash(),
        }
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize, &Duels)> {
        self.duels.iter().enumerate().flat_map(|(first, duels)| {
            duels.iter().enumerate().map(move |(offset, duels)| (first, first + offset + 1, duels))
        })
    }

    fn ranking(&self, bootstrap: &Bootstrap) -> Vec<Standing> {
        let games = Games::new(self);
        let statistics = |drawn: [Vec<usize>; 2]| {
            let won = games.mean_win_rates(&drawn);
            let mut values = against_others(&won);
            let played = (drawn[0].len() * drawn[1].len()) as f64;
            values.extend(strengths(&won, played));
            values
        };
        let intervals = bootstrap.intervals(self.duels[0][0].counts(), statistics);
        let (win_rates, strengths) = intervals.split_at(self.models.len());
        let mut standings: Vec<Standing> = self
            .models
            .iter()
            .zip(win_rates.iter().zip(strengths))
            .map(|(model, (&win_rate, &strength))| Standing {
                model: model.clone(),
                win_rate,
                strength,
            })
            .collect();
        standings.sort_by(|a, b| b.strength.mean.total_cmp(&a.strength.mean));
        standings
    }

    fn nash(&self) -> NashReport {
        let [seeds, prompts] = self.duels[0][0].counts();
        let all = [(0..seeds).collect(), (0..prompts).collect()];
        let won = Games::new(self).mean_win_rates(&all);
        let game = PreferenceMatrix::from_fn(won.len(), |i, j| won[i][j].clamp(0.0, 1.0));
        // Means of probabilities are probabilities.
        let Ok(game) = game else { return NashReport { mixture: Vec::new(), gap: f64::NAN } };
        let mixture = nash_mixture(&game);
        let share = |(model, &share): (&String, &f64)| Share { model: model.clone(), share };
        NashReport {
            gap: duality_gap(&game, &mixture),
            mixture: self.models.iter().zip(&mixture).map(share).collect(),
        }
    }
}

/// Win rates of every two models by seed and prompt.
struct Games {
    models: usize,
    pairs: Vec<(usize, usize, Vec<Vec<f64>>)>,
}

impl Games {
    fn new(tournament: &Tournament) -> Self {
        let pairs =
            tournament.pairs().map(|(first, second, duels)| (first, second, duels.win_rates()));
        Self { models: tournament.models.len(), pairs: pairs.collect() }
    }

    /// `P[i][j]`: mean win rate of model `i` against model `j` on these seeds and prompts.
    fn mean_win_rates(&self, drawn: &[Vec<usize>; 2]) -> Vec<Vec<f64>> {
        let count = (drawn[0].len() * drawn[1].len()) as f64;
        let mut matrix = vec![vec![0.5; self.models]; self.models];
        for (first, second, win_rates) in &self.pairs {
            let mean = crossed(win_rates, drawn).sum::<f64>() / count;
            matrix[*first][*second] = mean;
            matrix[*second][*first] = 1.0 - mean;
        }
        matrix
    }
}

/// Mean win rate of each model against the others.
fn against_others(won: &[Vec<f64>]) -> Vec<f64> {
    let others = (won.len() - 1) as f64;
    won.iter().map(|row| (row.iter().sum::<f64>() - 0.5) / others).collect()
}

/// Strengths from so many games of every two models. With the penalty there always is a solution.
fn strengths(won: &[Vec<f64>], played: f64) -> Vec<f64> {
    let wins: Vec<Vec<f64>> =
        won.iter().map(|row| row.iter().map(|rate| rate * played).collect()).collect();
    bradley_terry(&wins, STRENGTH_PENALTY).unwrap_or_else(|| vec![f64::NAN; won.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Duel;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, confidence: 0.95, seed: 2 };

    /// As many prompts as win rates, one duel each.
    fn duels(win_rates: &[f64]) -> Duels {
        let alone = |&win_rate| vec![Duel { win_rate, length_difference: 0.0 }];
        Duels::new(vec![win_rates.iter().map(alone).collect()]).unwrap()
    }

    fn tournament(models: &[&str], win_rates: &[&[f64]]) -> Option<Tournament> {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        Tournament::new(models, win_rates.iter().map(|rates| duels(rates)).collect())
    }

    #[test]
    fn models_are_ranked_and_the_best_is_the_whole_mixture() {
        let rates: [&[f64]; 3] = [&[0.3, 0.4, 0.1], &[0.8, 0.9, 0.7], &[0.9, 0.9, 1.0]];
        let report = tournament(&["a", "b", "c"], &rates).unwrap().report(&BOOTSTRAP);
        let order: Vec<&str> = report.ranking.iter().map(|place| place.model.as_str()).collect();
        assert_eq!(order, ["b", "a", "c"]);
        assert_eq!(report.pairs.len(), 3);
        let last = &report.pairs[2];
        assert_eq!((last.first.as_str(), last.second.as_str()), ("b", "c"));
        assert!((last.win_rate.mean - 2.8 / 3.0).abs() < 1e-12);
        let shares: Vec<f64> = report.nash.mixture.iter().map(|share| share.share).collect();
        assert_eq!(shares, [0.0, 1.0, 0.0]);
        assert!(report.nash.gap.abs() < 1e-12);
        let best = &report.ranking[0];
        assert!((best.win_rate.mean - (2.2 + 2.8) / 6.0).abs() < 1e-12);
        assert!(
            best.strength.low <= best.strength.mean && best.strength.mean <= best.strength.high
        );
        let sum: f64 = report.ranking.iter().map(|place| place.strength.mean).sum();
        assert!(sum.abs() < 1e-9);
    }

    #[test]
    fn in_a_circle_the_mixture_holds_every_model_and_none_is_ranked_above_another() {
        let rates: [&[f64]; 3] = [&[0.9, 0.9], &[0.1, 0.1], &[0.9, 0.9]];
        let report = tournament(&["rock", "scissors", "paper"], &rates).unwrap().report(&BOOTSTRAP);
        for share in &report.nash.mixture {
            assert!((share.share - 1.0 / 3.0).abs() < 1e-9, "{share:?}");
        }
        for place in &report.ranking {
            assert!(place.strength.mean.abs() < 1e-9, "{place:?}");
        }
    }

    #[test]
    fn a_missing_pair_is_refused() {
        assert_eq!(tournament(&["a", "b", "c"], &[&[0.5], &[0.5]]), None);
        assert_eq!(tournament(&["a", "b", "c"], &[&[0.5], &[0.5], &[0.5, 0.5]]), None);
        assert_eq!(tournament(&["a"], &[]), None);
    }
}
