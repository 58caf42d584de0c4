//! Judged pairs of answers of two models, and their win rate.

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bootstrap, Interval};
use super::length_control;

/// Two answers to the same prompt, one of each model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Duel {
    /// Probability that the first is preferred.
    pub win_rate: f64,
    /// Length of the first minus that of the second, in characters.
    pub length_difference: f64,
}

/// All duels of two models: by seed, then by prompt. The seeds have the same prompts, and each prompt has at
/// least one duel; those of a prompt weigh 1 together.
#[derive(Clone, Debug, PartialEq)]
pub struct Duels(Vec<Vec<Vec<Duel>>>);

impl Duels {
    /// The duels of some seeds. `None` when there are none, or seeds differ in their number of prompts.
    #[must_use]
    pub fn new(seeds: Vec<Vec<Vec<Duel>>>) -> Option<Self> {
        let prompts = seeds.first()?.len();
        let is_complete = prompts > 0
            && seeds.iter().all(|seed| seed.len() == prompts)
            && seeds.iter().flatten().all(|duels| !duels.is_empty());
        is_complete.then_some(Self(seeds))
    }

    /// Number of seeds, and of prompts.
    #[must_use]
    pub fn counts(&self) -> [usize; 2] {
        [self.0.len(), self.0[0].len()]
    }

    /// Those of each seed alone.
    #[must_use]
    pub fn by_seed(&self) -> Vec<Self> {
        self.0.iter().map(|seed| Self(vec![seed.clone()])).collect()
    }

    /// The duels as the other model sees them.
    #[must_use]
    pub fn reversed(&self) -> Self {
        let reverse = |duel: &Duel| Duel {
            win_rate: 1.0 - duel.win_rate,
            length_difference: -duel.length_difference,
        };
        Self(self.map(|duels| duels.iter().map(reverse).collect()))
    }

    /// Mean probability that the first model's answer is preferred, with its bootstrap interval over prompts
    /// and seeds.
    #[must_use]
    pub fn win_rate(&self, bootstrap: &Bootstrap) -> Interval {
        self.mean(&self.win_rates(), bootstrap)
    }

    /// Win rate less that of others, seed by seed and prompt by prompt, with the interval of this difference.
    /// `None` when they have other seeds or prompts.
    #[must_use]
    pub fn win_rate_difference(&self, other: &Self, bootstrap: &Bootstrap) -> Option<Interval> {
        if self.counts() != other.counts() {
            return None;
        }
        let mut differences = self.win_rates();
        for (ours, theirs) in differences.iter_mut().flatten().zip(other.win_rates().concat()) {
            *ours -= theirs;
        }
        Some(self.mean(&differences, bootstrap))
    }

    /// The win rate at equal length, with its interval; see [`length_control`].
    ///
    /// `None` when length cannot be told from quality: all duels have the same difference in length, and it
    /// is not 0.
    #[must_use]
    pub fn length_controlled_win_rate(&self, bootstrap: &Bootstrap) -> Option<Interval> {
        length_control::win_rate_at_equal_length(self, bootstrap)
    }

    /// Mean length of the first model's answers less that of the second's, in characters.
    #[must_use]
    pub fn mean_length_difference(&self) -> f64 {
        let all = || self.0.iter().flatten().flatten();
        all().map(|duel| duel.length_difference).sum::<f64>() / all().count() as f64
    }

    /// Mean win rate on each prompt, by seed.
    #[must_use]
    pub fn win_rates(&self) -> Vec<Vec<f64>> {
        let mean = |duels: &[Duel]| {
            duels.iter().map(|duel| duel.win_rate).sum::<f64>() / duels.len() as f64
        };
        self.map(mean)
    }

    /// Something of each prompt, by seed.
    pub(super) fn map<T>(&self, of_prompt: impl Fn(&[Duel]) -> T) -> Vec<Vec<T>> {
        self.0
            .iter()
            .map(|prompts| prompts.iter().map(|duels| of_prompt(duels)).collect())
            .collect()
    }

    fn mean(&self, values: &[Vec<f64>], bootstrap: &Bootstrap) -> Interval {
        bootstrap.interval(self.counts(), |drawn| {
            let count = drawn[0].len() * drawn[1].len();
            crossed(values, &drawn).sum::<f64>() / count as f64
        })
    }
}

/// What was drawn of both factors.
pub(crate) fn crossed<'a, T>(
    values: &'a [Vec<T>],
    [seeds, prompts]: &'a [Vec<usize>; 2],
) -> impl Iterator<Item = &'a T> {
    seeds.iter().flat_map(move |&seed| prompts.iter().map(move |&prompt| &values[seed][prompt]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 1000, confidence: 0.95, seed: 5 };

    fn duels(win_rates: &[&[f64]]) -> Duels {
        let alone = |&win_rate: &f64| vec![Duel { win_rate, length_difference: 1.0 }];
        Duels::new(win_rates.iter().map(|seed| seed.iter().map(alone).collect()).collect()).unwrap()
    }

    #[test]
    fn a_difference_between_pairs_is_surer_than_that_between_means() {
        let easy_and_hard = [0.1, 0.9, 0.2, 0.8, 0.5, 0.0, 1.0, 0.3];
        let better = easy_and_hard.map(|win_rate| 0.9 * win_rate + 0.1);
        let [before, after] = [duels(&[&easy_and_hard]), duels(&[&better])];
        let paired = after.win_rate_difference(&before, &BOOTSTRAP).unwrap();
        assert!(
            (paired.mean - (after.win_rate(&BOOTSTRAP).mean - before.win_rate(&BOOTSTRAP).mean))
                .abs()
                < 1e-12
        );
        assert!(paired.low > 0.0, "{paired:?}");
        let alone = before.win_rate(&BOOTSTRAP);
        assert!(paired.high - paired.low < 0.2 * (alone.high - alone.low));
        assert_eq!(after.win_rate_difference(&duels(&[&[0.5]]), &BOOTSTRAP), None);
    }

    #[test]
    fn the_other_model_sees_the_same_duels_from_the_other_side() {
        let ours = duels(&[&[0.2, 0.9], &[0.4, 1.0]]);
        let theirs = ours.reversed();
        let sum = ours.win_rate(&BOOTSTRAP).mean + theirs.win_rate(&BOOTSTRAP).mean;
        assert!((sum - 1.0).abs() < 1e-12);
        assert_eq!(theirs.mean_length_difference(), -1.0);
        assert_eq!(theirs.reversed().counts(), [2, 2]);
    }

    #[test]
    fn seeds_with_other_prompts_cannot_be_averaged() {
        let alone = vec![Duel { win_rate: 0.5, length_difference: 0.0 }];
        assert_eq!(Duels::new(vec![vec![alone.clone()], vec![alone.clone(), alone.clone()]]), None);
        assert_eq!(Duels::new(vec![vec![alone, Vec::new()]]), None);
        assert_eq!(Duels::new(vec![Vec::new()]), None);
        assert_eq!(Duels::new(Vec::new()), None);
    }
}
