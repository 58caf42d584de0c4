//! The judge's verdicts, counted.

use serde::Serialize;
use serde_json::Value;
use sppo_core::metrics::MetricsEntry;
use sppo_core::oracle_quality::{ServiceCounters, VerdictCounts};
use sppo_core::records::DuelVerdict;

/// Probabilities closer than this to one half are ties: the rest is rounding.
const ROUNDING: f64 = 1e-9;

/// Counts of the judge's verdicts, and what it took to get them.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct OracleReport {
    /// Pairs of sampled responses, by iteration from 1.
    pub(crate) iterations: Vec<VerdictCounts>,
    /// The two orders of held-out duels.
    pub(crate) held_out_orders: OrderReport,
    /// Counters of an oracle that asks a service or a model, in its own names; empty for others.
    pub(crate) service: ServiceCounters,
    /// Money that the service took, by the prices of the settings; `None` without prices.
    pub(crate) cost: Option<f64>,
}

impl OracleReport {
    /// The counts of all iterations.
    pub(crate) fn of_sampled(&self) -> VerdictCounts {
        VerdictCounts::total(&self.iterations)
    }
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
pub(super) fn service_counters(metrics: &[MetricsEntry]) -> ServiceCounters {
    let is_judging = |entry: &&MetricsEntry| {
        entry.kind == "stage" && entry.values.get("stage").and_then(Value::as_str) == Some("judge")
    };
    let (mut totals, mut before) = (ServiceCounters::default(), ServiceCounters::default());
    for entry in metrics.iter().filter(is_judging) {
        let numbers = entry.values.iter();
        let numbers = numbers.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)));
        let mut now = before.clone();
        now.update(numbers);
        totals.add_gain(&before, &now);
        before = now;
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_judge_that_takes_the_first_is_seen() {
        let report = OrderReport::of(&[
            DuelVerdict { read_first: 0.9, read_second: 0.3 },
            DuelVerdict { read_first: 0.7, read_second: 0.7 },
        ]);
        assert_eq!((report.duels, report.order_dependent), (2, 1));
        assert!((report.first_place_probability.unwrap() - 0.65).abs() < 1e-12);
    }

    #[test]
    fn counters_of_a_second_process_are_added_and_those_of_a_sampler_are_not() {
        let entry = |stage: &str, requests: f64| MetricsEntry {
            time: 0.0,
            kind: "stage".into(),
            global_step: 1,
            values: [
                ("stage".to_owned(), Value::from(stage)),
                ("requests".to_owned(), Value::from(requests)),
            ]
            .into_iter()
            .collect(),
        };
        let counters = service_counters(&[
            entry("judge", 3.0),
            entry("sample", 100.0),
            entry("judge", 10.0),
            entry("judge", 2.0),
            entry("judge", 6.0),
        ]);
        assert_eq!(counters.get("requests"), 16.0);
    }
}
