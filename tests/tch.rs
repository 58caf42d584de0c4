//! The backend tch, opened as a library: a run on it is a run like any other. Skipped where the library
//! was built without libtorch; docs/development.md says how to build it with.

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use support::{fixture, refused, require_success, small_run, sppo, stdout_of, tch_library};

const CONFIGURATION: i32 = 3;
const RUN_DIRECTORY: i32 = 5;
const PLUGIN: i32 = 6;

/// On one thread: a tiny model has no work for more.
fn with_tch<'a>(command: &'a mut Command, library: &Path) -> &'a mut Command {
    command.arg("--plugin").arg(library).args(["--backend", "tch"]);
    command.args(["--set", "backend.tch.threads=1"])
}

/// Names of all files of a run. Those of TensorBoard hold the time at which they were made.
fn files(run: &Path) -> BTreeSet<PathBuf> {
    let mut pending = vec![run.to_path_buf()];
    let mut files = BTreeSet::new();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if !path.to_string_lossy().contains("tfevents") {
                files.insert(path.strip_prefix(run).unwrap().to_owned());
            }
        }
    }
    files
}

#[test]
fn the_library_conforms() {
    let Some(library) = tch_library() else { return };
    let mut check = sppo();
    check.args(["plugin", "check"]).arg(&library).arg("--model").arg(fixture("fixtures/lm/llama"));
    check.args(["--set", "backend.tch.threads=1"]);
    let text = stdout_of(&mut check);
    assert!(text.lines().count() >= 8 && !text.contains("FAILED"), "{text}");
}

#[test]
fn a_run_makes_the_files_that_it_makes_on_candle() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "candle").output().unwrap());
    let mut run = small_run(directory.path(), "tch");
    require_success(&with_tch(&mut run, &library).output().unwrap());
    let [candle, tch] = ["candle", "tch"].map(|name| files(&directory.path().join(name)));
    assert!(candle.len() > 10);
    assert_eq!(candle, tch);
}

/// `sppo run --resume` of a run that small_run has started, up to an iteration.
fn resume(directory: &Path, iterations: u32) -> Command {
    let mut resume = sppo();
    resume.args(["run", "--resume", "--name", "run", "--json", "--run-directory"]).arg(directory);
    resume.args(["--iterations", &iterations.to_string(), "--allow", "iterations"]);
    resume
}

/// Log-probabilities of the bundled candidates after a checkpoint.
fn scores(checkpoint: &Path, library: Option<&Path>) -> Vec<f64> {
    let directory = tempfile::tempdir().unwrap();
    let responses = directory.path().join("responses.jsonl");
    let line = |text: &str| json!({"prompt": "Why is the sky blue?", "response": text}).to_string();
    let texts = ["Because of Rayleigh.", "Nobody knows!", "It is the sea that it mirrors."];
    fs::write(&responses, texts.map(line).join("\n")).unwrap();
    let mut score = sppo();
    score.arg("score").arg(&responses).arg("--model").arg(checkpoint);
    if let Some(library) = library {
        with_tch(&mut score, library);
    }
    let lines = stdout_of(&mut score);
    let of_line = |line| serde_json::from_str::<Value>(line).unwrap()["log_prob"].as_f64().unwrap();
    lines.lines().map(of_line).collect()
}

#[test]
fn a_run_begun_on_candle_goes_on_with_tch_and_back() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let run = directory.path().join("run");

    let mut changed = resume(directory.path(), 6);
    let told = ["backend.name: \"candle\" -> \"tch\"", "plugin.backend.sha256"];
    refused(with_tch(&mut changed, &library), RUN_DIRECTORY, &told);
    let allow = ["--allow", "backend", "--allow", "plugin.backend"];
    let mut changed = resume(directory.path(), 6);
    require_success(&with_tch(changed.args(allow), &library).output().unwrap());
    let record = fs::read_to_string(run.join("run.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["plugins"][0]["name"], "tch");
    assert_eq!(record["plugins"][0]["sha256"].as_str().map(str::len), Some(64));

    let mut back = resume(directory.path(), 7);
    require_success(&back.args(["--backend", "candle"]).args(allow).output().unwrap());

    // Checkpoints of both mean the same to both.
    for iteration in [2, 6, 7] {
        let checkpoint = run.join(format!("iteration-{iteration}/checkpoint"));
        let (candle, tch) = (scores(&checkpoint, None), scores(&checkpoint, Some(&library)));
        assert_eq!((candle.len(), tch.len()), (3, 3));
        let is_near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4;
        assert!(candle.iter().zip(&tch).all(is_near), "{candle:?} and {tch:?}");
    }
    assert_ne!(
        scores(&run.join("iteration-2/checkpoint"), None),
        scores(&run.join("iteration-6/checkpoint"), None),
        "nothing was learnt with tch"
    );
}

#[test]
fn devices_that_are_not_there_are_refused_in_words() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let refusal = |device: &str, code, told: &[&str]| {
        let mut run = small_run(directory.path(), "run");
        run.args(["--set", &format!("backend.tch.device=\"{device}\"")]);
        refused(with_tch(&mut run, &library), code, &[&["backend `tch`", "hint: "], told].concat());
    };
    refusal("gpu", CONFIGURATION, &["there is no device `gpu`", "\"cuda:N\""]);
    // No machine has so many.
    refusal("cuda:99", PLUGIN, &["`cuda:99` cannot be used"]);
}

#[test]
fn bf16_is_warned_of_where_it_is_slower() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut run = small_run(directory.path(), "run");
    run.args(["--set", "backend.tch.device=cpu", "--set", "backend.tch.data_type=bf16"]);
    let output = with_tch(&mut run, &library).output().unwrap();
    require_success(&output);
    let said = String::from_utf8(output.stderr).unwrap();
    #[cfg(target_arch = "x86_64")]
    assert_ne!(
        std::arch::is_x86_feature_detected!("avx512bf16"),
        said.contains("warning: backend `tch`: this CPU has no bf16 arithmetic"),
        "{said}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn without_libtorch_the_command_that_provides_it_is_told() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("libtch.so");
    fs::copy(&library, &copy).unwrap();
    // Where the plugin looks first.
    let place = directory.path().join("libtorch/lib");
    fs::create_dir_all(&place).unwrap();
    fs::write(place.join("libtorch_cpu.so"), "not a library").unwrap();
    let mut run = small_run(directory.path(), "run");
    let told = ["backend `tch`", "libtorch_cpu.so", "hint: run `backend-tch/install`"];
    refused(with_tch(&mut run, &copy), PLUGIN, &told);
}

#[cfg(target_os = "linux")]
#[test]
fn running_out_of_memory_is_an_error_and_the_run_can_go_on() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    // A context so long that one answer's keys do not fit into the memory that the process may have.
    let (original, model) = (fixture("fixtures/lm/llama"), directory.path().join("model"));
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(&original).unwrap() {
        let file = entry.unwrap().path();
        fs::copy(&file, model.join(file.file_name().unwrap())).unwrap();
    }
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let (short, long) =
        ("\"max_position_embeddings\": 256", "\"max_position_embeddings\": 99999999");
    assert!(config.contains(short));
    fs::write(model.join("config.json"), config.replace(short, long)).unwrap();

    let mut run = small_run(directory.path(), "run");
    // Otherwise it would be refused before anything is loaded.
    with_tch(&mut run, &library).arg("--ignore-memory");
    run.args(["--set", "sampling.max_new_tokens=99999999"]);
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -v 8000000; exec \"$@\"", "sh"]).arg(run.get_program());
    limited
        .args(run.get_args().map(|part| if part == original { model.as_os_str() } else { part }));
    refused(&mut limited, PLUGIN, &["backend `tch`", "libtorch", "allocate", "--resume"]);

    let mut again = resume(directory.path(), 2);
    again.args(["--allow", "sampling", "--set", "sampling.max_new_tokens=24"]);
    require_success(&again.arg("--plugin").arg(&library).output().unwrap());
}

/// Tokens of sampled responses.
fn sampled(model: &Path, library: Option<&Path>, arguments: &[&str]) -> Vec<Vec<u64>> {
    let directory = tempfile::tempdir().unwrap();
    let rollouts = directory.path().join("rollouts.jsonl");
    let mut generate = sppo();
    generate.args(["generate", "--seed", "11", "--model"]).arg(model).args(arguments);
    generate.arg("--rollouts").arg(&rollouts);
    generate.arg("--output").arg(directory.path().join("candidates.jsonl"));
    if let Some(library) = library {
        with_tch(&mut generate, library);
    }
    require_success(&generate.output().unwrap());
    let mut responses = Vec::new();
    for line in fs::read_to_string(&rollouts).unwrap().lines() {
        let rollout: Value = serde_json::from_str(line).unwrap();
        for response in rollout["responses"].as_array().unwrap() {
            let tokens = response["tokens"].as_array().unwrap();
            responses.push(tokens.iter().map(|token| token.as_u64().unwrap()).collect());
        }
    }
    responses
}

/// At least 95 of 100 responses begin with the same 32 tokens on both backends.
fn sample_the_same(model: &Path, library: &Path, arguments: &[&str]) {
    let [candle, tch] = [None, Some(library)].map(|library| sampled(model, library, arguments));
    let begins = |response: &Vec<u64>| response[..response.len().min(32)].to_vec();
    let same = candle.iter().zip(&tch).filter(|(a, b)| begins(a) == begins(b)).count();
    println!("{same} of {} responses begin with the same 32 tokens", candle.len());
    assert!(candle.len() == tch.len() && candle.len() >= 16);
    assert!(100 * same >= 95 * candle.len(), "{same} of {}", candle.len());
}

#[test]
fn both_backends_sample_the_same_tokens() {
    let Some(library) = tch_library() else { return };
    let prompts = fixture("fixtures/prompts-small.jsonl");
    let arguments = [prompts.to_str().unwrap(), "--samples", "8", "--max-new-tokens", "40"];
    sample_the_same(&fixture("fixtures/lm/llama"), &library, &arguments);
}

#[test]
#[ignore = "takes minutes, and needs the default model, which is not in the repository"]
fn both_backends_sample_the_same_tokens_from_the_default_model() {
    let Some(library) = tch_library() else { return };
    let arguments = ["--samples", "2", "--max-new-tokens", "40"];
    sample_the_same(Path::new("smollm2-135m-instruct"), &library, &arguments);
}
