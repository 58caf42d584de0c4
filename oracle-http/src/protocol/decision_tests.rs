//! Requests to decision models and their replies, as their servers write them.

use serde_json::{Value, json};
use sppo_plugin::{Candidate, Message};

use super::*;
use crate::config::{DecisionConfig, Scope};

fn comparison() -> Comparison<'static> {
    Comparison {
        prompt: [Message::user("What is 2 + 2?")].into(),
        rendered_prompt: None,
        candidates: ["4", "It may well be 5.", "Four."].map(Candidate::from_text).into(),
    }
}

fn decisions(name: ProtocolName, decision: DecisionConfig) -> Box<dyn Protocol> {
    create(&HttpConfig { protocol: name, decision, ..HttpConfig::default() }).unwrap()
}

fn pair() -> DecisionConfig {
    DecisionConfig { instructions: "Which?".into(), ..DecisionConfig::default() }
}

fn all() -> DecisionConfig {
    DecisionConfig {
        scope: Scope::Prompt,
        instructions: "{{ first }} or {{ second }}?".into(),
        tie: true,
        ..DecisionConfig::default()
    }
}

/// The body of the request that asks about these pairs.
fn body(protocol: &dyn Protocol, pairs: &[(usize, usize)]) -> Value {
    let comparison = comparison();
    let part = |(first, second): &(usize, usize)| {
        let question = Question { second: Some(*second), ..Question::about(&comparison, *first) };
        protocol.part(question).unwrap()
    };
    let parts: Vec<Part> = pairs.iter().map(part).collect();
    assert!(parts.iter().all(|part| part.shared == parts[0].shared), "they share a request");
    Value::Object(protocol.body(parts))
}

/// The probabilities of a reply, `None` for an invalid one.
fn read(protocol: &dyn Protocol, reply: &Value, count: usize) -> Result<Vec<Option<f64>>, String> {
    let read = protocol.read(reply.to_string().as_bytes(), count).map_err(|error| error.0)?;
    Ok(read.verdicts.into_iter().map(|one| one.ok().map(QuestionVerdict::value)).collect())
}

const STATE: &str =
    "# Request\n\nWhat is 2 + 2?\n\n# Answer 1\n\n4\n\n# Answer 2\n\nIt may well be 5.\n";

#[test]
fn a_pair_is_asked_about_in_the_words_of_each_api() {
    let systemone = decisions(ProtocolName::Systemone, pair());
    assert_eq!(systemone.path(), "/v1/systemone");
    assert_eq!(
        body(systemone.as_ref(), &[(0, 1)]),
        json!({
            "state": STATE,
            "questions": {"q1": {
                "type": "choice",
                "instructions": "Which?",
                "criteria": {"first": "Answer 1 is better", "second": "Answer 2 is better"},
            }},
        })
    );
    let openai = decisions(ProtocolName::OpenaiDecisions, pair());
    assert_eq!(openai.path(), "/v1/decisions");
    assert_eq!(
        body(openai.as_ref(), &[(0, 1)]),
        json!({
            "input": STATE,
            "questions": [{
                "type": "choice",
                "name": "q1",
                "instructions": "Which?",
                "choices": [
                    {"value": "first", "description": "Answer 1 is better"},
                    {"value": "second", "description": "Answer 2 is better"},
                ],
            }],
        })
    );
    let other_way = body(systemone.as_ref(), &[(1, 0)]);
    assert!(other_way["state"].as_str().unwrap().contains("# Answer 1\n\nIt may well be 5.\n"));
}

#[test]
fn all_answers_to_a_prompt_share_a_state_whose_order_follows_from_the_texts() {
    let systemone = decisions(ProtocolName::Systemone, all());
    let asked = body(systemone.as_ref(), &[(0, 1), (1, 0), (2, 0)]);
    let state = asked["state"].as_str().unwrap();
    let number = |text: &str| {
        let before = &state[..state.find(&format!("\n\n{text}\n")).unwrap()];
        before.chars().next_back().unwrap()
    };
    let numbers = ["4", "It may well be 5.", "Four."].map(number);
    let [a, b, c] = numbers;
    for (name, first, second) in [("q1", a, b), ("q2", b, a), ("q3", c, a)] {
        let question = &asked["questions"][name];
        assert_eq!(question["instructions"], format!("{first} or {second}?"));
        assert_eq!(question["criteria"]["first"], format!("Answer {first} is better"));
        assert_eq!(question["criteria"]["tie"], "Both answers are equally good");
    }
    let mut turned = comparison();
    let mut candidates = turned.candidates.to_vec();
    candidates.reverse();
    turned.candidates = candidates.into();
    let question = Question { second: Some(1), ..Question::about(&turned, 2) };
    let part = systemone.part(question).unwrap();
    assert_eq!((&part.shared, &part.own), (&asked["state"], &asked["questions"]["q1"]));
}

#[test]
fn probabilities_are_read_off_the_replies_of_every_server() {
    let choice = |first: f64| {
        json!({"type": "choice", "choice": "first", "confidence": 0.6,
               "probabilities": {"first": first, "second": 1.0 - first}})
    };
    let of = |answer: Value| json!({"model": "m", "answers": {"q1": answer}, "usage": {"input_tokens": 12, "output_tokens": 1}});
    let systemone = decisions(ProtocolName::Systemone, pair());
    let reply = systemone.read(of(choice(0.75)).to_string().as_bytes(), 1).unwrap();
    assert_eq!(reply.verdicts, [Ok(QuestionVerdict::Probability(0.75))]);
    assert_eq!((reply.prompt_tokens, reply.completion_tokens), (12, 1));
    // SGLang says within the answer how much the labels are worth, vLLM beside it.
    for (mass, expected) in [(0.99, Some(0.75)), (0.04, None)] {
        let mut sglang = of(choice(0.75));
        sglang["answers"]["q1"]["x_label_mass"] = json!(mass);
        let mut vllm = of(choice(0.75));
        vllm["diagnostics"] = json!({"q1": {"label_mass": mass, "argmax_is_label": true}});
        for reply in [sglang, vllm] {
            assert_eq!(read(systemone.as_ref(), &reply, 1), Ok(vec![expected]), "{reply}");
        }
    }
    let with_ties = decisions(ProtocolName::Systemone, all());
    let reply = json!({"answers": {
        "q2": {"type": "choice", "probabilities": {"first": 0.2, "second": 0.8, "tie": 0.0}},
        "q1": {"type": "choice", "probabilities": {"first": 0.5, "second": 0.1, "tie": 0.4}},
    }});
    assert_eq!(read(with_ties.as_ref(), &reply, 2), Ok(vec![Some(0.7), Some(0.2)]));

    let openai = decisions(ProtocolName::OpenaiDecisions, pair());
    let answer = |name: Value, first: f64| {
        json!({"type": "choice", "name": name, "choice": "first", "confidence": first,
               "probabilities": [{"value": "first", "probability": first}, {"value": "second", "probability": 1.0 - first}]})
    };
    for (answers, expected) in [
        (json!([answer(json!("q1"), 0.75), answer(json!("q2"), 0.5)]), [Some(0.75), Some(0.5)]),
        (json!([answer(json!("q2"), 0.5), answer(json!("q1"), 0.75)]), [Some(0.75), Some(0.5)]),
        (json!([answer(Value::Null, 0.75), answer(Value::Null, 0.5)]), [Some(0.75), Some(0.5)]),
        (
            json!([{"type": "refusal", "name": "q1", "refusal": "No."}, answer(json!("q2"), 0.5)]),
            [None, Some(0.5)],
        ),
    ] {
        let reply = json!({"model": "m", "answers": answers});
        assert_eq!(read(openai.as_ref(), &reply, 2), Ok(expected.into()), "{reply}");
    }
}

#[test]
fn replies_that_make_no_sense_are_no_ties() {
    let systemone = decisions(ProtocolName::Systemone, pair());
    let openai = decisions(ProtocolName::OpenaiDecisions, pair());
    let of = |probabilities: Value| json!({"answers": {"q1": {"type": "choice", "probabilities": probabilities}}});
    for (reply, named) in [
        (json!({}), "no `answers`"),
        (json!({"answers": {}}), "0 answers"),
        (json!({"answers": {"q2": {}}}), "no answer to q1"),
        (json!({"answers": {"q1": {}, "q2": {}}}), "2 answers"),
        (of(json!({"first": 0.8})), "no probability"),
        (of(json!({"first": 0.8, "second": 0.8})), "add up"),
        (of(json!({"first": -0.2, "second": 1.2})), "add up"),
        (of(json!({"first": "x", "second": 0.5})), "no probability"),
        (json!({"answers": {"q1": {"type": "noul", "noul": 0.5}}}), "type noul"),
    ] {
        let error = read(systemone.as_ref(), &reply, 1).unwrap_err();
        assert!(error.contains(named), "{reply}: {error}");
    }
    let sglang = json!({"answers": {"q1": {"type": "choice", "probabilities": {"first": 0.8, "second": 0.2}, "label_mass": 1.0}}});
    let error = read(openai.as_ref(), &sglang, 1).unwrap_err();
    assert!(error.contains("protocol = \"systemone\""), "{error}");
}

#[test]
fn questions_that_cannot_tell_answers_apart_are_refused() {
    let refused = |decision: DecisionConfig| {
        let config =
            HttpConfig { protocol: ProtocolName::Systemone, decision, ..HttpConfig::default() };
        create(&config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let without = DecisionConfig { instructions: "Which?".into(), ..all() };
    assert!(refused(without).contains("decision.instructions"));
    let half = DecisionConfig { state: "{{ answers[0] }}".into(), ..pair() };
    assert!(refused(half).contains("decision.state: the template leaves out the second answer"));
    assert_eq!(refused(pair()), "");
}
