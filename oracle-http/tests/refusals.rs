//! Services that refuse: one question or all of them, for now or for good. Each table holds the members of one
//! kind of trouble.

#[path = "support/scripted.rs"]
mod scripted;

use std::time::{Duration, Instant};

use scripted::Scripted;
use serde_json::{Value, json};
use sppo_oracle_http as _;
use sppo_plugin::{Candidate, Comparison, Message, PluginError, Progress, Verdict, create_oracle};

struct Silent;

impl Progress for Silent {
    fn is_cancelled(&self) -> bool {
        false
    }

    fn progress(&self, _completed: u64, _total: u64) {}
}

/// Twelve prompts with two answers each, an answer to the seventh longer than all others.
fn comparisons() -> Vec<Comparison<'static>> {
    let comparison = |prompt: usize| Comparison {
        prompt: [Message::user(format!("Question {prompt}?"))].into(),
        rendered_prompt: None,
        candidates: [
            Candidate::from_text("short"),
            Candidate::from_text(format!(
                "answer {}",
                "long ".repeat(if prompt == 7 { 900 } else { 9 })
            )),
        ]
        .into(),
    };
    (1..=12).map(comparison).collect()
}

fn settings(url: &str, changes: Value) -> Value {
    let mut settings = json!({
        "protocol": "openai-judge",
        "endpoints": [url],
        "model": "judge",
        "retries": {"first_delay_seconds": 0.005, "longest_delay_seconds": 0.05},
        "cache": {"enabled": false},
    });
    for (name, value) in changes.as_object().unwrap() {
        settings[name] = value.clone();
    }
    settings
}

fn ask(url: &str, changes: Value) -> Result<Vec<Verdict>, PluginError> {
    create_oracle("http", settings(url, changes)).unwrap().preferences(&comparisons(), &Silent)
}

fn completion(text: &str) -> String {
    json!({"choices": [{"message": {"content": text}}]}).to_string()
}

/// A good reply to a request of any protocol: the judge likes what it is shown first, rewards follow length.
fn good_reply(path: &str, request: &Value) -> String {
    let lengths = |field: &str| -> Vec<usize> {
        request[field].as_array().unwrap().iter().map(|one| one.to_string().len()).collect()
    };
    match path {
        "/compare" => {
            json!({"probabilities": lengths("items").iter().map(|_| 0.75).collect::<Vec<_>>()})
        }
        "/get_reward" => json!({"rewards": lengths("query")}),
        "/classify" => {
            json!({"data": [{"index": 0, "probs": [request.to_string().len()]}]})
        }
        "/v1/systemone" => {
            let probabilities = json!({"first": 0.75, "second": 0.25});
            json!({"answers": {"q1": {"type": "choice", "probabilities": probabilities}}})
        }
        _ => return good_chat_reply(request),
    }
    .to_string()
}

/// The first label, or scores that follow the lengths of the answers.
fn good_chat_reply(request: &Value) -> String {
    let text = request["messages"][1]["content"].as_str().unwrap();
    if !text.contains("SCORE") {
        return completion("A");
    }
    let answers = text.split("# Task").next().unwrap().split("# Answer ").skip(1);
    let scores = answers.enumerate().map(|(index, answer)| {
        ((index + 1).to_string(), json!((answer.len() as f64 / 100.0).min(10.0)))
    });
    completion(&json!({"scores": Value::Object(scores.collect())}).to_string())
}

#[test]
fn one_refused_question_does_not_end_the_work_on_others() {
    let few =
        json!({"max_attempts": 3, "first_delay_seconds": 0.005, "longest_delay_seconds": 0.05});
    let too_long =
        r#"{"error": {"message": "This model's maximum context length is 1024 tokens."}}"#;
    for (protocol, status, said) in [
        ("openai-judge", 400, too_long),
        ("openai-judge", 400, r#"{"error": {"code": "content_filter", "message": "filtered"}}"#),
        ("openai-judge", 400, r#"{"error": "so it is"}"#),
        ("openai-judge", 413, "Payload Too Large"),
        ("openai-judge", 422, r#"{"detail": "no"}"#),
        ("openai-judge", 200, r#"{"error": {"code": 400, "message": "Input is too long"}}"#),
        // Not in so many words: it fails each time, and others do not.
        ("openai-judge", 500, "oops"),
        ("openai-judge", 200, "<html>"),
        ("pairwise", 500, "oops"),
        // Several questions in one request: the others are asked again without it.
        ("pairwise", 413, "Payload Too Large"),
        ("openrlhf", 422, too_long),
        ("systemone", 400, too_long),
        ("openai-groupwise", 400, too_long),
        ("vllm-classify", 400, too_long),
    ] {
        let service =
            Scripted::start(move |path, request| match request.to_string().len() > 4000 {
                true if request.to_string().contains("Question 7?") => (status, said.to_owned()),
                _ => (200, good_reply(path, request)),
            });
        // A second time it is the same.
        for _ in 0..2 {
            let verdicts = ask(
                &service.url,
                json!({"protocol": protocol, "questions_per_request": 4, "retries": few}),
            );
            let verdicts =
                verdicts.unwrap_or_else(|error| panic!("{protocol} {status} {said}: {error}"));
            assert_eq!(verdicts.len(), 12);
            match &verdicts[6] {
                Verdict::Orders(orders) => assert_eq!(*orders, [None; 4], "{protocol}"),
                Verdict::Scores(scores) => assert_eq!(scores[0], scores[1], "{protocol}"),
                other => panic!("{other:?}"),
            }
            if let Verdict::Scores(scores) = &verdicts[5] {
                assert!(scores[0] < scores[1], "{protocol}: others keep their scores");
            }
        }
        let none = json!({"protocol": protocol, "questions_per_request": 4, "retries": few, "max_refused_share": 0.0});
        let error = ask(&service.url, none).unwrap_err();
        assert!(error.to_string().contains("line 7"), "{error}");
    }
}

#[test]
fn more_refusals_than_allowed_end_the_work_and_name_the_prompt() {
    let service = Scripted::start(|path, request| {
        match ["Question 3?", "Question 7?"].iter().any(|one| request.to_string().contains(one)) {
            true => (400, r#"{"error": {"message": "the prompt is too long"}}"#.into()),
            false => (200, good_reply(path, request)),
        }
    });
    let error = ask(&service.url, json!({})).unwrap_err();
    let said = error.to_string();
    let named = ["line 3", "line 7"].iter().any(|line| said.contains(line));
    assert!(named && said.contains("2 of 12") && said.contains("too long"), "{said}");
    assert!(error.hint.unwrap().contains("oracle.http.max_refused_share"));
    assert_eq!(ask(&service.url, json!({"max_refused_share": 0.2})).unwrap().len(), 12);

    // A judge that refuses everything is found out soon, whatever it says.
    let service = Scripted::start(|_, _| (400, r#"{"error": "so it is"}"#.into()));
    assert!(ask(&service.url, json!({"max_refused_share": 1.0})).is_err());
    assert!(service.requests() <= 24, "{}", service.requests());
}

#[test]
fn errors_that_no_waiting_mends_end_the_work_at_once() {
    for (status, body) in [
        (
            200,
            json!({"id": null, "choices": null, "error": {"message": "insufficient credits", "code": 402}}),
        ),
        (200, json!({"error": {"message": "whatever", "code": "402"}})),
        (
            200,
            json!({"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}, "choices": null}),
        ),
        (402, json!({"detail": "whatever"})),
        (
            429,
            json!({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}}),
        ),
        (429, json!({"error": {"message": "Billing hard limit has been reached"}})),
        (400, json!({"type": "error", "error": {"message": "Your credit balance is too low"}})),
        (500, json!({"error": {"message": "用户额度不足", "type": "new_api_error"}})),
        (401, json!({"error": "whatever"})),
        (403, json!({"error": "whatever"})),
        (404, json!({"error": "whatever"})),
        (400, json!({"error": {"message": "API key not valid. Please pass a valid API key."}})),
        (200, json!({"error": {"type": "authentication_error", "message": "invalid x-api-key"}})),
    ] {
        let said = body.to_string();
        let service = Scripted::start(move |_, _| (status, said.clone()));
        let started = Instant::now();
        let error = ask(&service.url, json!({"concurrency": {"max": 1}})).unwrap_err();
        assert_eq!(service.requests(), 1, "{status} {body}: {error}");
        assert!(started.elapsed() < Duration::from_secs(20));
        let words = body.to_string();
        let told = error.to_string().contains(&words.chars().take(60).collect::<String>());
        assert!(told && error.hint.is_some(), "{error}");
    }
}

#[test]
fn a_server_that_makes_no_decisions_is_found_out_at_the_first_request() {
    for (status, said) in [
        (501, r#"{"error": {"message": "decisions are not implemented for LlamaForCausalLM"}}"#),
        (400, r#"{"message": "label A is not a single token of this tokenizer"}"#),
    ] {
        let service = Scripted::start(move |_, _| (status, said.to_owned()));
        let changes = json!({"protocol": "systemone", "concurrency": {"max": 1}});
        let error = ask(&service.url, changes).unwrap_err();
        assert_eq!(service.requests(), 1, "{error}");
        let hint = error.hint.unwrap_or_default();
        assert!(hint.contains("Qwen 3") && hint.contains("SGLang"), "{status}: {hint}");
    }
}

#[test]
fn a_service_that_is_only_busy_is_asked_again() {
    for (status, body) in [
        (200, json!({"error": {"message": "Bad gateway", "code": 502}})),
        (
            200,
            json!({"choices": [{"finish_reason": "error", "error": {"code": 503, "message": "x"}}]}),
        ),
        (
            429,
            json!({"error": {"message": "You exceeded your current quota. Please retry in 12.2s."}}),
        ),
        (200, json!({"error": {"type": "overloaded_error", "message": "Overloaded"}})),
    ] {
        let said = body.to_string();
        let busy = std::sync::atomic::AtomicU64::new(0);
        let service = Scripted::start(move |path, request| {
            match busy.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 {
                0 => (status, said.clone()),
                _ => (200, good_reply(path, request)),
            }
        });
        let verdicts = ask(&service.url, json!({}));
        assert!(verdicts.is_ok(), "{status} {body}: {verdicts:?}");
    }
}

#[test]
fn no_request_is_sent_more_often_than_its_attempts_allow() {
    for (status, said) in [
        (200, "<html><body>Sign in</body></html>"),
        (200, ""),
        (200, "{}"),
        (200, "{\"choices\": ["),
        (200, "{\"error\": \"oops\"}"),
        (200, "data: [DONE]"),
        (500, "oops"),
        (502, "<html>Bad gateway</html>"),
        (503, ""),
        (429, "slow down"),
    ] {
        let service = Scripted::start(move |_, _| (status, said.to_owned()));
        let oracle = create_oracle("http", settings(&service.url, json!({"orders": "one"})));
        let error = oracle.unwrap().preferences(&comparisons()[..1], &Silent).unwrap_err();
        let requests = service.requests();
        assert!(requests <= 10, "{requests} attempts of {status} {said}: {error}");
        assert!(error.hint.is_some());
    }
}

#[test]
fn fields_that_a_service_refuses_can_be_left_out() {
    let service = Scripted::start(|path, request| {
        for field in ["temperature", "top_logprobs", "seed"] {
            if request.get(field).is_some() {
                return (
                    400,
                    format!("{{\"error\": {{\"message\": \"'{field}' is not supported\"}}}}"),
                );
            }
        }
        (200, good_reply(path, request))
    });
    let mut leave_out: Vec<&str> = Vec::new();
    for field in ["temperature", "top_logprobs"] {
        let changes = json!({"leave_out": leave_out, "concurrency": {"max": 1}});
        let error = ask(&service.url, changes).unwrap_err();
        let hint = error.hint.unwrap();
        assert!(hint.contains(&format!("oracle.http.leave_out = [\"{field}\"]")), "{hint}");
        leave_out.push(field);
    }
    let extra = json!({"seed": 1});
    let error = ask(&service.url, json!({"leave_out": leave_out, "extra": extra})).unwrap_err();
    assert!(error.hint.unwrap().contains("out of `oracle.http.extra`"));
    assert_eq!(ask(&service.url, json!({"leave_out": leave_out})).unwrap().len(), 12);
}
