//! Bad input gets one clear error that names the file, line or key, the cause and the remedy, the
//! documented exit code, and no panic.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{fixture, sppo};
use tempfile::TempDir;

const CONFIGURATION: i32 = 3;
const INPUT: i32 = 4;
const RUN_DIRECTORY: i32 = 5;

/// Runs a command that must be refused with this code, once, in these words.
fn refused(command: &mut Command, code: i32, words: &[&str]) -> String {
    let output = command.output().expect("the binary starts");
    let said = String::from_utf8(output.stderr).expect("UTF-8 on standard error");
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{said}");
    assert!(output.stdout.is_empty(), "data on standard output: {command:?}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(
        said.lines().filter(|line| line.starts_with("error: ")).count(),
        1,
        "{command:?}\n{said}"
    );
    for word in words {
        assert!(said.contains(word), "{command:?}: `{word}` is not in\n{said}");
    }
    said
}

/// As [`refused`], and the error says what to do.
fn refused_with_hint(command: &mut Command, code: i32, words: &[&str]) {
    let said = refused(command, code, words);
    assert!(said.contains("hint: "), "{command:?}\n{said}");
}

fn model() -> PathBuf {
    fixture("fixtures/lm/llama")
}

fn run(directory: &Path) -> Command {
    let mut command = sppo();
    command.args(["run", "--run-directory"]).arg(directory.join("runs"));
    command
}

fn generate(prompts: &Path, model: &Path) -> Command {
    let mut command = sppo();
    command.arg("generate").arg(prompts).args(["--max-new-tokens", "4", "--model"]).arg(model);
    command
}

fn written(directory: &TempDir, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    fs::write(&path, content).unwrap();
    path
}

/// The tiny model, to be damaged.
fn model_copy(directory: &TempDir) -> PathBuf {
    let copy = directory.path().join("model");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(model()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    copy
}

fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut value);
    fs::write(file, value.to_string()).unwrap();
}

fn one_prompt(directory: &TempDir) -> PathBuf {
    written(directory, "one.jsonl", "{\"prompt\": \"Name a colour.\"}\n")
}

#[test]
fn prompts_that_cannot_be_read_are_named_with_their_line() {
    let directory = tempfile::tempdir().unwrap();
    let good = "{\"prompt\": \"a\"}\n";
    let cases: [(&str, Vec<u8>, &[&str]); 8] = [
        ("empty.jsonl", Vec::new(), &["empty.jsonl", "hint: "]),
        (
            "latin.jsonl",
            [good.as_bytes(), b"{\"prompt\": \"caf\xe9\"}"].concat(),
            &["latin.jsonl:2: not UTF-8", "hint: "],
        ),
        (
            "broken.jsonl",
            format!("{good}\n{{\"prompt\": \"b\n").into(),
            &["broken.jsonl:3: not a JSON object", "hint: "],
        ),
        (
            "column.jsonl",
            format!("{good}{{\"question\": \"b\"}}").into(),
            &["column.jsonl:2", "prompt"],
        ),
        ("number.jsonl", "{\"prompt\": 7}".into(), &["number.jsonl:1", "prompt"]),
        (
            "turn.jsonl",
            json!({"messages": [{"role": "assistant", "content": "x"}]}).to_string().into(),
            &["turn.jsonl:1"],
        ),
        ("prompts.txt", good.into(), &["prompts.txt", ".jsonl", "hint: "]),
        ("not.parquet", "PAR1 this is not".into(), &["not.parquet"]),
    ];
    for (name, content, words) in cases {
        let file = written(&directory, name, content);
        refused(&mut generate(&file, &model()), INPUT, words);
        let mut run = run(directory.path());
        refused(run.arg("--prompts").arg(&file).arg("--model").arg(model()), INPUT, words);
    }
    let missing = directory.path().join("nowhere.jsonl");
    refused_with_hint(&mut generate(&missing, &model()), INPUT, &["nowhere.jsonl"]);
    assert!(!directory.path().join("runs").exists());
}

#[test]
fn a_prompt_longer_than_the_context_is_named_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let long = "many words ".repeat(300);
    let file = written(
        &directory,
        "long.jsonl",
        format!("{{\"prompt\": \"a\"}}\n\n{}\n", json!({ "prompt": long })),
    );
    let words = ["long.jsonl:3: this prompt has", "context holds 256"];
    refused_with_hint(&mut generate(&file, &model()), INPUT, &words);
    let mut run = run(directory.path());
    refused_with_hint(run.arg("--held-out").arg(&file).arg("--model").arg(model()), INPUT, &words);
    let mut chat = sppo();
    refused(chat.args(["chat", &long, "--model"]).arg(model()), INPUT, &["256"]);
}

#[test]
fn a_prompt_that_leaves_no_room_for_an_answer_to_train_on_is_named_with_its_line() {
    let directory = tempfile::tempdir().unwrap();
    let long = "many words ".repeat(30);
    let file = written(
        &directory,
        "long.jsonl",
        format!("{{\"prompt\": \"a\"}}\n\n{}\n", json!({ "prompt": long })),
    );
    let mut run = run(directory.path());
    run.arg("--prompts").arg(&file).args(["--iterations", "1", "--max-length", "50", "--model"]);
    let words = ["long.jsonl:3: this prompt has", "`training.max_length` (50)"];
    refused_with_hint(run.arg(model()), INPUT, &words);
}

#[test]
fn fewer_prompts_than_iterations_are_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let mut run = run(directory.path());
    run.arg("--prompts").arg(one_prompt(&directory)).arg("--model").arg(model());
    let words = ["1 prompt cannot be divided among 3 iterations"];
    refused_with_hint(&mut run, CONFIGURATION, &words);
    assert!(!directory.path().join("runs").exists());
}

#[test]
fn candidates_pairs_and_responses_are_named_with_their_line() {
    let directory = tempfile::tempdir().unwrap();
    let one = written(&directory, "one.jsonl", "{\"prompt\": \"a\", \"candidates\": [\"x\"]}");
    refused_with_hint(sppo().arg("rank").arg(&one), INPUT, &["one.jsonl:1", "at least two"]);

    let train = |file: &Path, objective: &str| {
        let mut command = sppo();
        command
            .arg("train")
            .arg(file)
            .args(["--objective", objective, "--output"])
            .arg(directory.path().join("trained"))
            .arg("--model")
            .arg(model());
        command
    };
    let pair = "{\"prompt\": \"a\", \"chosen\": \"x\", \"rejected\": \"y\"}\n";
    let file = written(&directory, "pairs.jsonl", pair);
    refused_with_hint(&mut train(&file, "sppo"), INPUT, &["pairs.jsonl:1", "`chosen_probs_win`"]);
    let probability = pair.replace('}', ", \"chosen_probs\": 1.5}");
    let file = written(&directory, "wrong.jsonl", format!("{pair}{probability}"));
    refused(&mut train(&file, "dpo"), INPUT, &["wrong.jsonl:2", "1.5"]);
    let file = written(&directory, "half.jsonl", "{\"prompt\": \"a\", \"chosen\": \"x\"}");
    refused(&mut train(&file, "dpo"), INPUT, &["half.jsonl:1", "`rejected`"]);
    let tokens = json!({"prompt_tokens": [1, 2], "chosen_tokens": [3], "rejected_tokens": [99999]});
    let file = written(&directory, "tokens.jsonl", tokens.to_string());
    refused_with_hint(&mut train(&file, "dpo"), INPUT, &["tokens.jsonl:1", "99999", "vocabulary"]);

    let score = |file: &Path| {
        let mut command = sppo();
        command.arg("score").arg(file).arg("--model").arg(model());
        command
    };
    let file = written(&directory, "response.jsonl", "{\"prompt\": \"a\"}");
    refused(&mut score(&file), INPUT, &["response.jsonl:1", "`response`"]);
    let long = json!({"prompt_tokens": [1], "response_tokens": vec![2; 300]});
    let file = written(&directory, "long.jsonl", long.to_string());
    refused(&mut score(&file), INPUT, &["long.jsonl:1", "301 tokens", "256"]);
}

#[test]
fn senseless_settings_are_named_with_their_flag_or_file() {
    let directory = tempfile::tempdir().unwrap();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["--samples", "1"], &["--samples", "samples_per_prompt", "at least 2"]),
        (&["--set", "training.lerning_rate=1"], &["--set", "training.learning_rate"]),
        (&["--eta", "nan"], &["--eta", "training.eta"]),
        (&["--oracle", "pairrm9"], &["pairrm9", "rules"]),
        (&["--backend", "torch"], &["torch", "candle"]),
        (&["--set", "oracle.rules.length.max_wrods=3"], &["max_wrods"]),
    ];
    for (arguments, words) in cases {
        let mut command = run(directory.path());
        refused(command.args(arguments).arg("--model").arg(model()), CONFIGURATION, words);
    }
    let file = written(&directory, "sppo.toml", "[training]\neta = \"many\"\n");
    let mut command = run(directory.path());
    refused(command.arg("--config").arg(&file), CONFIGURATION, &["sppo.toml", "training.eta"]);
    let file = written(&directory, "broken.toml", "seed = 1\n[training\n");
    let mut command = run(directory.path());
    refused(command.arg("--config").arg(&file), CONFIGURATION, &["broken.toml:2"]);
    refused_with_hint(sppo().args(["game", "--size", "4"]), CONFIGURATION, &["--size", "odd"]);
    refused_with_hint(sppo().args(["plugin", "info", "x"]), CONFIGURATION, &["rules"]);
    let file = written(&directory, "game.csv", "0.5,0.9\n0.2,0.5\n");
    refused(sppo().args(["game", "--matrix"]).arg(&file), INPUT, &["game.csv:1"]);
    assert!(!directory.path().join("runs").exists());
}

#[test]
fn models_of_unknown_kind_or_damaged_are_refused() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage, &[&str]); 5] = [
        (
            "another architecture",
            |model| {
                edit_json(&model.join("config.json"), |config| {
                    config["architectures"] = json!(["BloomForCausalLM"]);
                    config["model_type"] = json!("bloom");
                });
            },
            &["bloom"],
        ),
        (
            "truncated weights",
            |model| {
                let file = model.join("model.safetensors");
                let bytes = fs::read(&file).unwrap();
                fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
            },
            &["model.safetensors"],
        ),
        (
            "weights of another shape",
            |model| {
                edit_json(&model.join("config.json"), |config| config["vocab_size"] = json!(300));
            },
            &["model"],
        ),
        (
            "a tokenizer of another model",
            |model| {
                edit_json(&model.join("tokenizer.json"), |tokenizer| {
                    let mut token = tokenizer["added_tokens"][0].clone();
                    token["id"] = json!(600);
                    token["content"] = json!("<|beyond|>");
                    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
                });
            },
            &["model", "512"],
        ),
        (
            "no tokenizer",
            |model| fs::remove_file(model.join("tokenizer.json")).unwrap(),
            &["tokenizer.json"],
        ),
    ];
    for (what, damage, words) in cases {
        let directory = tempfile::tempdir().unwrap();
        let damaged = model_copy(&directory);
        damage(&damaged);
        let prompts = one_prompt(&directory);
        println!("{what}");
        refused(&mut generate(&prompts, &damaged), INPUT, words);
        refused(run(directory.path()).arg("--model").arg(&damaged), INPUT, words);
        refused(sppo().args(["chat", "a", "--model"]).arg(&damaged), INPUT, words);
    }
    let directory = tempfile::tempdir().unwrap();
    let gguf = written(&directory, "model.gguf", b"GGUF\x03\0\0\0\x05\0\0\0\0\0\0\0");
    refused(&mut generate(&one_prompt(&directory), &gguf), INPUT, &["model.gguf"]);
}

#[test]
fn chat_templates_that_loop_or_reach_out_are_stopped() {
    for (template, word) in [
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
            "template",
        ),
        ("{{ open_file('/etc/passwd') }}", "open_file"),
        ("{% include '/etc/passwd' %}", "include"),
        ("{{ raise_exception('no such role') }}", "no such role"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let model = model_copy(&directory);
        edit_json(&model.join("tokenizer_config.json"), |config| {
            config["chat_template"] = json!(template);
        });
        refused(&mut generate(&one_prompt(&directory), &model), INPUT, &[word]);
    }
}

#[test]
fn models_that_are_not_there_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let prompts = one_prompt(&directory);
    let here = |model: &str| {
        let mut command = generate(&prompts, Path::new(model));
        command
            .env("HF_HOME", directory.path())
            .env("SPPO_CACHE", directory.path())
            // Nothing listens there: the network is down.
            .env("HF_ENDPOINT", "http://127.0.0.1:9");
        command
    };
    refused_with_hint(&mut here("smollm"), INPUT, &["smollm"]);
    refused_with_hint(&mut here("./nowhere/model"), INPUT, &["nowhere"]);
    refused_with_hint(&mut here("org/name"), INPUT, &["org/name", "cannot be reached"]);
    refused_with_hint(here("org/name").arg("--offline"), INPUT, &["org/name", "offline"]);
    refused_with_hint(
        here("smollm2-135m-instruct").arg("--offline"),
        INPUT,
        &["smollm2-135m-instruct", "offline"],
    );
}

#[test]
fn run_directories_that_cannot_be_used_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = written(&directory, "file", "");
    let mut blocked = run(&file);
    refused_with_hint(blocked.arg("--model").arg(model()), RUN_DIRECTORY, &["file/runs"]);

    let mut resume = run(directory.path());
    refused_with_hint(resume.args(["--resume", "--name", "x"]), RUN_DIRECTORY, &["runs/x"]);
    refused_with_hint(run(directory.path()).arg("--resume"), RUN_DIRECTORY, &["no run to resume"]);

    fs::create_dir_all(directory.path().join("runs/mine")).unwrap();
    fs::write(directory.path().join("runs/mine/thesis.txt"), "").unwrap();
    let mut foreign = run(directory.path());
    refused_with_hint(
        foreign.args(["--name", "mine", "--model"]).arg(model()),
        RUN_DIRECTORY,
        &["runs/mine"],
    );

    // A run that was killed before it had recorded anything starts over.
    fs::create_dir_all(directory.path().join("runs/begun")).unwrap();
    fs::write(directory.path().join("runs/begun/run.lock"), "").unwrap();
    let mut begun = support::small_run(&directory.path().join("runs"), "begun");
    support::require_success(&begun.arg("--resume").output().unwrap());

    let mut first = support::small_run(&directory.path().join("runs"), "taken");
    support::require_success(&first.output().unwrap());
    let mut second = support::small_run(&directory.path().join("runs"), "taken");
    refused_with_hint(&mut second, RUN_DIRECTORY, &["runs/taken", "already a run"]);

    let pairs = written(
        &directory,
        "pairs.jsonl",
        "{\"prompt\": \"a\", \"chosen\": \"x\", \"rejected\": \"y\"}\n",
    );
    let mut train = sppo();
    train.arg("train").arg(&pairs).args(["--objective", "dpo", "--output"]).arg(model());
    refused_with_hint(&mut train, RUN_DIRECTORY, &["already holds"]);
}

#[test]
fn output_that_cannot_be_written_is_refused_before_the_work() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = generate(&one_prompt(&directory), &model());
    let nowhere = directory.path().join("no/such/directory/c.jsonl");
    refused_with_hint(command.arg("--output").arg(&nowhere), INPUT, &["c.jsonl"]);
    let mut command = generate(&one_prompt(&directory), &model());
    refused_with_hint(command.args(["--output", "candidates.csv"]), INPUT, &["candidates.csv"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told_apart() {
    refused_with_hint(
        sppo().args(["game", "--iterations", "10", "--csv", "/dev/full"]),
        INPUT,
        &["/dev/full", "No space left"],
    );
}
