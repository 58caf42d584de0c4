//! Reports of runs and games: their numbers are those of the files, and a browser shows them without a word.

mod support;

use std::fs;
use std::io::{BufReader, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use serde_json::{Value, json};
use sppo_core::datasets::Stored;
use sppo_core::records::{HeldOutDuels, Rollout};
use sppo_core::statistics::{Bootstrap, Duel, Duels};
use support::{
    Running, fixture, json_lines, read_json, read_request, require_success, small_run, sppo,
    stdout_of,
};

/// Whatever a model may answer to make a page misbehave.
const EVIL: &str = "</script><img src=x onerror=alert(1)><!-- \u{202e}مرحبا بالعالم 👩‍👩‍👧\u{0}";

/// The data that a page draws.
fn page_of(file: &Path) -> Value {
    let html = fs::read_to_string(file).unwrap();
    let (_, data) = html.split_once("id=\"data\">").unwrap();
    serde_json::from_str(data.split_once("</script>").unwrap().0).unwrap()
}

/// The blocks of a section that are of one kind.
fn blocks(page: &Value, section: &str, kind: &str) -> Vec<Value> {
    let sections = page["sections"].as_array().unwrap();
    let Some(section) = sections.iter().find(|one| one["id"] == section) else { return Vec::new() };
    let all = section["blocks"].as_array().unwrap();
    all.iter().filter(|block| block["kind"] == kind).cloned().collect()
}

fn series<'a>(block: &'a Value, name: &str) -> &'a Value {
    let all = block["series"].as_array().unwrap();
    all.iter().find(|series| series["name"] == name).unwrap_or_else(|| panic!("{name} in {block}"))
}

/// The values of a line, its gaps left out.
fn line(block: &Value, name: &str) -> Vec<f64> {
    let values = series(block, name)["y"].as_array().unwrap();
    values.iter().filter_map(Value::as_f64).collect()
}

fn column(table: &Value, index: usize) -> Vec<&Value> {
    table["rows"].as_array().unwrap().iter().map(|row| &row[index]).collect()
}

/// A small run of so many iterations, each with all prompts.
fn run_of(directory: &Path, name: &str, iterations: u32) -> Command {
    let two = small_run(directory, name);
    let arguments: Vec<_> = two.get_args().collect();
    let place = arguments.iter().position(|word| *word == "--iterations").unwrap();
    let mut command = sppo();
    command.args(&arguments[..place]).args(&arguments[place + 2..]);
    command.args(["--iterations", &iterations.to_string()]);
    command.args(["--set", "prompts.per_iteration=all"]);
    command
}

fn run(directory: &Path, name: &str, further: &[&str]) -> PathBuf {
    require_success(&small_run(directory, name).args(further).output().unwrap());
    directory.join(name)
}

fn iteration_reports(run: &Path, iterations: u32) -> Vec<Value> {
    let file = |iteration| run.join(format!("iteration-{iteration}/report.json"));
    (0..=iterations).map(|iteration| read_json(&file(iteration))).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// The win rate over prompts that the kept duels of an iteration give.
fn win_rate(run: &Path, iteration: u32, against: u32) -> f64 {
    let file = run.join(format!("iteration-{iteration}/held-out-duels.parquet"));
    let duels = HeldOutDuels::read(&file).unwrap();
    let judged: Vec<f64> = duels
        .iter()
        .filter(|of_prompt| of_prompt.against == against)
        .map(|of_prompt| mean(of_prompt.duels().iter().map(|duel| duel.win_probability())))
        .collect();
    mean(judged.into_iter())
}

/// The win rate at equal length that the files of an iteration give.
fn win_rate_at_equal_length(run: &Path, iteration: u32) -> f64 {
    let held_out = |iteration: u32| {
        Rollout::read(&run.join(format!("iteration-{iteration}/held-out.parquet"))).unwrap()
    };
    let (ours, theirs) = (held_out(iteration), held_out(0));
    let file = run.join(format!("iteration-{iteration}/held-out-duels.parquet"));
    let judged = HeldOutDuels::read(&file).unwrap();
    let judged = judged.iter().filter(|of_prompt| of_prompt.against == 0);
    let length = |rollout: &Rollout| rollout.responses[0].text.chars().count() as f64;
    let duels = judged.zip(ours.iter().zip(&theirs)).map(|(judged, (ours, theirs))| {
        let win_rate = judged.duels()[0].win_probability();
        vec![Duel { win_rate, length_difference: length(ours) - length(theirs) }]
    });
    let bootstrap = Bootstrap { resamples: 0, confidence: 0.95, seed: 7 };
    let duels = Duels::new(vec![duels.collect()]).unwrap();
    duels.length_controlled_win_rate(&bootstrap).unwrap().mean
}

#[test]
fn every_number_of_the_page_is_that_of_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), "run", &[]);
    let page = page_of(&run.join("report.html"));
    let reports = iteration_reports(&run, 2);

    let table = &blocks(&page, "results", "table")[0];
    for (index, field) in
        [(1, "win_rate"), (4, "mean_response_tokens"), (5, "ended_share"), (8, "seconds")]
    {
        let expected: Vec<&Value> = reports.iter().map(|report| &report[field]).collect();
        assert_eq!(column(table, index), expected, "{field}");
    }
    for (row, iteration) in [(1, 1), (2, 2)] {
        let told = column(table, 2)[row]["mean"].as_f64().unwrap();
        assert!((told - win_rate_at_equal_length(&run, iteration)).abs() < 1e-9);
    }
    let trained_on = column(table, 7).into_iter().filter_map(Value::as_f64);
    let examples = reports[1..].iter().filter_map(|report| report["examples"].as_f64());
    assert_eq!(trained_on.collect::<Vec<_>>(), examples.collect::<Vec<_>>());
    let sentence = page["sentence"].as_str().unwrap();
    let told = format!("{:.1}\u{a0}%", 100.0 * reports[2]["win_rate"]["mean"].as_f64().unwrap());
    assert!(sentence.contains(&told), "{sentence}");

    let metrics = json_lines(&fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    let logged = |kind: &str, field: &str| -> Vec<f64> {
        let entries = metrics.iter().filter(|entry| entry["kind"] == kind);
        entries.filter_map(|entry| entry[field].as_f64()).collect()
    };
    let charts = blocks(&page, "training", "lines");
    for (chart, name, field) in [
        (0, "loss", "loss"),
        (1, "gradient norm", "gradient_norm"),
        (2, "learning rate", "learning_rate"),
    ] {
        assert_eq!(line(&charts[chart], name), logged("training_step", field));
    }
    let eta = read_json(&run.join("run.json"))["config"]["training"]["eta"].as_f64().unwrap();
    let log_probs = &blocks(&page, "log-probs", "lines")[0];
    for side in ["chosen", "rejected"] {
        let changes = reports[1..]
            .iter()
            .filter_map(|report| report[format!("{side}_log_prob_change")].as_f64());
        let trained_on = line(log_probs, &format!("{side}, trained on"));
        assert_eq!(trained_on, changes.collect::<Vec<_>>());
        let rewards = logged("training_step", &format!("reward_{side}"));
        assert_eq!(
            line(log_probs, side),
            rewards.iter().map(|reward| reward * eta).collect::<Vec<_>>()
        );
    }

    let time = &blocks(&page, "work", "bars")[0];
    for bar in time["series"].as_array().unwrap() {
        let of_stage = metrics.iter().filter(|entry| entry["stage"] == bar["name"]);
        let seconds: f64 = of_stage.map(|entry| entry["seconds"].as_f64().unwrap()).sum();
        let shown: f64 = bar["values"].as_array().unwrap().iter().filter_map(Value::as_f64).sum();
        assert!((seconds - shown).abs() < 1e-9 && seconds > 0.0, "{bar}");
    }

    let cells = &blocks(&page, "matrix", "heatmap")[0]["cells"];
    for (row, column) in [(1, 0), (2, 0), (2, 1)] {
        let expected = win_rate(&run, row, column);
        let [cell, mirrored] = [(row, column), (column, row)]
            .map(|(row, column)| cells[row as usize][column as usize].as_f64().unwrap());
        assert!((cell - expected).abs() < 1e-12 && (cell + mirrored - 1.0).abs() < 1e-12);
    }
    let reported = reports[2]["win_rate"]["mean"].as_f64().unwrap();
    assert!((cells[2][0].as_f64().unwrap() - reported).abs() < 1e-12);

    let samples = &blocks(&page, "samples", "samples")[0]["sets"][0];
    for (model, prompts) in [(0, "iteration-0"), (2, "iteration-2")] {
        let held_out = Rollout::read(&run.join(prompts).join("held-out.parquet")).unwrap();
        for (shown, rollout) in samples["prompts"].as_array().unwrap().iter().zip(&held_out) {
            let answer = &shown["answers"][model][0];
            assert_eq!(answer["text"], *rollout.responses[0].text);
            assert_eq!(answer["tokens"], rollout.responses[0].tokens.len());
        }
    }
    let origin = blocks(&page, "origin", "code")[0]["text"].as_str().unwrap().to_owned();
    assert!(origin.starts_with("sppo run") && origin.contains("oracle.rules.length.max_words=1"));
}

#[test]
fn the_command_of_a_report_repeats_its_run() {
    let directory = tempfile::tempdir().unwrap();
    let first = run(directory.path(), "first", &["--lora-rank", "2", "--lora-dropout", "0.25"]);
    let origin = &json_report(&[&first])[0]["origin"];
    assert_eq!(origin["is_exact"], true, "{origin}");
    let Ok(words) = Command::new("sh")
        .args([
            "-c",
            &format!(
                "for word in {}; do printf '%s\\0' \"$word\"; done",
                origin["command"].as_str().unwrap()
            ),
        ])
        .output()
    else {
        return eprintln!("skipped: there is no shell");
    };
    let words = String::from_utf8(words.stdout).unwrap();
    let words: Vec<&str> = words.split('\0').skip(1).filter(|word| !word.is_empty()).collect();
    let mut again = sppo();
    again.args(words).args(["--name", "again", "--run-directory"]).arg(directory.path());
    require_success(&again.output().unwrap());
    let adapters = |run: &str| {
        let checkpoint = directory.path().join(run).join("iteration-2/checkpoint");
        fs::read(checkpoint.join("adapter_model.safetensors")).unwrap()
    };
    assert!(adapters("again") == adapters("first"));
}

fn json_report(runs: &[&Path]) -> Vec<Value> {
    let text = stdout_of(sppo().arg("report").args(runs).arg("--json"));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_report_that_cannot_be_written_ends_no_run() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    require_success(&run_of(directory.path(), "run", 1).output().unwrap());
    fs::remove_file(run.join("report.html")).unwrap();
    fs::create_dir(run.join("report.html")).unwrap();
    let mut more = run_of(directory.path(), "run", 2);
    let output = more.args(["--resume", "--allow", "iterations"]).output().unwrap();
    require_success(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("report.html cannot be written").count(), 1, "{said}");
}

#[test]
fn runs_of_earlier_versions_are_reported_with_what_they_kept() {
    let directory = tempfile::tempdir().unwrap();
    let run = run(directory.path(), "run", &[]);
    fs::remove_file(run.join("processes.json")).unwrap();
    for iteration in [1, 2] {
        let name = format!("iteration-{iteration}/held-out-duels.parquet");
        fs::remove_file(run.join("manifests").join(format!("{name}.json"))).unwrap();
        fs::remove_file(run.join(name)).unwrap();
    }
    let metrics = run.join("metrics.jsonl");
    let kept: Vec<String> = fs::read_to_string(&metrics)
        .unwrap()
        .lines()
        .filter(|line| !line.contains("\"kind\":\"stage\""))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&metrics, kept.concat()).unwrap();
    let written = stdout_of(sppo().arg("report").arg(&run));
    assert_eq!(Path::new(written.trim()), run.join("report.html"));
    let page = page_of(&run.join("report.html"));
    assert_eq!(blocks(&page, "matrix", "heatmap"), Vec::<Value>::new());
    assert_eq!(blocks(&page, "work", "bars"), Vec::<Value>::new());
    let verdicts = &blocks(&page, "samples", "samples")[0]["sets"][0]["prompts"][0]["verdicts"];
    assert_eq!(verdicts[2], serde_json::json!([]));
}

#[test]
fn what_is_no_run_is_refused_by_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let mut report = sppo();
    report.current_dir(directory.path()).args(["report", "nothing"]);
    support::refused(&mut report, 5, &["nothing", "there is no run here"]);
}

/// A browser, if there is one.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("SPPO_CHROMIUM").map(PathBuf::from);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let known = std::env::split_paths(&paths)
        .flat_map(|path| names.map(|name| path.join(name)))
        .find(|file| file.is_file());
    let found = named.or(known);
    if found.is_none() {
        eprintln!("skipped: there is no Chromium; name one with SPPO_CHROMIUM");
    }
    found
}

/// The elements of a page after its scripts have run. Panics on a message in the browser's console; a request
/// would be one, because the page forbids all of them.
fn shown(chromium: &Path, file: &Path) -> String {
    let html = fs::read_to_string(file).unwrap();
    assert!(html.contains("default-src 'none'"));
    let profile = tempfile::tempdir().unwrap();
    let output = Command::new(chromium)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=3000", "--window-size=1400,1000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    require_success(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains(":CONSOLE"), "{}: {said}", file.display());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Puts text into the answers of a run's last model.
fn answer_with(run: &Path, iteration: u32, text: &str) {
    let file = run.join(format!("iteration-{iteration}/held-out.parquet"));
    let mut rollouts = Rollout::read(&file).unwrap();
    rollouts[0].responses[0].text = text.into();
    rollouts[1].responses[0].text = "word ".repeat(20_000);
    Rollout::write(&file, &rollouts).unwrap();
}

#[test]
fn a_browser_shows_every_report_without_a_word() {
    let Some(chromium) = chromium() else { return };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let whole = run(path, "whole", &[]);
    let one = path.join("one");
    require_success(&run_of(path, "one", 1).output().unwrap());
    let adapted = run(path, "adapted", &["--lora-rank", "4", "--learning-rate", "1e-2"]);
    let judge = format!("oracle.reward.model='{}'", fixture("fixtures/reward/llama").display());
    let scored = run(path, "scored", &["--oracle", "reward", "--set", &judge]);
    let blind = run(path, "blind", &["--set", "evaluation.enabled=false"]);
    answer_with(&whole, 2, EVIL);
    stdout_of(sppo().arg("report").arg(&whole));

    for run in [&whole, &one, &adapted, &scored, &blind] {
        let dom = shown(&chromium, &run.join("report.html"));
        assert!(dom.contains("id=\"origin\""), "{}", run.display());
        assert!(dom.contains("u-wrap") && dom.contains("<svg"), "{}", run.display());
        assert!(!dom.contains("<img"), "{}", run.display());
    }
    let dom = shown(&chromium, &whole.join("report.html"));
    let text: String = strip_marks(&dom);
    assert!(text.contains("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;&lt;!--"));
    assert!(text.contains("مرحبا بالعالم 👩‍👩‍👧"));
    assert!(text.contains(&"word ".repeat(20_000)));

    let together = path.join("together.html");
    stdout_of(sppo().arg("report").args([&whole, &one, &adapted]).arg("--output").arg(&together));
    let dom = shown(&chromium, &together);
    assert!(dom.contains("3 runs side by side") && dom.contains("adapted"));

    let game = path.join("game.html");
    stdout_of(sppo().args(["game", "--iterations", "300", "--html"]).arg(&game));
    assert!(shown(&chromium, &game).contains("Duality gap"));
}

/// The text of a page without the marks of differences.
fn strip_marks(dom: &str) -> String {
    ["<ins>", "</ins>", "<del>", "</del>"]
        .iter()
        .fold(dom.to_owned(), |text, mark| text.replace(mark, ""))
}

#[cfg(unix)]
#[test]
fn a_run_that_is_stopped_says_so_in_its_report() {
    let directory = tempfile::tempdir().unwrap();
    let mut long = run_of(directory.path(), "run", 1000);
    let mut running = Running::start(&mut long);
    let run = directory.path().join("run");
    running.wait_until(|| run.join("iteration-1/report.json").exists());
    running.wait_until(|| {
        let sentence = page_of(&run.join("report.html"))["sentence"].to_string();
        sentence.contains("is being played") && sentence.contains("After")
    });
    assert!(page_of(&run.join("report.html"))["reload_seconds"].is_number());
    running.interrupt();
    running.end();
    let page = page_of(&run.join("report.html"));
    let sentence = page["sentence"].as_str().unwrap();
    assert!(sentence.starts_with("Stopped after") && sentence.contains("of 1000"), "{sentence}");
    assert!(page["reload_seconds"].is_null());
    if let Some(chromium) = chromium() {
        assert!(shown(&chromium, &run.join("report.html")).contains("Stopped after"));
    }
}

/// An address that takes messages about runs; `meanwhile` happens while a message is delivered.
fn hook(meanwhile: impl Fn(&Value) + Send + 'static) -> (String, Receiver<Value>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let (sender, messages) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream);
            let Some((path, message)) = read_request(&mut reader) else { continue };
            assert_eq!(path, "/hook");
            meanwhile(&message);
            let reply = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
            // The test may have ended.
            let _ = sender.send(message);
            let _ = reader.get_mut().write_all(reply);
        }
    });
    (url, messages)
}

fn told_to(url: &str, run: &mut Command) -> Output {
    run.env("HOOK", url).args(["--set", "notify.url=$HOOK"]).output().unwrap()
}

#[test]
fn a_hook_hears_of_every_iteration_of_the_end_and_of_a_failure() {
    let directory = tempfile::tempdir().unwrap();
    let (url, messages) = hook(|_| {});
    require_success(&told_to(&url, &mut small_run(directory.path(), "whole")));
    let heard: Vec<Value> = messages.try_iter().collect();
    let of = |message: &Value| (message["event"].clone(), message["iteration"].clone());
    let expected = [("iteration", 1), ("iteration", 2), ("finished", 2)];
    assert_eq!(
        heard.iter().map(of).collect::<Vec<_>>(),
        expected.map(|(e, i)| (json!(e), json!(i)))
    );
    for message in &heard {
        let iteration = message["iteration"].as_u64().unwrap() as u32;
        let report = directory.path().join(format!("whole/iteration-{iteration}/report.json"));
        assert_eq!(message["win_rate"], read_json(&report)["win_rate"]);
        assert_eq!((&message["run"], &message["iterations"]), (&json!("whole"), &json!(2)));
        assert!(message["text"].as_str().unwrap().starts_with("whole: "), "{message}");
        assert!(!message.to_string().contains(directory.path().to_str().unwrap()), "{message}");
    }

    // After the first iteration there is no place for the second.
    let second = directory.path().join("blocked/iteration-2");
    let (url, messages) = hook(move |message| {
        if message["event"] == "iteration" {
            std::fs::write(&second, "").unwrap();
        }
    });
    let output = told_to(&url, &mut small_run(directory.path(), "blocked"));
    assert!(!output.status.success());
    let heard: Vec<Value> = messages.try_iter().collect();
    let expected = [("iteration", 1), ("failed", 1)];
    assert_eq!(
        heard.iter().map(of).collect::<Vec<_>>(),
        expected.map(|(e, i)| (json!(e), json!(i)))
    );

    // Nobody listens: a warning that shows no address, and a run that ends.
    let output = told_to("http://127.0.0.1:9/secret", &mut small_run(directory.path(), "alone"));
    require_success(&output);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("notify.url") && !said.contains("secret"), "{said}");
}
