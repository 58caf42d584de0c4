//! The oracle as its users meet it: by name, from settings, on whole comparisons.

use std::cell::{Cell, RefCell};

use proptest::prelude::*;
use serde_json::{Value, json};
use sppo_oracle_rules::RulesConfig;
use sppo_plugin::{
    Candidate, Comparison, FinishReason, Message, Oracle, PluginErrorKind, Progress, SilentHost,
    Verdict, create_oracle,
};

const QUESTION: &str = "What should I see on the volcano, the island, the harbour and the glacier?";

fn rules(config: Value) -> Box<dyn Oracle> {
    create_oracle("rules", config).unwrap()
}

fn refused(config: Value) -> String {
    create_oracle("rules", config).err().unwrap().to_string()
}

fn comparison(candidates: Vec<Candidate<'_>>) -> Comparison<'_> {
    Comparison {
        prompt: [Message::user(QUESTION)].into(),
        rendered_prompt: None,
        candidates: candidates.into(),
    }
}

fn ended(text: &str, finished: bool) -> Candidate<'_> {
    let reason = if finished { FinishReason::Stop } else { FinishReason::Length };
    Candidate { finish_reason: Some(reason), ..Candidate::from_text(text) }
}

fn matrices(oracle: &mut dyn Oracle, comparisons: &[Comparison<'_>]) -> Vec<Vec<f64>> {
    let verdicts = oracle.preferences(comparisons, &SilentHost).unwrap();
    let probabilities = |verdict| match verdict {
        Verdict::Probabilities(values) => values,
        other => panic!("expected probabilities, got {other:?}"),
    };
    verdicts.into_iter().map(probabilities).collect()
}

/// P(first > second).
fn preference(oracle: &mut dyn Oracle, first: Candidate, second: Candidate) -> f64 {
    matrices(oracle, &[comparison(vec![first, second])])[0][1]
}

#[test]
fn registers_itself_with_a_documented_schema() {
    rules(json!({}));
    let schema = schemars::schema_for!(RulesConfig).to_value();
    assert_eq!(schema["additionalProperties"], json!(false));
    let criteria = schema["properties"].as_object().unwrap();
    assert_eq!(criteria.len(), 7);
    for (name, criterion) in criteria {
        assert!(criterion["description"].is_string(), "{name} is not described");
    }
    let definitions = schema["$defs"].as_object().unwrap();
    for definition in definitions.values() {
        for (name, setting) in definition["properties"].as_object().unwrap() {
            assert!(setting["description"].is_string(), "{name} is not described");
        }
    }
}

#[test]
fn the_documentation_shows_all_defaults_and_working_examples() {
    let document = include_str!("../../../docs/rules-oracle.md");
    let blocks = document.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let settings = |block: &str| {
        let document: Value = toml::from_str(block).unwrap();
        document["oracle"]["rules"].clone()
    };
    let settings: Vec<Value> = blocks.map(settings).collect();
    assert_eq!(settings[0], serde_json::to_value(RulesConfig::default()).unwrap());
    for example in settings {
        rules(example);
    }
}

#[test]
fn by_default_a_brief_answer_that_ends_beats_a_rambling_one() {
    let brief = "On the volcano see the crater, on the island its harbour, and then the glacier.";
    let rambling =
        "The volcano is a great thing to see and the volcano is a great thing. ".repeat(6);
    let mut oracle = rules(json!({}));
    assert_eq!(preference(&mut *oracle, ended(brief, true), ended(&rambling, false)), 1.0);
    assert!(preference(&mut *oracle, ended(brief, true), ended(brief, false)) > 0.5);
    assert!(preference(&mut *oracle, ended(brief, true), ended("Yes.", true)) > 0.5);
}

#[test]
fn an_answer_that_says_nothing_loses_to_any_that_says_something() {
    let mut oracle = rules(json!({}));
    let rambling = "see see see ".repeat(500);
    for nothing in ["", " \n\t", "...", "?!"] {
        let silent = ended(nothing, true);
        assert_eq!(preference(&mut *oracle, ended(&rambling, false), silent.clone()), 1.0);
        assert_eq!(preference(&mut *oracle, silent, ended(&rambling, false)), 0.0);
    }
    assert_eq!(preference(&mut *oracle, ended("", true), ended("...", true)), 0.5);
}

#[test]
fn votes_count_by_weight_and_ties_count_half() {
    let config = json!({
        "ended": {"weight": 5.0}, "length": {"weight": 2.0, "min_words": 1, "max_words": 3},
        "repetition": {"weight": 1.0}, "relevance": {"weight": 0.0},
        "forbidden": {"weight": 2.0, "patterns": ["maybe"]},
    });
    // ended: first; length: second; repetition: tie; forbidden: second.
    let first = ended("maybe you could see it", true);
    let second = ended("see it", false);
    assert_eq!(preference(&mut *rules(config), first, second), (5.0 + 0.5) / 10.0);
}

#[test]
fn majorities_can_form_a_circle() {
    let mut oracle = rules(json!({
        "ended": {"weight": 0.0},
        "length": {"weight": 1.0, "min_words": 1, "max_words": 6},
        "repetition": {"weight": 1.0},
        "relevance": {"weight": 1.0},
    }));
    // The first is short but repeats itself, the second is fluent but says little of the subject,
    // the third covers the subject but is long and repeats itself a little.
    let answers = [
        "volcano island, volcano island, volcano island",
        "visit the volcano early in the morning before the crowds arrive there",
        "volcano and island and harbour and volcano and island and harbour, \
         then come home with a hundred pictures",
    ];
    let matrix = &matrices(
        &mut *oracle,
        &[comparison(answers.iter().map(|&text| Candidate::from_text(text)).collect())],
    )[0];
    let [first_second, second_third, third_first] = [matrix[1], matrix[5], matrix[6]];
    assert!(
        first_second > 0.6 && second_third > 0.6 && third_first > 0.6,
        "{first_second} {second_third} {third_first}"
    );
}

#[test]
fn bad_settings_are_refused_with_their_key() {
    let cases = [
        (json!({"lenght": {}}), "lenght"),
        (json!({"length": {"max_word": 3}}), "max_word"),
        (json!({"length": {"min_words": -1}}), "length.min_words"),
        (json!({"ended": {"weight": -1.0}}), "ended.weight: -1"),
        (json!({"json": {"weight": 1e9}}), "json.weight"),
        (json!({"required": {"patterns": ["*"]}}), "required.patterns[0]: `*`"),
        (json!({"relevance": {"margin": 2.0}}), "relevance.margin: 2"),
        (
            json!({"ended": {"weight": 0.0}, "length": {"weight": 0.0},
                   "repetition": {"weight": 0.0}, "relevance": {"weight": 0.0}}),
            "no criterion votes",
        ),
    ];
    for (config, expected) in cases {
        let message = refused(config);
        assert!(message.contains(expected), "{message}");
    }
}

/// Counts progress and cancels after some comparisons.
struct ImpatientHost {
    reports: RefCell<Vec<(u64, u64)>>,
    patience: Cell<usize>,
}

impl Progress for ImpatientHost {
    fn is_cancelled(&self) -> bool {
        self.reports.borrow().len() >= self.patience.get()
    }

    fn progress(&self, completed: u64, total: u64) {
        self.reports.borrow_mut().push((completed, total));
    }
}

#[test]
fn reports_progress_and_stops_on_request() {
    let comparisons = vec![comparison(vec![Candidate::from_text("a"); 2]); 4];
    let host = ImpatientHost { reports: RefCell::default(), patience: Cell::new(2) };
    let error = rules(json!({})).preferences(&comparisons, &host).unwrap_err();
    assert_eq!(error.kind, PluginErrorKind::Cancelled);
    assert_eq!(*host.reports.borrow(), [(1, 4), (2, 4)]);
}

fn candidate() -> impl Strategy<Value = Candidate<'static>> {
    let word = prop::sample::select(vec![
        "volcano",
        "Islands",
        "see",
        "the",
        "harbour.",
        "7",
        "…",
        "火山",
        "no,",
        "glacier's",
    ]);
    let phrase = prop::collection::vec(word, 0..30).prop_map(|words| words.join(" "));
    let text = prop_oneof![4 => phrase, 1 => any::<String>()];
    let reason =
        prop::option::of(prop::sample::select(vec![FinishReason::Stop, FinishReason::Length]));
    (text, reason).prop_map(|(text, finish_reason)| Candidate {
        text: text.into(),
        finish_reason,
        token_count: None,
    })
}

fn committee() -> impl Strategy<Value = Value> {
    (0.1..3.0, 0.0..3.0, 0.0..3.0, 0.0..3.0, 0.0..3.0).prop_map(
        |(ended, length, repetition, relevance, json)| {
            json!({
                "ended": {"weight": ended}, "length": {"weight": length},
                "repetition": {"weight": repetition}, "relevance": {"weight": relevance},
                "json": {"weight": json}, "required": {"patterns": ["^v"]},
            })
        },
    )
}

fn shuffled_candidates() -> impl Strategy<Value = (Vec<Candidate<'static>>, Vec<usize>)> {
    prop::collection::vec(candidate(), 0..7).prop_flat_map(|candidates| {
        let order: Vec<usize> = (0..candidates.len()).collect();
        (Just(candidates), Just(order).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn matrices_are_preferences(
        config in committee(),
        candidates in prop::collection::vec(candidate(), 0..7),
    ) {
        let count = candidates.len();
        let matrix = &matrices(&mut *rules(config), &[comparison(candidates)])[0];
        prop_assert_eq!(matrix.len(), count * count);
        for i in 0..count {
            prop_assert_eq!(matrix[i * count + i], 0.5);
            for j in 0..count {
                let (there, back) = (matrix[i * count + j], matrix[j * count + i]);
                prop_assert!((0.0..=1.0).contains(&there));
                prop_assert!((there + back - 1.0).abs() <= f64::EPSILON);
            }
        }
    }

    #[test]
    fn the_order_of_candidates_does_not_matter(
        config in committee(),
        (candidates, order) in shuffled_candidates(),
    ) {
        let mut oracle = rules(config);
        let count = candidates.len();
        let reordered = order.iter().map(|&index| candidates[index].clone()).collect();
        let before = &matrices(&mut *oracle, &[comparison(candidates)])[0];
        let after = &matrices(&mut *oracle, &[comparison(reordered)])[0];
        for i in 0..count {
            for j in 0..count {
                prop_assert_eq!(after[i * count + j], before[order[i] * count + order[j]]);
            }
        }
    }

    #[test]
    fn a_batch_equals_one_by_one(
        sets in prop::collection::vec(prop::collection::vec(candidate(), 0..5), 0..4),
    ) {
        let mut oracle = rules(json!({}));
        let comparisons: Vec<_> = sets.into_iter().map(comparison).collect();
        let alone: Vec<_> =
            comparisons.iter().flat_map(|one| matrices(&mut *oracle, std::slice::from_ref(one))).collect();
        prop_assert_eq!(matrices(&mut *oracle, &comparisons), alone);
    }
}
