//! `--oracle judge`: tiny language models with random weights as judges, against transformers, and the policy that
//! judges itself.

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{
    fixture, json_lines, kill_after, library, numbers, read_json, refused, require_success,
    small_run, sppo, stdout_of,
};

/// Largest allowed difference of a probability.
const TOLERANCE: f64 = 1e-4;

const FAMILIES: [&str; 2] = ["llama", "gemma2"];

/// Labels mean nothing to a random model.
const ANY_LABELS: &str = "oracle.judge.min_label_probability=0";

fn model(name: &str) -> String {
    format!("oracle.judge.model='{}'", fixture("fixtures/lm").join(name).display())
}

/// The settings of the golden chats.
fn chat() -> [String; 2] {
    let question = fixture("fixtures/judge/question.jinja");
    let template = format!("oracle.judge.template_file='{}'", question.display());
    [template, "oracle.judge.system=''".into()]
}

fn with(mut command: Command, settings: &[&str]) -> Command {
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn rank(file: &Path, settings: &[&str]) -> Command {
    let mut command = sppo();
    command.arg("rank").arg(file).args(["--oracle", "judge"]);
    with(command, settings)
}

/// Golden cases as lines of candidates, in their order or the other way round.
fn candidates(cases: &[Value], is_reversed: bool, directory: &Path) -> PathBuf {
    let lines = cases.iter().fold(String::new(), |mut lines, case| {
        let mut answers = case["answers"].as_array().unwrap().clone();
        if is_reversed {
            answers.reverse();
        }
        let line = json!({ "prompt": case["messages"], "candidates": answers });
        writeln!(lines, "{line}").unwrap();
        lines
    });
    let file = directory.join(format!("candidates-{is_reversed}.jsonl"));
    std::fs::write(&file, lines).unwrap();
    file
}

fn matrix(value: &Value) -> Vec<Vec<f64>> {
    value.as_array().unwrap().iter().map(numbers).collect()
}

/// The matrix of both orders without its diagonal, and without pairs that read the same.
fn in_order(value: &Value) -> Vec<Vec<f64>> {
    let rows = value.as_array().unwrap().iter();
    let told = |row: &Value| row.as_array().unwrap().iter().filter_map(Value::as_f64).collect();
    let told = rows.map(told).map(|row: Vec<f64>| row.into_iter().filter(|one| *one != 0.5));
    told.map(Iterator::collect).collect()
}

fn close(found: &[Vec<f64>], expected: &[Vec<f64>], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
        for (j, (found, expected)) in found.iter().zip(expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(difference <= TOLERANCE, "{what}: P[{i}][{j}]: {found} is not {expected}");
        }
    }
}

/// Both presets, packed and question by question, from the program and from a library; turned round, the
/// candidates swap their probabilities.
#[test]
fn verdicts_are_those_of_transformers() {
    let directory = tempfile::tempdir().unwrap();
    let library = library("sppo-oracle-judge");
    for name in FAMILIES {
        let golden = read_json(&fixture("fixtures/judge").join(format!("{name}.json")));
        let [template, system] = chat();
        let pair = vec!["oracle.judge.preset=pair-preference"];
        for (form, settings) in [("pair_preference", pair), ("chat", vec![&*template, &*system])] {
            let cases = golden[form].as_array().unwrap();
            let model = model(name);
            let settings = [&[&*model, ANY_LABELS][..], &settings].concat();
            let one_by_one = [&settings[..], &["oracle.judge.batch_tokens=1"]].concat();
            let file = candidates(cases, false, directory.path());
            let mut from_library = rank(&file, &one_by_one);
            from_library.arg("--plugin").arg(&library);
            for mut command in [rank(&file, &settings), from_library] {
                let ranked = json_lines(&stdout_of(&mut command));
                assert_eq!(ranked.len(), cases.len());
                for (number, (line, case)) in ranked.iter().zip(cases).enumerate() {
                    let what = format!("{name}, {form}, line {number}");
                    close(&matrix(&line["probability"]), &matrix(&case["probability"]), &what);
                    close(&in_order(&line["read_first"]), &in_order(&case["shown_first"]), &what);
                    assert!(line["oracle"].as_str().unwrap().starts_with("judge "), "{line}");
                }
            }
            let turned = candidates(cases, true, directory.path());
            let ranked = json_lines(&stdout_of(&mut rank(&turned, &settings)));
            for (line, case) in ranked.iter().zip(cases) {
                let mut expected = matrix(&case["probability"]);
                expected.reverse();
                expected.iter_mut().for_each(|row| row.reverse());
                close(&matrix(&line["probability"]), &expected, "turned round");
            }
        }
    }
}

#[test]
fn it_conforms_built_in_or_not() {
    let library = library("sppo-oracle-judge");
    let [template, system] = chat();
    for plugin in ["judge", library.to_str().unwrap()] {
        let mut check = sppo();
        check.args(["plugin", "check", plugin]);
        let text = stdout_of(&mut with(check, &[&model("llama"), ANY_LABELS, &template, &system]));
        assert!(text.lines().count() >= 8 && !text.contains("FAILED"), "{text}");
    }
}

/// A small run that the policy, or the starting model, judges.
fn judged_run(directory: &Path, name: &str, judge: &str) -> Command {
    let [template, system] = chat();
    let model = format!("oracle.judge.model={judge}");
    let mut command = small_run(directory, name);
    command.args(["--oracle", "judge"]);
    with(command, &[&model, ANY_LABELS, &template, &system])
}

fn file(directory: &Path, run: &str, name: &str) -> Vec<u8> {
    let path = directory.join(run).join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_policy_judges_itself_as_it_is_in_each_iteration() {
    let directory = tempfile::tempdir().unwrap();
    for judge in ["policy", "start"] {
        require_success(&judged_run(directory.path(), judge, judge).output().unwrap());
    }
    let is_same = |name: &str| {
        let [policy, start] = ["policy", "start"].map(|run| file(directory.path(), run, name));
        policy == start
    };
    // The policy of the first iteration is the starting model, that of the second is not.
    assert!(is_same("iteration-1/generated.parquet"));
    assert!(is_same("iteration-1/checkpoint/model.safetensors"));
    assert!(!is_same("iteration-2/generated.parquet"));
    assert!(!is_same("iteration-2/checkpoint/model.safetensors"));
    // About some pairs only.
    let fewer = judged_run(directory.path(), "fewer", "policy");
    require_success(&with(fewer, &["preference.pairs=circular"]).output().unwrap());
}

#[test]
fn a_run_that_judges_itself_is_killed_and_ends_with_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    require_success(&judged_run(directory.path(), "whole", "policy").output().unwrap());
    let whole = started.elapsed();
    for (number, share) in [0.35, 0.5, 0.65, 0.8].into_iter().enumerate() {
        let name = format!("killed-{number}");
        let begin = || judged_run(directory.path(), &name, "policy");
        let _ = kill_after(&mut begin(), whole.mul_f64(share));
        let has_begun = directory.path().join(&name).exists();
        let mut go_on = begin();
        if has_begun {
            go_on.arg("--resume");
        }
        require_success(&go_on.output().unwrap());
        for name_of_file in
            ["iteration-2/checkpoint/model.safetensors", "iteration-2/held-out-duels.parquet"]
        {
            let [found, expected] =
                [&*name, "whole"].map(|run| file(directory.path(), run, name_of_file));
            assert!(found == expected, "{name}: {name_of_file} differs");
        }
    }
}

#[test]
fn a_plan_counts_its_questions_and_names_what_is_wrong() {
    let directory = tempfile::tempdir().unwrap();
    let mut plan = judged_run(directory.path(), "plan", "policy");
    let plan: Value = serde_json::from_str(&stdout_of(plan.arg("--dry-run"))).unwrap();
    assert!(plan["expected_requests"].is_null(), "{plan}");
    let held_out = plan["held_out_prompts"].as_u64().unwrap();
    // Three answers in both orders; the answers of iteration t meet those of t earlier models.
    let expected = 6 * plan["training_prompts"].as_u64().unwrap() + 2 * held_out * (1 + 2);
    assert_eq!(plan["expected_sequences"].as_u64(), Some(expected));

    // Labels have next to no probability in a random model.
    let strict = judged_run(directory.path(), "strict", "policy");
    let mut strict = with(strict, &["oracle.judge.min_label_probability=0.5"]);
    refused(&mut strict, 6, &["verdicts are invalid", "max_invalid_share", "answer_prefix"]);
    let golden = read_json(&fixture("fixtures/judge/llama.json"));
    let file = candidates(golden["chat"].as_array().unwrap(), false, directory.path());
    refused(&mut rank(&file, &[]), 3, &["no policy is trained here", "name the model"]);
}
