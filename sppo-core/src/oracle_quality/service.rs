//! Counters of an oracle that asks a service or a model: requests, tokens and money, questions and labels.

use std::cell::RefCell;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::observer::{Event, Observer, Stage};
use crate::plugin::check::{self, Check};

/// Counters that only rise within a process, in the oracle's own names.
const COUNTERS: [&str; 11] = [
    REQUESTS,
    "retries",
    "judgments",
    "cache_hits",
    "invalid_verdicts",
    "undecided_pairs",
    "refused_prompts",
    "prompt_tokens",
    "completion_tokens",
    QUESTIONS,
    LABEL_PROBABILITY_SUM,
];

/// Requests to a service.
const REQUESTS: &str = "requests";
/// Questions to a model whose next token is the verdict.
const QUESTIONS: &str = "questions";
/// The sum over these of the probability that the next token is a label.
const LABEL_PROBABILITY_SUM: &str = "label_probability_sum";

/// Prices of a service that the oracle asks, in any one currency: the table `[preference.prices]`. Without
/// prices no cost is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// Price of a million tokens that the service reads.
    pub million_prompt_tokens: f64,
    /// Price of a million tokens that it writes.
    pub million_completion_tokens: f64,
    /// Price of a request, whatever its length.
    pub request: f64,
}

impl Prices {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a price is negative or not finite.
    pub fn check(&self) -> Check {
        check::not_negative("million_prompt_tokens", self.million_prompt_tokens)?;
        check::not_negative("million_completion_tokens", self.million_completion_tokens)?;
        check::not_negative("request", self.request)
    }
}

/// Counters of an oracle that asks a service or a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceCounters(BTreeMap<String, f64>);

impl ServiceCounters {
    /// Whether there are none: the oracle asks neither a service nor a model for labels.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they are those of a service, which takes requests.
    #[must_use]
    pub fn are_of_service(&self) -> bool {
        self.0.contains_key(REQUESTS)
    }

    /// Questions that a model was asked in process, and the mean probability that its next token is one of the
    /// labels; `None` where no such question was asked.
    #[must_use]
    pub fn labels(&self) -> Option<(f64, f64)> {
        let sum = self.0.get(LABEL_PROBABILITY_SUM)?;
        let questions = self.get(QUESTIONS);
        (questions > 0.0).then(|| (questions, sum / questions))
    }

    /// The value of a counter; 0 where the oracle has none of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }

    /// All counters, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Takes over the counters among these numbers.
    pub fn update<'a>(&mut self, values: impl IntoIterator<Item = (&'a str, f64)>) {
        let counters = values.into_iter().filter(|(name, _)| COUNTERS.contains(name));
        self.0.extend(counters.map(|(name, value)| (name.to_owned(), value)));
    }

    /// Adds what a process counted later; where a counter is lower than before, the process has begun anew.
    pub fn add_gain(&mut self, before: &Self, now: &Self) {
        for (name, value) in now.iter() {
            let gained = match before.get(name) {
                earlier if earlier <= value => value - earlier,
                _ => value,
            };
            *self.0.entry(name.to_owned()).or_insert(0.0) += gained;
        }
    }

    /// The counters' growth since `before`, in the same process.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut gained = Self::default();
        gained.add_gain(before, self);
        gained
    }

    /// The money that was paid; `None` without a service or without prices.
    #[must_use]
    pub fn cost(&self, prices: &Prices) -> Option<f64> {
        const MILLION: f64 = 1e6;
        let Prices { million_prompt_tokens, million_completion_tokens, request } = *prices;
        let is_known = self.are_of_service() && *prices != Prices::default();
        is_known.then(|| {
            self.get("prompt_tokens") / MILLION * million_prompt_tokens
                + self.get("completion_tokens") / MILLION * million_completion_tokens
                + self.get(REQUESTS) * request
        })
    }
}

/// Observer that takes note of the counters which the oracle reports while it judges.
#[derive(Debug, Default)]
pub struct ServiceMeter {
    /// The stages under way.
    stages: RefCell<Vec<Stage>>,
    counters: RefCell<ServiceCounters>,
}

impl ServiceMeter {
    /// The counters of this process so far.
    #[must_use]
    pub fn counters(&self) -> ServiceCounters {
        self.counters.borrow().clone()
    }
}

impl Observer for ServiceMeter {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::StageStarted { stage, .. } => self.stages.borrow_mut().push(stage),
            Event::StageFinished { .. } => {
                self.stages.borrow_mut().pop();
            }
            Event::StageMetrics(values) if self.stages.borrow().last() == Some(&Stage::Judge) => {
                self.counters.borrow_mut().update(values.iter().copied());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(values: &[(&str, f64)]) -> ServiceCounters {
        let mut counters = ServiceCounters::default();
        counters.update(values.iter().copied());
        counters
    }

    #[test]
    fn only_the_judges_counters_are_kept() {
        let meter = ServiceMeter::default();
        let start = |stage| meter.event(Event::StageStarted { stage, total: 1, unit: "prompts" });
        start(Stage::Sample);
        meter.event(Event::StageMetrics(&[("requests", 99.0)]));
        start(Stage::Judge);
        meter.event(Event::StageMetrics(&[("requests", 3.0), ("in_flight", 7.0)]));
        meter.event(Event::StageMetrics(&[("requests", 5.0)]));
        assert_eq!(meter.counters(), counters(&[("requests", 5.0)]));
    }

    #[test]
    fn a_process_that_begins_anew_adds_to_the_one_before() {
        let values = [3.0, 10.0, 2.0, 6.0].map(|requests| counters(&[("requests", requests)]));
        let (mut total, mut before) = (ServiceCounters::default(), ServiceCounters::default());
        for now in values {
            total.add_gain(&before, &now);
            before = now;
        }
        assert_eq!(total, counters(&[("requests", 16.0)]));
    }

    #[test]
    fn tokens_and_requests_cost_what_the_prices_say() {
        let used =
            counters(&[("requests", 10.0), ("prompt_tokens", 2e6), ("completion_tokens", 5e5)]);
        let prices =
            Prices { million_prompt_tokens: 0.4, million_completion_tokens: 1.6, request: 0.01 };
        assert!((used.cost(&prices).unwrap() - 1.7).abs() < 1e-12);
        assert_eq!(used.cost(&Prices::default()), None);
        assert_eq!(ServiceCounters::default().cost(&prices), None);
    }

    #[test]
    fn a_model_that_is_asked_in_process_is_no_service_and_has_labels() {
        let used = counters(&[("questions", 20.0), ("label_probability_sum", 15.0)]);
        assert_eq!((used.are_of_service(), used.labels()), (false, Some((20.0, 0.75))));
        assert_eq!(counters(&[("requests", 1.0)]).labels(), None);
    }
}
