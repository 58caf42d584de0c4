//! The commands as a user meets them: what they print where, and how they fit together.

mod support;

use std::io::Read;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::{fixture, refused, require_success, sppo, stdout_of};

const COMMANDS: [&str; 17] = [
    "run",
    "generate",
    "rank",
    "train",
    "merge",
    "export",
    "score",
    "eval",
    "compare",
    "chat",
    "bench",
    "game",
    "oracle",
    "plugin",
    "config",
    "completions",
    "man",
];

fn json_of(command: &mut std::process::Command) -> Value {
    serde_json::from_str(&stdout_of(command)).expect("standard output is one JSON document")
}

fn lines_of(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn every_command_explains_itself() {
    let help = stdout_of(sppo().arg("--help"));
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not listed");
        let help = stdout_of(sppo().args([command, "--help"]));
        assert!(help.contains("Usage: sppo"), "{command}: {help}");
    }
    // The old name of `chat` is understood, and not listed.
    assert!(!help.contains("\n  sample "));
    assert_eq!(
        stdout_of(sppo().args(["sample", "--help"])),
        stdout_of(sppo().args(["chat", "--help"]))
    );
    assert!(help.contains("Exit codes: 0 success"));
}

#[test]
fn wrong_usage_is_refused_with_code_two() {
    for arguments in [
        &["frobnicate"][..],
        &["run", "--frobnicate"],
        &["run", "--allow", "training.eta"],
        &["train"],
        &["run", "--objective", "nonsense"],
        &["run", "--samples", "-3"],
        &["game", "--iterations", "0"],
    ] {
        let output = sppo().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr_of(&output).starts_with("error: "), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_plan_says_how_much_memory_it_takes_and_makes_micro_batches_fit() {
    let directory = tempfile::tempdir().unwrap();
    let plan = |settings: &[&str]| {
        let mut command = support::small_run(directory.path(), "planned");
        for setting in settings {
            command.args(["--set", setting]);
        }
        json_of(command.arg("--dry-run"))
    };
    let total = |plan: &Value, stage: &str| {
        let parts = plan["memory"]["estimate"][stage].as_object().unwrap();
        parts.values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>()
    };
    let full = plan(&[]);
    // 167 360 parameters in f32, their gradients, and one state of RMSProp.
    let part = |part: &str| full["memory"]["estimate"]["training"][part].as_u64().unwrap();
    assert_eq!(part("weights"), 4 * 167_360, "{full}");
    assert_eq!([part("gradients"), part("optimizer_state")], [part("weights"); 2]);
    let adapted = plan(&["training.lora.rank=2"]);
    assert!(total(&adapted, "training") < total(&full, "training"));
    let recomputed = plan(&["training.recompute_activations=true"]);
    assert!(total(&recomputed, "training") < total(&full, "training"));

    let huge =
        ["training.global_batch_size=1000000000", "training.micro_batch_tokens=1000000000000"];
    let reduced = plan(&huge);
    assert!(reduced["config"]["training"]["micro_batch_tokens"].as_u64().unwrap() < 1_000_000_000);
    let machine = &reduced["memory"]["machine"];
    let [whole, free] = ["total", "available"].map(|part| machine[part].as_u64().unwrap());
    let taken = total(&reduced, "training");
    // What is free, or what the machine has where nothing fits into that: sizes are halved until they fit.
    let fills = |memory: u64| taken <= memory && taken > memory / 8;
    assert!(fills(free) || fills(whole), "{taken} of {free} that are free, {whole} in all");

    let mut command = sppo();
    command.args(["run", "--dry-run", "--model"]).arg(fixture("fixtures/lm/llama"));
    let shown = stdout_of(&mut command);
    for words in ["Memory", "optimiser state", "key-value cache", "in all", "this machine has"] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
}

#[test]
fn an_iteration_that_teaches_nothing_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = support::small_run(directory.path(), "run");
    let output = command.args(["--set", "sampling.top_k=1"]).output().unwrap();
    support::require_success(&output);
    let said = stderr_of(&output);
    let words =
        "iteration 2 leaves the model as it is: prompts were skipped, 4 whose best and worst";
    assert!(said.contains(words), "{said}");
}

#[test]
fn answers_may_be_generated_alone_and_as_the_most_probable() {
    let generate = |seed: &str| {
        let mut command = sppo();
        command.args(["generate", "--samples", "1", "--temperature", "0", "--seed", seed]);
        command.args(["--max-new-tokens", "8"]).arg(fixture("fixtures/prompts-small.jsonl"));
        stdout_of(command.arg("--model").arg(fixture("fixtures/lm/llama")))
    };
    let first = generate("1");
    let rows = first.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    assert_eq!(rows.map(|row| row["candidates"].as_array().unwrap().len()).sum::<usize>(), 8);
    assert_eq!(first, generate("2"));
}

#[test]
fn completions_and_manual_pages_name_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout_of(sppo().args(["completions", shell]));
        for command in COMMANDS {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    let directory = tempfile::tempdir().unwrap();
    stdout_of(sppo().arg("man").arg(directory.path()));
    for command in COMMANDS {
        let page = directory.path().join(format!("sppo-{command}.1"));
        assert!(page.is_file(), "{}", page.display());
    }
}

#[test]
fn the_embedded_plugins_are_listed_and_described() {
    let plugins = json_of(sppo().args(["plugin", "list", "--json"]));
    let names: Vec<(&str, &str)> = plugins
        .as_array()
        .unwrap()
        .iter()
        .filter(|plugin| plugin["path"].is_null())
        .map(|plugin| (plugin["kind"].as_str().unwrap(), plugin["name"].as_str().unwrap()))
        .collect();
    assert_eq!(
        names,
        [
            ("backend", "candle"),
            ("oracle", "http"),
            ("oracle", "judge"),
            ("oracle", "mixture"),
            ("oracle", "pairrm"),
            ("oracle", "reward"),
            ("oracle", "rules"),
            ("sampler", "sglang"),
            ("sampler", "vllm")
        ]
    );

    let described = stdout_of(sppo().args(["plugin", "info", "rules"]));
    for part in ["[oracle.rules]", "length.max_words (whole number, default 40)", "Most words"] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let schema = json_of(sppo().args(["plugin", "info", "candle", "--json"]));
    assert!(schema["settings"]["properties"]["threads"].is_object());
}

#[test]
fn colours_are_for_those_who_want_them() {
    let plain = stdout_of(sppo().args(["plugin", "list"]));
    assert!(!plain.contains('\x1b'));
    let colored = stdout_of(sppo().args(["plugin", "list", "--color", "always"]));
    assert!(colored.contains('\x1b'));
}

#[test]
fn settings_that_were_shown_can_be_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sppo.toml");
    let shown = stdout_of(sppo().args([
        "config",
        "show",
        "--preset",
        "official",
        "--set",
        "oracle.rules.length.max_words=40",
    ]));
    std::fs::write(&file, &shown).unwrap();
    let again = stdout_of(sppo().args(["config", "show", "--config"]).arg(&file));
    assert_eq!(again, shown);

    let sources = stdout_of(sppo().args(["config", "show", "--sources", "--set", "seed=7"]));
    let source_of = |key: &str| {
        let line = sources.lines().find(|line| line.starts_with(key)).unwrap();
        line.rsplit_once("# ").unwrap().1.to_owned()
    };
    assert_eq!(source_of("seed"), "--set");
    assert_eq!(source_of("training.global_batch_size"), "preset quick");
    assert_eq!(source_of("training.label_smoothing"), "default");

    let schema = json_of(sppo().args(["config", "schema"]));
    assert!(schema["properties"]["training"].is_object());
}

#[test]
fn the_game_stays_below_its_bound_in_every_form() {
    let directory = tempfile::tempdir().unwrap();
    let [svg, csv, matrix] =
        ["gaps.svg", "gaps.csv", "game.csv"].map(|name| directory.path().join(name));
    std::fs::write(&matrix, "0.5,0.9,0.3\n0.1,0.5,0.8\n0.7,0.2,0.5\n").unwrap();
    let report = json_of(
        sppo()
            .args(["game", "--iterations", "300", "--json", "--matrix"])
            .arg(&matrix)
            .arg("--svg")
            .arg(&svg)
            .arg("--csv")
            .arg(&csv),
    );
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 300);
    for round in rounds {
        assert!(round["mixture_gap"].as_f64().unwrap() <= round["bound"].as_f64().unwrap());
    }
    let table = std::fs::read_to_string(&csv).unwrap();
    assert!(table.starts_with("iteration,last_iterate_gap,mixture_gap,bound,policy_0,policy_1"));
    assert_eq!(table.lines().count(), 301);
    let drawing = std::fs::read_to_string(&svg).unwrap();
    assert!(drawing.starts_with("<svg") && drawing.contains("bound, mixture"));

    let others = ["--algorithm", "optimistic", "--algorithm", "proximal-point", "--eta", "1"];
    let beside = json_of(
        sppo().args(["game", "--json", "--svg"]).arg(&svg).arg("--csv").arg(&csv).args(others),
    );
    let algorithms = beside["algorithms"].as_array().unwrap();
    for (play, name) in algorithms.iter().zip(["optimistic", "proximal_point"]) {
        assert_eq!(play["algorithm"], name);
        assert!(play["rounds"][999]["last_iterate_gap"].as_f64().unwrap() < 1e-9, "{name}");
    }
    assert!(beside["rounds"][999]["last_iterate_gap"].as_f64().unwrap() > 0.1);
    let table = std::fs::read_to_string(&csv).unwrap();
    assert!(table.starts_with("iteration,last_iterate_gap,mixture_gap,bound,policy_0"));
    assert!(table.lines().next().unwrap().ends_with(",proximal_point_mixture_gap"));
    assert!(std::fs::read_to_string(&svg).unwrap().contains("last policy, proximal point"));

    let text = stdout_of(sppo().args(["game", "--kind", "random", "--size", "6"]));
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with("1000 ")).count(), 1);
}

/// Pairs whose better answer is brief and ends, as the oracle `rules` likes it, but for the last.
fn labelled_pairs(directory: &Path) -> std::path::PathBuf {
    let file = directory.join("pairs.jsonl");
    let row = |number: usize| {
        let (brief, long) = ("Blue.".to_owned(), "Blue, I think, I think, I think. ".repeat(30));
        let is_wrong = number == 9;
        let (chosen, rejected) = if is_wrong { (long, brief) } else { (brief, long) };
        let subset = if number < 6 { "first" } else { "second" };
        serde_json::json!({
            "prompt": format!("Name colour {number}."), "chosen": chosen, "rejected": rejected, "subset": subset,
        })
        .to_string()
            + "\n"
    };
    std::fs::write(&file, (0..10).map(row).collect::<String>()).unwrap();
    file
}

#[test]
fn an_oracle_is_checked_against_labels() {
    let directory = tempfile::tempdir().unwrap();
    let file = labelled_pairs(directory.path());
    let report = json_of(sppo().args(["oracle", "check", "--json"]).arg(&file));
    assert_eq!(
        (report["pairs"].as_u64(), report["accuracy"]["mean"].as_f64()),
        (Some(10), Some(0.9))
    );
    assert!(report["accuracy"]["low"].as_f64() < Some(0.9), "{report}");
    assert_eq!(report["subsets"][1]["accuracy"]["mean"].as_f64(), Some(0.75));
    assert!(report["first_place_probability"].is_null(), "rules knows no order: {report}");
    let bins = report["calibration"]["bins"].as_array().unwrap();
    let counted: u64 = bins.iter().map(|bin| bin["pairs"].as_u64().unwrap()).sum();
    assert_eq!((counted, &report["service"]), (10, &serde_json::json!({})));
    let text = stdout_of(sppo().args(["oracle", "check", "--limit", "6"]).arg(&file));
    assert!(text.contains("agrees with 100.0 % of 6 labels"), "{text}");
    refused_pairs(directory.path());
}

fn refused_pairs(directory: &Path) {
    let file = directory.join("unlabelled.jsonl");
    std::fs::write(&file, "{\"prompt\":\"?\",\"chosen\":\"a\"}\n").unwrap();
    let output = sppo().args(["oracle", "check"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", stderr_of(&output));
    assert!(stderr_of(&output).contains("unlabelled.jsonl:1"), "{}", stderr_of(&output));
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let mut child = sppo()
        .args(["game", "--iterations", "20000", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    require_success(&output);
    assert_eq!(stderr_of(&output), "");
}

#[test]
fn a_dry_run_prints_the_plan_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let runs = directory.path().join("runs");
    let dry_run = || {
        let mut command = sppo();
        command.args(["run", "--dry-run", "--offline", "--run-directory"]).arg(&runs);
        command
    };
    let text = stdout_of(&mut dry_run());
    for part in ["smollm2-135m-instruct-rules-1 (new)", "128 to train on (bundled)", "oracle rules"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    let plan = json_of(dry_run().arg("--json"));
    assert_eq!(plan["held_out_prompts"], 32);
    assert_eq!(plan["config"]["iterations"], 3);
    assert!(!runs.exists());
}

#[test]
fn the_stages_fit_together() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let model = fixture("fixtures/lm/llama");

    let generated = json_of(
        sppo()
            .arg("generate")
            .arg(fixture("fixtures/prompts-small.jsonl"))
            .args(["--samples", "3", "--max-new-tokens", "12", "--json", "--output"])
            .arg(at("candidates.jsonl"))
            .arg("--model")
            .arg(&model),
    );
    let candidates = lines_of(&at("candidates.jsonl"));
    assert_eq!(generated["rows"], candidates.len());
    assert_eq!(candidates[0]["candidates"].as_array().unwrap().len(), 3);

    stdout_of(
        sppo()
            .arg("rank")
            .arg(at("candidates.jsonl"))
            .arg("--output")
            .arg(at("ranked.parquet"))
            .arg("--pairs")
            .arg(at("pairs.jsonl")),
    );
    let pairs = lines_of(&at("pairs.jsonl"));
    assert!(!pairs.is_empty());
    assert!(pairs[0]["chosen_probs_win"].as_f64() > pairs[0]["chosen_probs_lose"].as_f64());

    let trained = json_of(
        sppo()
            .arg("train")
            .arg(at("pairs.jsonl"))
            .args(["--objective", "dpo", "--learning-rate", "1e-3", "--epochs", "3", "--json"])
            .args(["--eta", "10", "--optimizer", "adamw", "--weight-decay", "0.01"])
            .args(["--global-batch-size", "2", "--output"])
            .arg(at("trained"))
            .arg("--model")
            .arg(&model),
    );
    let chosen = trained["chosen_log_prob_change"].as_f64().unwrap();
    assert!(chosen > trained["rejected_log_prob_change"].as_f64().unwrap(), "{trained}");
    let metrics = lines_of(&at("trained").join("metrics.jsonl"));
    assert_eq!(metrics.len() as u64, trained["steps"].as_u64().unwrap());
    for column in ["loss", "log_prob_chosen", "log_prob_rejected", "gradient_norm", "learning_rate"]
    {
        assert!(metrics.iter().all(|step| step[column].is_number()), "{column}");
    }

    let responses: String = candidates
        .iter()
        .map(|line| {
            let (prompt, response) = (&line["prompt"], &line["candidates"][0]);
            format!("{}\n", serde_json::json!({ "prompt": prompt, "response": response }))
        })
        .collect();
    std::fs::write(at("responses.jsonl"), responses).unwrap();
    let scores =
        stdout_of(sppo().arg("score").arg(at("responses.jsonl")).arg("--model").arg(at("trained")));
    assert_eq!(scores.lines().count(), candidates.len());

    let compared = json_of(
        sppo()
            .args(["eval", "--max-new-tokens", "12", "--samples", "2", "--json", "--model"])
            .arg(at("trained"))
            .arg("--against")
            .arg(&model)
            .arg("--prompts")
            .arg(fixture("fixtures/prompts-held-out-small.jsonl")),
    );
    let win_rate = &compared["win_rate"];
    assert!(win_rate["low"].as_f64() <= win_rate["mean"].as_f64());
    assert!(win_rate["mean"].as_f64() <= win_rate["high"].as_f64());
}

#[test]
fn models_are_compared_side_by_side_in_a_conversation() {
    let model = fixture("fixtures/lm/llama");
    let directory = tempfile::tempdir().unwrap();
    let input = directory.path().join("said");
    std::fs::write(&input, "Hello.\nAnd you?\n\nHello.\n").unwrap();
    let answers = stdout_of(
        sppo()
            .args(["chat", "--json", "--max-new-tokens", "8", "--model"])
            .arg(&model)
            .arg("--model")
            .arg(&model)
            .stdin(std::fs::File::open(&input).unwrap()),
    );
    let answers: Vec<Value> =
        answers.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 6);
    assert_eq!(answers[0]["text"], answers[1]["text"]);
    assert_ne!(answers[0]["text"], answers[2]["text"]);
    // A new conversation begins like the first.
    assert_eq!(answers[0], answers[4]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_a_benchmark_that_would_take_hours() {
    use support::{Running, Said};

    let mut running = Running::start(
        sppo()
            .args(["bench", "--samples", "1", "--repetitions", "65535", "--model"])
            .arg(fixture("fixtures/lm/llama")),
    );
    let mut said = Said::by(&mut running);
    said.wait_for("measuring");
    running.interrupt();
    let code = running.end().code();
    assert_eq!(code, Some(130), "{}", said.everything());
}

#[cfg(unix)]
#[test]
fn ctrl_c_says_how_to_go_on_and_going_on_works() {
    use support::{Running, Said};

    let directory = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = sppo();
        command.arg("run").args(arguments).arg("--run-directory").arg(directory.path());
        command
    };
    let mut running = Running::start(
        run(&["--name", "stopped", "--iterations", "1", "--max-new-tokens", "200"])
            .arg("--prompts")
            .arg(fixture("fixtures/prompts-small.jsonl"))
            .arg("--held-out")
            .arg(fixture("fixtures/prompts-held-out-small.jsonl"))
            .arg("--model")
            .arg(fixture("fixtures/lm/llama"))
            .args(["--set", "sampling.prompts_per_shard=1", "--samples", "40"]),
    );
    let said = Said::by(&mut running);
    let started = directory.path().join("stopped/manifests/iteration-0");
    running.wait_until(|| started.exists());
    running.interrupt();
    let code = running.end().code();
    let said = said.everything();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("run --resume --name stopped"), "{said}");

    // Neither the name nor the settings need to be repeated.
    let report = json_of(run(&["--resume", "--json"]).arg("--quiet"));
    assert_eq!(report["name"], "stopped");
    assert_eq!(report["iterations"].as_array().unwrap().len(), 2);
}

#[test]
fn exports_answers_in_the_form_of_each_benchmark() {
    let directory = tempfile::tempdir().unwrap();
    let instruction = "Name a colour.";
    let questions = [
        ("alpaca-eval", json!([{"instruction": instruction, "dataset": "helpful_base"}])),
        ("arena-hard", json!({"uid": "a1", "category": "hard_prompt", "prompt": instruction})),
        (
            "mt-bench",
            json!({"question_id": 81, "category": "writing", "turns": [instruction, "Another one."]}),
        ),
    ];
    let export = |target: &str, question: &Value| {
        let file = directory.path().join("questions");
        std::fs::write(&file, question.to_string()).unwrap();
        let output = directory.path().join(target);
        let mut command = sppo();
        command
            .args(["export", target])
            .arg(fixture("fixtures/lm/llama"))
            .arg("--questions")
            .arg(&file);
        command.args(["--max-new-tokens", "6", "--name", "mine", "--output"]).arg(&output);
        assert_eq!(stdout_of(&mut command).trim(), output.display().to_string());
        std::fs::read_to_string(output).unwrap()
    };
    let written = questions.map(|(target, question)| {
        let [first, again] = [export(target, &question), export(target, &question)];
        let mut first: Value = serde_json::from_str(&first).unwrap();
        let mut again: Value = serde_json::from_str(&again).unwrap();
        // all but the time is the same when it is done again
        for row in [&mut first, &mut again] {
            if let Some(row) = row.as_object_mut() {
                assert!(row.remove("tstamp").unwrap().as_f64().unwrap() > 1e9);
            }
        }
        assert_eq!(first, again);
        first
    });
    let [alpaca, arena, bench] = written;
    let text = alpaca[0]["output"].as_str().unwrap();
    assert_eq!(alpaca[0]["generator"], "mine");
    // the same prompt and the same draws
    assert_eq!(arena["messages"][1]["content"]["answer"], text);
    assert_eq!(arena["metadata"]["token_len"], 6);
    assert_eq!(bench["choices"][0]["turns"].as_array().unwrap().len(), 2);

    let wrong = directory.path().join("questions");
    let mut command = sppo();
    command
        .args(["export", "alpaca-eval"])
        .arg(fixture("fixtures/lm/llama"))
        .arg("--questions")
        .arg(&wrong);
    refused(&mut command, 4, &["question 1 is no object with `instruction`"]);
}

#[test]
fn prints_the_command_of_lm_eval() {
    let model = fixture("fixtures/lm/llama");
    let printed = stdout_of(sppo().args(["export", "lm-eval"]).arg(&model));
    let expected = format!(
        "lm_eval --model hf --model_args pretrained={},dtype=float32 --apply_chat_template --fewshot_as_multiturn \
         --tasks leaderboard,ifeval --batch_size auto --output_path lm-eval/llama --log_samples\n",
        model.display()
    );
    assert_eq!(printed, expected);
}
