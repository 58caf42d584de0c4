//! Runs of several processes on the backend tch, over torch.distributed's process group. Skipped where the
//! library was built without libtorch.

#[path = "support/rollout_server.rs"]
mod rollout_server;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rollout_server::{Behaviour, RolloutServer};
use safetensors::SafeTensors;
use serde_json::Value;
use support::{Running, Said, fixture, refused, require_success, small_run, sppo};
use support::{stdout_of, tch_library};

const CONFIGURATION: i32 = 3;
const PLUGIN: i32 = 6;
const CANCELLED: i32 = 130;

/// Patience of the ranks with each other, in seconds.
const TIMEOUT: u64 = 5;

/// A small run on tch, of so many processes with one thread each, that trains by plain gradient descent.
fn team_run(directory: &Path, name: &str, library: &Path, processes: usize) -> Command {
    let mut run = short_team_run(directory, name, library, processes);
    run.args(["--optimizer", "sgd"]);
    run
}

/// As [`team_run`], with the optimiser still to be named.
fn short_team_run(directory: &Path, name: &str, library: &Path, processes: usize) -> Command {
    let mut run = small_run(directory, name);
    on_tch(&mut run, library, processes);
    run.args(["--learning-rate", "0.01", "--max-gradient-norm", "1"]);
    run.args(["--set", "training.micro_batch_tokens=128"]);
    run.args(["--set", "training.reference_log_probs=\"recomputed\""]);
    run
}

fn on_tch(command: &mut Command, library: &Path, processes: usize) {
    command.arg("--plugin").arg(library).args(["--backend", "tch"]);
    command.args(["--set", "backend.tch.threads=1", "--set", "backend.tch.device=\"cpu\""]);
    command.args(["--set", &format!("backend.tch.collective_timeout_seconds={TIMEOUT}")]);
    if processes > 1 {
        command.args(["--processes", &processes.to_string()]);
    }
}

/// The files of an iteration that hold rollouts, judgments and training sets.
fn made_of_prompts(run: &Path, iteration: u32) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = run.join(format!("iteration-{iteration}"));
    let mut found = Vec::new();
    let mut pending = vec![directory.clone()];
    while let Some(inner) = pending.pop() {
        for entry in fs::read_dir(inner).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&directory).unwrap().to_path_buf();
            let text = name.to_string_lossy().into_owned();
            if path.is_dir() {
                pending.push(path);
            } else if ["rollouts", "judgments", "training-set"].iter().any(|of| text.contains(of)) {
                found.push((name, fs::read(path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn checkpoint(run: &Path, iteration: u32) -> Vec<u8> {
    let name = format!("iteration-{iteration}/checkpoint/model.safetensors");
    fs::read(run.join(name)).unwrap()
}

fn numbers(weights: &[u8]) -> Vec<f64> {
    let tensors = SafeTensors::deserialize(weights).unwrap();
    let mut names = tensors.names();
    names.sort();
    let values = |name: &str| tensors.tensor(name).unwrap().data().to_vec();
    names
        .into_iter()
        .flat_map(values)
        .collect::<Vec<u8>>()
        .chunks_exact(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
        .collect()
}

/// Difference of two checkpoints, as a share of the move from the start; both are lengths of vectors.
fn difference(one: &[u8], other: &[u8], start: &[u8]) -> f64 {
    let [one, other, start] = [one, other, start].map(numbers);
    let distance =
        |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let moved = distance(&one, &start);
    assert!(moved > 0.0, "nothing was trained");
    distance(&one, &other) / moved
}

#[test]
fn two_and_three_ranks_make_to_the_byte_what_one_process_makes() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let start = fs::read(fixture("fixtures/lm/llama/model.safetensors")).unwrap();
    for data_type in ["f32", "bf16"] {
        let run = |processes: usize, name: &str| {
            let name = format!("{data_type}-{name}");
            let mut run = team_run(directory.path(), &name, &library, processes);
            run.args(["--set", &format!("backend.tch.data_type=\"{data_type}\"")]);
            require_success(&run.output().unwrap());
            directory.path().join(name)
        };
        let alone = run(1, "alone");
        let expected = made_of_prompts(&alone, 1);
        assert!(expected.len() >= 3, "{expected:?}");
        for processes in [2, 3] {
            let team = run(processes, &format!("team-{processes}"));
            let made = made_of_prompts(&team, 1);
            for ((name, bytes), (expected_name, expected)) in made.iter().zip(&expected) {
                assert_eq!(name, expected_name);
                assert!(bytes == expected, "{data_type}, {processes} ranks: {}", name.display());
            }
            assert_eq!(made.len(), expected.len());
            if data_type == "f32" {
                let [team, alone] = [&team, &alone].map(|run| checkpoint(run, 1));
                let difference = difference(&team, &alone, &start);
                assert!(difference < 1e-4, "{processes} ranks: {difference}");
            }
            let again = run(processes, &format!("again-{processes}"));
            assert!(
                checkpoint(&again, 2) == checkpoint(&team, 2),
                "twice the same is not the same"
            );
        }
    }
}

#[test]
fn rank_0_asks_the_servers_and_all_ranks_train() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let server = RolloutServer::start(&fixture("fixtures/lm/llama"), Behaviour::default());
    let run = |processes: usize| {
        let name = format!("of-{processes}");
        let mut run = team_run(directory.path(), &name, &library, processes);
        let endpoints = format!("sampler.vllm.endpoints=[\"{}\"]", server.url());
        require_success(&run.args(["--sampler", "vllm", "--set", &endpoints]).output().unwrap());
        directory.path().join(name)
    };
    let (alone, team) = (run(1), run(2));
    assert_eq!(made_of_prompts(&team, 1), made_of_prompts(&alone, 1));
    let [alone, team] = [alone, team].map(|run| checkpoint(&run, 1));
    let start = fs::read(fixture("fixtures/lm/llama/model.safetensors")).unwrap();
    assert!(difference(&team, &alone, &start) < 1e-4);
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, processes| team_run(directory.path(), name, &library, processes);
    require_success(&run("alone", 1).output().unwrap());
    let mut first = Running::start(&mut run("moved", 3));
    let trained = directory.path().join("moved/iteration-1/checkpoint/model.safetensors");
    first.wait_until(|| trained.exists());
    drop(first);
    require_success(&run("moved", 2).arg("--resume").output().unwrap());
    let [alone, moved] = ["alone", "moved"].map(|name| directory.path().join(name));
    assert_eq!(made_of_prompts(&moved, 1), made_of_prompts(&alone, 1));
    let start = fs::read(fixture("fixtures/lm/llama/model.safetensors")).unwrap();
    let [alone, moved] = [&alone, &moved].map(|run| checkpoint(run, 1));
    assert!(difference(&moved, &alone, &start) < 1e-4);
}

/// A small run of several processes that divide what `sharding` says, with an optimiser that has state.
fn sharded_run(
    directory: &Path,
    name: &str,
    library: &Path,
    (processes, sharding, data_type): (usize, &str, &str),
) -> Command {
    let mut run = short_team_run(directory, name, library, processes);
    run.args(["--optimizer", "adamw", "--sharding", sharding]);
    run.args(["--set", &format!("backend.tch.data_type=\"{data_type}\"")]);
    run
}

#[test]
fn a_divided_training_state_makes_the_bytes_of_a_whole_one() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    for (processes, data_type) in [(2, "f32"), (3, "bf16"), (4, "f32")] {
        let run = |sharding: &str| {
            let name = format!("{processes}-{data_type}-{sharding}");
            let setting = (processes, sharding, data_type);
            let mut run = sharded_run(directory.path(), &name, &library, setting);
            require_success(&run.output().unwrap());
            checkpoint(&directory.path().join(name), 2)
        };
        let whole = run("none");
        for sharding in ["optimizer", "gradients"] {
            assert!(run(sharding) == whole, "{processes} ranks, {data_type}, {sharding}");
        }
    }
}

#[test]
fn adapters_are_divided_too() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let run = |sharding: &str| {
        let mut run = sharded_run(directory.path(), sharding, &library, (2, sharding, "bf16"));
        run.args(["--lora-rank", "4", "--lora-dropout", "0.1"]);
        require_success(&run.output().unwrap());
        let checkpoint = directory.path().join(sharding).join("iteration-2/checkpoint");
        fs::read(checkpoint.join("adapter_model.safetensors")).unwrap()
    };
    assert!(run("gradients") == run("none"));
}

#[test]
fn a_run_goes_on_with_another_division_to_the_same_bytes() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, sharding: &str| {
        sharded_run(directory.path(), name, &library, (2, sharding, "bf16"))
    };
    require_success(&run("whole", "none").output().unwrap());
    let mut first = Running::start(&mut run("moved", "gradients"));
    let state = directory.path().join("moved/iteration-1/training-state");
    first.wait_until(|| state.exists());
    drop(first);
    require_success(&run("moved", "optimizer").arg("--resume").output().unwrap());
    let [whole, moved] = ["whole", "moved"].map(|name| checkpoint(&directory.path().join(name), 2));
    assert!(moved == whole);
}

#[test]
fn the_predicted_memory_is_that_of_a_rank_with_its_part() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let plan = |sharding: &str, data_type: &str| {
        let mut run = sharded_run(directory.path(), "plan", &library, (2, sharding, data_type));
        let plan: Value = serde_json::from_str(&stdout_of(run.arg("--dry-run"))).unwrap();
        let training = plan["memory"]["estimate"]["training"].clone();
        let [weights, state] =
            ["weights", "optimizer_state"].map(|part| training[part].as_f64().unwrap());
        (plan["memory"]["sharding"].as_str().unwrap().to_string(), weights, state)
    };
    for data_type in ["f32", "bf16"] {
        let (_, weights, state) = plan("none", data_type);
        for sharding in ["optimizer", "gradients"] {
            let (_, of_rank, state_of_rank) = plan(sharding, data_type);
            let parts = [of_rank / weights, state_of_rank / state];
            assert!((0.5..0.55).contains(&parts[1]), "{data_type}, {sharding}: {parts:?}");
            // In bf16 each rank keeps the copies, the table and its part of the rest.
            let expected = if data_type == "f32" { 1.0..1.01 } else { 0.6..0.9 };
            assert!(expected.contains(&parts[0]), "{data_type}, {sharding}: {parts:?}");
        }
    }
    assert_eq!(plan("auto", "f32").0, "none", "this model fits as it is");
}

/// Process ids of the other ranks of a run that was started with `--processes`.
fn other_ranks(leader: u32) -> Vec<u32> {
    let children = format!("/proc/{leader}/task/{leader}/children");
    let children = fs::read_to_string(children).unwrap_or_default();
    children.split_whitespace().filter_map(|id| id.parse().ok()).collect()
}

/// Whether there was such a process.
fn send(name: &str, process: u32) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("kill -{name} \"$0\""), &process.to_string()]);
    shell.stderr(Stdio::null()).status().expect("there is a shell").success()
}

fn signal(name: &str, process: u32) {
    assert!(send(name, process), "there is no process {process}");
}

/// Kills a rank after a while, and waits until rank 0 has ended; whether the run had not ended before.
#[cfg(target_os = "linux")]
fn kill_rank(command: &mut Command, rank: usize, after: Duration) -> bool {
    let mut run = Running::start(command);
    // What it says in the end would fill a pipe that nobody reads.
    let _said = Said::by(&mut run);
    let started = Instant::now();
    while started.elapsed() < after {
        if run.0.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let leader = run.0.id();
    let victim = if rank == 0 { Some(leader) } else { other_ranks(leader).first().copied() };
    // It may have ended meanwhile.
    if let Some(process) = victim {
        send("KILL", process);
    }
    !run.end().success()
}

/// Number of kills of each rank: some on every run of the tests, and as many as one likes by hand.
#[cfg(target_os = "linux")]
fn kills_of_each_rank() -> u32 {
    std::env::var("SPPO_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(2)
}

#[test]
#[cfg(target_os = "linux")]
fn whichever_rank_is_killed_at_any_moment_a_team_resumes_to_the_same_bytes() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let run = |name: &str, sharding: &str| {
        sharded_run(directory.path(), name, &library, (2, sharding, "f32"))
    };
    let started = Instant::now();
    require_success(&run("whole", "none").output().unwrap());
    let whole = started.elapsed();
    let expected = checkpoint(&directory.path().join("whole"), 2);
    for (rank, sharding) in [(0, "gradients"), (1, "none")] {
        let (mut kills, wanted) = (0, kills_of_each_rank());
        for attempt in 1..=4 * wanted {
            let moment = whole.mul_f64((f64::from(attempt) * 0.618_034).fract());
            let name = format!("killed-{rank}-{attempt}");
            if kills == wanted || !kill_rank(&mut run(&name, sharding), rank, moment) {
                continue;
            }
            kills += 1;
            require_success(&run(&name, sharding).arg("--resume-or-start").output().unwrap());
            let found = checkpoint(&directory.path().join(&name), 2);
            assert!(found == expected, "rank {rank} killed after {moment:?}");
        }
        assert_eq!(kills, wanted, "the run ended before most of its kills");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn one_rank_alone_says_that_a_run_is_being_stopped() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut endless = team_run(directory.path(), "run", &library, 2);
    endless.args(["--set", "training.epochs=1000000"]);
    let mut run = Running::start(&mut endless);
    let said = Said::by(&mut run);
    let state = directory.path().join("run/iteration-1/training-state");
    run.wait_until(|| state.exists());
    let leader = run.0.id();
    // As a terminal sends it to all.
    for process in other_ranks(leader).into_iter().chain([leader]) {
        signal("INT", process);
    }
    assert_eq!(run.end().code(), Some(CANCELLED));
    let text = said.everything();
    assert_eq!(text.matches("stopping as soon as").count(), 1, "{text}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_rank_that_is_killed_or_stopped_ends_the_run_in_a_sentence_that_names_it() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    for name in ["KILL", "STOP"] {
        let mut endless = team_run(directory.path(), name, &library, 2);
        endless.args(["--set", "training.epochs=1000000"]);
        let mut run = Running::start(&mut endless);
        let mut said = Said::by(&mut run);
        let state = directory.path().join(name).join("iteration-1/training-state");
        run.wait_until(|| state.exists());
        let other = other_ranks(run.0.id());
        assert_eq!(other.len(), 1, "{name}");
        let happened = Instant::now();
        signal(name, other[0]);
        let status = run.end();
        let took = happened.elapsed();
        if name == "STOP" {
            signal("KILL", other[0]);
        }
        assert_eq!(status.code(), Some(PLUGIN));
        assert!(took < Duration::from_secs(2 * TIMEOUT + 5), "{name}: {took:?}");
        said.wait_for("rank 1");
        let text = said.everything();
        assert!(text.contains("--resume"), "{text}");
    }
}

#[test]
fn commands_other_than_run_work_with_several_processes() {
    let Some(library) = tch_library() else { return };
    let directory = tempfile::tempdir().unwrap();
    let prompts = fixture("fixtures/prompts-small.jsonl");
    let model = fixture("fixtures/lm/llama");
    let run = |processes: usize, words: &[&str]| {
        let mut command = sppo();
        command.args(words).stdin(Stdio::null());
        on_tch(&mut command, &library, processes);
        stdout_of(&mut command)
    };
    let model = model.to_str().unwrap();
    let candidates = directory.path().join("candidates.jsonl");
    let generate = ["generate", prompts.to_str().unwrap(), "--model", model];
    let generate = [&generate[..], &["--max-new-tokens", "8", "--samples", "2"]].concat();
    let made = run(1, &generate);
    assert_eq!(run(2, &generate), made);
    fs::write(&candidates, &made).unwrap();

    let reward = fixture("fixtures/reward/llama");
    let reward = format!("oracle.reward.model={}", reward.display());
    let rank = ["rank", candidates.to_str().unwrap(), "--oracle", "reward", "--set", &reward];
    assert_eq!(run(2, &rank), run(1, &rank));

    let responses = directory.path().join("responses.jsonl");
    let line = |text: &str| format!("{{\"prompt\": \"Why?\", \"response\": \"{text}\"}}\n");
    fs::write(&responses, ["So it is.", "Nobody knows."].map(line).concat()).unwrap();
    let score = ["score", responses.to_str().unwrap(), "--model", model];
    assert_eq!(run(2, &score), run(1, &score));

    let held_out = fixture("fixtures/prompts-held-out-small.jsonl");
    let eval = ["eval", "--model", model, "--against", model, "--json", "--max-new-tokens", "8"];
    let eval = [&eval[..], &["--prompts", held_out.to_str().unwrap()]].concat();
    assert_eq!(run(2, &eval), run(1, &eval));
}

#[test]
fn a_backend_of_one_process_says_so() {
    let told = ["the backend `candle` works in one process, and 2 were started", "--backend tch"];
    let directory = tempfile::tempdir().unwrap();
    let mut run = small_run(directory.path(), "run");
    run.env("WORLD_SIZE", "2").env("RANK", "0");
    refused(&mut run, CONFIGURATION, &told);
}
