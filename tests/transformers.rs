//! Checkpoints in Python: transformers loads them and agrees about log-probabilities.

mod support;

use std::process::Command;

use support::{fixture, require_success, small_run, sppo, stdout_of};

/// What the script exits with where transformers cannot be used.
const SKIPPED: i32 = 77;

/// `SPPO_PYTHON` names an interpreter that has torch and transformers.
fn python() -> Command {
    Command::new(std::env::var("SPPO_PYTHON").unwrap_or_else(|_| "python3".into()))
}

#[test]
fn transformers_agrees_about_twenty_sampled_responses() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let checkpoint = directory.path().join("run/iteration-2/checkpoint");

    let rollouts = directory.path().join("rollouts.jsonl");
    stdout_of(
        sppo()
            .arg("generate")
            .arg(fixture("fixtures/prompts-small.jsonl"))
            .arg("--model")
            .arg(&checkpoint)
            .args(["--samples", "3", "--max-new-tokens", "24", "--output"])
            .arg(directory.path().join("candidates.jsonl"))
            .arg("--rollouts")
            .arg(&rollouts),
    );
    let mut scored = String::new();
    for rollout in std::fs::read_to_string(&rollouts).unwrap().lines() {
        let rollout: serde_json::Value = serde_json::from_str(rollout).unwrap();
        for response in rollout["responses"].as_array().unwrap() {
            let line = serde_json::json!({
                "prompt_tokens": rollout["prompt_tokens"],
                "tokens": response["tokens"],
                "log_probs": response["log_probs"],
            });
            scored.push_str(&line.to_string());
            scored.push('\n');
        }
    }
    assert!(scored.lines().count() >= 20);
    let scores = directory.path().join("scores.jsonl");
    std::fs::write(&scores, scored).unwrap();

    let result =
        python().arg(fixture("python/check_checkpoint.py")).arg(&checkpoint).arg(&scores).output();
    match result {
        Ok(output) if output.status.code() == Some(SKIPPED) => {
            let why = String::from_utf8_lossy(&output.stdout);
            eprintln!("{}; name another Python with SPPO_PYTHON", why.trim());
        }
        Ok(output) => {
            eprint!("{}", String::from_utf8_lossy(&output.stdout));
            require_success(&output);
        }
        Err(error) => eprintln!("skipped: no Python ({error}); name one with SPPO_PYTHON"),
    }
}
