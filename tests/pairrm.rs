//! `sppo rank --oracle pairrm` against LLM-Blender, on a tiny ranker with random weights.

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use support::{
    fixture, json_lines, library, numbers, read_json, require_success, small_run, sppo, stdout_of,
};

/// How far logits may be off, and what is computed from them.
const TOLERANCE: f64 = 1e-4;

/// The golden cases but for that of an empty prompt, which `sppo rank` refuses.
fn golden() -> Value {
    let mut golden = read_json(&fixture("fixtures/pairrm-tiny/golden.json"));
    golden["cases"].as_array_mut().unwrap().retain(|case| case["source"] != "");
    golden
}

/// The golden cases as lines of candidates.
fn candidates(golden: &Value, directory: &Path) -> std::path::PathBuf {
    let lines =
        golden["cases"].as_array().unwrap().iter().fold(String::new(), |mut lines, case| {
            let line = json!({ "prompt": case["source"], "candidates": case["candidates"] });
            writeln!(lines, "{line}").unwrap();
            lines
        });
    let file = directory.join("candidates.jsonl");
    std::fs::write(&file, lines).unwrap();
    file
}

fn rank(file: &Path, settings: &[&str]) -> Command {
    let mut command = sppo();
    command.arg("rank").arg(file).args(["--oracle", "pairrm"]);
    let model = fixture("fixtures/pairrm-tiny");
    command.args(["--set", &format!("oracle.pairrm.model='{}'", model.display())]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn close(found: f64, expected: f64, what: &dyn std::fmt::Display) {
    assert!((found - expected).abs() <= TOLERANCE, "{what}: {found} is not {expected}");
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn scores_ranks_and_official_probabilities_are_those_of_llm_blender() {
    let golden = golden();
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(&golden, directory.path());
    let ranked = json_lines(&stdout_of(&mut rank(&file, &["preference.estimator=aggregate"])));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(ranked.len(), cases.len());
    for (number, (line, case)) in ranked.iter().zip(cases).enumerate() {
        let (scores, expected) = (numbers(&line["rm_scores"]), numbers(&case["scores"]));
        assert_eq!(scores.len(), expected.len());
        for (&found, &expected) in scores.iter().zip(&expected) {
            close(found, expected, &format!("score of line {number}"));
        }
        // Ranks count the better ones, so that equals share the best.
        let ranks: Vec<f64> = scores
            .iter()
            .map(|score| 1.0 + scores.iter().filter(|other| *other > score).count() as f64)
            .collect();
        assert_eq!(ranks, numbers(&case["ranks"]), "ranks of line {number}");
        // `compute_prob.py`.
        let rows = line["probability"].as_array().unwrap();
        assert_eq!(rows.len(), expected.len());
        for (i, row) in rows.iter().enumerate() {
            let row = numbers(row);
            assert_eq!(row.len(), expected.len());
            for (j, found) in row.into_iter().enumerate() {
                let difference = expected[i] - expected[j];
                close(found, sigmoid(difference), &format!("P[{i}][{j}] of line {number}"));
            }
        }
        let oracle = line["oracle"].as_str().unwrap();
        assert!(oracle.starts_with("pairrm ") && oracle.contains("sha256"), "{oracle}");
    }
}

#[test]
fn the_paper_s_probabilities_read_the_logits_of_each_pair() {
    let golden = golden();
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(&golden, directory.path());
    // Another division into batches, another backend's name for the same one.
    let settings = [
        "preference.estimator=pairwise",
        "oracle.pairrm.batch_tokens=100",
        "oracle.pairrm.backend=candle",
    ];
    let ranked = json_lines(&stdout_of(&mut rank(&file, &settings)));
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(ranked.len(), cases.len());
    for (line, case) in ranked.iter().zip(cases) {
        let [rows, expected] =
            [&line["probability"], &case["logits"]].map(|matrix| matrix.as_array().unwrap());
        assert_eq!(rows.len(), expected.len());
        for (i, (row, logits)) in rows.iter().zip(expected).enumerate() {
            let (row, logits) = (numbers(row), numbers(logits));
            assert_eq!(row.len(), logits.len());
            for (j, (found, logit)) in row.into_iter().zip(logits).enumerate() {
                close(found, sigmoid(logit), &format!("P[{i}][{j}]"));
            }
        }
    }
}

#[test]
fn a_library_in_the_other_checkpoint_layout_says_the_same() {
    let golden = golden();
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(&golden, directory.path());
    let expected = json_lines(&stdout_of(&mut rank(&file, &[])));
    let model = directory.path().join("hf");
    std::fs::create_dir(&model).unwrap();
    for (from, to) in [
        ("config-hf.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("model.safetensors", "model.safetensors"),
    ] {
        std::fs::copy(fixture("fixtures/pairrm-tiny").join(from), model.join(to)).unwrap();
    }
    let setting = format!("oracle.pairrm.model='{}'", model.display());
    let mut other = rank(&file, &[&setting]);
    let ranked = json_lines(&stdout_of(other.arg("--plugin").arg(library("sppo-oracle-pairrm"))));
    assert_eq!(ranked.len(), expected.len());
    for (found, expected) in ranked.iter().zip(&expected) {
        assert_eq!(found["rm_scores"], expected["rm_scores"]);
        assert_eq!(found["probability"], expected["probability"]);
        assert_ne!(found["oracle"], expected["oracle"], "the hashes of two configurations");
    }
}

#[test]
fn it_conforms_built_in_or_not_and_in_either_mode() {
    let model = format!("oracle.pairrm.model='{}'", fixture("fixtures/pairrm-tiny").display());
    let library = library("sppo-oracle-pairrm");
    for plugin in ["pairrm", library.to_str().unwrap()] {
        for orders in ["both", "one"] {
            let mut check = sppo();
            check.args(["plugin", "check", plugin, "--set", &model]);
            check.args(["--set", &format!("oracle.pairrm.orders={orders}")]);
            let text = stdout_of(&mut check);
            assert!(text.lines().count() >= 8 && !text.contains("FAILED"), "{text}");
        }
    }
}

#[test]
fn a_run_shows_the_ranker_the_rendered_prompts_and_goes_on_with_the_same_model_only() {
    let directory = tempfile::tempdir().unwrap();
    let model = directory.path().join("ranker");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "config-hf.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(fixture("fixtures/pairrm-tiny").join(file), model.join(file)).unwrap();
    }
    let settings = format!("oracle.pairrm.model='{}'", model.display());
    let mut run = small_run(directory.path(), "ranked");
    run.args(["--oracle", "pairrm", "--set", &settings]);
    require_success(&run.output().unwrap());
    let identity = std::fs::read_to_string(directory.path().join("ranked/run.json")).unwrap();
    assert!(identity.contains("sha256"), "{identity}");
    // The view of the prompts matters.
    let generated = |name: &str| {
        std::fs::read(directory.path().join(name).join("iteration-1/generated.parquet")).unwrap()
    };
    let mut raw = small_run(directory.path(), "raw");
    raw.args(["--oracle", "pairrm", "--set", &settings]);
    require_success(&raw.args(["--set", "oracle.pairrm.prompt_view=raw"]).output().unwrap());
    assert!(generated("ranked") != generated("raw"), "the views are judged alike");

    let config = model.join("config.json");
    let changed = std::fs::read_to_string(&config).unwrap() + "\n";
    std::fs::write(&config, changed).unwrap();
    let mut resume = sppo();
    resume.args(["run", "--resume", "--name", "ranked", "--json", "--run-directory"]);
    let output = resume.arg(directory.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("oracle"), "{text}");
}

#[test]
fn models_that_cannot_judge_are_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(&golden(), directory.path());
    let tiny = fixture("fixtures/pairrm-tiny");
    let config = |name: &str| std::fs::read_to_string(tiny.join(name)).unwrap();
    let language_model = std::fs::read_to_string(fixture("fixtures/lm/llama/config.json")).unwrap();
    let cases: [(&str, String, bool, &[&str]); 5] = [
        ("pickled", config("config-hf.json"), false, &["pickled", "safetensors"]),
        ("unknown", config("config.json"), true, &["base-public", "config-hf.json"]),
        (
            "absolute",
            config("config-hf.json")
                .replace("\"position_biased_input\": false", "\"position_biased_input\": true"),
            true,
            &["position_biased_input"],
        ),
        (
            "narrow",
            config("config-hf.json")
                .replace("\"intermediate_size\": 128", "\"intermediate_size\": 64"),
            true,
            &["intermediate.dense.weight", "shape"],
        ),
        ("decoder", language_model, true, &["LlamaForCausalLM", "DebertaV2PairRM"]),
    ];
    for (name, config, has_weights, told) in cases {
        let model = directory.path().join(name);
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), config).unwrap();
        std::fs::copy(tiny.join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
        let weights = if has_weights { "model.safetensors" } else { "pytorch_model.bin" };
        std::fs::copy(tiny.join("model.safetensors"), model.join(weights)).unwrap();
        let setting = format!("oracle.pairrm.model='{}'", model.display());
        let output = rank(&file, &[&setting]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{name}: {text}");
        for part in told {
            assert!(text.contains(part), "{name}: `{part}` is not in\n{text}");
        }
    }
}
