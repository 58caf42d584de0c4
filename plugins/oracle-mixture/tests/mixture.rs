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
            "invalid" => Verdict::Probabilities(vec![0.5, 1.5, -0.5, 0.5]),
            other => return Err(PluginError::configuration(format!("there is no `{other}`"))),
        })))
    }
}

fn ask(weights: serde_json::Value) -> Result<Vec<f64>, String> {
    let comparison = Comparison {
        prompt: [Message::user("Which?")].into(),
        rendered_prompt: None,
        candidates: ["this", "that"].map(Candidate::from_text).into(),
    };
    let mut mixture = create_oracle("mixture", json!({ "weights": weights })).unwrap();
    mixture.prepare(&Club, &Club).map_err(|error| error.to_string())?;
    match mixture.preferences(&[comparison], &Club).map_err(|error| error.to_string())?.remove(0) {
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
