//! Verdicts on the pairs of responses to prompts, counted.

use serde::{Deserialize, Serialize};

use crate::plugin::order::OrderMatrix;
use crate::preference::PreferenceMatrix;
use crate::records::Judgment;

/// Probabilities closer than this to one half are ties: the rest is rounding.
const ROUNDING: f64 = 1e-9;

/// Counts of an oracle's verdicts on pairs of different responses to one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VerdictCounts {
    /// Pairs that the oracle was asked about.
    pub pairs: usize,
    /// Pairs that it was not asked about, whose probabilities follow from the others.
    #[serde(default)]
    pub unasked: usize,
    /// Pairs of which neither response is preferred.
    pub ties: usize,
    /// Pairs whose verdict is known in both orders of presentation.
    #[serde(default)]
    pub both_orders: usize,
    /// Pairs of these of which the one read first is preferred in either order, or the one read second.
    pub order_dependent: usize,
    /// Presentations of a pair in one order that a probability is known for.
    #[serde(default)]
    pub presentations: usize,
    /// Mean probability of the response that is read first, over these; one half without a preference for a
    /// place.
    #[serde(default)]
    pub first_place_probability: Option<f64>,
    /// Triples of responses of which every pair was asked about and none is a tie.
    pub triples: usize,
    /// Triples of which each beats another: A beats B, B beats C, C beats A.
    pub intransitive: usize,
}

impl VerdictCounts {
    /// The counts of all verdicts of these judgments.
    #[must_use]
    pub fn of(judgments: &[Judgment]) -> Self {
        let mut counts = Self::default();
        judgments.iter().for_each(|judgment| counts.add(judgment));
        counts
    }

    /// The counts of several sets of judgments together.
    #[must_use]
    pub fn total<'a>(counts: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut total = Self::default();
        let mut first_places = 0.0;
        for one in counts {
            first_places += one.first_place_probability.unwrap_or(0.0) * one.presentations as f64;
            total.pairs += one.pairs;
            total.unasked += one.unasked;
            total.ties += one.ties;
            total.both_orders += one.both_orders;
            total.order_dependent += one.order_dependent;
            total.presentations += one.presentations;
            total.triples += one.triples;
            total.intransitive += one.intransitive;
        }
        let has_orders = total.presentations > 0;
        total.first_place_probability =
            has_orders.then(|| first_places / total.presentations as f64);
        total
    }

    fn add(&mut self, judgment: &Judgment) {
        let matrix = judgment.of_oracle();
        let size = matrix.size();
        let own = judgment.read_first.is_none().then(|| OrderMatrix::of_matrix(matrix)).flatten();
        let orders = judgment.read_first.as_ref().or(own.as_ref());
        for i in 0..size {
            for j in i + 1..size {
                if !judgment.was_asked(i, j) {
                    self.unasked += 1;
                    continue;
                }
                self.pairs += 1;
                self.ties += usize::from(preferred(matrix, i, j) == 0);
                if let Some(orders) = orders {
                    self.add_orders(orders.get(i, j), orders.get(j, i));
                }
                for k in
                    (j + 1..size).filter(|&k| judgment.was_asked(j, k) && judgment.was_asked(i, k))
                {
                    self.add_triple([
                        preferred(matrix, i, j),
                        preferred(matrix, j, k),
                        preferred(matrix, k, i),
                    ]);
                }
            }
        }
    }

    /// Adds the verdicts on a pair, each the probability of the response that is read first.
    pub(super) fn add_orders(&mut self, one: Option<f64>, other: Option<f64>) {
        for first in [one, other].into_iter().flatten() {
            self.presentations += 1;
            let mean = self.first_place_probability.unwrap_or(0.0);
            let share = (first - mean) / self.presentations as f64;
            self.first_place_probability = Some(mean + share);
        }
        if let (Some(one), Some(other)) = (one, other) {
            self.both_orders += 1;
            self.order_dependent += usize::from(sign(one) * sign(other) > 0);
        }
    }

    /// Adds a triple, by who is preferred going round it.
    fn add_triple(&mut self, around: [i32; 3]) {
        let has_winners = around.iter().all(|sign| *sign != 0);
        let goes_round = around[0] == around[1] && around[1] == around[2];
        self.triples += usize::from(has_winners);
        self.intransitive += usize::from(has_winners && goes_round);
    }
}

/// 1 where response `i` is preferred to `j` over both orders, -1 where `j` is, 0 for a tie.
fn preferred(matrix: &PreferenceMatrix, i: usize, j: usize) -> i32 {
    sign(0.5 * (matrix.get(i, j) + (1.0 - matrix.get(j, i))))
}

/// 1 for more than one half, -1 for less, 0 for a tie.
pub(super) fn sign(probability: f64) -> i32 {
    match probability - 0.5 {
        distance if distance.abs() <= ROUNDING => 0,
        distance if distance > 0.0 => 1,
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::Verdict;
    use crate::win_rate::{self, WinRateEstimator};

    fn judgment(size: usize, verdict: Verdict) -> Judgment {
        let judged = win_rate::judge(verdict, size, WinRateEstimator::Pairwise, 1.0).unwrap();
        Judgment::new(0, judged.into())
    }

    #[test]
    fn a_circle_is_one_intransitive_triple_and_a_line_is_none() {
        let circle = vec![0.5, 0.9, 0.2, 0.1, 0.5, 0.7, 0.8, 0.3, 0.5];
        let line = vec![0.5, 0.9, 0.8, 0.1, 0.5, 0.7, 0.2, 0.3, 0.5];
        let tied = vec![0.5, 0.5, 0.8, 0.5, 0.5, 0.7, 0.2, 0.3, 0.5];
        let judgments =
            [circle, line, tied].map(|values| judgment(3, Verdict::Probabilities(values)));
        let expected = VerdictCounts {
            pairs: 9,
            ties: 1,
            triples: 2,
            intransitive: 1,
            ..VerdictCounts::default()
        };
        assert_eq!(VerdictCounts::of(&judgments), expected);
    }

    #[test]
    fn a_judge_that_takes_the_first_is_seen_however_it_tells_the_orders() {
        let kinds = [
            Verdict::Probabilities(vec![0.5, 0.9, 0.6, 0.5]),
            Verdict::Orders(vec![None, Some(0.9), Some(0.6), None]),
            Verdict::Logits(vec![0.0, 9f32.ln(), 1.5f32.ln(), 0.0]),
        ];
        for verdict in kinds {
            let counts = VerdictCounts::of(&[judgment(2, verdict)]);
            assert_eq!((counts.pairs, counts.both_orders, counts.order_dependent), (1, 1, 1));
            assert!((counts.first_place_probability.unwrap() - 0.75).abs() < 1e-7, "{counts:?}");
        }
    }

    #[test]
    fn counts_of_iterations_add_up_to_those_of_all_their_judgments() {
        let orders = |one, other| Verdict::Orders(vec![None, Some(one), Some(other), None]);
        let circle = vec![0.5, 0.9, 0.2, 0.1, 0.5, 0.7, 0.8, 0.3, 0.5];
        let first = [judgment(2, orders(0.9, 0.5)), judgment(2, orders(0.25, 0.5))];
        let second = [judgment(2, orders(1.0, 0.75)), judgment(3, Verdict::Probabilities(circle))];
        let total = VerdictCounts::total(&[&first, &second].map(|some| VerdictCounts::of(some)));
        let together = VerdictCounts::of(&[first, second].concat());
        let VerdictCounts { first_place_probability: Some(expected), .. } = together else {
            panic!("{together:?}");
        };
        assert!((total.first_place_probability.unwrap() - expected).abs() < 1e-12);
        assert_eq!(VerdictCounts { first_place_probability: Some(expected), ..total }, together);
    }

    #[test]
    fn pairs_that_were_not_asked_about_are_counted_apart() {
        let mut judgment =
            judgment(3, Verdict::Probabilities(vec![0.5, 0.9, 0.2, 0.1, 0.5, 0.7, 0.8, 0.3, 0.5]));
        judgment.asked_pairs = Some(vec![(0, 1), (1, 2)]);
        let counts = VerdictCounts::of(&[judgment]);
        assert_eq!((counts.pairs, counts.unasked, counts.triples), (2, 1, 0));
    }
}
