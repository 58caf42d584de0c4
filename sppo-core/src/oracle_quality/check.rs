//! An oracle's verdicts on labelled pairs against their labels.

use serde::Serialize;

use super::VerdictCounts;
use super::counts::sign;
use crate::statistics::{Bootstrap, Interval};
use crate::win_rate::Preferences;

/// Bins of a reliability diagram, of equal width between 1/2 and 1.
const BINS: usize = 10;

/// An oracle's word on a pair whose better response is known.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledVerdict {
    /// Probability that the better response is preferred, over both orders of presentation.
    pub probability: f64,
    /// The probability where the better response is read first; `None` where no order is told of.
    pub read_first: Option<f64>,
    /// The probability of the better response where it is read second.
    pub read_second: Option<f64>,
    /// Part of the data that the pair belongs to.
    pub subset: Option<String>,
}

impl LabelledVerdict {
    /// The verdict on two candidates, the better one being the first or the second of them.
    #[must_use]
    pub fn new(preferences: &Preferences, chosen_first: bool, subset: Option<String>) -> Self {
        let Preferences { matrix, orders, .. } = preferences;
        let (chosen, other) = if chosen_first { (0, 1) } else { (1, 0) };
        let order = |first, second| orders.as_ref().and_then(|orders| orders.get(first, second));
        Self {
            probability: 0.5 * (matrix.get(chosen, other) + (1.0 - matrix.get(other, chosen))),
            read_first: order(chosen, other),
            read_second: order(other, chosen).map(|first| 1.0 - first),
            subset,
        }
    }

    /// 1 where the oracle agrees with the label, 0 where it does not, 1/2 for a tie.
    fn agreement(&self) -> f64 {
        0.5 * (1.0 + f64::from(sign(self.probability)))
    }

    /// The probability of the response that the oracle prefers.
    fn confidence(&self) -> f64 {
        self.probability.max(1.0 - self.probability)
    }
}

/// An oracle's agreement with labels, and its habits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OracleCheck {
    /// Number of pairs.
    pub pairs: usize,
    /// Share of pairs on which the oracle agrees with the label, a tie being half an agreement.
    pub accuracy: Interval,
    /// Pairs that the oracle calls a tie.
    pub ties: usize,
    /// Mean probability of the response that is read first; `None` where the oracle tells of no order.
    pub first_place_probability: Option<f64>,
    /// Pairs that were judged in both orders.
    pub both_orders: usize,
    /// Pairs of these whose winner depends on the order.
    pub order_dependent: usize,
    /// Agreement of probabilities with frequencies.
    pub calibration: Calibration,
    /// Parts of the data, in the order of their first pairs; empty where the file names none.
    pub subsets: Vec<SubsetAccuracy>,
}

/// Accuracy on a part of the data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SubsetAccuracy {
    /// Its name.
    pub subset: String,
    /// Number of its pairs.
    pub pairs: usize,
    /// As [`OracleCheck::accuracy`].
    pub accuracy: Interval,
}

/// Calibration of probabilities (Guo et al., arXiv 1706.04599): among pairs that the oracle decides with a
/// probability of 0.8, it should be right on 80 %.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Calibration {
    /// Mean distance between probability and accuracy over the bins, each weighted by its pairs.
    pub expected_calibration_error: f64,
    /// The reliability diagram; bins without pairs are left out.
    pub bins: Vec<CalibrationBin>,
}

/// Pairs that the oracle decides with about the same probability.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CalibrationBin {
    /// The lowest probability of the preferred response in it.
    pub low: f64,
    /// The probability at which the next bin begins; 1 belongs to the last one.
    pub high: f64,
    /// Number of pairs.
    pub pairs: usize,
    /// Mean probability of the response that the oracle prefers.
    pub probability: f64,
    /// Share of pairs on which the oracle is right.
    pub accuracy: f64,
}

impl OracleCheck {
    /// The check of these verdicts.
    #[must_use]
    pub fn of(verdicts: &[LabelledVerdict], bootstrap: &Bootstrap) -> Self {
        let agreements: Vec<f64> = verdicts.iter().map(LabelledVerdict::agreement).collect();
        let mut counts = VerdictCounts::default();
        for verdict in verdicts {
            // Read second, the better response leaves the rest to the one read first.
            counts.add_orders(verdict.read_first, verdict.read_second.map(|second| 1.0 - second));
        }
        Self {
            pairs: verdicts.len(),
            accuracy: bootstrap.mean(&agreements),
            ties: verdicts.iter().filter(|verdict| sign(verdict.probability) == 0).count(),
            first_place_probability: counts.first_place_probability,
            both_orders: counts.both_orders,
            order_dependent: counts.order_dependent,
            calibration: Calibration::of(verdicts),
            subsets: subsets(verdicts, bootstrap),
        }
    }
}

fn subsets(verdicts: &[LabelledVerdict], bootstrap: &Bootstrap) -> Vec<SubsetAccuracy> {
    let mut names: Vec<&str> = Vec::new();
    for name in verdicts.iter().filter_map(|verdict| verdict.subset.as_deref()) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let accuracy = |name: &&str| {
        let of_subset = verdicts.iter().filter(|verdict| verdict.subset.as_deref() == Some(*name));
        let agreements: Vec<f64> = of_subset.map(LabelledVerdict::agreement).collect();
        SubsetAccuracy {
            subset: (*name).into(),
            pairs: agreements.len(),
            accuracy: bootstrap.mean(&agreements),
        }
    };
    names.iter().map(accuracy).collect()
}

impl Calibration {
    fn of(verdicts: &[LabelledVerdict]) -> Self {
        let width = 0.5 / BINS as f64;
        // Ends of bins are whole numbers here, and not rounded below themselves.
        let bin_of = |verdict: &LabelledVerdict| {
            let from_zero = (verdict.confidence() * (2 * BINS) as f64) as usize;
            from_zero.saturating_sub(BINS).min(BINS - 1)
        };
        let bin = |index: usize| {
            let inside: Vec<&LabelledVerdict> =
                verdicts.iter().filter(|verdict| bin_of(verdict) == index).collect();
            let mean = |of: fn(&LabelledVerdict) -> f64| {
                inside.iter().map(|verdict| of(verdict)).sum::<f64>() / inside.len() as f64
            };
            (!inside.is_empty()).then(|| CalibrationBin {
                low: 0.5 + index as f64 * width,
                high: 0.5 + (index + 1) as f64 * width,
                pairs: inside.len(),
                probability: mean(LabelledVerdict::confidence),
                accuracy: mean(LabelledVerdict::agreement),
            })
        };
        let bins: Vec<CalibrationBin> = (0..BINS).filter_map(bin).collect();
        let distance =
            |bin: &CalibrationBin| bin.pairs as f64 * (bin.probability - bin.accuracy).abs();
        let total: f64 = bins.iter().map(distance).sum();
        Self { expected_calibration_error: total / verdicts.len().max(1) as f64, bins }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 200, confidence: 0.95, seed: 1 };

    fn verdict(probability: f64, subset: &str) -> LabelledVerdict {
        let subset = Some(subset.into());
        LabelledVerdict { probability, read_first: None, read_second: None, subset }
    }

    #[test]
    fn an_oracle_that_is_as_sure_as_it_is_right_is_calibrated() {
        let right = |count: usize| (0..10).map(move |index| if index < count { 0.8 } else { 0.2 });
        let check = |count: usize| {
            let verdicts: Vec<_> =
                right(count).map(|probability| verdict(probability, "a")).collect();
            OracleCheck::of(&verdicts, &BOOTSTRAP)
        };
        let calibrated = check(8);
        assert_eq!(calibrated.accuracy.mean, 0.8);
        assert!(calibrated.calibration.expected_calibration_error < 1e-12);
        let [bin] = calibrated.calibration.bins.as_slice() else { panic!("{calibrated:?}") };
        assert!((bin.low - 0.8).abs() < 1e-12 && bin.pairs == 10, "{bin:?}");
        let overconfident = check(5).calibration.expected_calibration_error;
        assert!((overconfident - 0.3).abs() < 1e-12, "{overconfident}");
    }

    #[test]
    fn bins_hold_their_lower_ends_and_the_last_one_holds_1() {
        let verdicts = [0.5, 1.0, 0.0, 0.949, 0.95].map(|probability| verdict(probability, "a"));
        let bins = Calibration::of(&verdicts).bins;
        let found: Vec<(usize, f64)> = bins.iter().map(|bin| (bin.pairs, bin.accuracy)).collect();
        assert_eq!(found[..2], [(1, 0.5), (1, 1.0)]);
        assert_eq!(found[2].0, 3);
    }

    #[test]
    fn ties_count_half_and_subsets_stand_in_their_order() {
        let verdicts = [verdict(0.9, "chat"), verdict(0.5, "code"), verdict(0.1, "chat")];
        let check = OracleCheck::of(&verdicts, &BOOTSTRAP);
        assert_eq!((check.accuracy.mean, check.ties), (0.5, 1));
        let subsets: Vec<(&str, usize, f64)> = check
            .subsets
            .iter()
            .map(|subset| (subset.subset.as_str(), subset.pairs, subset.accuracy.mean))
            .collect();
        assert_eq!(subsets, [("chat", 2, 0.5), ("code", 1, 0.5)]);
        assert!(check.accuracy.low < check.accuracy.high);
    }

    #[test]
    fn a_favoured_place_is_seen_wherever_the_better_response_stands() {
        let verdict = LabelledVerdict {
            probability: 0.5,
            read_first: Some(0.75),
            read_second: Some(0.25),
            subset: None,
        };
        let check = OracleCheck::of(&[verdict], &BOOTSTRAP);
        assert_eq!(check.first_place_probability, Some(0.75));
        assert_eq!((check.both_orders, check.order_dependent), (1, 1));
    }
}
