//! Files, flags and directories as other people have them: nothing is lost, changed or cut without a word.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use support::{fixture, read_json, refused, require_success, small_run, sppo, stdout_of};
use tempfile::TempDir;

const CONFIGURATION: i32 = 3;
const INPUT: i32 = 4;

fn model() -> PathBuf {
    fixture("fixtures/lm/llama")
}

fn written(directory: &Path, name: &str, content: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

fn output_of(command: &mut Command) -> Output {
    let output = command.output().expect("the binary starts");
    require_success(&output);
    output
}

const CANDIDATES: &str =
    "{\"prompt\": \"What is 2 + 2?\", \"candidates\": [\"4\", \"It may be 5.\"]}\n";

/// Paths that lead to `out.jsonl` of the directory, which may be there or not.
fn spellings(directory: &Path) -> Vec<PathBuf> {
    let out = directory.join("out.jsonl");
    fs::create_dir_all(directory.join("below")).unwrap();
    let mut paths =
        vec![out.clone(), directory.join("./out.jsonl"), directory.join("below/../out.jsonl")];
    #[cfg(unix)]
    {
        let link = directory.join("link.jsonl");
        std::os::unix::fs::symlink(&out, &link).unwrap();
        std::os::unix::fs::symlink(directory, directory.join("again")).unwrap();
        paths.extend([link, directory.join("again/out.jsonl")]);
    }
    paths
}

#[test]
fn two_outputs_to_one_file_are_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let candidates = written(directory.path(), "in.jsonl", CANDIDATES);
    let out = directory.path().join("out.jsonl");
    for other in spellings(directory.path()) {
        let mut rank = sppo();
        rank.arg("rank").arg(&candidates).arg("--output").arg(&out).arg("--pairs").arg(&other);
        refused(&mut rank, CONFIGURATION, &["--pairs: ", "the same file as --output", "hint: "]);
        assert!(!out.exists(), "{}", other.display());
    }
    fs::write(&out, "kept").unwrap();
    let hard_link = directory.path().join("hard.jsonl");
    fs::hard_link(&out, &hard_link).unwrap();
    let mut rank = sppo();
    rank.arg("rank").arg(&candidates).arg("--output").arg(&out).arg("--pairs").arg(&hard_link);
    refused(&mut rank, CONFIGURATION, &["the same file as --output"]);
    assert_eq!(fs::read_to_string(&out).unwrap(), "kept");

    let mut generate = sppo();
    generate
        .args(["generate", "--output"])
        .arg(&out)
        .arg("--rollouts")
        .arg(&out)
        .arg("--model")
        .arg(model());
    refused(&mut generate, CONFIGURATION, &["--rollouts: ", "the same file as --output"]);
    let game = ["game", "--svg", "gaps.txt", "--csv", "./gaps.txt"];
    refused(
        sppo().args(game).current_dir(&directory),
        CONFIGURATION,
        &["--csv: ", "the same file as --svg"],
    );
    assert!(!directory.path().join("gaps.txt").exists());
}

#[test]
fn an_output_does_not_replace_its_own_input() {
    let directory = tempfile::tempdir().unwrap();
    let rows = "{\"prompt\": \"a\", \"response\": \"b\", \"candidates\": [\"b\", \"c\"]}\n";
    written(directory.path(), "out.jsonl", rows);
    let input = directory.path().join("out.jsonl");
    for output in spellings(directory.path()) {
        for (command, argument) in
            [("rank", "CANDIDATES"), ("generate", "PROMPTS"), ("score", "RESPONSES")]
        {
            let mut command_line = sppo();
            command_line.arg(command).arg(&input).arg("--output").arg(&output);
            if command != "rank" {
                command_line.arg("--model").arg(model());
            }
            let told = ["--output: ", &format!("would replace {argument}"), "hint: "];
            refused(&mut command_line, CONFIGURATION, &told);
            assert_eq!(fs::read_to_string(&input).unwrap(), rows);
        }
    }
    let mut merge = sppo();
    merge.arg("merge").arg(directory.path()).arg("--output").arg(directory.path().join("below/.."));
    refused(
        &mut merge,
        CONFIGURATION,
        &["--output: is the directory of the adapters itself", "hint: "],
    );
}

#[test]
fn a_setting_that_is_a_text_is_one_whatever_it_looks_like() {
    for (assignment, line) in [
        ("name=2024", "name = \"2024\""),
        ("name=1e5", "name = \"1e5\""),
        ("name=0x10", "name = \"0x10\""),
        ("name=1_000", "name = \"1_000\""),
        ("name=true", "name = \"true\""),
        ("name=2024-01-01", "name = \"2024-01-01\""),
        ("name=nan", "name = \"nan\""),
        ("revision=7e1234", "revision = \"7e1234\""),
        ("name=\"2024\"", "name = \"2024\""),
        ("prompts.train=7", "train = \"7\""),
        ("prompts.columns.prompt=1", "prompt = \"1\""),
        ("prompts.columns.prompt=[\"a\", \"b\"]", "\"b\""),
        ("oracle.http.judge.label_first=1", "label_first = \"1\""),
        ("oracle.http.judge.label_first=[1]", "label_first = \"[1]\""),
        ("oracle.http.model=4.5", "model = \"4.5\""),
        ("oracle.http.headers.version=2", "version = \"2\""),
        ("oracle.http.concurrency=2", "concurrency = 2"),
        ("oracle.reward.model=7", "model = \"7\""),
        ("training.eta=7", "eta = 7.0"),
        ("oracle.rules.length.max_words=25", "max_words = 25"),
    ] {
        let shown = stdout_of(sppo().args(["config", "show", "--set", assignment]));
        assert!(
            shown.lines().any(|shown| shown.trim().trim_end_matches(',') == line),
            "{assignment}:\n{shown}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    for (content, told) in [
        ("name = 2024\n", "name: invalid type: integer `2024`, expected text"),
        ("[oracle.http]\nmodel = 4.5\n", "`model` is not a text"),
    ] {
        let file = written(directory.path(), "sppo.toml", content);
        let mut rank = sppo();
        rank.arg("rank").arg(written(directory.path(), "in.jsonl", CANDIDATES));
        rank.args(["--oracle", "http", "--config"]).arg(&file);
        refused(&mut rank, CONFIGURATION, &[told, "put the value in quotes"]);
    }
}

#[test]
fn a_negative_value_is_a_value_and_no_flag() {
    let directory = tempfile::tempdir().unwrap();
    let pairs = written(
        directory.path(),
        "pairs.jsonl",
        "{\"prompt\": \"a\", \"chosen\": \"x\", \"rejected\": \"y\"}\n",
    );
    for (flag, value, key) in [
        ("--eta", "-1", "training.eta"),
        ("--eta", "-inf", "training.eta"),
        ("--eta", "-.5", "training.eta"),
        ("--learning-rate", "-1e-5", "training.learning_rate"),
        ("--warmup-ratio", "-0.1", "training.warmup_ratio"),
        ("--max-gradient-norm", "-1", "training.max_gradient_norm"),
        ("--lora-alpha", "-2", "training.lora"),
    ] {
        for typed in [vec![flag.to_owned(), value.to_owned()], vec![format!("{flag}={value}")]] {
            let mut train = sppo();
            train.arg("train").arg(&pairs).arg("--output").arg(directory.path().join("x"));
            if flag == "--lora-alpha" {
                train.args(["--lora-rank", "2"]);
            }
            refused(train.args(typed), CONFIGURATION, &[key]);
        }
    }
    refused(
        sppo().args(["chat", "Hi", "--temperature", "-1"]),
        CONFIGURATION,
        &["sampling.temperature"],
    );
    for whole in ["--seed", "--iterations", "--samples"] {
        refused(sppo().args(["run", whole, "-1"]), 2, &["invalid value '-1'"]);
    }
}

fn train(pairs: &Path, directory: &TempDir, name: &str) -> Command {
    let mut command = sppo();
    command.arg("train").arg(pairs).args(["--json", "--objective", "dpo", "--model"]).arg(model());
    command.arg("--output").arg(directory.path().join(name));
    command
}

#[test]
fn answers_that_are_cut_are_counted_and_said() {
    let directory = tempfile::tempdir().unwrap();
    let long = "word ".repeat(500);
    let cases: [(&str, Value, &[&str], u64); 5] = [
        ("chosen", json!({"prompt": "a", "chosen": long, "rejected": "y"}), &[], 1),
        ("rejected", json!({"prompt": "a", "chosen": "y", "rejected": long}), &[], 1),
        (
            "tokens",
            json!({"prompt_tokens": [1, 2], "chosen_tokens": vec![3; 300], "rejected_tokens": [4]}),
            &[],
            1,
        ),
        (
            "shorter",
            json!({"prompt": "a", "chosen": "word ".repeat(40), "rejected": "y"}),
            &["--max-length", "30"],
            1,
        ),
        ("whole", json!({"prompt": "a", "chosen": "x", "rejected": "y"}), &[], 0),
    ];
    for (name, row, flags, cut) in cases {
        let pairs = written(directory.path(), "pairs.jsonl", &format!("{row}\n"));
        let output = output_of(train(&pairs, &directory, name).args(flags));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["cut_pairs"], json!(cut), "{name}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.contains("1 of 1 examples are cut"), cut > 0, "{name}: {said}");
        assert_eq!(said.contains("training.max_length"), cut > 0, "{name}: {said}");
    }
    let response = json!({"prompt": "a", "response": long});
    let response = written(directory.path(), "response.jsonl", &response.to_string());
    let mut score = sppo();
    score.arg("score").arg(&response).arg("--model").arg(model());
    refused(&mut score, INPUT, &["response.jsonl:1", "context holds 256"]);

    let mut run = small_run(directory.path(), "cut");
    let output = output_of(run.args(["--set", "training.max_length=40"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["iterations"][1]["cut_examples"].as_u64().unwrap() > 0, "{report}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("examples are cut to fit"));
}

#[test]
fn pairs_of_equal_answers_are_left_out_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let same = "{\"prompt\": \"a\", \"chosen\": \"x\", \"rejected\": \"x\"}\n";
    let good = "{\"prompt\": \"a\", \"chosen\": \"x\", \"rejected\": \"y\"}\n";
    let reversed = "{\"prompt\": \"a\", \"chosen\": \"y\", \"rejected\": \"x\"}\n";
    let pairs = written(directory.path(), "pairs.jsonl", &format!("\n{same}{good}{reversed}"));
    let output = output_of(&mut train(&pairs, &directory, "a"));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["pairs"], &report["skipped_identical"]), (&json!(2), &json!(1)));
    let said = String::from_utf8(output.stderr).unwrap();
    for part in
        ["1 pair whose answers are the same", "line 2", "2 pairs stand there the other way round"]
    {
        assert!(said.contains(part), "`{part}` is not in {said}");
    }
    let kept = ["--set", "selection.keep_degenerate=true"];
    let report: Value =
        serde_json::from_slice(&output_of(train(&pairs, &directory, "b").args(kept)).stdout)
            .unwrap();
    assert_eq!(report["pairs"], json!(3));
    let all = written(directory.path(), "same.jsonl", same);
    refused(&mut train(&all, &directory, "c"), INPUT, &["both answers of every pair are the same"]);
}

/// A run whose paths are relative to the directory that it is started in.
fn relative_run(started_in: &Path, arguments: &[&str]) -> Command {
    let mut command = sppo();
    command.current_dir(started_in).args([
        "run",
        "--json",
        "--name",
        "x",
        "--run-directory",
        "../runs",
    ]);
    command.args(arguments);
    command
}

#[test]
fn a_run_is_resumed_from_another_directory() {
    let directory = tempfile::tempdir().unwrap();
    let (here, elsewhere) = (directory.path().join("a"), directory.path().join("b"));
    for made in [&here, &elsewhere] {
        fs::create_dir(made).unwrap();
    }
    let prompts: Vec<String> =
        (0..4).map(|number| format!("{{\"prompt\": \"Name a colour, {number}.\"}}\n")).collect();
    written(&here, "p.jsonl", &prompts.concat());
    written(&here, "key.txt", "secret");
    fs::create_dir(here.join("model")).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), here.join("model").join(entry.file_name())).unwrap();
    }
    let first = [
        "--prompts",
        "p.jsonl",
        "--held-out",
        "p.jsonl",
        "--model",
        "model",
        "--iterations",
        "1",
        "--samples",
        "2",
        "--max-new-tokens",
        "4",
        "--set",
        "oracle.http.api_key_file=key.txt",
    ];
    output_of(&mut relative_run(&here, &first));
    let record = directory.path().join("runs/x/run.json");
    let recorded = read_json(&record);
    for (pointer, name) in [
        ("/config/prompts/train", "p.jsonl"),
        ("/config/model", "model"),
        ("/config/oracle/http/api_key_file", "key.txt"),
    ] {
        let path = Path::new(recorded.pointer(pointer).and_then(Value::as_str).unwrap());
        assert!(path.is_absolute() && path.ends_with(name), "{}", path.display());
    }
    let more = |iterations| ["--resume", "--iterations", iterations, "--allow", "iterations"];
    output_of(&mut relative_run(&elsewhere, &more("2")));

    // The same file by another path, and texts that are others.
    fs::copy(here.join("p.jsonl"), elsewhere.join("moved.jsonl")).unwrap();
    let moved = [&more("3")[..], &["--prompts", "moved.jsonl"]].concat();
    output_of(&mut relative_run(&elsewhere, &moved));
    written(&elsewhere, "other.jsonl", &prompts.concat().replace("colour", "fish"));
    let other = [&more("4")[..], &["--prompts", "other.jsonl"]].concat();
    refused(&mut relative_run(&elsewhere, &other), 5, &["prompts.sha256"]);

    // As earlier versions recorded them.
    let mut old = read_json(&record);
    for name in ["train", "held_out"] {
        old["config"]["prompts"][name] = json!("p.jsonl");
    }
    old["config"]["oracle"]["http"]["api_key_file"] = json!("key.txt");
    fs::write(&record, old.to_string()).unwrap();
    let told = ["p.jsonl: is not here", "started in another directory", "--prompts"];
    refused(&mut relative_run(&elsewhere, &more("4")), INPUT, &told);
    output_of(&mut relative_run(&here, &more("4")));
}

fn copy_of_model(directory: &Path) -> PathBuf {
    let copy = directory.join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    copy
}

#[test]
fn a_broken_template_is_the_fault_of_the_model_and_not_of_a_row() {
    let directory = tempfile::tempdir().unwrap();
    let copy = copy_of_model(directory.path());
    fs::write(copy.join("chat_template.jinja"), "{%}{{ 1 }}%}").unwrap();
    let row = json!({"prompt": "Hi", "response": "a", "chosen": "a", "rejected": "b"});
    let rows = written(directory.path(), "rows.jsonl", &format!("{row}\n"));
    let out = directory.path().join("out.jsonl");
    for command in ["generate", "score", "train"] {
        let mut run = sppo();
        run.arg(command).arg(&rows).arg("--model").arg(&copy).arg("--output").arg(&out);
        if command == "train" {
            run.args(["--objective", "dpo"]);
        }
        let fault = format!("error: {}: the model's chat template: syntax error", copy.display());
        refused(&mut run, INPUT, &[&fault, "chat_template.jinja"]);
    }
}

/// The program opens a model to check it, and the backend to use it.
#[test]
fn a_warning_about_a_model_is_said_once() {
    let directory = tempfile::tempdir().unwrap();
    let copy = copy_of_model(directory.path());
    let mut tokenizer: Value = read_json(&copy.join("tokenizer.json"));
    let padding = json!({
        "id": 512, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true,
    });
    tokenizer["added_tokens"].as_array_mut().unwrap().push(padding);
    fs::write(copy.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let prompts = written(directory.path(), "prompts.jsonl", "{\"prompt\": \"Hi\"}\n");
    let mut generate = sppo();
    generate.arg("generate").arg(&prompts).arg("--model").arg(&copy);
    generate.args(["--samples", "2", "--max-new-tokens", "1", "--output"]);
    let output = output_of(generate.arg(directory.path().join("out.jsonl")));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said.matches("no row for the padding token").count(), 1, "{said}");
}
