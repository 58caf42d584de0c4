//! Low-rank adapters in whole commands: trained, resumed, merged, and read by Python's PEFT.

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::{
    fixture, kill_after, library, require_success, small_run, small_run_of, sppo, stdout_of,
};

/// What the script exits with where PEFT cannot be used.
const SKIPPED: i32 = 77;

fn adapted_run(directory: &Path, name: &str) -> Command {
    with_adapters(small_run(directory, name))
}

fn with_adapters(mut command: Command) -> Command {
    command.args(["--lora-rank", "4", "--lora-alpha", "8", "--lora-dropout", "0.1"]);
    command.args(["--learning-rate", "1e-2", "--optimizer", "adamw"]);
    command
}

fn adapters(directory: &Path, name: &str) -> std::path::PathBuf {
    directory.join(name).join("iteration-2/checkpoint")
}

fn weights(directory: &Path, name: &str) -> Vec<u8> {
    std::fs::read(adapters(directory, name).join("adapter_model.safetensors")).unwrap()
}

/// Log-probabilities of the fixture's sequences under a model.
fn scores(directory: &Path, model: &Path) -> (String, Vec<f64>) {
    let golden = std::fs::read(fixture("fixtures/lm/llama/golden.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let mut lines = String::new();
    for sequence in golden["sequences"].as_array().unwrap() {
        let tokens = sequence.as_array().unwrap();
        let line =
            serde_json::json!({"prompt_tokens": tokens[..1], "response_tokens": tokens[1..]});
        lines.push_str(&format!("{line}\n"));
    }
    let file = directory.join("responses.jsonl");
    std::fs::write(&file, lines).unwrap();
    let scored = stdout_of(sppo().arg("score").arg(&file).arg("--model").arg(model));
    let mut all = Vec::new();
    let mut rows = String::new();
    for (line, sequence) in scored.lines().zip(golden["sequences"].as_array().unwrap()) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let log_probs = line["log_probs"].as_array().unwrap();
        all.extend(log_probs.iter().map(|value| value.as_f64().unwrap()));
        let row = serde_json::json!({
            "prompt_tokens": sequence.as_array().unwrap()[..1],
            "tokens": line["tokens"],
            "log_probs": log_probs,
        });
        rows.push_str(&format!("{row}\n"));
    }
    (rows, all)
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn refused(output: &Output, expected: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains(expected), "{error}");
}

#[test]
fn adapters_are_trained_merged_and_read_by_peft() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    require_success(&adapted_run(path, "run").output().unwrap());
    let adapters = adapters(path, "run");
    assert!(!adapters.join("model.safetensors").exists());

    let merged = path.join("merged");
    let merge =
        |from: &Path| sppo().arg("merge").arg(from).arg("--output").arg(&merged).output().unwrap();
    refused(&merge(&fixture("fixtures/lm/llama")), "holds no adapters");
    require_success(&merge(&adapters));
    refused(&merge(&adapters), "already holds model.safetensors");

    let (_, base) = scores(path, &fixture("fixtures/lm/llama"));
    let (rows, adapted) = scores(path, &adapters);
    let (_, whole) = scores(path, &merged);
    assert!(largest_difference(&adapted, &base) > 1e-3, "training changed next to nothing");
    assert!(largest_difference(&adapted, &whole) == 0.0);

    let file = path.join("scores.jsonl");
    std::fs::write(&file, rows).unwrap();
    let python = std::env::var("SPPO_PYTHON").unwrap_or_else(|_| "python3".into());
    let again = path.join("saved-by-peft");
    let script = fixture("python/check_adapters.py");
    match Command::new(python).arg(script).args([&adapters, &file, &again]).output() {
        Ok(output) if output.status.code() == Some(SKIPPED) => {
            let why = String::from_utf8_lossy(&output.stdout);
            eprintln!("{}; name another Python with SPPO_PYTHON", why.trim());
        }
        Ok(output) => {
            eprint!("{}", String::from_utf8_lossy(&output.stdout));
            require_success(&output);
            let (_, returned) = scores(path, &again);
            assert!(largest_difference(&returned, &adapted) <= 1e-5);
        }
        Err(error) => eprintln!("skipped: no Python ({error}); name one with SPPO_PYTHON"),
    }
}

#[test]
fn an_interrupted_adapted_run_ends_with_the_same_adapters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let started = std::time::Instant::now();
    require_success(&adapted_run(path, "whole").output().unwrap());
    let mut whole = started.elapsed();
    let mut kills = 0;
    for part in [0.35, 0.6, 0.85] {
        let name = format!("killed-at-{part}");
        match kill_after(&mut adapted_run(path, &name), whole.mul_f64(part)) {
            Ok(()) => kills += 1,
            // The machine has become faster since the run was timed.
            Err(duration) => whole = duration,
        }
        let mut again = adapted_run(path, &name);
        if path.join(&name).exists() {
            again.arg("--resume");
        }
        require_success(&again.output().unwrap());
        assert!(weights(path, &name) == weights(path, "whole"), "killed at {part}");
    }
    assert!(kills > 0, "the run ended before each kill");
}

#[test]
fn a_backend_from_a_library_trains_the_same_adapters_and_so_does_recomputation() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    require_success(&adapted_run(path, "built-in").output().unwrap());
    let mut run = adapted_run(path, "library");
    run.arg("--plugin").arg(library("sppo-backend-candle"));
    run.args(["--set", "training.recompute_activations=true"]);
    require_success(&run.output().unwrap());
    let identity = std::fs::read_to_string(path.join("library/run.json")).unwrap();
    let identity: serde_json::Value = serde_json::from_str(&identity).unwrap();
    assert!(identity["plugins"][0]["sha256"].is_string(), "{identity}");
    assert!(weights(path, "library") == weights(path, "built-in"));
}

#[test]
fn adapters_that_cannot_be_used_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let run = |modules: &str| {
        adapted_run(path, modules).args(["--lora-target-modules", modules]).output().unwrap()
    };
    refused(&run("lm_head"), "no target module `lm_head`");
    require_success(&run("q_proj,v_proj"));
    let adapters = adapters(path, "q_proj,v_proj");
    let file = adapters.join("adapter_config.json");
    let sound: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let damaged = |key: &str, value: serde_json::Value| {
        let mut json = sound.clone();
        json[key] = value;
        std::fs::write(&file, json.to_string()).unwrap();
        sppo().arg("merge").arg(&adapters).arg("--output").arg(path.join("x")).output().unwrap()
    };
    refused(&damaged("use_dora", true.into()), "`use_dora`");
    refused(&damaged("modules_to_save", serde_json::json!(["lm_head"])), "`modules_to_save`");
    refused(&damaged("r", 5.into()), "[5, 64] was expected");
    refused(&damaged("target_modules", serde_json::json!(["q_proj"])), "has a place for 6");
    refused(&damaged("base_model_name_or_path", "/nowhere/model".into()), "cannot be found");
    let other = fixture("fixtures/lm/gemma2");
    refused(
        &damaged("base_model_name_or_path", other.to_str().unwrap().into()),
        "do not belong to this model",
    );
}

/// The fixture as a GGUF file in blocks of 32 values.
fn quantized_model(directory: &Path) -> std::path::PathBuf {
    let file = directory.join("q8_0.gguf");
    let model = fixture("fixtures/lm/llama");
    let mut export = sppo();
    export.args(["export", "gguf"]).arg(model).args(["--type", "q8_0", "--output"]).arg(&file);
    stdout_of(&mut export);
    file
}

fn run_on(model: &Path, directory: &Path, name: &str, frozen_weights: &str) -> Command {
    let mut command = with_adapters(small_run_of(model, directory, name));
    command.args(["--frozen-weights", frozen_weights]);
    command
}

#[test]
fn weights_that_stay_in_their_blocks_train_the_same_adapters() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let model = quantized_model(path);
    let started = std::time::Instant::now();
    require_success(&run_on(&model, path, "quantized", "quantized").output().unwrap());
    let time = started.elapsed();
    require_success(&run_on(&model, path, "dense", "dense").output().unwrap());
    assert!(weights(path, "quantized") == weights(path, "dense"));
    let nf4 = fixture("fixtures/nf4/llama");
    for (name, frozen_weights) in [("nf4-quantized", "quantized"), ("nf4-dense", "dense")] {
        require_success(&run_on(&nf4, path, name, frozen_weights).output().unwrap());
    }
    assert!(weights(path, "nf4-quantized") == weights(path, "nf4-dense"));
    assert!(weights(path, "nf4-dense") != weights(path, "dense"));

    // A run that is faster this time has ended by itself, and its resumption has nothing to do.
    let mut killed = run_on(&model, path, "killed", "quantized");
    let _ = kill_after(&mut killed, time.mul_f64(0.6));
    let mut again = run_on(&model, path, "killed", "quantized");
    if path.join("killed").exists() {
        again.arg("--resume");
    }
    require_success(&again.output().unwrap());
    assert!(weights(path, "killed") == weights(path, "quantized"));
    let mut other = run_on(&model, path, "killed", "dense");
    refused(&other.arg("--resume").output().unwrap(), "training.frozen_weights");

    let merged = path.join("merged");
    let adapters = adapters(path, "quantized");
    require_success(
        &sppo().arg("merge").arg(&adapters).arg("--output").arg(&merged).output().unwrap(),
    );
    let (_, adapted) = scores(path, &adapters);
    assert!(largest_difference(&adapted, &scores(path, &merged).1) == 0.0);
}

#[test]
fn blocks_are_kept_only_where_there_are_some_and_adapters_are_trained() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let dense = fixture("fixtures/lm/llama");
    let run = run_on(&dense, path, "dense", "quantized").output().unwrap();
    refused(&run, "holds no quantized weights");
    let model = quantized_model(path);
    let mut all = small_run_of(&model, path, "all");
    all.args(["--frozen-weights", "quantized"]);
    refused(&all.output().unwrap(), "without adapters all are");

    // the plan counts the blocks: 34 bytes for 32 numbers
    let weights = |frozen_weights: &str| -> f64 {
        let mut run = run_on(&model, path, "plan", frozen_weights);
        let plan = stdout_of(run.arg("--dry-run"));
        let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
        plan["memory"]["estimate"]["training"]["weights"]
            .as_f64()
            .unwrap_or_else(|| panic!("{plan}"))
    };
    let ratio = weights("dense") / weights("quantized");
    assert!((2.0..4.0).contains(&ratio), "{ratio}");
}
