//! The judge's verdicts, counted.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use sppo_core::metrics::MetricsEntry;
use sppo_core::preference::PreferenceMatrix;
use sppo_core::records::DuelVerdict;

/// Probabilities closer than this to one half are ties: the rest is rounding.
const ROUNDING: f64 = 1e-9;

/// Counts of the judge's verdicts, and what it took to get them.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct OracleReport {
    /// Pairs of sampled responses, by iteration from 1.
    pub(crate) iterations: Vec<PairCounts>,
    /// The two orders of held-out duels.
    pub(crate) held_out_orders: OrderReport,
    /// Counters of an oracle that asks a service, in its own names; empty for others.
    pub(crate) service: BTreeMap<String, f64>,
}

/// Verdicts on the pairs of responses of one iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct PairCounts {
    /// Pairs of different responses to one prompt.
    pub(crate) pairs: usize,
    /// Pairs of which neither is preferred.
    pub(crate) ties: usize,
    /// Pairs of which the one read first is preferred, in either order.
    pub(crate) order_dependent: usize,
    /// Triples of responses without ties.
    pub(crate) triples: usize,
    /// Triples of which each beats another: A beats B, B beats C, C beats A.
    pub(crate) intransitive: usize,
}

/// Both orders of presentation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct OrderReport {
    /// Duels that were judged.
    pub(crate) duels: usize,
    /// Mean probability of whichever answer is read first; one half without a preference for a place.
    pub(crate) first_place_probability: Option<f64>,
    /// Whether any probability depends on the order. Scores and some estimators leave no trace of it.
    pub(crate) has_order: bool,
    /// Duels whose winner depends on the order.
    pub(crate) order_dependent: usize,
    /// Duels that neither answer wins.
    pub(crate) ties: usize,
}

impl PairCounts {
    /// Adds the verdicts on one prompt's responses.
    pub(super) fn add(&mut self, matrix: &PreferenceMatrix) {
        let preference = |i: usize, j: usize| {
            let in_both_orders = 0.5 * (matrix.get(i, j) + (1.0 - matrix.get(j, i)));
            sign(in_both_orders)
        };
        let size = matrix.size();
        for i in 0..size {
            for j in i + 1..size {
                self.pairs += 1;
                self.ties += usize::from(preference(i, j) == 0);
                let orders = [sign(matrix.get(i, j)), -sign(matrix.get(j, i))];
                self.order_dependent += usize::from(orders[0] * orders[1] < 0);
                for k in j + 1..size {
                    let around = [preference(i, j), preference(j, k), preference(k, i)];
                    let has_winners = around.iter().all(|sign| *sign != 0);
                    self.triples += usize::from(has_winners);
                    let goes_round = around[0] == around[1] && around[1] == around[2];
                    self.intransitive += usize::from(has_winners && goes_round);
                }
            }
        }
    }
}

impl OrderReport {
    /// The report of these duels.
    pub(super) fn of(duels: &[DuelVerdict]) -> Self {
        let first = |duel: &DuelVerdict| 0.5 * (duel.read_first + (1.0 - duel.read_second));
        let depends = |duel: &&DuelVerdict| sign(duel.read_first) * sign(duel.read_second) < 0;
        let sum: f64 = duels.iter().map(first).sum();
        Self {
            duels: duels.len(),
            first_place_probability: (!duels.is_empty()).then(|| sum / duels.len() as f64),
            has_order: duels
                .iter()
                .any(|duel| (duel.read_first - duel.read_second).abs() > ROUNDING),
            order_dependent: duels.iter().filter(depends).count(),
            ties: duels.iter().filter(|duel| sign(duel.win_probability()) == 0).count(),
        }
    }
}

/// 1 for more than one half, -1 for less, 0 for a tie.
fn sign(probability: f64) -> i32 {
    match probability - 0.5 {
        distance if distance.abs() <= ROUNDING => 0,
        distance if distance > 0.0 => 1,
        _ => -1,
    }
}

/// The counters that a service's oracle logged with its stages, over all processes: within each they only rise.
pub(super) fn service_counters(metrics: &[MetricsEntry]) -> BTreeMap<String, f64> {
    const COUNTERS: [&str; 8] = [
        "requests",
        "retries",
        "judgments",
        "cache_hits",
        "invalid_verdicts",
        "undecided_pairs",
        "prompt_tokens",
        "completion_tokens",
    ];
    let mut totals = BTreeMap::new();
    for name in COUNTERS {
        let values = metrics.iter().filter(|entry| entry.kind == "stage");
        let values = values.filter_map(|entry| entry.values.get(name).and_then(Value::as_f64));
        let mut before = None;
        for value in values {
            let gained =
                before.filter(|before| *before <= value).map_or(value, |before| value - before);
            *totals.entry(name.to_owned()).or_insert(0.0) += gained;
            before = Some(value);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_is_one_intransitive_triple_and_a_line_is_none() {
        let matrix = |values: [f64; 9]| PreferenceMatrix::new(3, values.to_vec()).unwrap();
        let mut counts = PairCounts::default();
        counts.add(&matrix([0.5, 0.9, 0.2, 0.1, 0.5, 0.7, 0.8, 0.3, 0.5]));
        counts.add(&matrix([0.5, 0.9, 0.8, 0.1, 0.5, 0.7, 0.2, 0.3, 0.5]));
        counts.add(&matrix([0.5, 0.5, 0.8, 0.5, 0.5, 0.7, 0.2, 0.3, 0.5]));
        let expected =
            PairCounts { pairs: 9, ties: 1, order_dependent: 0, triples: 2, intransitive: 1 };
        assert_eq!(counts, expected);
    }

    #[test]
    fn a_judge_that_takes_the_first_is_seen_in_both_counts() {
        let mut counts = PairCounts::default();
        counts.add(&PreferenceMatrix::new(2, vec![0.5, 0.9, 0.6, 0.5]).unwrap());
        assert_eq!((counts.pairs, counts.order_dependent), (1, 1));
        let report = OrderReport::of(&[
            DuelVerdict { read_first: 0.9, read_second: 0.3 },
            DuelVerdict { read_first: 0.7, read_second: 0.7 },
        ]);
        assert_eq!((report.duels, report.order_dependent), (2, 1));
        assert!((report.first_place_probability.unwrap() - 0.65).abs() < 1e-12);
    }

    #[test]
    fn counters_of_a_second_process_are_added() {
        let entry = |requests: f64| MetricsEntry {
            time: 0.0,
            kind: "stage".into(),
            global_step: 1,
            values: [("requests".to_owned(), Value::from(requests))].into_iter().collect(),
        };
        let counters = service_counters(&[entry(3.0), entry(10.0), entry(2.0), entry(6.0)]);
        assert_eq!(counters, BTreeMap::from([("requests".to_owned(), 16.0)]));
    }
}
