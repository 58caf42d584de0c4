//! The mixture against its definition, with members of every kind of verdict.

use serde_json::json;
use sppo_plugin::{
    Candidate, Comparison, Message, ModelSpec, Oracle, PluginError, Progress, Scorer, Services,
    Verdict, create_oracle,
};
// Registers itself when it is linked.
use sppo_oracle_mixture as _;

/// Says the same of every comparison.
struct Fixed(Verdict);

impl Oracle for Fixed {
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        _progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        Ok(vec![self.0.clone(); comparisons.len()])
    }
}

struct Club;

impl Progress for Club {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn progress(&self, completed: u64, total: u64) {
        assert!(completed <= total);
    }
}

impl Services for Club {
    fn scorer(&self, _model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        Err(PluginError::unsupported("there are no scorers here"))
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        Ok(Box::new(Fixed(match name {
            "first" => Verdict::Probabilities(vec![0.5, 1.0, 0.0, 0.5]),
            "second" => Verdict::Scores(vec![0.0, 0.0]),
            "biased" => Verdict::Orders(vec![None, Some(0.9), Some(0.5), None]),
            "fair" => Verdict::Orders(vec![None, Some(0.7), Some(0.3), None]),
            "one-sided" => Verdict::Orders(vec![None, Some(0.9), None, None]),
            "ranker" => Verdict::Logits(vec![0.0, 2.0, 1.0, 0.0]),
            "invalid" => Verdict::Probabilities(vec![0.5, 1.5, -0.5, 0.5]),
            other => return Err(PluginError::configuration(format!("there is no `{other}`"))),
        })))
    }
}

fn verdict(weights: serde_json::Value) -> Result<Verdict, String> {
    let comparison = Comparison {
        prompt: [Message::user("Which?")].into(),
        rendered_prompt: None,
        candidates: ["this", "that"].map(Candidate::from_text).into(),
    };
    let mut mixture = create_oracle("mixture", json!({ "weights": weights })).unwrap();
    mixture.prepare(&Club, &Club).map_err(|error| error.to_string())?;
    let verdicts = mixture.preferences(&[comparison], &Club);
    Ok(verdicts.map_err(|error| error.to_string())?.remove(0))
}

fn ask(weights: serde_json::Value) -> Result<Vec<f64>, String> {
    match verdict(weights)? {
        Verdict::Probabilities(values) => Ok(values),
        other => panic!("expected probabilities, got {other:?}"),
    }
}

#[test]
fn weights_are_relative_and_scores_count_as_bradley_terry_probabilities() {
    let expected = [0.5, 0.75 * 1.0 + 0.25 * 0.5, 0.25 * 0.5, 0.5];
    for scale in [1.0, 10.0] {
        let mixed = ask(json!({"first": 3.0 * scale, "second": scale})).unwrap();
        assert!(mixed.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{mixed:?}");
    }
}

#[test]
fn both_orders_are_kept_where_every_member_tells_them() {
    let Verdict::Orders(orders) = verdict(json!({"biased": 3.0, "fair": 1.0})).unwrap() else {
        panic!("the orders are lost");
    };
    let near = |entry: usize, expected: f64| (orders[entry].unwrap() - expected).abs() < 1e-15;
    assert!(near(1, 0.75 * 0.9 + 0.25 * 0.7) && near(2, 0.75 * 0.5 + 0.25 * 0.3), "{orders:?}");
    assert_eq!((orders[0], orders[3]), (None, None));
    // One order stands for both, a ranker's estimator is no mean of its orders, and `first` knows no order.
    for (other, first) in
        [("one-sided", 0.9), ("ranker", 1.0 / (1.0 + (-1.0f64).exp())), ("first", 1.0)]
    {
        let mixed = ask(json!({"biased": 1.0, other: 1.0})).unwrap();
        assert!((mixed[1] - (0.7 + first) / 2.0).abs() < 1e-7, "{other}: {mixed:?}");
    }
}

#[test]
fn a_member_at_fault_is_named() {
    let error = ask(json!({"first": 1.0, "invalid": 1.0})).unwrap_err();
    assert!(error.starts_with("oracle `invalid`: "), "{error}");
    assert_eq!(ask(json!({"absent": 1.0})).unwrap_err(), "there is no `absent`");
}

#[test]
fn weights_that_make_no_sense_are_refused() {
    for weights in [json!({}), json!({"first": 0.0}), json!({"first": -1}), json!({"mixture": 1})] {
        let error = create_oracle("mixture", json!({ "weights": weights })).err().unwrap();
        assert!(error.to_string().contains("weights"), "{error}");
    }
}
