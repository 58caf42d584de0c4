//! Checkpoints in other programs, from Python: transformers loads them, and llama.cpp loads what is exported for it,
//! and both agree about log-probabilities.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{
    fixture, json_lines, numbers, read_json, reference_sequences, require_success, small_run, sppo,
    stdout_of,
};

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

    check(python().arg(fixture("python/check_checkpoint.py")).arg(&checkpoint).arg(&scores));
}

/// Runs a check, and says where it is skipped.
fn check(script: &mut Command) {
    match script.output() {
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

/// Families with a tiny model.
const FAMILIES: [&str; 11] = [
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "olmo2",
    "olmo3",
    "phi3",
];

/// A tiny model with the settings changed that no GGUF file can have: windows that llama.cpp computes without, and
/// a scale of attention that it takes from the size of a head.
fn exportable(family: &str, directory: &Path) -> PathBuf {
    let model = directory.join(family);
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(fixture("fixtures/lm").join(family)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let mut config = read_json(&model.join("config.json"));
    match family {
        "mistral" | "phi3" => config["sliding_window"] = Value::Null,
        "gemma2" | "gemma3_text" => config["query_pre_attn_scalar"] = config["head_dim"].clone(),
        _ => {}
    }
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    model
}

fn export(model: &Path, kind: &str, file: &Path) {
    let mut command = sppo();
    command.args(["export", "gguf"]).arg(model).args(["--type", kind, "--output"]).arg(file);
    assert_eq!(stdout_of(&mut command).trim(), file.display().to_string());
}

/// Twenty sequences: those of the reference, and others of random tokens.
fn twenty_sequences(model: &Path) -> String {
    let mut lines = reference_sequences(&read_json(&model.join("golden.json")));
    let mut state = 20_261_130_u64;
    while lines.lines().count() < 20 {
        let length = 4 + 3 * lines.lines().count();
        let mut token = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33 & 511
        };
        let tokens: Vec<u64> = (0..length).map(|_| token()).collect();
        let line = json!({ "prompt_tokens": tokens[..1], "response_tokens": tokens[1..] });
        writeln!(lines, "{line}").unwrap();
    }
    lines
}

fn scores(model: &Path, sequences: &Path) -> Vec<Value> {
    json_lines(&stdout_of(sppo().arg("score").arg(sequences).arg("--model").arg(model)))
}

fn largest_difference(one: &[Value], other: &[Value]) -> f64 {
    let log_probs = |rows: &[Value]| -> Vec<f64> {
        rows.iter().flat_map(|row| numbers(&row["log_probs"])).collect()
    };
    let (one, other) = (log_probs(one), log_probs(other));
    assert_eq!(one.len(), other.len());
    one.iter().zip(&other).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max)
}

#[test]
fn an_exported_model_of_every_family_is_read_back_and_computed_alike_by_llama_cpp() {
    for family in FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        let model = exportable(family, directory.path());
        let sequences = directory.path().join("sequences.jsonl");
        std::fs::write(&sequences, twenty_sequences(&model)).unwrap();
        let original = scores(&model, &sequences);
        for (kind, tolerance) in [("f32", 1e-5), ("f16", 5e-2)] {
            let file = directory.path().join(format!("{kind}.gguf"));
            export(&model, kind, &file);
            let difference = largest_difference(&original, &scores(&file, &sequences));
            assert!(difference < tolerance, "{family} in {kind}: {difference}");
        }
        let file = directory.path().join("f32.gguf");
        let scored = directory.path().join("scores.jsonl");
        let mut lines = String::new();
        let prompts = json_lines(&std::fs::read_to_string(&sequences).unwrap());
        for (mut row, prompt) in scores(&file, &sequences).into_iter().zip(prompts) {
            row["prompt_tokens"] = prompt["prompt_tokens"].clone();
            writeln!(lines, "{row}").unwrap();
        }
        std::fs::write(&scored, lines).unwrap();
        let rollouts = directory.path().join("rollouts.jsonl");
        stdout_of(
            sppo()
                .arg("generate")
                .arg(fixture("fixtures/prompts-small.jsonl"))
                .arg("--model")
                .arg(&file)
                .args([
                    "--samples",
                    "1",
                    "--temperature",
                    "0",
                    "--max-new-tokens",
                    "24",
                    "--output",
                ])
                .arg(directory.path().join("candidates.jsonl"))
                .arg("--rollouts")
                .arg(&rollouts),
        );
        eprint!("{family}: ");
        // llama.cpp takes GELU from a table in half precision
        let tolerance = if family.starts_with("gemma") { "1e-2" } else { "1e-3" };
        let script = fixture("python/check_gguf.py");
        check(python().arg(script).arg(&file).arg(&scored).arg(&rollouts).arg(tolerance));
    }
}
