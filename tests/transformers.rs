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

/// Scores of a GGUF file with their prompts, in the form of the script that asks llama.cpp.
fn scored(file: &Path, sequences: &Path, to: &Path) {
    let prompts = json_lines(&std::fs::read_to_string(sequences).unwrap());
    let mut lines = String::new();
    for (mut row, prompt) in scores(file, sequences).into_iter().zip(prompts) {
        row["prompt_tokens"] = prompt["prompt_tokens"].clone();
        writeln!(lines, "{row}").unwrap();
    }
    std::fs::write(to, lines).unwrap();
}

/// Greedy continuations by a GGUF file.
fn continuations(file: &Path, to: &Path) {
    let mut generate = sppo();
    generate.arg("generate").arg(fixture("fixtures/prompts-small.jsonl")).arg("--model").arg(file);
    generate.args(["--samples", "1", "--temperature", "0", "--max-new-tokens", "24", "--output"]);
    generate.arg(to.with_file_name("candidates.jsonl")).arg("--rollouts").arg(to);
    stdout_of(&mut generate);
}

#[test]
fn an_exported_model_of_every_family_is_read_back_and_computed_alike_by_llama_cpp() {
    for family in FAMILIES {
        let directory = tempfile::tempdir().unwrap();
        let in_directory = |name: &str| directory.path().join(name);
        let model = exportable(family, directory.path());
        let sequences = in_directory("sequences.jsonl");
        std::fs::write(&sequences, twenty_sequences(&model)).unwrap();
        let original = scores(&model, &sequences);
        let [full, half] = [("f32", 1e-5), ("f16", 5e-2)].map(|(kind, tolerance)| {
            let file = in_directory(&format!("{kind}.gguf"));
            export(&model, kind, &file);
            let difference = largest_difference(&original, &scores(&file, &sequences));
            assert!(difference < tolerance, "{family} in {kind}: {difference}");
            file
        });
        // With weights in f16, llama.cpp rounds what they are multiplied with to f16 too. So it computes the
        // values of that file, stored in f32, and by these it agrees about the file.
        let widened = in_directory("widened.gguf");
        export(&half, "f32", &widened);
        let rollouts = in_directory("rollouts.jsonl");
        for (file, computed, same_values) in [(&full, &full, &full), (&half, &widened, &half)] {
            let of_file = in_directory("scores.jsonl");
            scored(file, &sequences, &of_file);
            continuations(file, &rollouts);
            eprint!("{family}, {}: ", file.file_name().unwrap().display());
            // llama.cpp takes GELU from a table in half precision
            let tolerance = if family.starts_with("gemma") { "1e-2" } else { "1e-3" };
            let mut script = python();
            script.arg(fixture("python/check_gguf.py")).arg(computed).arg(of_file);
            check(script.arg(&rollouts).arg(tolerance).arg(same_values));
        }
    }
}

#[test]
fn alpaca_eval_reads_and_judges_exported_answers() {
    let directory = tempfile::tempdir().unwrap();
    let questions = directory.path().join("questions.json");
    let rows: Vec<Value> = ["Name a colour.", "Why?", "Say \"yes\".\nThen stop \u{e9}."]
        .map(|instruction| json!({ "instruction": instruction, "dataset": "helpful_base" }))
        .into();
    std::fs::write(&questions, json!(rows).to_string()).unwrap();
    let answers = |name: &str, longest: &str| {
        let output = directory.path().join(format!("{name}.json"));
        let mut export = sppo();
        export.args(["export", "alpaca-eval"]).arg(fixture("fixtures/lm/llama"));
        export.arg("--questions").arg(&questions).args(["--max-new-tokens", longest]);
        stdout_of(export.args(["--name", name, "--output"]).arg(&output));
        output
    };
    let (long, short) = (answers("long", "24"), answers("short", "4"));
    check(python().arg(fixture("python/check_alpaca_eval.py")).arg(long).arg(short));
}
