//! Runs whose responses come from inference servers: whole runs of the program against a server of ours that
//! speaks as vLLM and SGLang do and has a real model behind it.

#[path = "support/rollout_server.rs"]
mod rollout_server;
mod support;
#[path = "support/vllm.rs"]
mod vllm;

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rollout_server::{Behaviour, Lie, MODEL, RolloutServer};
use serde_json::Value;
use support::{
    fixture, json_lines, kill_after, read_json, read_request, refused, require_success, small_run,
    small_run_of, sppo, stdout_of,
};
use vllm::{RealServer, forwarded, vllm_python, with_head_of_its_own};

const PROTOCOLS: [&str; 2] = ["vllm", "sglang"];
const PLUGIN: i32 = 6;
const CONFIGURATION: i32 = 3;

/// Requests under way at the same time.
const IN_FLIGHT: u32 = 4;

/// Has servers draw the responses of a command.
fn served(command: &mut Command, protocol: &str, servers: &[&RolloutServer]) {
    command.args(["--sampler", protocol]);
    let urls: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.url())).collect();
    for setting in [
        format!("endpoints=[{}]", urls.join(",")),
        format!("concurrency={{start = {IN_FLIGHT}, max = {IN_FLIGHT}}}"),
        "retries.max_attempts=40".into(),
        "retries.first_delay_seconds=0.002".into(),
        "retries.longest_delay_seconds=0.02".into(),
        "timeouts.read_seconds=1.5".into(),
    ] {
        command.args(["--set", &format!("sampler.{protocol}.{setting}")]);
    }
}

/// A run whose steps are large enough to be seen in every log-probability.
fn served_run(directory: &Path, name: &str, protocol: &str, server: &RolloutServer) -> Command {
    served_run_of(&llama(), directory, name, protocol, server)
}

fn served_run_of(
    model: &Path,
    directory: &Path,
    name: &str,
    protocol: &str,
    server: &RolloutServer,
) -> Command {
    let mut run = small_run_of(model, directory, name);
    run.args(["--learning-rate", "1e-3"]);
    served(&mut run, protocol, &[server]);
    run
}

fn llama() -> PathBuf {
    fixture("fixtures/lm/llama")
}

fn start(behaviour: Behaviour) -> RolloutServer {
    RolloutServer::start(&llama(), behaviour)
}

fn report(run: &mut Command) -> Value {
    serde_json::from_str(&stdout_of(run)).unwrap()
}

fn metrics(directory: &Path, name: &str) -> Vec<Value> {
    json_lines(&std::fs::read_to_string(directory.join(name).join("metrics.jsonl")).unwrap())
}

/// Everything that a run has made of its responses.
fn made(directory: &Path, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let run = directory.join(name);
    let mut files: Vec<PathBuf> = Vec::new();
    for iteration in 1..=2 {
        let iteration = run.join(format!("iteration-{iteration}"));
        let shards = std::fs::read_dir(iteration.join("rollouts")).unwrap();
        files.extend(shards.map(|entry| entry.unwrap().path()));
        files.push(iteration.join("held-out.parquet"));
        files.push(iteration.join("checkpoint/model.safetensors"));
    }
    files.sort();
    let read = |file: PathBuf| {
        (file.strip_prefix(&run).unwrap().to_path_buf(), std::fs::read(&file).unwrap())
    };
    files.into_iter().map(read).collect()
}

#[test]
fn a_run_samples_from_servers_that_follow_its_weights() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().unwrap();
        let servers = [start(Behaviour::default()), start(Behaviour::default())];
        let mut run = small_run(directory.path(), "run");
        run.args(["--learning-rate", "1e-3"]);
        served(&mut run, protocol, &[&servers[0], &servers[1]]);
        let report = report(&mut run);
        let differences: Vec<f64> = report["iterations"]
            .as_array()
            .unwrap()
            .iter()
            .map(|iteration| iteration["log_prob_difference"].as_f64().unwrap())
            .collect();
        assert_eq!(differences.len(), 3);
        assert!(differences.iter().all(|difference| *difference < 1e-4), "{differences:?}");
        for server in &servers {
            let loaded = server.changes();
            assert_eq!(loaded.len(), 2, "{loaded:?}");
            assert!(loaded[0].ends_with("run/iteration-1/checkpoint"), "{loaded:?}");
            assert!(loaded[1].ends_with("run/iteration-2/checkpoint"), "{loaded:?}");
            assert!(!server.answered().is_empty(), "a server had nothing to do");
        }
        // 6 prompts, of which each iteration takes a half, three samples each, and the held-out ones.
        let answered: Vec<u32> =
            servers.iter().flat_map(|server| server.answered().into_values()).collect();
        assert!(answered.iter().all(|times| *times == 1), "{answered:?}");

        let metrics = metrics(directory.path(), "run");
        let of_stage = |stage: &str| -> Vec<&Value> {
            metrics.iter().filter(|entry| entry["stage"] == stage).collect()
        };
        let refreshed = of_stage("refresh");
        assert_eq!(refreshed.len(), 3, "{metrics:?}");
        assert!(refreshed.iter().all(|entry| entry["refresh_seconds"].as_f64().unwrap() > 0.0));
        let sampled = of_stage("sample");
        assert_eq!(sampled.len(), 2);
        for entry in sampled {
            assert!(entry["requests"].as_f64().unwrap() > 0.0, "{entry}");
            assert!(entry["tokens"].as_f64().unwrap() > 0.0, "{entry}");
        }
        let recorded = read_json(&directory.path().join("run/run.json"));
        let reference = &recorded["config"]["training"]["reference_log_probs"];
        assert_eq!(reference, "recomputed");
    }
}

#[test]
fn with_a_third_of_all_requests_failing_the_run_is_the_same_to_the_byte() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().unwrap();
        let calm = start(Behaviour::default());
        require_success(&served_run(directory.path(), "calm", protocol, &calm).output().unwrap());
        let troubled = start(Behaviour { fault_share: 0.3, ..Behaviour::default() });
        let mut run = served_run(directory.path(), "calm-too", protocol, &troubled);
        require_success(&run.output().unwrap());
        assert!(made(directory.path(), "calm") == made(directory.path(), "calm-too"), "{protocol}");
        let answered = troubled.answered();
        assert_eq!(answered.len(), calm.answered().len());
        assert!(answered.values().all(|times| *times == 1), "asked for twice after success");
        let faults = troubled.faults();
        assert!(faults.len() >= 7, "{faults:?}");
    }
}

#[test]
fn killed_at_any_moment_it_asks_only_for_what_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let calm = start(Behaviour::default());
    require_success(&served_run(directory.path(), "whole", "vllm", &calm).output().unwrap());

    let slow = Behaviour { delay: Duration::from_millis(4), ..Behaviour::default() };
    let server = start(Behaviour { fault_share: 0.1, ..slow });
    let mut kills = 0;
    for attempt in 0..60 {
        let mut run = served_run(directory.path(), "killed", "vllm", &server);
        if directory.path().join("killed/run.json").exists() {
            run.arg("--resume");
        }
        let after = Duration::from_millis(60 + 40 * (attempt % 7));
        if kills == 12 || kill_after(&mut run, after).is_err() {
            break;
        }
        kills += 1;
    }
    let mut run = served_run(directory.path(), "killed", "vllm", &server);
    require_success(&run.arg("--resume").output().unwrap());
    assert!(kills >= 5, "it was killed {kills} times");
    assert!(made(directory.path(), "whole") == made(directory.path(), "killed"));
    // A kill may lose the answers that were on their way, and nothing else.
    let again: u32 = server.answered().values().map(|times| times - 1).sum();
    assert!(again <= kills * IN_FLIGHT, "{again} answers were asked for again after {kills} kills");
}

#[test]
fn a_server_that_only_says_that_it_has_the_weights_is_caught() {
    let (whole, tied) = (llama(), fixture("fixtures/lm/qwen2"));
    for protocol in PROTOCOLS {
        for (lie, model, told) in [
            (Lie::SkipsRefresh, &whole, "given tokens"),
            (Lie::StaleCache, &whole, "cached prefixes of other weights"),
            (Lie::LoadsFrom(fixture("fixtures/lm/mistral")), &whole, "given tokens"),
            (Lie::KeepsHead, &tied, "given tokens"),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let elsewhere = Behaviour { hides_root: true, ..Behaviour::default() };
            let server = RolloutServer::start(model, Behaviour { lie, ..elsewhere.clone() });
            let mut run = served_run_of(model, directory.path(), "run", protocol, &server);
            let url = server.url();
            refused(&mut run, PLUGIN, &[&url, "holds other weights than the policy", "here", told]);
            // What was made before stays, and the run goes on once the server is honest.
            let honest = RolloutServer::start(model, elsewhere);
            let mut run = served_run_of(model, directory.path(), "run", protocol, &honest);
            require_success(&run.args(["--resume", "--allow", "sampler"]).output().unwrap());
        }
    }
}

#[test]
fn a_server_that_was_started_from_other_weights_is_given_these() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("llama.gguf");
    let mut export = sppo();
    export.args(["export", "gguf", "--type", "f16", "--output"]).arg(&file).arg(llama());
    require_success(&export.output().unwrap());
    // Servers load no file, so they get its weights in a directory.
    for (name, model, loaded) in
        [("directory", llama(), "fixtures/lm/llama"), ("file", file, "file/sampler/written")]
    {
        let server = RolloutServer::start(&fixture("fixtures/lm/mistral"), Behaviour::default());
        let output = served_run_of(&model, directory.path(), name, "vllm", &server).output();
        let output = output.unwrap();
        require_success(&output);
        assert!(server.changes()[0].ends_with(loaded), "{:?}", server.changes());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("and agrees now"), "{told}");
    }
}

#[test]
fn what_a_server_cannot_do_is_said_before_anything_is_sampled() {
    let directory = tempfile::tempdir().unwrap();
    let attempt = |name: &str, behaviour: Behaviour, more: &[&str], code: i32, told: &[&str]| {
        let server = start(behaviour);
        let mut run = served_run(directory.path(), name, "vllm", &server);
        refused(run.args(more), code, told);
        assert!(server.answered().is_empty(), "{name}: it was asked for responses");
    };
    let other = ["--set", "sampler.vllm.model=other"];
    attempt(
        "model",
        Behaviour::default(),
        &other,
        CONFIGURATION,
        &["does not serve `other`", MODEL],
    );
    let short = Behaviour { context: 12, ..Behaviour::default() };
    attempt("context", short, &[], PLUGIN, &["holds 12 tokens", "the longest prompt has"]);
    let tempered = Behaviour { lie: Lie::TemperedLogProbs, ..Behaviour::default() };
    let told = ["after the temperature", "--logprobs-mode raw_logprobs"];
    attempt("tempered", tempered, &["--temperature", "0.6"], PLUGIN, &told);
    let plain = Behaviour { development: false, ..Behaviour::default() };
    attempt("plain", plain, &[], PLUGIN, &["VLLM_SERVER_DEV_MODE=1"]);

    let whole = Behaviour { adapters: false, ..Behaviour::default() };
    let told = ["VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"];
    attempt("whole", whole, &["--lora-rank", "4"], PLUGIN, &told);

    let tied = fixture("fixtures/lm/qwen2");
    let server = RolloutServer::start(&tied, Behaviour::default());
    let mut run = served_run_of(&tied, directory.path(), "tied", "vllm", &server);
    let told = ["tied to its embeddings", "sampler/served/tied-iteration-0"];
    refused(&mut run, PLUGIN, &told);
    // The copy that it names is one that a server can be started from.
    let copy = directory.path().join("tied/sampler/served/tied-iteration-0");
    let server = RolloutServer::start(&copy, Behaviour::default());
    let mut run = served_run_of(&tied, directory.path(), "tied", "vllm", &server);
    run.args(["--resume", "--allow", "sampler"]);
    require_success(&run.output().unwrap());
    let loaded = server.changes();
    assert!(loaded[0].ends_with("sampler/served/tied-iteration-1"), "{loaded:?}");
    assert!(loaded[1].ends_with("sampler/served/tied-iteration-2"), "{loaded:?}");
}

#[test]
fn adapters_are_loaded_under_a_new_name_each_iteration() {
    for protocol in PROTOCOLS {
        let directory = tempfile::tempdir().unwrap();
        let server = start(Behaviour { development: false, ..Behaviour::default() });
        let mut run = served_run(directory.path(), "run", protocol, &server);
        let report = report(run.args(["--lora-rank", "4"]));
        let last = &report["iterations"][2];
        assert!(last["log_prob_difference"].as_f64().unwrap() < 1e-4, "{last}");
        let changes = server.changes();
        let [first, second, unloaded] = &changes[..] else { panic!("{changes:?}") };
        assert!(first.starts_with("run-iteration-1 = "), "{first}");
        assert!(second.starts_with("run-iteration-2 = "), "{second}");
        assert_eq!(unloaded, "run-iteration-1 unloaded");
    }
}

#[test]
fn a_command_of_the_user_may_refresh_the_servers() {
    let directory = tempfile::tempdir().unwrap();
    let server = start(Behaviour { development: false, ..Behaviour::default() });
    let said = directory.path().join("said");
    let script = format!("echo \"$0 $1\" >> {}", said.display());
    let mut run = served_run(directory.path(), "run", "vllm", &server);
    let command = format!(
        "sampler.vllm.refresh_command=['sh', '-c', '{script}', '{{checkpoint}}', '{{version}}']"
    );
    run.args(["--set", &command]);
    // It loads nothing, so the numbers are those of the start.
    refused(&mut run, PLUGIN, &["holds other weights than the policy"]);
    let said = std::fs::read_to_string(said).unwrap();
    assert!(said.contains("iteration-1/checkpoint run/iteration-1"), "{said}");
}

#[test]
fn generate_eval_and_chat_take_a_sampler() {
    let prompts = fixture("fixtures/prompts-small.jsonl");
    let server = start(Behaviour::default());
    let mut generate = sppo();
    generate.arg("generate").arg(&prompts).arg("--model").arg(llama());
    generate.args(["--samples", "2", "--max-new-tokens", "10"]);
    served(&mut generate, "vllm", &[&server]);
    let rows = json_lines(&stdout_of(&mut generate));
    assert!(rows.iter().all(|row| row["candidates"].as_array().unwrap().len() == 2));
    assert_eq!(server.answered().len(), 2 * rows.len());

    let mut chat = sppo();
    chat.args(["chat", "Name a colour.", "--json", "--max-new-tokens", "10"])
        .arg("--model")
        .arg(llama());
    served(&mut chat, "sglang", &[&server]);
    assert_eq!(json_lines(&stdout_of(&mut chat))[0]["tokens"], 10);

    // Two models by one server, which is given each of them.
    let mut eval = sppo();
    eval.args(["eval", "--json", "--max-new-tokens", "10", "--model"])
        .arg(fixture("fixtures/lm/mistral"));
    eval.arg("--against").arg(llama()).arg("--prompts").arg(&prompts);
    served(&mut eval, "sglang", &[&server]);
    let report = report(&mut eval);
    assert!(report["win_rate"]["mean"].is_number(), "{report}");
    assert_eq!(server.changes().len(), 2, "{:?}", server.changes());
    let never = ["--set", "sampler.sglang.refresh=never"];
    refused(eval.args(never), CONFIGURATION, &["refresh = \"never\""]);
}

/// Relays to a server in such a way that it keeps prefixes that it computed with earlier weights: requests lose the
/// salt of the cache, and the server is not told to empty it. Returns the relay's address.
fn relayed_with_a_stale_cache(server: &RealServer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let address = server.address.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let address = address.clone();
            std::thread::spawn(move || relay(stream, &address));
        }
    });
    url
}

fn relay(stream: TcpStream, address: &str) {
    let mut reader = BufReader::new(stream);
    while let Some((path, mut body)) = read_request(&mut reader) {
        let path = path.replace("/pause?", "/pause?clear_cache=false&");
        if let Some(fields) = body.as_object_mut() {
            fields.remove("cache_salt");
        }
        let reply = match path.as_str() {
            "/reset_prefix_cache" => {
                b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"success\":true}".to_vec()
            }
            _ => forwarded(address, &path, &body),
        };
        if reader.get_mut().write_all(&reply).is_err() {
            return;
        }
    }
}

/// A short run of the default model.
fn real_run(directory: &Path, name: &str, url: &str) -> Command {
    let mut run = sppo();
    run.args(["run", "--json", "--name", name, "--iterations", "2", "--samples", "2"]);
    run.args(["--max-new-tokens", "24", "--learning-rate", "1e-5", "--run-directory"]);
    run.arg(directory).args(["--sampler", "vllm"]);
    for setting in [
        "prompts.limit=8".into(),
        "evaluation.samples_per_prompt=1".into(),
        "training.global_batch_size=2".into(),
        format!("sampler.vllm.endpoints=[\"{url}\"]"),
    ] {
        run.args(["--set", &setting]);
    }
    run
}

/// Takes minutes: with `SPPO_VLLM_PYTHON`, the interpreter of an environment with vLLM (its CPU build will do).
#[test]
fn a_real_vllm_follows_the_weights_and_is_caught_where_it_does_not() {
    let Some(python) = vllm_python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let served = with_head_of_its_own(directory.path());
    let server = RealServer::start(&python, &served, &[]);
    let told = ["holds other weights than the policy", "there and"];

    // A refresh that does nothing.
    let mut skipped = real_run(directory.path(), "skipped", &server.url());
    let nothing = ["--set", "sampler.vllm.refresh_command=[\"true\"]"];
    refused(skipped.args(nothing), PLUGIN, &told);

    let report = report(&mut real_run(directory.path(), "honest", &server.url()));
    for iteration in report["iterations"].as_array().unwrap() {
        let difference = iteration["log_prob_difference"].as_f64().unwrap();
        assert!(difference < 1e-3, "{iteration}");
    }

    // The cache keeps prefixes of the start, which the first iteration computes.
    let mut stale = real_run(directory.path(), "stale", &relayed_with_a_stale_cache(&server));
    refused(&mut stale, PLUGIN, &[told[0], "cached prefixes of other weights"]);

    // The server is given its first weights again, and in place of the next ones too.
    let wrong = format!(
        "sampler.vllm.checkpoint_path_on_server={{\"{}\" = \"{}\"}}",
        directory.path().join("wrong/sampler/served/wrong-iteration-1").display(),
        served.display()
    );
    let mut elsewhere = real_run(directory.path(), "wrong", &server.url());
    refused(elsewhere.args(["--set", &wrong]), PLUGIN, &told);
}

/// Takes minutes, as above.
#[test]
fn a_real_vllm_that_reloads_a_model_without_its_tied_head_is_caught() {
    let Some(python) = vllm_python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let mut made = sppo();
    made.args(["run", "--name", "made", "--iterations", "1", "--samples", "2", "--run-directory"]);
    made.arg(directory.path()).args(["--max-new-tokens", "8", "--set", "prompts.limit=2"]);
    require_success(&made.output().unwrap());
    let tied = directory.path().join("made/iteration-1/checkpoint");
    let server = RealServer::start(&python, &tied, &[]);
    // In place of the copy with a head of its own, it is given the checkpoint.
    let script = directory.path().join("reload.py");
    std::fs::write(
        &script,
        "import json, sys, urllib.request\n\
         load = {'method': 'reload_weights', 'kwargs': {'weights_path': sys.argv[2]}}\n\
         header = {'Content-Type': 'application/json'}\n\
         body = json.dumps(load).encode()\n\
         urllib.request.urlopen(urllib.request.Request(sys.argv[1] + '/collective_rpc', body, header))\n",
    )
    .unwrap();
    let checkpoint = directory.path().join("run/iteration-1/checkpoint");
    let url = server.url();
    let command = [python.as_path(), &script, Path::new(&url), &checkpoint];
    let mut run = real_run(directory.path(), "run", &url);
    run.args(["--set", &format!("sampler.vllm.refresh_command={command:?}")]);
    run.arg("--model").arg(&tied);
    refused(&mut run, PLUGIN, &["holds other weights than the policy", "there and"]);
}

/// Half an hour: two whole runs. With `SPPO_VLLM_PYTHON`, as above.
#[test]
#[ignore = "it takes half an hour"]
fn three_iterations_by_a_real_vllm_win_as_often_as_those_in_process() {
    let Some(python) = vllm_python() else { return };
    let directory = tempfile::tempdir().unwrap();
    let served = with_head_of_its_own(directory.path());
    let default_run = |name: &str| {
        let mut run = sppo();
        run.args(["run", "--json", "--name", name, "--run-directory"]).arg(directory.path());
        run
    };
    let in_process = report(&mut default_run("in-process"));
    let server = RealServer::start(&python, &served, &[]);
    let endpoints = format!("sampler.vllm.endpoints=[\"{}\"]", server.url());
    let by_server = report(default_run("vllm").args(["--sampler", "vllm", "--set", &endpoints]));
    for iteration in by_server["iterations"].as_array().unwrap() {
        assert!(iteration["log_prob_difference"].as_f64().unwrap() < 1e-3, "{iteration}");
    }
    let last = |report: &Value| report["iterations"][3]["win_rate"].clone();
    let (expected, found) = (last(&in_process), last(&by_server));
    let mean = found["mean"].as_f64().unwrap();
    let interval = [&expected["low"], &expected["high"]].map(|bound| bound.as_f64().unwrap());
    assert!((interval[0]..=interval[1]).contains(&mean), "{found} is not within {expected}");
}
