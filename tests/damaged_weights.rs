//! Weights that are infinite or not a number: no command computes with them.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use support::{fixture, sppo};
use tempfile::TempDir;

const INPUT: i32 = 4;
const WORDS: [&str; 2] = ["is damaged: 1 of its", "infinite or not a number, the first NaN"];

/// Runs a command that must be refused in these words, with a hint.
fn refused(command: &mut Command, words: &[&str]) {
    let output = command.output().expect("the binary starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8 on standard error");
    assert_eq!(output.status.code(), Some(INPUT), "{command:?}\n{said}");
    assert!(output.stdout.is_empty(), "data on standard output: {command:?}");
    for word in words.iter().chain(&["hint: "]) {
        assert!(said.contains(word), "{command:?}: `{word}` is not in\n{said}");
    }
}

fn written(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

fn model() -> PathBuf {
    fixture("fixtures/lm/llama")
}

/// The tiny model with one weight that is no number.
fn damaged_model(directory: &TempDir) -> PathBuf {
    let copy = directory.path().join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    spoil(&copy.join("model.safetensors"), f32::NAN);
    copy
}

/// Makes the last number of a file of f32 weights something else.
fn spoil(weights: &Path, value: f32) {
    let mut bytes = fs::read(weights).unwrap();
    let last = bytes.len() - 4;
    bytes[last..].copy_from_slice(&value.to_le_bytes());
    fs::write(weights, bytes).unwrap();
}

/// A command that merges an adapter of one module, whose last number is `value`.
fn merge(base: &Path, value: f32) -> (TempDir, Command) {
    let adapters = tempfile::tempdir().unwrap();
    let name = |matrix: &str| {
        format!("base_model.model.model.layers.0.self_attn.q_proj.lora_{matrix}.weight")
    };
    let header = json!({
        name("A"): {"dtype": "F32", "shape": [1, 64], "data_offsets": [0, 256]},
        name("B"): {"dtype": "F32", "shape": [64, 1], "data_offsets": [256, 512]},
    })
    .to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 512]].concat();
    let weights = written(&adapters, "adapter_model.safetensors", file);
    spoil(&weights, value);
    let config = json!({
        "base_model_name_or_path": base, "peft_type": "LORA", "r": 1, "lora_alpha": 1,
        "target_modules": ["q_proj"], "layers_to_transform": [0],
    });
    written(&adapters, "adapter_config.json", config.to_string());
    let output = adapters.path().join("merged");
    let mut merge = sppo();
    merge.arg("merge").arg(adapters.path()).arg("--output").arg(output);
    (adapters, merge)
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_every_command() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = damaged_model(&directory);
    let prompts = written(&directory, "prompts.jsonl", r#"{"prompt": "a"}"#);
    let responses = written(&directory, "responses.jsonl", r#"{"prompt": "a", "response": "b"}"#);
    let pairs = written(
        &directory,
        "pairs.jsonl",
        r#"{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_probs": 0.5, "chosen_probs_win": 0.5, "chosen_probs_lose": 0.5}"#,
    );
    refused(sppo().arg("score").arg(&responses).arg("--model").arg(&damaged), &WORDS);
    refused(sppo().arg("generate").arg(&prompts).arg("--model").arg(&damaged), &WORDS);
    let mut run = sppo();
    run.args(["run", "--run-directory"]).arg(directory.path().join("runs"));
    refused(run.arg("--model").arg(&damaged), &WORDS);
    let trained = directory.path().join("trained");
    let mut train = sppo();
    train.arg("train").arg(&pairs).arg("--model").arg(&damaged).arg("--output").arg(&trained);
    refused(&mut train, &WORDS);
}

#[test]
fn merging_refuses_a_damaged_model_and_damaged_adapters() {
    let directory = tempfile::tempdir().unwrap();
    let damaged = damaged_model(&directory);
    let (_adapters, mut command) = merge(&damaged, 0.0);
    refused(&mut command, &WORDS);
    let (_adapters, mut command) = merge(&model(), f32::INFINITY);
    refused(&mut command, &["lora_B.weight` is damaged", "the first inf"]);
    let (_adapters, mut command) = merge(&model(), 0.0);
    assert!(command.output().unwrap().status.success());
}
