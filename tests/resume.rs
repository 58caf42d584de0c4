//! A run that is killed at any moment and resumed ends like one that was not.

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use sppo_core::datasets::Stored;
use sppo_core::records::{Judgment, TrainingExample};
use support::{Running, kill_after, require_success, small_run, sppo};

const KILLS: u32 = 20;

fn weights(directory: &Path, name: &str, iteration: u32) -> Vec<u8> {
    let checkpoint = directory.join(name).join(format!("iteration-{iteration}/checkpoint"));
    let file = checkpoint.join("model.safetensors");
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn final_weights(directory: &Path, name: &str) -> Vec<u8> {
    weights(directory, name, 2)
}

fn resume(directory: &Path, name: &str) -> std::process::Output {
    small_run(directory, name).arg("--resume").output().expect("the binary starts")
}

#[test]
fn killed_at_twenty_moments_it_ends_with_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    require_success(&small_run(directory.path(), "whole").output().unwrap());
    let mut whole = started.elapsed();
    let expected = final_weights(directory.path(), "whole");
    assert!(expected != weights(directory.path(), "whole", 1), "nothing was trained");

    let mut kills = 0;
    for attempt in 0..20 * KILLS {
        if kills == KILLS {
            break;
        }
        // Spread over the run by the golden ratio, so that every stage is hit.
        let moment = whole.mul_f64((f64::from(kills + 1) * 0.618_034).fract());
        let name = format!("killed-{attempt}");
        if let Err(duration) = kill_after(&mut small_run(directory.path(), &name), moment) {
            // The machine has become faster since the run was timed.
            whole = duration;
            continue;
        }
        kills += 1;

        // Killed before it had made its directory, it has nothing to go on with.
        let output = if directory.path().join(&name).exists() {
            resume(directory.path(), &name)
        } else {
            small_run(directory.path(), &name).output().unwrap()
        };
        require_success(&output);
        assert!(
            final_weights(directory.path(), &name) == expected,
            "killed after {moment:?}: other weights than the uninterrupted run"
        );
    }
    assert_eq!(kills, KILLS, "the run ended before most of its kills");
}

/// Every committed file of a run, the lock and the log left out.
fn artefacts(run: &Path) -> Vec<PathBuf> {
    let mut pending = vec![run.to_path_buf()];
    let mut files = Vec::new();
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|end| end == "parquet" || end == "safetensors") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn altered_and_truncated_artefacts_are_named_set_aside_and_redone() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let expected = final_weights(directory.path(), "run");
    let run = directory.path().join("run");

    for (index, file) in artefacts(&run).into_iter().enumerate() {
        let mut bytes = std::fs::read(&file).unwrap();
        if index % 2 == 0 {
            bytes.truncate(bytes.len() / 2);
        } else {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        std::fs::write(&file, bytes).unwrap();

        let output = resume(directory.path(), "run");
        require_success(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(name), "nothing said about {}:\n{said}", file.display());
        assert!(
            final_weights(directory.path(), "run") == expected,
            "other weights after {} was damaged",
            file.display()
        );
    }
}

#[test]
fn a_second_process_on_the_same_run_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    // It would take days.
    let mut endless = small_run(directory.path(), "run");
    endless.args(["--set", "training.epochs=1000000"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut first = Running(endless.spawn().unwrap());
    // Written once the run is locked.
    let record = directory.path().join("run/run.json");
    first.wait_until(|| record.exists());
    let second = resume(directory.path(), "run");
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(5), "{said}");
    assert!(said.contains("is working on this run"), "{said}");
}

#[test]
fn a_changed_setting_is_refused_on_resume_unless_allowed() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let changed = small_run(directory.path(), "run")
        .args(["--resume", "--set", "training.eta=17.0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&changed.stderr);
    assert_eq!(changed.status.code(), Some(5), "{said}");
    assert!(said.contains("training.eta"), "{said}");
    let allowed = small_run(directory.path(), "run")
        .args(["--resume", "--set", "training.eta=17.0", "--allow", "training.eta"])
        .output()
        .unwrap();
    require_success(&allowed);
}

#[test]
fn answers_are_never_given_the_judgments_of_other_prompts() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    // As if it had been stopped while it trained.
    std::fs::remove_file(directory.path().join("run/manifests/iteration-1/checkpoint.json"))
        .unwrap();
    let other_shards = ["sampling.prompts_per_shard=1", "sampling.prompts_per_shard=4"];
    for setting in other_shards {
        let mut command = small_run(directory.path(), "run");
        command.args(["--resume", "--set", setting, "--allow", "sampling.prompts_per_shard"]);
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("is about other prompts"), "{said}");
    }
}

#[test]
fn a_run_that_diverged_goes_on_with_a_smaller_learning_rate() {
    let directory = tempfile::tempdir().unwrap();
    for rate in ["1e10", "1e20", "1e37"] {
        let mut diverging = small_run(directory.path(), rate);
        let output = diverging.args(["--learning-rate", rate]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("diverged"), "{said}");
        assert!(!directory.path().join(rate).join("iteration-1/checkpoint").exists());
        let mut again = small_run(directory.path(), rate);
        again.args(["--resume", "--learning-rate", "1e-6", "--allow", "training.learning_rate"]);
        require_success(&again.output().unwrap());
    }
}

/// Settings that change what is asked, what becomes of it, and what the policy stays near to.
fn particular_run(directory: &Path, name: &str) -> Command {
    let mut command = small_run(directory, name);
    for setting in [
        "sampling.samples_per_prompt=4",
        "preference.pairs=circular",
        "preference.labels=sampled",
        "preference.length_penalty=0.25",
        "training.objective=mnpo",
        "training.eta=50",
    ] {
        command.args(["--set", setting]);
    }
    command
}

#[test]
fn labels_and_earlier_policies_are_the_same_after_a_kill() {
    let directory = tempfile::tempdir().unwrap();
    let started = Instant::now();
    require_success(&particular_run(directory.path(), "whole").output().unwrap());
    let whole = started.elapsed();
    let expected = final_weights(directory.path(), "whole");
    let mut command = particular_run(directory.path(), "killed");
    if kill_after(&mut command, whole.mul_f64(0.7)).is_ok() {
        let mut command = particular_run(directory.path(), "killed");
        if directory.path().join("killed").exists() {
            command.arg("--resume");
        }
        require_success(&command.output().unwrap());
    }
    assert!(final_weights(directory.path(), "killed") == expected, "other weights after a kill");

    let iteration = |iteration: u32| directory.path().join(format!("whole/iteration-{iteration}"));
    for judgment in Judgment::read(&iteration(1).join("judgments/shard-0000.parquet")).unwrap() {
        assert_eq!(judgment.asked_pairs.unwrap(), [(0, 1), (0, 3), (1, 2), (2, 3)]);
        let labels = judgment.matrix.values();
        assert!(labels.iter().all(|label| [0.0, 0.5, 1.0].contains(label)), "{labels:?}");
        let of_oracle = judgment.oracle_matrix.unwrap();
        assert!(of_oracle.values().iter().any(|value| ![0.0, 0.5, 1.0].contains(value)));
    }
    let set =
        |number| TrainingExample::read(&iteration(number).join("training-set.parquet")).unwrap();
    for (number, earlier) in [(1, 0), (2, 1)] {
        for response in set(number).iter().flat_map(|example| &example.responses) {
            assert_eq!(response.earlier_log_probs.as_ref().unwrap().len(), earlier);
            let (start, now) =
                (response.starting_log_prob.unwrap(), response.reference_log_prob.unwrap());
            assert_eq!((start - now).abs() < 1e-3, number == 1, "{start} and {now}");
        }
    }
    // The run's own training set holds all that the objective needs; others lack it.
    let train = |file: &Path, output: &str| {
        let mut command = sppo();
        command.arg("train").arg(file).arg("--output").arg(directory.path().join(output));
        command.arg("--model").arg(iteration(1).join("checkpoint"));
        command.args(["--objective", "mnpo", "--set", "training.eta=50"]).output().unwrap()
    };
    require_success(&train(&iteration(2).join("training-set.parquet"), "again"));
    let pairs = directory.path().join("pairs.jsonl");
    std::fs::write(&pairs, "{\"prompt\":\"?\",\"chosen\":\"a\",\"rejected\":\"b\"}\n").unwrap();
    let refused = train(&pairs, "refused");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("starting_chosen_log_prob") && said.contains("`ipo`"), "{said}");
}
