//! Everything that can be known before the first token is sampled is refused then: it costs hours otherwise, and
//! money where a judge is paid.

#[path = "../oracle-http/tests/support/scripted.rs"]
mod scripted;
mod support;

use std::path::Path;
use std::process::Command;

use scripted::Scripted;
use serde_json::{Value, json};
use support::{fixture, refused, require_success, small_run, sppo};

fn ask(command: &mut Command, url: &str, cache: &Path, settings: &[&str]) {
    command.args(["--oracle", "http"]).env("SPPO_CACHE", cache);
    let endpoints = format!("endpoints=[\"{url}\"]");
    let common =
        ["protocol=openai-judge", "model=judge", "retries.first_delay_seconds=0.01", &endpoints];
    for setting in common.iter().chain(settings) {
        command.args(["--set", &format!("oracle.http.{setting}")]);
    }
}

fn completion(content: &str, finish_reason: &str) -> String {
    json!({"choices": [{"message": {"content": content}, "finish_reason": finish_reason}]})
        .to_string()
}

#[test]
fn a_judge_that_refuses_or_cannot_answer_is_found_out_before_anything_is_sampled() {
    let error = |message: &str| json!({"error": {"message": message}}).to_string();
    for (status, said, told) in [
        (401, error("wrong key"), ["wrong key", "api_key_env"]),
        (404, error("The model `judge` does not exist"), ["does not exist", "oracle.http.model"]),
        (
            400,
            error("'max_tokens' is not supported, use 'max_completion_tokens'"),
            ["max_tokens", "max_tokens_field"],
        ),
        (400, error("'temperature' does not support 0"), ["temperature", "judge.temperature = 1"]),
        (400, error("maximum context length is 10 tokens"), ["context length", "context"]),
        (429, error("insufficient_quota"), ["insufficient_quota", "account"]),
        (
            200,
            completion("<think>Let me see", "length"),
            ["cut off at judge.max_tokens (16)", "raise"],
        ),
        (200, completion("I like both.", "stop"), ["I like both.", "judge.template"]),
        (200, "<html>Sign in</html>".into(), ["a web page", "protocol"]),
    ] {
        let service = Scripted::start(move |_, _| (status, said.clone()));
        let directory = tempfile::tempdir().unwrap();
        let mut command = small_run(directory.path(), "run");
        ask(&mut command, &service.url, directory.path(), &["judge.invalid_attempts=0"]);
        refused(&mut command, 6, &told);
        assert!(!directory.path().join("run").exists(), "{told:?}");
        assert!(service.requests() <= 6, "{} requests: {told:?}", service.requests());
    }
}

#[test]
fn the_toy_question_is_asked_once_and_remembered() {
    let service = Scripted::start(|_, _| (200, completion("A", "stop")));
    let directory = tempfile::tempdir().unwrap();
    let chat = || {
        let mut command = sppo();
        command.args(["chat", "Hi", "--best-of", "2", "--max-new-tokens", "4", "--seed", "5"]);
        command.arg("--model").arg(fixture("fixtures/lm/llama"));
        ask(&mut command, &service.url, directory.path(), &[]);
        require_success(&command.output().unwrap());
        service.requests()
    };
    let first = chat();
    assert!((2..=4).contains(&first), "{first} requests");
    assert_eq!(chat(), first, "all is remembered");
}

#[test]
fn the_official_rule_is_refused_before_sampling_where_a_token_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = directory.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"Hi\"}\n".repeat(8)).unwrap();
    // Of these only the first two have both tokens.
    for (model, has_both) in [("llama", true), ("gemma2", true), ("qwen2", false), ("qwen3", false)]
    {
        for dry in [true, false] {
            let mut command = sppo();
            command.args(["run", "--name", model, "--preset", "official", "--iterations", "1"]);
            command.args([
                "--max-new-tokens",
                "4",
                "--max-length",
                "64",
                "--max-prompt-length",
                "32",
            ]);
            command.arg("--run-directory").arg(directory.path().join("runs"));
            command.arg("--model").arg(fixture("fixtures/lm").join(model));
            command.arg("--prompts").arg(&prompts);
            if dry {
                command.arg("--dry-run");
            }
            if has_both {
                if dry {
                    require_success(&command.output().unwrap());
                }
                continue;
            }
            refused(&mut command, 3, &["begin", "training.tokenization", "clean"]);
            assert!(!directory.path().join("runs").join(model).exists(), "{model}");
        }
    }
}

#[test]
fn a_file_with_one_line_that_the_judge_refuses_is_ranked_and_the_line_named() {
    let too_long =
        json!({"error": {"message": "maximum context length is 1024 tokens"}}).to_string();
    let service = Scripted::start(move |_, request| match request.to_string().len() > 6000 {
        true => (400, too_long.clone()),
        false => (200, completion("A", "stop")),
    });
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("candidates.jsonl");
    let row = |line: usize| {
        let long = "long ".repeat(if line == 5 { 1500 } else { 5 });
        json!({"prompt": format!("Question {line}?"), "candidates": ["short", long]}).to_string()
            + "\n"
    };
    std::fs::write(&file, (1..=12).map(row).collect::<String>()).unwrap();
    let rank = |settings: &[&str]| {
        let mut command = sppo();
        command.arg("rank").arg(&file);
        ask(&mut command, &service.url, &directory.path().join("cache"), settings);
        command
    };
    for _ in 0..2 {
        let output = rank(&[]).output().unwrap();
        require_success(&output);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("line 5") && told.contains("context length"), "{told}");
        let rows = String::from_utf8(output.stdout).unwrap();
        let rows: Vec<Value> = rows.lines().map(|row| serde_json::from_str(row).unwrap()).collect();
        assert_eq!((rows.len(), &rows[4]["probability"][0][1]), (12, &json!(0.5)));
    }
    refused(&mut rank(&["max_refused_share=0.0"]), 6, &["line 5", "max_refused_share"]);
}
