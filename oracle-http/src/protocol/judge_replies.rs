//! Replies of judges as services in the field send them. Each table holds the forms of one kind.

use serde_json::{Value, json};

use super::openai_judge::OpenaiJudge;
use super::*;
use crate::config::JudgeConfig;
use crate::question::{Certainty, Ending};

fn numbered() -> JudgeConfig {
    JudgeConfig { label_first: "1".into(), label_second: "2".into(), ..JudgeConfig::default() }
}

fn read(config: &JudgeConfig, reply: &Value) -> JudgeReply {
    let judge = OpenaiJudge::new(config).unwrap();
    judge.read(reply.to_string().as_bytes(), 1).unwrap_or_else(|error| panic!("{reply}: {error}"))
}

/// The probability of a reply, rounded to two digits, or `None` for an invalid verdict.
fn probability(config: &JudgeConfig, reply: &Value) -> Option<f64> {
    let verdict = read(config, reply).verdicts.remove(0).ok()?;
    Some((100.0 * verdict.value()).round() / 100.0)
}

fn choice(message: Value, finish_reason: &str, log_probs: Value) -> Value {
    json!({"choices": [
        {"message": message, "finish_reason": finish_reason, "logprobs": log_probs}
    ]})
}

fn says(content: &str) -> Value {
    choice(json!({"role": "assistant", "content": content}), "stop", Value::Null)
}

/// A position at which the first of the tokens came, with the log-probability of each.
fn position(tokens: &[(&str, f64)]) -> Value {
    let all = tokens.iter().map(|(token, value)| json!({"token": token, "logprob": value}));
    json!({"token": tokens[0].0, "logprob": tokens[0].1, "top_logprobs": all.collect::<Vec<_>>()})
}

/// Positions of tokens that all came with certainty; those that are a label could have been the other.
fn positions(tokens: &[&str]) -> Value {
    let of = |token: &&str| match token.trim() {
        "1" => position(&[(token, -0.05), ("2", -6.0)]),
        "2" => position(&[(token, -0.05), ("1", -6.0)]),
        _ => position(&[(token, -0.05)]),
    };
    json!({"content": tokens.iter().map(of).collect::<Vec<_>>()})
}

#[test]
fn log_probabilities_are_those_of_the_answer_and_not_of_what_precedes_it() {
    let thought = ["1", ".", " Analyze", " both", "</think>", "\n\n"];
    let with = |more: &[&'static str]| positions(&[&thought[..], more].concat());
    let beside =
        |content: &str| json!({"content": content, "reasoning_content": "1. Analyze both"});
    for (name, message, log_probs, expected) in [
        ("after a thought", beside("2"), with(&["2"]), 0.0),
        ("with an end mark", beside("2"), with(&["2", "<|im_end|>"]), 0.0),
        (
            "with reasons",
            beside("2\n\n1 is longer"),
            with(&["2", "\n\n", "1", " is", " longer"]),
            0.0,
        ),
        ("in `reasoning`", json!({"content": "2", "reasoning": "1. Hm"}), with(&["2"]), 0.0),
        (
            "within the content",
            json!({"content": "<think>1. Analyze both</think>\n\n2"}),
            with(&["2"]),
            0.0,
        ),
        ("without a thought", json!({"content": "2"}), positions(&["2"]), 0.0),
        ("after white space", json!({"content": "\n 1"}), positions(&["\n", " 1"]), 1.0),
        ("in quotes", json!({"content": "\"1\""}), positions(&["\"", "1", "\""]), 1.0),
        ("in brackets", json!({"content": "[[2]]"}), positions(&["[[", "2", "]]"]), 0.0),
        (
            "of another channel",
            json!({"content": "1"}),
            positions(&["<|channel|>", "analysis", "2", "<|channel|>", "final", "1"]),
            1.0,
        ),
        (
            "up to a limit",
            json!({"content": "1 because it is"}),
            positions(&["1", " because"]),
            1.0,
        ),
    ] {
        let reply = choice(message, "stop", log_probs);
        assert_eq!(probability(&numbered(), &reply), Some(expected), "{name}");
        assert_eq!(read(&numbered(), &reply).certainty, Certainty::AsAsked, "{name}");
    }
    // Those of the thought alone say nothing: the text counts, and it is told.
    for log_probs in [positions(&thought), positions(&["1"])] {
        let reply = choice(beside("2"), "stop", log_probs);
        assert_eq!(probability(&numbered(), &reply), Some(0.0));
        assert_eq!(read(&numbered(), &reply).certainty, Certainty::Elsewhere);
    }
}

#[test]
fn tokens_of_log_probabilities_are_labels_in_every_spelling() {
    let config = JudgeConfig::default();
    let two = |a: &str, b: &str| json!({"content": [position(&[(a, -0.1), (b, -2.4)])]});
    for (a, b) in [
        ("A", "B"),
        (" A", " B"),
        ("▁A", "▁B"),
        ("ĠA", "Ġb"),
        ("Ġa", "ĠB"),
        ("\nA", "\nB"),
        ("ĊA", "ĊB"),
        ("\"A", "\"B"),
        ("'A'", "'B'"),
        ("“A", "“B"),
        ("**A", "**B"),
        ("(A", "(B"),
        ("A.", "B."),
        ("a", "b"),
        ("<0x41>", "<0x42>"),
        ("【A", "【B"),
    ] {
        let reply = choice(json!({"content": "A"}), "stop", two(a, b));
        assert_eq!(probability(&config, &reply), Some(0.91), "{a} {b}");
    }
    // Labels of other scripts, byte by byte.
    let chinese = JudgeConfig {
        label_first: "甲".into(),
        label_second: "乙".into(),
        ..JudgeConfig::default()
    };
    let reply = choice(json!({"content": "甲"}), "stop", two("çĶ²", "ä¹Ļ"));
    assert_eq!(probability(&chinese, &reply), Some(0.91));
}

#[test]
fn log_probabilities_are_read_in_every_form() {
    let config = JudgeConfig::default();
    let numbers = |bytes: [Value; 2]| {
        let [a, b] = bytes;
        json!({"content": [{"token": "token_id:32", "bytes": a, "logprob": -0.1, "top_logprobs": [
            {"token": "token_id:32", "bytes": a, "logprob": -0.1},
            {"token": "token_id:33", "bytes": b, "logprob": -2.4},
        ]}]})
    };
    for (name, log_probs) in [
        ("numbers with bytes", numbers([json!([65]), json!([66])])),
        (
            "lists",
            json!({"tokens": ["A"], "token_logprobs": [-0.1],
                         "top_logprobs": [{"A": -0.1, "B": -2.4}], "text_offset": [0]}),
        ),
        (
            "lists of lists",
            json!({"tokens": ["▁A"], "token_logprobs": [-0.1],
                                  "top_logprobs": [[{"token": "▁B", "logprob": -2.4}]]}),
        ),
        (
            "lists without content",
            json!({"content": null, "tokens": ["A"], "token_logprobs": [-0.1],
                                         "top_logprobs": [{"A": -0.1, "B": -2.4}]}),
        ),
        (
            "an object for each",
            json!({"content": [{"token": "A", "logprob": -0.1,
                                                   "top_logprobs": {"A": -0.1, "B": -2.4}}]}),
        ),
        (
            "by number with text",
            json!({"content": [{"token": "A", "logprob": -0.1, "top_logprobs": {
            "32": {"logprob": -0.1, "decoded_token": "A"}, "33": {"logprob": -2.4, "decoded_token": "B"}}}]}),
        ),
        ("positions alone", json!([position(&[("A", -0.1), ("B", -2.4)])])),
        (
            "probabilities",
            json!({"content": [{"token": "A", "prob": 0.905, "top_probs": [
            {"token": "A", "prob": 0.905}, {"token": "B", "prob": 0.0907}]}]}),
        ),
    ] {
        let reply = choice(json!({"content": "A"}), "stop", log_probs);
        assert_eq!(probability(&config, &reply), Some(0.91), "{name}");
    }
}

#[test]
fn log_probabilities_that_cannot_be_read_are_told_of() {
    let with = |log_probs: Value| choice(json!({"content": "A"}), "stop", log_probs);
    let number = json!({"token": "token_id:32", "bytes": null, "logprob": -0.1});
    for (log_probs, certainty) in [
        (Value::Null, Certainty::Missing),
        (json!({"content": null}), Certainty::Missing),
        (json!({"content": [], "refusal": null}), Certainty::Missing),
        (json!({"of_a_new_kind": [1]}), Certainty::Unknown),
        (json!({"content": [number]}), Certainty::Numbers),
        (json!({"content": [position(&[("The", -0.1), ("B", -9.0)])]}), Certainty::NoLabels),
        // Not logarithms, whatever they are.
        (json!({"content": [position(&[("A", 0.9), ("B", 0.1)])]}), Certainty::NoLabels),
    ] {
        let reply = read(&JudgeConfig::default(), &with(log_probs.clone()));
        assert_eq!(reply.certainty, certainty, "{log_probs}");
        assert!(certainty.reason().is_some());
        assert_eq!(reply.verdicts, [Ok(QuestionVerdict::Probability(1.0))], "{log_probs}");
    }
    let without = JudgeConfig { log_probs: false, ..JudgeConfig::default() };
    assert_eq!(read(&without, &with(Value::Null)).certainty, Certainty::AsAsked);
}

#[test]
fn replies_that_did_not_come_to_their_end_are_no_verdicts_and_say_why() {
    let text = |content: &str| json!({"content": content});
    for (message, finish_reason, ending) in [
        (text("<think>\nIs it [[A]]? Both are short, so let me"), "length", Ending::CutOff),
        (text("{\"reason\": \"Answer A names the"), "length", Ending::CutOff),
        (text("A\n\nIt is shorter and"), "length", Ending::CutOff),
        (text("A"), "max_tokens", Ending::CutOff),
        (json!({"content": null, "reasoning_content": "Let me see"}), "length", Ending::CutOff),
        (text("A"), "content_filter", Ending::Filtered),
        (text(""), "SAFETY", Ending::Filtered),
        (json!({"content": null, "refusal": "I cannot judge this."}), "stop", Ending::Refused),
        (json!({"content": [{"type": "refusal", "refusal": "No."}]}), "stop", Ending::Refused),
        (json!({"content": null, "tool_calls": [{"id": "1"}]}), "tool_calls", Ending::CalledTool),
        (json!({"content": null, "function_call": {"name": "judge"}}), "stop", Ending::CalledTool),
        (json!({"content": null, "reasoning_content": "A."}), "stop", Ending::ThoughtAlone),
        (text("<think>A, surely."), "stop", Ending::ThoughtAlone),
        (text("<think>A</think>"), "length", Ending::CutOff),
    ] {
        let reply = choice(message, finish_reason, Value::Null);
        let JudgeReply { verdicts, ending: said, .. } = read(&JudgeConfig::default(), &reply);
        assert!(verdicts[0].is_err(), "{reply}");
        assert_eq!(said, ending, "{reply}");
        assert!(said.reason(HttpConfig::default().tables()).is_some());
    }
    // A limit that was meant for a label alone, and log-probabilities of an answer that goes on.
    let short = JudgeConfig { max_tokens: 1, log_probs: false, ..JudgeConfig::default() };
    assert_eq!(probability(&short, &choice(text("A"), "length", Value::Null)), Some(1.0));
    let log_probs =
        json!({"content": [position(&[("A", -0.1), ("B", -2.4)]), position(&[(" is", 0.0)])]});
    let reply = choice(text("A is"), "length", log_probs);
    assert_eq!(probability(&JudgeConfig::default(), &reply), Some(0.91));
}

#[test]
fn fields_that_a_verdict_does_not_need_may_be_of_any_kind() {
    let with = |field: &str, value: Value| {
        let mut reply = says("A");
        reply[field] = value;
        reply
    };
    let parts = |parts: Value| choice(json!({"content": parts}), "stop", Value::Null);
    for reply in [
        with("usage", json!({"prompt_tokens": null, "completion_tokens": null})),
        with("usage", json!({"prompt_tokens": 10.0, "completion_tokens": 2.0})),
        with("usage", json!({"prompt_tokens": "10", "completion_tokens": -1, "details": {}})),
        with("usage", json!([])),
        with("id", Value::Null),
        with("error", Value::Null),
        with("created", json!(1.5e9)),
        json!({"choices": [{"message": {"content": "A"}}]}),
        json!({"choices": [{"text": "A", "finish_reason": "stop"}]}),
        json!({"choices": [{"message": {"content": "A", "role": null, "tool_calls": [], "refusal": "",
                                        "reasoning_content": null, "function_call": null, "audio": null},
                            "logprobs": [], "finish_reason": null, "index": "0"}]}),
        json!({"choices": [{"message": {"content": "A"}, "finish_reason": "eos_token"}]}),
        parts(json!([{"type": "text", "text": "A"}])),
        parts(json!(["A"])),
        parts(json!({"type": "text", "text": "A"})),
        parts(json!([{"type": "output_text", "text": {"value": "A", "annotations": []}}])),
        parts(json!([{"type": "thinking", "thinking": [{"type": "text", "text": "B is short."}]},
                     {"type": "text", "text": "A"}])),
        parts(json!([{"type": "reasoning", "text": "B"}, {"type": "text", "text": "A"}])),
        parts(json!([{"type": "redacted_thinking", "data": "B"}, {"text": "A"}])),
        parts(json!([{"text": "B", "thought": true}, {"text": "A"}])),
    ] {
        assert_eq!(probability(&JudgeConfig::default(), &reply), Some(1.0), "{reply}");
    }
    let reply = read(
        &JudgeConfig::default(),
        &with("usage", json!({"input_tokens": 7.0, "output_tokens": 2})),
    );
    assert_eq!((reply.prompt_tokens, reply.completion_tokens), (7, 2));
}

/// A line of `verdicts.jsonl`: a reply, and the probability that it stands for.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    about: String,
    /// The first label, the second, and that of a tie; A and B when left out.
    labels: Option<Vec<String>>,
    says: Option<String>,
    message: Option<Value>,
    finish: Option<String>,
    max_tokens: Option<u32>,
    /// Tokens, some with the log-probabilities of those that could have come.
    tokens: Option<Vec<Value>>,
    /// The probability, to two digits; nothing for an invalid verdict.
    verdict: Option<f64>,
}

impl Line {
    fn config(&self) -> JudgeConfig {
        let label = |index: usize| self.labels.as_ref().and_then(|all| all.get(index).cloned());
        let default = JudgeConfig::default();
        JudgeConfig {
            label_first: label(0).unwrap_or(default.label_first.clone()),
            label_second: label(1).unwrap_or(default.label_second.clone()),
            label_tie: label(2),
            max_tokens: self.max_tokens.unwrap_or(default.max_tokens),
            ..default
        }
    }

    fn reply(&self) -> Value {
        let said = json!({"role": "assistant", "content": self.says});
        let log_probs = self.tokens.as_ref().map_or(Value::Null, |tokens| {
            let position = |token: &Value| match token.as_array() {
                Some(pair) => json!({"token": pair[0], "logprob": -0.1, "top_logprobs": pair[1]}),
                None => json!({"token": token, "logprob": -0.1, "top_logprobs": []}),
            };
            json!({"content": tokens.iter().map(position).collect::<Vec<_>>()})
        });
        let finish = self.finish.as_deref().unwrap_or("stop");
        choice(self.message.clone().unwrap_or(said), finish, log_probs)
    }
}

#[test]
fn every_reply_of_the_table_is_read_as_it_says() {
    let lines: Vec<Line> = include_str!("verdicts.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let invalid = lines.iter().filter(|line| line.verdict.is_none()).count();
    assert!(lines.len() >= 60 && invalid >= 20, "{} lines, {invalid} invalid", lines.len());
    let wrong = lines.iter().filter_map(|line| {
        let read = probability(&line.config(), &line.reply());
        (read != line.verdict).then(|| format!("{}: {read:?}, not {:?}", line.about, line.verdict))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn replies_of_other_protocols_are_named() {
    let refused =
        |body: &str| OpenaiJudge::new(&JudgeConfig::default()).unwrap().read(body.as_bytes(), 1);
    for (body, named) in [
        ("<html><body>Sign in</body></html>", "a web page"),
        ("<!DOCTYPE html><p>", "a web page"),
        ("data: {\"choices\": []}\n\n", "a stream"),
        ("{\"score\": NaN}", "NaN"),
        ("{\"message\": {\"content\": \"A\"}, \"done\": true}", "Ollama"),
        (
            "{\"content\": [{\"type\": \"text\", \"text\": \"A\"}], \"stop_reason\": \"end_turn\"}",
            "Anthropic",
        ),
        ("{\"object\": \"response\", \"output\": []}", "/v1/responses"),
        ("{\"candidates\": []}", "Gemini"),
        ("[{\"generated_text\": \"A\"}]", "TGI"),
        ("{\"object\": \"list\", \"data\": []}", "a list of models"),
        ("{\"choices\": []}", "`choices` is empty"),
        ("{\"choices\": null}", "no `choices`"),
        ("{\"choices\": [{\"finish_reason\": \"error\", \"error\": {\"code\": 502}}]}", "message"),
        ("{}", "no `choices`"),
    ] {
        let error = refused(body).unwrap_err().0;
        assert!(error.contains(named), "{body}: {error}");
    }
}

#[test]
fn reward_models_may_write_their_fields_in_other_ways() {
    let rewards = json!({"rewards": [[1.5], [-2]]});
    let classes = |usage: Value, first: Value, second: Value| json!({"usage": usage, "data": [{"index": first, "probs": [1.5]}, {"index": second, "probs": [-2]}]});
    let scores = |first: Value, second: Value| json!({"data": [{"index": first, "score": "1.5"}, {"index": second, "score": [-2.0]}]});
    let (none, empty) = (Value::Null, json!({}));
    for (protocol, reply) in [
        (ProtocolName::Openrlhf, rewards),
        (ProtocolName::Openrlhf, json!({"rewards": ["1.5", -2]})),
        (ProtocolName::VllmClassify, classes(json!({"prompt_tokens": null}), json!(0), json!(1))),
        (
            ProtocolName::VllmClassify,
            classes(json!({"prompt_tokens": 10.0}), json!(0.0), json!("1")),
        ),
        (ProtocolName::VllmClassify, classes(json!([]), none.clone(), none.clone())),
        (ProtocolName::VllmClassify, json!({"data": [{"probs": [1.5]}, {"probs": [-2]}]})),
        (ProtocolName::VllmScore, scores(json!(0), json!(1))),
        (ProtocolName::VllmScore, scores(none.clone(), none.clone())),
        (
            ProtocolName::TeiPredict,
            json!([[{"score": 1.5, "label": null}], [{"score": -2, "label": 0}]]),
        ),
        (
            ProtocolName::TeiRerank,
            json!([{"index": 0, "score": 1.5, "text": null}, {"index": 1, "score": -2}]),
        ),
    ] {
        let config = HttpConfig { protocol, ..HttpConfig::default() };
        let read = create(&config).unwrap().read(reply.to_string().as_bytes(), 2);
        let verdicts = read.unwrap_or_else(|error| panic!("{reply}: {error}")).verdicts;
        let values: Vec<f64> = verdicts.into_iter().map(|one| one.unwrap().value()).collect();
        assert_eq!(values, [1.5, -2.0], "{reply}");
    }
    for (protocol, reply) in [
        (ProtocolName::Openrlhf, json!({"rewards": [[1.5, 2.0], [1.0]]})),
        (ProtocolName::Openrlhf, json!({"rewards": [null, 1.0]})),
        (ProtocolName::VllmScore, scores(json!(0), none)),
        (ProtocolName::VllmScore, scores(json!(0), json!(0.5))),
        (ProtocolName::TeiRerank, json!([{"index": -1, "score": 1.5}, {"index": 1, "score": -2}])),
        (ProtocolName::TeiPredict, empty),
    ] {
        let config = HttpConfig { protocol, ..HttpConfig::default() };
        assert!(create(&config).unwrap().read(reply.to_string().as_bytes(), 2).is_err(), "{reply}");
    }
}
