//! The binary against the Python reference: five steps of the official loss, and log-probabilities.

mod support;

use serde_json::Value;
use support::{
    fixture, json_lines, read_json, reference_pairs, reference_sequences, require_success, sppo,
    stdout_of,
};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is not a number"))
}

fn close(found: f64, expected: f64, tolerance: f64, what: &str) {
    let error = (found - expected).abs() / expected.abs().max(1e-9);
    assert!(error <= tolerance, "{what}: {found} is not {expected} (relative error {error:.1e})");
}

#[test]
fn five_steps_of_the_official_loss_are_those_of_the_reference() {
    let golden = read_json(&fixture("fixtures/optim-llama.json"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pairs.jsonl");
    // The reference trains on four tokenised pairs in one batch, five times.
    std::fs::write(&file, reference_pairs(&golden)).unwrap();
    let output = directory.path().join("trained");

    let result = sppo()
        .arg("train")
        .arg(&file)
        .arg("--output")
        .arg(&output)
        .arg("--model")
        .arg(fixture("fixtures/lm/llama"))
        .args(["--objective", "sppo", "--eta", "1000", "--learning-rate", "1e-4"])
        .args(["--schedule", "constant", "--warmup-ratio", "0", "--epochs", "5"])
        .args(["--global-batch-size", "4", "--micro-batch-tokens", "60"])
        .output()
        .unwrap();
    require_success(&result);

    let metrics = std::fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    let steps: Vec<Value> =
        json_lines(&metrics).into_iter().filter(|entry| entry["loss"].is_number()).collect();
    assert_eq!(steps.len(), 5);
    for (index, step) in steps.iter().enumerate() {
        let expected = &golden["f32"]["steps"][index];
        close(number(&step["loss"]), number(&expected["loss"]), 1e-4, "loss");
        close(
            number(&step["gradient_norm"]),
            number(&expected["grad_norm"]),
            1e-4,
            "gradient norm",
        );
        assert_eq!(number(&step["learning_rate"]), 1e-4);
    }

    let weights = std::fs::read(output.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    for (name, expected) in golden["f32"]["final_param_l2"].as_object().unwrap() {
        let bytes = tensors.tensor(name).unwrap().data();
        let squares: f64 = bytes
            .chunks_exact(4)
            .map(|value| f64::from(f32::from_le_bytes(value.try_into().unwrap())).powi(2))
            .sum();
        close(squares.sqrt(), number(expected), 1e-5, name);
    }
}

#[test]
fn scores_are_the_log_probabilities_of_the_reference() {
    for family in ["llama", "gemma3_text", "qwen3_moe", "smollm3", "olmo2", "olmo3", "phi3"] {
        check_scores(family);
    }
}

fn check_scores(family: &str) {
    let model = fixture(&format!("fixtures/lm/{family}"));
    let golden = read_json(&model.join("golden.json"));
    let single = number(&golden["meta"]["max_abs_logp_diff_f32_vs_f64"]);
    let tolerance = (2.0 * single).max(2e-5);
    let sequences = golden["sequences"].as_array().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("responses.jsonl");
    std::fs::write(&file, reference_sequences(&golden)).unwrap();

    let scored = json_lines(&stdout_of(sppo().arg("score").arg(&file).arg("--model").arg(&model)));
    let all_expected = golden["logps"].as_array().unwrap();
    assert_eq!([scored.len(), all_expected.len()], [sequences.len(); 2]);
    for ((line, sequence), expected) in scored.iter().zip(sequences).zip(all_expected) {
        assert_eq!(line["tokens"].as_array().unwrap()[..], sequence.as_array().unwrap()[1..]);
        let log_probs = line["log_probs"].as_array().unwrap();
        let expected = expected.as_array().unwrap();
        assert_eq!(log_probs.len(), expected.len());
        for (found, expected) in log_probs.iter().zip(expected) {
            let difference = (number(found) - number(expected)).abs();
            assert!(difference <= tolerance, "{family}: {found} is not {expected}");
        }
        let sum: f64 = log_probs.iter().map(number).sum();
        assert!((number(&line["log_prob"]) - sum).abs() < 1e-3);
    }
}
