//! `sppo rank --oracle reward` against transformers, on tiny reward models with random weights.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{
    fixture, json_lines, library, numbers, read_json, refused, small_run, sppo, stdout_of,
};

/// How far scores may be off, and what is computed from them.
const TOLERANCE: f64 = 1e-4;

fn model(name: &str) -> PathBuf {
    fixture("fixtures/reward").join(name)
}

/// The golden texts of a model.
fn golden(name: &str) -> Vec<Value> {
    let golden = read_json(&model(name).join("golden.json"));
    golden["texts"].as_array().unwrap().clone()
}

/// The golden texts as lines of candidates.
fn candidates(golden: &[Value], directory: &Path) -> PathBuf {
    let lines = golden.iter().fold(String::new(), |mut lines, case| {
        let line = json!({ "prompt": case["messages"], "candidates": case["answers"] });
        writeln!(lines, "{line}").unwrap();
        lines
    });
    let file = directory.join("candidates.jsonl");
    std::fs::write(&file, lines).unwrap();
    file
}

fn rank(file: &Path, model: &Path, settings: &[&str]) -> Command {
    let mut command = sppo();
    command.arg("rank").arg(file).args(["--oracle", "reward"]);
    command.args(["--set", &format!("oracle.reward.model='{}'", model.display())]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn close(found: f64, expected: f64, what: &dyn std::fmt::Display) {
    assert!((found - expected).abs() <= TOLERANCE, "{what}: {found} is not {expected}");
}

#[test]
fn scores_are_those_of_transformers_and_probabilities_follow_from_them() {
    let directory = tempfile::tempdir().unwrap();
    let library = library("sppo-oracle-reward");
    for name in ["deberta", "llama"] {
        let golden = golden(name);
        let file = candidates(&golden, directory.path());
        let all_at_once = rank(&file, &model(name), &[]);
        let mut one_by_one = rank(&file, &model(name), &["oracle.reward.batch_tokens=1"]);
        one_by_one.arg("--plugin").arg(&library);
        let softly = ["preference.bradley_terry_temperature=2.5", "oracle.reward.backend=candle"];
        let softly = rank(&file, &model(name), &softly);
        for (mut command, temperature) in [(all_at_once, 1.0), (one_by_one, 1.0), (softly, 2.5)] {
            let ranked = json_lines(&stdout_of(&mut command));
            assert_eq!(ranked.len(), golden.len());
            for (number, (line, case)) in ranked.iter().zip(&golden).enumerate() {
                let (scores, expected) = (numbers(&line["rm_scores"]), numbers(&case["scores"]));
                assert_eq!(scores.len(), expected.len());
                for (&found, &expected) in scores.iter().zip(&expected) {
                    close(found, expected, &format!("{name}: score of line {number}"));
                }
                for (i, row) in line["probability"].as_array().unwrap().iter().enumerate() {
                    for (j, found) in numbers(row).into_iter().enumerate() {
                        let difference = (expected[i] - expected[j]) / temperature;
                        let probability = 1.0 / (1.0 + (-difference).exp());
                        close(found, probability, &format!("{name}: P[{i}][{j}] of {number}"));
                    }
                }
                let oracle = line["oracle"].as_str().unwrap();
                assert!(oracle.starts_with("reward ") && oracle.contains("sha256"), "{oracle}");
            }
        }
    }
}

#[test]
fn it_conforms_built_in_or_not() {
    let library = library("sppo-oracle-reward");
    for plugin in ["reward", library.to_str().unwrap()] {
        for name in ["deberta", "llama"] {
            let mut check = sppo();
            let setting = format!("oracle.reward.model='{}'", model(name).display());
            check.args(["plugin", "check", plugin, "--set", &setting]);
            let text = stdout_of(&mut check);
            assert!(text.lines().count() >= 8 && !text.contains("FAILED"), "{name}: {text}");
        }
    }
}

#[test]
fn a_run_trains_with_it_and_goes_on_with_the_same_model_only() {
    let directory = tempfile::tempdir().unwrap();
    let copied = directory.path().join("model");
    std::fs::create_dir(&copied).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        std::fs::copy(model("llama").join(file), copied.join(file)).unwrap();
    }
    let mut run = small_run(directory.path(), "rewarded");
    let setting = format!("oracle.reward.model='{}'", copied.display());
    run.args(["--oracle", "reward", "--set", &setting]);
    let report: Value = serde_json::from_str(&stdout_of(&mut run)).unwrap();
    assert!(report["iterations"][1]["examples"].as_u64().unwrap() > 0, "{report}");
    let identity = std::fs::read_to_string(directory.path().join("rewarded/run.json")).unwrap();
    assert!(identity.contains("sha256"), "{identity}");

    // The chat template is a part of the judge.
    let config = copied.join("tokenizer_config.json");
    let changed = std::fs::read_to_string(&config).unwrap() + "\n";
    std::fs::write(&config, changed).unwrap();
    let mut resume = sppo();
    resume.args(["run", "--resume", "--name", "rewarded", "--json", "--run-directory"]);
    refused(resume.arg(directory.path()), 5, &["oracle"]);
}

#[test]
fn models_that_cannot_judge_are_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(&golden("llama"), directory.path());
    let mut unset = sppo();
    unset.arg("rank").arg(&file).args(["--oracle", "reward"]);
    refused(&mut unset, 3, &["model", "it is not said which model judges", "for instance"]);

    let llama = model("llama");
    let config = std::fs::read_to_string(llama.join("config.json")).unwrap();
    let language_model = fixture("fixtures/lm/llama");
    let ranker = std::fs::read_to_string(fixture("fixtures/pairrm-tiny/config-hf.json")).unwrap();
    type Change<'a> = (&'a str, String, &'a Path, &'a str, &'a [&'a str]);
    let weights = "model.safetensors";
    let cases: [Change<'_>; 6] = [
        (
            "two labels",
            config.replacen("\"LABEL_0\"", "\"LABEL_0\", \"1\": \"LABEL_1\"", 1),
            &llama,
            weights,
            &["2 labels", "num_labels=1"],
        ),
        (
            "a language model",
            std::fs::read_to_string(language_model.join("config.json")).unwrap(),
            &language_model,
            weights,
            &["LlamaForCausalLM", "LlamaForSequenceClassification", "DebertaV2"],
        ),
        ("a ranker", ranker, &llama, weights, &["pairs", "--oracle pairrm"]),
        ("pickled", config.clone(), &llama, "pytorch_model.bin", &["pickled", "safetensors"]),
        (
            "no head",
            std::fs::read_to_string(language_model.join("config.json")).unwrap().replace(
                "\"LlamaForCausalLM\"\n  ]",
                "\"LlamaForSequenceClassification\"\n  ],\n  \"num_labels\": 1",
            ),
            &language_model,
            weights,
            &["score.weight", "do not belong together"],
        ),
        (
            "too short",
            config.replace("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 128"),
            &llama,
            weights,
            &["maximum_tokens", "128"],
        ),
    ];
    for (name, config, source, stored_as, told) in cases {
        let model = directory.path().join(name);
        std::fs::create_dir(&model).unwrap();
        std::fs::write(model.join("config.json"), config).unwrap();
        for text in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(llama.join(text), model.join(text)).unwrap();
        }
        std::fs::copy(source.join(weights), model.join(stored_as)).unwrap();
        let output = rank(&file, &model, &["oracle.reward.maximum_tokens=200"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && output.stdout.is_empty(), "{name}: {text}");
        for part in told {
            assert!(text.contains(part), "{name}: `{part}` is not in\n{text}");
        }
    }

    // Without a template, a decoder's turns cannot be told apart.
    let bare = directory.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    for file in ["config.json", "tokenizer.json", weights] {
        std::fs::copy(llama.join(file), bare.join(file)).unwrap();
    }
    let output = rank(&file, &bare, &[]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("no chat template") && text.contains("chat_template.jinja"), "{text}");
    // And what scores is no judge of pairs.
    let setting = format!("oracle.pairrm.model='{}'", llama.display());
    let mut paired = sppo();
    paired.arg("rank").arg(&file).args(["--oracle", "pairrm", "--set", &setting]);
    let output = paired.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("--oracle reward"), "{text}");
}

/// Preferences that need not be transitive, by the conventions of both of the authors' programs.
#[test]
fn general_preferences_are_those_of_the_formulas() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["gpm-llama", "gpm-gemma2"] {
        let golden = golden(name);
        let file = candidates(&golden, directory.path());
        for preset in ["example", "sppo-pipeline"] {
            let setting = format!("oracle.reward.general_preference.preset={preset}");
            let ranked = json_lines(&stdout_of(&mut rank(&file, &model(name), &[&setting])));
            assert_eq!(ranked.len(), golden.len());
            for (number, (line, case)) in ranked.iter().zip(&golden).enumerate() {
                assert!(line["rm_scores"].is_null(), "{line}");
                let matrix = |value: &Value| -> Vec<Vec<f64>> {
                    value.as_array().unwrap().iter().map(numbers).collect()
                };
                let found = matrix(&line["probability"]);
                let expected = matrix(&case[preset]["probability"]);
                for (i, row) in expected.iter().enumerate() {
                    for (j, &expected) in row.iter().enumerate() {
                        let what = format!("{name}, {preset}: P[{i}][{j}] of line {number}");
                        close(found[i][j], expected, &what);
                        close(found[i][j] + found[j][i], 1.0, &what);
                    }
                }
            }
        }
    }
    // These settings mean nothing to a model that gives scores.
    let file = candidates(&golden("llama"), directory.path());
    let setting = "oracle.reward.general_preference.preset=sppo-pipeline";
    refused(&mut rank(&file, &model("llama"), &[setting]), 3, &["value_head"]);
}
