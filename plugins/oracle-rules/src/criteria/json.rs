//! The criterion `json`: a response that is valid JSON is better than one that is not.

use serde::de::IgnoredAny;

use super::Criterion;
use crate::text::Reading;

/// 1 for a response that is one JSON value, 0 for any other.
pub(crate) struct Json;

impl Criterion for Json {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        let measure = |text| match serde_json::from_str::<IgnoredAny>(text) {
            Ok(_) => 1.0,
            Err(_) => 0.0,
        };
        reading.responses.iter().map(|response| Some(measure(response.text))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote;

    #[test]
    fn valid_json_wins() {
        let valid = "\n{\"animals\": [\"heron\", \"frog\"], \"count\": 2}\n";
        for invalid in ["{'a': 1}", "Sure! {\"a\": 1}", "{\"a\": 1", "{\"a\": 1} {\"b\": 2}", ""] {
            assert_eq!(vote(&Json, "?", [valid, invalid]), Vote::First, "{invalid}");
        }
        assert_eq!(vote(&Json, "?", [valid, "42"]), Vote::Tie);
        let deep = "[".repeat(100_000);
        assert_eq!(vote(&Json, "?", [valid, &deep]), Vote::First);
    }
}
