use proptest::prelude::*;
use serde_json::{Value, json};
use sppo_plugin::{Candidate, Comparison, Message};

use super::*;
use crate::config::{JudgeConfig, ScoringConfig};

fn comparison() -> Comparison<'static> {
    Comparison {
        prompt: [Message::user("What is 2 + 2?")].into(),
        rendered_prompt: Some("<user>What is 2 + 2?<assistant>".into()),
        candidates: ["4", "It may well be 5."].map(Candidate::from_text).into(),
    }
}

fn protocol(config: &HttpConfig) -> Box<dyn Protocol> {
    create(config).unwrap()
}

fn of(name: ProtocolName) -> Box<dyn Protocol> {
    protocol(&HttpConfig { protocol: name, ..HttpConfig::default() })
}

/// The body that asks for every answer, or for the first against the second.
fn body(protocol: &dyn Protocol) -> Value {
    let comparison = comparison();
    let question = |first, second| Question { second, ..Question::about(&comparison, first) };
    let questions = match (protocol.compares(), protocol.takes_several()) {
        (true, _) => vec![question(0, Some(1))],
        (false, true) => vec![question(0, None), question(1, None)],
        (false, false) => vec![question(1, None)],
    };
    let parts: Vec<Part> =
        questions.into_iter().map(|question| protocol.part(question).unwrap()).collect();
    Value::Object(protocol.body(parts))
}

fn scores(protocol: &dyn Protocol, reply: &Value, count: usize) -> Result<Vec<f64>, String> {
    let read = protocol.read(reply.to_string().as_bytes(), count).map_err(|error| error.0)?;
    let score = |verdict: &Result<QuestionVerdict, InvalidVerdict>| match verdict {
        Ok(
            QuestionVerdict::Score(value)
            | QuestionVerdict::Probability(value)
            | QuestionVerdict::Logit(value),
        ) => Ok(*value),
        Err(InvalidVerdict(said)) => Err(said.clone()),
    };
    read.verdicts.iter().map(score).collect()
}

#[test]
fn pairwise_is_what_its_description_says() {
    let text = include_str!("../../pairwise.openapi.json");
    let description: Value = serde_json::from_str(text).unwrap();
    let operation = &description["paths"]["/compare"]["post"];
    let pairwise = of(ProtocolName::Pairwise);
    assert_eq!(pairwise.path(), "/compare");
    let example = |of: &Value| of["content"]["application/json"]["example"].clone();
    assert_eq!(body(pairwise.as_ref()), example(&operation["requestBody"]));
    let reply = example(&operation["responses"]["200"]);
    assert_eq!(scores(pairwise.as_ref(), &reply, 1), Ok(vec![0.93]));
    let logits = pairwise.read(br#"{"logits": [-2.5]}"#, 1).unwrap();
    assert_eq!(logits.verdicts, [Ok(QuestionVerdict::Logit(-2.5))]);
    for bad in [
        r#"{"probabilities": [1.01]}"#,
        r#"{"probabilities": [NaN]}"#,
        r#"{"probabilities": [null]}"#,
        r#"{"probabilities": [0.5, 0.5]}"#,
        r#"{"probabilities": []}"#,
        r#"{"probabilities": [0.5], "logits": [0.0]}"#,
        r#"{"logits": [1e300]}"#,
        r#"{"logits": [1e999]}"#,
        r#"{"logits": ["1"]}"#,
        "{}",
        "[]",
        "",
    ] {
        assert!(pairwise.read(bad.as_bytes(), 1).is_err(), "{bad}");
    }
}

#[test]
fn reward_models_are_asked_as_they_expect() {
    let query = "What is 2 + 2?";
    assert_eq!(
        body(of(ProtocolName::Openrlhf).as_ref()),
        json!({
            "query": [
                "<user>What is 2 + 2?<assistant>4",
                "<user>What is 2 + 2?<assistant>It may well be 5.",
            ],
            "prompts": ["<user>What is 2 + 2?<assistant>", "<user>What is 2 + 2?<assistant>"],
            "labels": ["", ""],
        })
    );
    assert_eq!(
        body(of(ProtocolName::VllmClassify).as_ref()),
        json!({
            "messages": [
                {"role": "user", "content": query},
                {"role": "assistant", "content": "It may well be 5."},
            ],
            "use_activation": false,
        })
    );
    assert_eq!(
        body(of(ProtocolName::VllmScore).as_ref()),
        json!({"text_1": query, "text_2": ["4", "It may well be 5."], "use_activation": false})
    );
    assert_eq!(
        body(of(ProtocolName::TeiPredict).as_ref()),
        json!({"inputs": [[query, "4"], [query, "It may well be 5."]], "raw_scores": true})
    );
    assert_eq!(
        body(of(ProtocolName::TeiRerank).as_ref()),
        json!({"query": query, "texts": ["4", "It may well be 5."], "raw_scores": true})
    );
    let template = Some("{{ prompt }} -> {{ response }}".to_owned());
    let scoring = ScoringConfig { template, ..ScoringConfig::default() };
    for (name, field, inputs) in [
        (
            ProtocolName::VllmClassify,
            "input",
            json!(["What is 2 + 2? -> 4", "What is 2 + 2? -> It may well be 5."]),
        ),
        (
            ProtocolName::TeiPredict,
            "inputs",
            json!([["What is 2 + 2? -> 4"], ["What is 2 + 2? -> It may well be 5."]]),
        ),
    ] {
        let config =
            HttpConfig { protocol: name, scoring: scoring.clone(), ..HttpConfig::default() };
        assert_eq!(body(protocol(&config).as_ref())[field], inputs);
    }
}

#[test]
fn rewards_are_read_in_the_order_of_the_questions() {
    let classes = |first: &[f64], second: &[f64]| json!({"data": [{"index": 1, "probs": second}, {"index": 0, "probs": first}], "usage": {"prompt_tokens": 7}});
    let classify = of(ProtocolName::VllmClassify);
    assert_eq!(scores(classify.as_ref(), &classes(&[1.5], &[-2.0]), 2), Ok(vec![1.5, -2.0]));
    assert!(scores(classify.as_ref(), &classes(&[1.0, 2.0], &[3.0, 4.0]), 2).is_err());
    let config = HttpConfig {
        protocol: ProtocolName::VllmClassify,
        scoring: ScoringConfig { class: Some("1".into()), ..ScoringConfig::default() },
        ..HttpConfig::default()
    };
    let chosen = protocol(&config);
    assert_eq!(scores(chosen.as_ref(), &classes(&[1.0, 2.0], &[3.0, 4.0]), 2), Ok(vec![2.0, 4.0]));

    let score = of(ProtocolName::VllmScore);
    let reply = json!({"data": [{"index": 1, "score": 0.5}, {"index": 0, "score": -3.0}]});
    assert_eq!(scores(score.as_ref(), &reply, 2), Ok(vec![-3.0, 0.5]));
    let rerank = of(ProtocolName::TeiRerank);
    let reply = json!([{"index": 1, "score": 9.0}, {"index": 0, "score": -9.0}]);
    assert_eq!(scores(rerank.as_ref(), &reply, 2), Ok(vec![-9.0, 9.0]));
    for bad in [
        json!([{"index": 0, "score": 1.0}, {"index": 0, "score": 1.0}]),
        json!([{"index": 5, "score": 1.0}, {"index": 0, "score": 1.0}]),
    ] {
        assert!(scores(rerank.as_ref(), &bad, 2).is_err(), "{bad}");
    }
    let predict = of(ProtocolName::TeiPredict);
    let reply = json!([[{"label": "LABEL_0", "score": 2.5}], [{"label": "LABEL_0", "score": 0.5}]]);
    assert_eq!(scores(predict.as_ref(), &reply, 2), Ok(vec![2.5, 0.5]));
    let rewards = of(ProtocolName::Openrlhf);
    let reply = json!({"rewards": [1.0, 2.0], "scores": [0.1, 0.2], "extra_logs": {"x": [1]}});
    assert_eq!(scores(rewards.as_ref(), &reply, 2), Ok(vec![1.0, 2.0]));
    assert!(rewards.read(b"{\"rewards\": [NaN, 1.0]}", 2).is_err());
}

fn judge(config: JudgeConfig) -> Box<dyn Protocol> {
    protocol(&HttpConfig {
        protocol: ProtocolName::OpenaiJudge,
        judge: config,
        ..HttpConfig::default()
    })
}

fn said(content: &str, top: Value) -> Value {
    let token = json!([{"token": "?", "logprob": -9.0, "top_logprobs": top}]);
    json!({"choices": [{"message": {"content": content}, "logprobs": {"content": token}}]})
}

fn verdict(judge: &dyn Protocol, reply: &Value) -> Result<f64, String> {
    scores(judge, reply, 1).map(|scores| scores[0])
}

#[test]
fn log_probabilities_of_the_first_token_decide() {
    // AlpacaEval's weighted annotator: preference 2 - p(m) / (p(m) + p(M)) = 1.1679816148660755.
    let config =
        JudgeConfig { label_first: "m".into(), label_second: "M".into(), ..JudgeConfig::default() };
    let reply =
        said("m", json!([{"token": "m", "logprob": -0.2}, {"token": "M", "logprob": -1.8}]));
    let first = verdict(judge(config).as_ref(), &reply).unwrap();
    assert!((1.0 - first - 0.167_981_614_866_075_5).abs() < 1e-15, "{first}");

    let judge = judge(JudgeConfig::default());
    let log = |probability: f64| probability.ln();
    let spellings = json!([
        {"token": " A", "logprob": log(0.3)}, {"token": "a", "logprob": log(0.1)},
        {"token": "B", "logprob": log(0.1)}, {"token": "The", "logprob": log(0.5)},
        {"token": "C", "logprob": null},
    ]);
    assert!((verdict(judge.as_ref(), &said("The", spellings)).unwrap() - 0.8).abs() < 1e-12);
    // Labels that are hardly considered do not count: the text does.
    let unlikely =
        json!([{"token": "I", "logprob": log(0.95)}, {"token": "B", "logprob": log(0.01)}]);
    assert_eq!(verdict(judge.as_ref(), &said("A", unlikely.clone())), Ok(1.0));
    assert_eq!(verdict(judge.as_ref(), &said("I do", unlikely)), Err("I do".into()));
    // White space may come first.
    let positions = json!([
        {"token": "\n", "logprob": 0.0, "top_logprobs": [{"token": "\n", "logprob": 0.0}]},
        {"token": "B", "logprob": 0.0, "top_logprobs": []},
    ]);
    let reply =
        json!({"choices": [{"message": {"content": "\nB"}, "logprobs": {"content": positions}}]});
    assert_eq!(verdict(judge.as_ref(), &reply), Ok(0.0));
}

#[test]
fn a_reply_without_a_choice_makes_no_sense_and_one_without_a_text_is_invalid() {
    let judge = judge(JudgeConfig::default());
    // In good form, but not for us: another attempt may help.
    for malformed in [json!({"choices": []}), json!({"error": "overloaded"}), json!([])] {
        assert!(judge.read(malformed.to_string().as_bytes(), 1).is_err(), "{malformed}");
    }
    let refused =
        json!({"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]});
    assert_eq!(verdict(judge.as_ref(), &refused), Err("an empty reply".into()));
}

#[test]
fn a_judge_is_shown_both_answers_and_invalid_settings_are_refused() {
    let judge = judge(JudgeConfig::default());
    let body = body(judge.as_ref());
    assert_eq!(body["messages"][0]["role"], "system");
    let text = body["messages"][1]["content"].as_str().unwrap();
    for part in ["What is 2 + 2?", "# Answer A\n\n4\n", "# Answer B\n\nIt may well be 5.\n"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!((&body["logprobs"], &body["max_tokens"]), (&json!(true), &json!(16)));
    let refused = |config: JudgeConfig| {
        let config = HttpConfig {
            protocol: ProtocolName::OpenaiJudge,
            judge: config,
            ..HttpConfig::default()
        };
        create(&config).err().map(|error| error.to_string()).unwrap_or_default()
    };
    let with_template =
        |text: &str| JudgeConfig { template: text.into(), ..JudgeConfig::default() };
    assert!(refused(with_template("{{ first }}")).contains("leaves out the second answer"));
    assert!(
        refused(with_template("{{ first }}{{ second }}{{ nonsense }}")).contains("judge.template")
    );
    assert!(refused(with_template("{{ first }")).contains("judge.template"));
    let labels = JudgeConfig { label_second: "A".into(), ..JudgeConfig::default() };
    assert!(refused(labels).contains("labels"));
}

proptest! {
    #[test]
    fn no_reply_makes_a_reader_panic(body in proptest::collection::vec(any::<u8>(), 0..60), text in ".{0,40}") {
        for name in [ProtocolName::Pairwise, ProtocolName::OpenaiJudge, ProtocolName::TeiRerank] {
            prop_assert!(of(name).read(&body, 1).is_err());
        }
        let reply = json!({"choices": [{"message": {"content": text}}]});
        if let Ok(value) = verdict(judge(JudgeConfig::default()).as_ref(), &reply) {
            prop_assert!(value == 0.0 || value == 1.0);
        }
    }
}
