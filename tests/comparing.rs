//! Models and runs compared, as users do it: `sppo eval` of many, and `sppo compare`.

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};
use support::{
    fixture, kill_after, read_json, refused, require_success, small_run, sppo, stdout_of,
};

/// A comparison of two objectives with two seeds, on a random three-layer model.
fn small_comparison(directory: &Path) -> PathBuf {
    let [model, train, held_out] =
        ["lm/llama", "prompts-small.jsonl", "prompts-held-out-small.jsonl"]
            .map(|name| fixture(&format!("fixtures/{name}")));
    let file = directory.join("small.toml");
    let text = format!(
        "[settings]
        model = {model:?}
        prompts.train = {train:?}
        prompts.held_out = {held_out:?}
        sampling.samples_per_prompt = 3
        sampling.max_new_tokens = 24
        sampling.prompts_per_shard = 2
        training.global_batch_size = 2
        training.commit_every_steps = 1
        training.learning_rate = 1e-3
        evaluation.samples_per_prompt = 2
        evaluation.bootstrap_resamples = 200
        oracle.rules.length.min_words = 1
        oracle.rules.length.max_words = 1
        [budget]
        iterations = 2
        [axes]
        seed = [1, 7]
        [[variants]]
        name = 'SPPO'
        [[variants]]
        name = 'iterative DPO'
        training.objective = 'dpo'
        "
    );
    std::fs::write(&file, text).unwrap();
    file
}

fn compare(file: &Path, output: &Path) -> Command {
    let mut command = sppo();
    command.arg("compare").arg(file).arg("--output").arg(output).arg("--json");
    command
}

/// The outcome without what differs from one time to the next.
fn lasting(output: &Path) -> Value {
    let mut outcome = read_json(&output.join("comparison.json"));
    for arm in outcome["arms"].as_array_mut().unwrap() {
        arm["time"] = Value::Null;
        for run in arm["runs"].as_array_mut().unwrap() {
            run["directory"] = Value::Null;
        }
    }
    outcome
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_table() {
    const KILLS: u32 = 10;
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let [whole, killed] = ["whole", "killed"].map(|name| directory.path().join(name));
    let started = Instant::now();
    let printed = stdout_of(&mut compare(&file, &whole));
    let duration = started.elapsed();
    let expected = lasting(&whole);
    assert_eq!(serde_json::from_str::<Value>(&printed).unwrap()["arms"][0]["runs"][0]["seed"], 1);

    let mut kills = 0;
    for attempt in 1..=KILLS {
        // Between a tenth and three tenths of the whole, so that the kills are spread over it.
        let share = 0.1 + 0.2 * (f64::from(attempt) * 0.618_034).fract();
        kills +=
            u32::from(kill_after(&mut compare(&file, &killed), duration.mul_f64(share)).is_ok());
    }
    assert!(kills >= 3, "it ended before most of its kills");
    require_success(&compare(&file, &killed).output().unwrap());
    assert_eq!(lasting(&killed), expected);
}

#[test]
fn runs_share_what_they_would_do_again_and_end_as_they_would_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let output = directory.path().join("out");
    let done = compare(&file, &output).output().unwrap();
    require_success(&done);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("files taken over from SPPO-seed-1"), "{said}");
    assert!(!said.contains("taken over from iterative-DPO"), "{said}");

    let of = |name: &str| output.join("runs/iterative-DPO-seed-7").join(name);
    let recorded = read_json(&of("run.json"));
    let alone = directory.path().join("alone");
    let mut command = small_run(&alone, "dpo");
    for setting in [
        "training.objective=dpo",
        "training.learning_rate=1e-3",
        "evaluation.samples_per_prompt=2",
        "evaluation.bootstrap_resamples=200",
    ] {
        command.args(["--set", setting]);
    }
    require_success(&command.output().unwrap());
    // That of the small run.
    assert_eq!(recorded["config"]["seed"], 7);
    for name in ["iteration-0/held-out.parquet", "iteration-2/checkpoint/model.safetensors"] {
        let [ours, theirs] = [of(name), alone.join("dpo").join(name)].map(std::fs::read);
        assert!(ours.unwrap() == theirs.unwrap(), "{name} is another");
    }
}

#[test]
fn runs_with_another_number_of_responses_share_the_starting_models_answers_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let text = std::fs::read_to_string(&file).unwrap();
    let (settings, _) = text.split_once("[axes]").unwrap();
    let settings = settings.replace("sampling.samples_per_prompt = 3", "");
    let axes = "[axes]\nsampling.samples_per_prompt = [2, 3]\n";
    std::fs::write(&file, format!("{settings}responses = 12\n{axes}")).unwrap();
    let output = directory.path().join("out");
    let done = compare(&file, &output).output().unwrap();
    require_success(&done);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("1 file taken over from samples_per_prompt-2"), "{said}");
    // Twelve responses in all, two or three to each prompt.
    for (run, prompts) in [("samples_per_prompt-2", 6), ("samples_per_prompt-3", 4)] {
        let recorded = read_json(&output.join("runs").join(run).join("run.json"));
        assert_eq!(recorded["config"]["prompts"]["limit"], prompts);
    }
}

#[test]
fn the_outcome_says_what_the_runs_reported() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let output = directory.path().join("out");
    let outcome: Value = serde_json::from_str(&stdout_of(&mut compare(&file, &output))).unwrap();
    let arms = outcome["arms"].as_array().unwrap();
    let names: Vec<&str> = arms.iter().map(|arm| arm["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["SPPO", "iterative DPO"]);
    assert_eq!(outcome["pairs"].as_array().unwrap().len(), 1);
    // The starting model is one of those that are ranked.
    assert_eq!(outcome["tournament"]["ranking"].as_array().unwrap().len(), 3);
    assert!(outcome["tournament"]["nash"]["gap"].as_f64().unwrap().abs() < 1e-6);
    let page = std::fs::read_to_string(output.join("comparison.html")).unwrap();
    for pair in outcome["tournament"]["pairs"].as_array().unwrap() {
        let win_rate = &pair["win_rate"]["mean"];
        assert!(page.contains(&win_rate.to_string()), "{pair} is not on the page");
    }
    for arm in arms {
        assert_eq!(arm["iterations"].as_array().unwrap().len(), 2);
        assert!(arm["work"]["optimizer_steps"].as_f64().unwrap() > 0.0, "{arm}");
        let mut sum = 0.0;
        for run in arm["runs"].as_array().unwrap() {
            // The judge is the oracle of the runs, so both say the same.
            let root = Path::new(run["directory"].as_str().unwrap());
            let report = read_json(&root.join("iteration-2/report.json"));
            assert_eq!(run["win_rate"]["mean"], report["win_rate"]["mean"]);
            sum += run["win_rate"]["mean"].as_f64().unwrap();
        }
        let mean = arm["iterations"][1]["win_rate"]["mean"].as_f64().unwrap();
        assert!((mean - sum / 2.0).abs() < 1e-12, "{arm}");
    }
}

#[test]
fn a_comparison_that_makes_no_sense_is_refused_before_anything_is_played() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let output = directory.path().join("out");
    let compare = |flags: &[&str]| {
        let mut command = compare(&file, &output);
        command.args(flags);
        command
    };
    for (flags, code, told) in [
        (&["--set", "training.objective=ipo"][..], 3, &["training.objective", "differ in"][..]),
        (&["--set", "training.etta=3"], 3, &["training.etta", "did you mean `training.eta`?"]),
        (&["--axis", "training.etta=3,4"], 3, &["training.etta", "did you mean `training.eta`?"]),
        (&["--axis", "oracle.name=rules,mixture"], 3, &["one must judge them all", "[judge]"]),
        (&["--axis", "evaluation.samples_per_prompt=1,2"], 3, &["the same held-out prompts"]),
        (&["--axis", "seed=1,2"], 3, &["is an axis already"]),
        (&["--processes", "2"], 3, &["one process"]),
    ] {
        refused(&mut compare(flags), code, told);
        assert!(!output.exists());
    }
    let foreign = directory.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("letter.txt"), "").unwrap();
    let mut command = self::compare(&file, &foreign);
    refused(&mut command, 5, &["not a comparison of sppo"]);
    refused(sppo().arg("compare"), 2, &["--output"]);
}

#[test]
fn changed_settings_of_a_begun_run_are_refused_and_new_runs_are_added() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out");
    let file = small_comparison(directory.path());
    require_success(&compare(&file, &output).output().unwrap());
    let changed = small_comparison(directory.path());
    let text = std::fs::read_to_string(&changed).unwrap();
    std::fs::write(&changed, text.replace("1e-3", "1e-4")).unwrap();
    refused(&mut compare(&changed, &output), 5, &["training.learning_rate"]);
    std::fs::write(&changed, text.replace("[1, 7]", "[1, 7, 3]")).unwrap();
    let outcome: Value = serde_json::from_str(&stdout_of(&mut compare(&changed, &output))).unwrap();
    assert_eq!(outcome["arms"][1]["runs"].as_array().unwrap().len(), 3);
}

#[test]
fn a_run_that_fails_does_not_cost_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let file = small_comparison(directory.path());
    let text = std::fs::read_to_string(&file).unwrap();
    let (settings, _) = text.split_once("[axes]").unwrap();
    let output = directory.path().join("out");
    let with_rates = |rates: &str| {
        let axes = format!("[axes]\ntraining.learning_rate = [{rates}]\n");
        std::fs::write(&file, format!("{settings}{axes}")).unwrap();
        compare(&file, &output)
    };
    let told = ["may have diverged", "there is no outcome without these runs: learning_rate-1e37"];
    refused(&mut with_rates("1e37, 1e-4"), 6, &told);
    assert!(output.join("runs/learning_rate-1e-4/iteration-2/report.json").exists());
    assert!(!output.join("comparison.json").exists());
    require_success(&with_rates("1e-3, 1e-4").output().unwrap());
    assert!(output.join("comparison.json").exists());
}

#[test]
fn the_examples_are_plans_of_runs() {
    for (name, runs) in [("paper-objectives", 9), ("paper-k", 6)] {
        let file = fixture(&format!("../examples/{name}.toml"));
        let plan = json_of(sppo().arg("compare").arg(file).args(["--dry-run", "--json"]));
        let planned = plan["runs"].as_array().unwrap();
        assert_eq!(planned.len(), runs);
        let sampled = |run: &Value| run["training_prompts"].as_u64().unwrap();
        assert!(planned.iter().all(|run| sampled(run) == sampled(&planned[0])), "{plan}");
        assert!(plan["expected_requests"].is_null(), "the oracle `rules` asks no service");
    }
}

fn eval(models: &[&str], more: &[&str]) -> Command {
    let mut command = sppo();
    command.args(["eval", "--json", "--prompts"]);
    command.arg(fixture("fixtures/prompts-held-out-small.jsonl"));
    for model in models {
        command.args(["--model", model]);
    }
    command.args(more);
    command
}

fn json_of(command: &mut Command) -> Value {
    serde_json::from_str(&stdout_of(command)).unwrap()
}

/// An answer of one word to every held-out prompt.
fn ready_answers(directory: &Path, name: &str, answer: &str) -> String {
    let prompts =
        std::fs::read_to_string(fixture("fixtures/prompts-held-out-small.jsonl")).unwrap();
    let lines = prompts.lines().map(|line| {
        let mut row: Value = serde_json::from_str(line).unwrap();
        row["response"] = json!(answer);
        format!("{row}\n")
    });
    let file = directory.join(name);
    std::fs::write(&file, lines.collect::<String>()).unwrap();
    file.to_str().unwrap().into()
}

#[test]
fn many_models_and_files_of_answers_are_ranked() {
    let directory = tempfile::tempdir().unwrap();
    let model = fixture("fixtures/lm/llama");
    let model = model.to_str().unwrap();
    let [good, bad] = [("good.jsonl", "Yes."), ("bad.jsonl", "word word word word word word")]
        .map(|(name, answer)| ready_answers(directory.path(), name, answer));
    let rules =
        ["--set", "oracle.rules.length.max_words=1", "--set", "oracle.rules.length.min_words=1"];
    let outcome = json_of(eval(&[model, &good, &bad], &rules).args(["--max-new-tokens", "8"]));
    assert_eq!(outcome["samples_per_prompt"], 1, "a file has one answer to each prompt");
    assert!(outcome.get("win_rate").is_none());
    assert_eq!(outcome["pairs"].as_array().unwrap().len(), 3);
    assert_eq!(outcome["ranking"][0]["model"], good.as_str());
    assert_eq!(outcome["models"][1]["read_from"], good.as_str());
    assert!(outcome["models"][1]["mean_response_tokens"].is_null());
    assert!(outcome["models"][0]["mean_response_tokens"].as_f64().unwrap() > 0.0);
    let shares = outcome["nash"]["mixture"].as_array().unwrap();
    assert!(
        (shares.iter().map(|share| share["share"].as_f64().unwrap()).sum::<f64>() - 1.0).abs()
            < 1e-9
    );

    let two = json_of(&mut eval(&[&good], &[&["--against", &bad], &rules[..]].concat()));
    assert_eq!((&two["model"]["model"], &two["against"]["model"]), (&json!(good), &json!(bad)));
    assert!(two["win_rate"]["mean"].as_f64().unwrap() > 0.5, "{two}");
    // All answers of a file are the same, so length cannot be told from quality.
    assert!(two["length_controlled_win_rate"].is_null());

    refused(&mut eval(&[&good, &bad, &good], &[]), 3, &["is given twice"]);
    refused(&mut eval(&[&good, &bad], &["--samples", "2"]), 4, &["has 1 answer", "--samples 1"]);
    std::fs::write(&bad, "{\"prompt\": \"another\", \"response\": \"x\"}\n").unwrap();
    refused(&mut eval(&[&good, &bad], &[]), 4, &["bad.jsonl", "does not answer"]);
}

#[test]
fn answers_that_a_run_has_kept_are_read_and_those_are_what_sampling_gives() {
    let directory = tempfile::tempdir().unwrap();
    require_success(&small_run(directory.path(), "run").output().unwrap());
    let run = directory.path().join("run");
    let checkpoint = run.join("iteration-2/checkpoint");
    let model = fixture("fixtures/lm/llama");
    let evaluate = || {
        let mut command = eval(&[checkpoint.to_str().unwrap()], &["--against"]);
        command.arg(&model).args(["--seed", "7", "--max-new-tokens", "24", "--samples", "1"]);
        command.args(["--set", "oracle.rules.length.min_words=1"]);
        json_of(command.args(["--set", "oracle.rules.length.max_words=1"]))
    };
    let mut read = evaluate();
    let kept = run.join("iteration-2/held-out.parquet");
    assert_eq!(read["model"]["read_from"], kept.to_str().unwrap());
    let report = read_json(&run.join("iteration-2/report.json"));
    assert_eq!(read["win_rate"]["mean"], report["win_rate"]["mean"]);
    std::fs::remove_file(run.join("manifests/iteration-2/held-out.parquet.json")).unwrap();
    let mut sampled = evaluate();
    for outcome in [&mut read, &mut sampled] {
        outcome["model"].as_object_mut().unwrap().remove("read_from");
        outcome["models"][0].as_object_mut().unwrap().remove("read_from");
    }
    assert_eq!(read, sampled);
}
