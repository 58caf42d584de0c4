//! The oracle `http` in whole commands: killed and started again, with a key that must not be seen, and
//! with real servers where there are some.

#[path = "../oracle-http/tests/support/mod.rs"]
mod service;
mod support;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service::{Behaviour, Service};
use support::{Running, free_port, refused, require_success, small_run, sppo, stdout_of};

/// Nothing like it stands in any file by chance.
const KEY: &str = "sk-test-Zq81vLw0PnXe77";

fn candidates(directory: &Path, prompts: usize) -> PathBuf {
    let row = |prompt: usize| {
        let answers: Vec<String> =
            (0..4).map(|index| format!("answer {index} to {prompt}")).collect();
        json!({"prompt": format!("question {prompt}"), "candidates": answers}).to_string() + "\n"
    };
    let file = directory.join("candidates.jsonl");
    std::fs::write(&file, (0..prompts).map(row).collect::<String>()).unwrap();
    file
}

/// Points a command at a service; judgments are remembered in `cache`.
fn ask(command: &mut Command, protocol: &str, url: &str, cache: &Path) {
    command.args(["--oracle", "http"]).env("SPPO_CACHE", cache);
    for setting in [
        format!("protocol={protocol}"),
        format!("endpoints=[\"{url}\"]"),
        "model=judge".into(),
        "identity=the judge".into(),
        "questions_per_request=2".into(),
        "concurrency.max=8".into(),
        "retries.first_delay_seconds=0.01".into(),
        "retries.longest_delay_seconds=0.05".into(),
        "timeouts.read_seconds=2".into(),
    ] {
        command.args(["--set", &format!("oracle.http.{setting}")]);
    }
}

fn rank(candidates: &Path, output: &Path, service: &Service, cache: &Path) -> Command {
    let mut command = sppo();
    command.arg("rank").arg(candidates).arg("--output").arg(output);
    ask(&mut command, "pairwise", &service.url(), cache);
    command
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn killed_at_random_moments_it_pays_for_no_remembered_judgment_twice() {
    const PROMPTS: usize = 60;
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(directory.path(), PROMPTS);
    let calm = Service::start(Behaviour::default());
    let expected = directory.path().join("expected.jsonl");
    let cache = directory.path().join("expected-cache");
    require_success(&rank(&file, &expected, &calm, &cache).output().unwrap());

    let troubled = Service::start(Behaviour {
        fault_share: 0.1,
        delay: Duration::from_millis(10),
        ..Behaviour::default()
    });
    let output = directory.path().join("ranked.jsonl");
    let cache = directory.path().join("cache");
    let mut kills = 0;
    let mut random = fastrand::Rng::with_seed(3);
    loop {
        let mut child = rank(&file, &output, &troubled, &cache)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // After twelve kills it may finish.
        if kills == 12 {
            assert!(child.wait().unwrap().success());
            break;
        }
        let before = troubled.requests();
        let patience = Instant::now() + Duration::from_secs(20);
        while troubled.requests() == before && Instant::now() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(random.u64(0..60)));
        let done = child.try_wait().unwrap().is_some();
        child.kill().unwrap();
        child.wait().unwrap();
        if done {
            break;
        }
        kills += 1;
    }
    assert!(kills >= 3, "only {kills} kills came in time");
    assert_eq!(read(&output), read(&expected));
    let answered = troubled.answered();
    assert_eq!(answered.len(), PROMPTS * 12);
    // What was on its way when it was killed: 8 requests of 2 questions each time at most.
    let repeated: u32 = answered.values().map(|times| times - 1).sum();
    assert!(repeated <= kills * 16, "{repeated} judgments were paid for twice, {kills} kills");
}

/// All files below a directory that hold the text.
fn holding(directory: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, text));
        } else {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(text.len()).any(|window| window == text.as_bytes()) {
                found.push(path);
            }
        }
    }
    found
}

fn require_secrecy(output: &Output, key: &str) {
    for stream in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(stream);
        let line = text.lines().find(|line| line.contains(key));
        assert!(line.is_none(), "the key was shown: {line:?}");
    }
}

fn run_with_key(directory: &Path, name: &str, service: &Service, key: &str) -> Command {
    let mut command = small_run(directory, name);
    command.args(["--set", "oracle.http.api_key_env=JUDGE_KEY"]).env("JUDGE_KEY", key);
    command.env("SPPO_LOG", "trace");
    ask(&mut command, "openai-judge", &service.url(), &directory.join(format!("{name}-cache")));
    command
}

#[test]
fn keys_are_sent_and_never_shown_or_stored() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::start(Behaviour { key: Some(KEY.into()), ..Behaviour::default() });
    let output = run_with_key(directory.path(), "run", &service, KEY).output().unwrap();
    require_success(&output);
    require_secrecy(&output, KEY);
    assert!(!service.answered().is_empty());

    // The service repeats a wrong key in its refusal.
    let wrong = "sk-wrong-5hKq0sVb2";
    let output = run_with_key(directory.path(), "refused", &service, wrong).output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("401") && said.contains("api_key_env"), "{said}");
    require_secrecy(&output, wrong);

    // Written where the variable's name belongs.
    let mut misplaced = sppo();
    misplaced.args(["rank", "--set", &format!("oracle.http.api_key_env={wrong}")]);
    misplaced.arg(candidates(directory.path(), 1));
    ask(&mut misplaced, "pairwise", &service.url(), directory.path());
    let output = misplaced.output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    require_secrecy(&output, wrong);

    // From a file.
    let file = directory.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    let mut from_file = sppo();
    from_file.arg("rank").arg(candidates(directory.path(), 1));
    from_file.args(["--set", &format!("oracle.http.api_key_file={}", file.display())]);
    ask(&mut from_file, "pairwise", &service.url(), directory.path());
    let output = from_file.output().unwrap();
    require_success(&output);
    require_secrecy(&output, KEY);
    std::fs::remove_file(&file).unwrap();

    assert_eq!(holding(directory.path(), KEY), Vec::<PathBuf>::new());
    assert_eq!(holding(directory.path(), wrong), Vec::<PathBuf>::new());
}

#[test]
fn a_run_announces_counts_and_records_what_the_judge_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::start(Behaviour { fault_share: 0.1, ..Behaviour::default() });
    let command = |extra: &[&str]| {
        let mut command = small_run(directory.path(), "run");
        ask(&mut command, "openai-judge", &service.url(), &directory.path().join("cache"));
        command.args(["--set", "preference.prices.million_prompt_tokens=2"]);
        command.args(extra);
        command
    };
    let plan: Value = serde_json::from_str(&stdout_of(&mut command(&["--dry-run"]))).unwrap();
    let expected = plan["expected_requests"].as_u64().unwrap();
    assert_eq!((service.requests(), directory.path().join("cache").exists()), (0, false));

    require_success(&command(&[]).output().unwrap());
    let answered = service.answered().len() as u64;
    assert!(answered > 0 && answered <= expected, "{answered} answered, {expected} announced");

    let metrics = read(&directory.path().join("run/metrics.jsonl"));
    let entries: Vec<Value> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = entries.iter().rfind(|entry| entry["kind"] == "stage").expect("a stage's numbers");
    assert_eq!(last["requests"].as_f64(), Some(service.requests() as f64));
    let by_token = last["prompt_tokens"].as_f64().unwrap();
    assert!(by_token >= 100.0 * answered as f64, "{by_token}");
    let report = |iteration: u32| -> Value {
        let file = directory.path().join(format!("run/iteration-{iteration}/report.json"));
        serde_json::from_str(&read(&file)).unwrap()
    };
    let used = [1, 2].map(|iteration| report(iteration)["oracle"].clone());
    let sum = |of: &dyn Fn(&Value) -> f64| used.iter().map(of).sum::<f64>();
    // The trial of the judge precedes the first stage, and is counted with it.
    assert_eq!(sum(&|oracle| oracle["service"]["prompt_tokens"].as_f64().unwrap()), by_token);
    let cost = sum(&|oracle| oracle["cost"].as_f64().unwrap());
    assert!((cost - 2e-6 * by_token).abs() < 1e-12, "{cost}");
    for oracle in &used {
        // The judge of the tests reads both orders; see its bias.
        assert!(oracle["first_place_probability"].is_number(), "{oracle}");
        assert_eq!(
            oracle["presentations"].as_u64(),
            oracle["both_orders"].as_u64().map(|both| 2 * both)
        );
    }
    let record: Value =
        serde_json::from_str(&read(&directory.path().join("run/run.json"))).unwrap();
    let oracle =
        record["plugins"].as_array().unwrap().iter().find(|plugin| plugin["kind"] == "oracle");
    assert_eq!(oracle.unwrap()["identity"], "the judge");
}

#[test]
fn an_outage_ends_a_run_that_can_be_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let service = Service::start(Behaviour::default());
    let command = |extra: &[&str]| {
        let mut command = small_run(directory.path(), "run");
        ask(&mut command, "pairwise", &service.url(), &directory.path().join("cache"));
        command.args(["--set", "oracle.http.retries.give_up_after_seconds=0.5"]).args(extra);
        command.output().unwrap()
    };
    service.set_down(true);
    let stopped = command(&[]);
    let said = String::from_utf8_lossy(&stopped.stderr);
    assert_eq!(stopped.status.code(), Some(6), "{said}");
    assert!(said.contains("oracle `http`") && said.contains("--resume"), "{said}");
    service.set_down(false);
    require_success(&command(&["--resume"]));
}

#[test]
fn a_judge_that_cannot_be_reached_is_found_out_before_anything_is_sampled() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = small_run(directory.path(), "run");
    let endpoints = "http://127.0.0.1:1\", \"http://127.0.0.1:2";
    ask(&mut command, "pairwise", endpoints, directory.path());
    let told = ["127.0.0.1:1/", "127.0.0.1:2/", "cannot connect", "`oracle.http.endpoints`"];
    refused(&mut command, 6, &told);
    assert!(!directory.path().join("run").exists());
}

#[test]
fn what_is_remembered_needs_no_service() {
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(directory.path(), 3);
    let rank = |url: &str| {
        let mut command = sppo();
        ask(command.arg("rank").arg(&file), "pairwise", url, directory.path());
        stdout_of(&mut command)
    };
    let service = Service::start(Behaviour::default());
    assert_eq!(rank(&service.url()), rank("http://127.0.0.1:1"));
}

#[test]
fn the_best_of_several_samples_is_the_one_that_the_judge_prefers() {
    let model = support::fixture("fixtures/lm/llama");
    let say = |extra: &[&str]| {
        let mut command = sppo();
        command.args(["chat", "Name a colour.", "--json", "--seed", "5", "--max-new-tokens", "8"]);
        command.arg("--model").arg(&model).args(extra);
        let text = stdout_of(&mut command);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let directory = tempfile::tempdir().unwrap();
    let all = say(&["--samples", "6"]);
    let texts: Vec<&str> = all.iter().map(|answer| answer["text"].as_str().unwrap()).collect();
    let file = directory.path().join("candidates.jsonl");
    std::fs::write(
        &file,
        json!({"prompt": "Name a colour.", "candidates": texts}).to_string() + "\n",
    )
    .unwrap();
    // Whether an answer ended is not known of files.
    let same_rules = ["--set", "oracle.rules.ended.weight=0"];
    let ranked = stdout_of(sppo().arg("rank").arg(&file).args(same_rules));
    let ranked: Value = serde_json::from_str(ranked.trim()).unwrap();
    let win_rate = |row: &Value| -> f64 {
        row.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum()
    };
    let rates: Vec<f64> = ranked["probability"].as_array().unwrap().iter().map(win_rate).collect();
    let best = (0..6).rev().max_by(|a, b| rates[*a].total_cmp(&rates[*b])).unwrap();
    let mut arguments = vec!["--best-of", "6", "--oracle", "rules"];
    arguments.extend(same_rules);
    let chosen = say(&arguments);
    assert_eq!(chosen.len(), 1);
    assert_eq!(chosen[0]["text"], texts[best]);
    assert_eq!(ranked["oracle"], format!("rules {}", env!("CARGO_PKG_VERSION")));
}

/// A proxy that leads everybody to `port`, and what it was asked for.
fn proxy_to(port: u16) -> (u16, mpsc::Receiver<String>) {
    proxy(port, |reader, mut client| {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        Ok(head)
    })
}

/// The same for SOCKS 5; it insists on a name and a password, and says which they were.
fn socks_proxy_to(port: u16) -> (u16, mpsc::Receiver<[String; 3]>) {
    proxy(port, |reader, mut client| {
        let [version, methods] = bytes(reader)?;
        let offered = text(reader, methods)?;
        assert!(version == 5 && offered.contains('\u{2}'), "{offered:?}");
        client.write_all(&[5, 2])?;
        let [_, length] = bytes(reader)?;
        let user = text(reader, length)?;
        let [length] = bytes(reader)?;
        let password = text(reader, length)?;
        client.write_all(&[1, 0])?;
        // To connect, to a name.
        let [5, 1, 0, 3, length] = bytes(reader)? else { panic!("another request") };
        let host = text(reader, length)?;
        let [_, _] = bytes(reader)?;
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        Ok([user, password, host])
    })
}

/// Serves each client on a thread of its own: what `greet` learns of it is sent, then it is led to `port`.
/// A client that ends beforehand has asked for nothing: connections that turn out not to be needed do.
fn proxy<T: Send + 'static>(
    port: u16,
    greet: impl Fn(&mut BufReader<TcpStream>, &TcpStream) -> io::Result<T> + Clone + Send + 'static,
) -> (u16, mpsc::Receiver<T>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let own_port = listener.local_addr().unwrap().port();
    let (sender, asked) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let (greet, sender) = (greet.clone(), sender.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(client.try_clone().unwrap());
                if let Ok(learned) = greet(&mut reader, &client) {
                    // The test may have ended.
                    let _ = sender.send(learned);
                    lead(reader, client, port);
                }
            });
        }
    });
    (own_port, asked)
}

fn bytes<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(reader: &mut impl Read, length: u8) -> io::Result<String> {
    let mut bytes = vec![0; usize::from(length)];
    reader.read_exact(&mut bytes)?;
    Ok(String::from_utf8(bytes).unwrap())
}

/// Carries everything between a client and the service at a port.
fn lead(mut from_client: BufReader<TcpStream>, mut client: TcpStream, port: u16) {
    let mut service = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut back = service.try_clone().unwrap();
    std::thread::spawn(move || io::copy(&mut from_client, &mut service));
    std::thread::spawn(move || io::copy(&mut back, &mut client));
}

#[test]
fn proxies_are_those_of_the_environment_and_exceptions_are_heeded() {
    let service = Service::start(Behaviour::default());
    let (proxy, asked) = proxy_to(service.port);
    let proxy = format!("http://user:pAssW0rd@127.0.0.1:{proxy}");
    let (socks, asked_socks) = socks_proxy_to(service.port);
    let socks = format!("socks5h://user:pAssW0rd@127.0.0.1:{socks}");
    let directory = tempfile::tempdir().unwrap();
    let file = candidates(directory.path(), 2);
    let rank = |url: &str, cache: &str, variables: &[(&str, &str)]| {
        let mut command = sppo();
        command.arg("rank").arg(&file).env("SPPO_LOG", "trace");
        for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command.envs(variables.iter().copied());
        ask(&mut command, "pairwise", url, &directory.path().join(cache));
        command.args(["--set", "oracle.http.retries.max_attempts=1"]);
        let output = command.output().unwrap();
        require_secrecy(&output, "pAssW0rd");
        output.status.success()
    };
    let judge = "http://judge.invalid";
    assert!(rank(judge, "a", &[("HTTP_PROXY", &proxy)]));
    // Not for this machine, for exceptions, or for the other scheme.
    let dead = [("HTTP_PROXY", "http://127.0.0.1:1"), ("HTTPS_PROXY", "http://127.0.0.1:1")];
    assert!(rank(&service.url(), "b", &dead));
    let (excepted, plain) = ("http://excepted.invalid", "http://plain.invalid");
    assert!(!rank(excepted, "c", &[("HTTP_PROXY", &proxy), ("NO_PROXY", "excepted.invalid")]));
    assert!(!rank(plain, "d", &[("HTTPS_PROXY", &proxy)]));
    assert!(rank(judge, "e", &[("ALL_PROXY", &socks)]));
    // A proxy that cannot be used is no reason to do without.
    assert!(!rank(judge, "f", &[("HTTP_PROXY", "ftp://user:pAssW0rd@h"), ("ALL_PROXY", &socks)]));
    // Some may only now hear of connections that an earlier process opened and did not need.
    let heads: Vec<String> = asked.try_iter().collect();
    assert!(!heads.is_empty());
    assert!(heads.iter().all(|head| head.starts_with("CONNECT judge.invalid:80 ")), "{heads:?}");
    let said: Vec<[String; 3]> = asked_socks.try_iter().collect();
    assert!(!said.is_empty());
    assert!(said.iter().all(|said| said == &["user", "pAssW0rd", "judge.invalid"]), "{said:?}");
}

#[test]
fn the_example_server_judges() {
    let script = support::fixture("../oracle-http/examples/pairwise_server.py");
    let port = free_port();
    let Ok(child) =
        Command::new("python3").arg(script).arg(port.to_string()).stderr(Stdio::null()).spawn()
    else {
        eprintln!("skipped: there is no python3");
        return;
    };
    let mut server = Running(child);
    server.wait_for_port(port);
    let directory = tempfile::tempdir().unwrap();
    let mut command = sppo();
    command.arg("rank").arg(candidates(directory.path(), 2));
    ask(&mut command, "pairwise", &format!("http://127.0.0.1:{port}"), directory.path());
    let ranked = stdout_of(&mut command);
    let first: Value = serde_json::from_str(ranked.lines().next().unwrap()).unwrap();
    // All answers are equally long.
    assert_eq!(first["probability"], json!(vec![vec![0.5; 4]; 4]));
    assert_eq!(first["oracle"], format!("http {} (the judge)", env!("CARGO_PKG_VERSION")));
}

/// With `SPPO_LLAMA_CPP_PYTHON` naming a Python that has `llama-cpp-python[server]`, and
/// `SPPO_LLAMA_CPP_MODEL` a GGUF file.
#[test]
fn a_llama_cpp_server_judges() {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let (Some(python), Some(model)) =
        (variable("SPPO_LLAMA_CPP_PYTHON"), variable("SPPO_LLAMA_CPP_MODEL"))
    else {
        eprintln!("skipped: SPPO_LLAMA_CPP_PYTHON and SPPO_LLAMA_CPP_MODEL are not set");
        return;
    };
    let port = free_port();
    let mut start = Command::new(python);
    start.args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--logits_all", "true"]);
    start.arg("--model").arg(model).args(["--port", &port.to_string(), "--n_ctx", "1024"]);
    let mut server = Running(start.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    server.wait_for_port(port);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("candidates.jsonl");
    let row = json!({
        "prompt": "What is the capital of France?",
        "candidates": ["The capital of France is Paris.", "Bananas are yellow.", "Paris."],
    });
    std::fs::write(&file, format!("{row}\n")).unwrap();
    let mut command = sppo();
    command.arg("rank").arg(&file);
    ask(&mut command, "openai-judge", &format!("http://127.0.0.1:{port}/v1"), directory.path());
    command.args(["--set", "oracle.http.judge.min_label_probability=0.0"]);
    command.args(["--set", "oracle.http.timeouts.read_seconds=60"]);
    let ranked: Value = serde_json::from_str(stdout_of(&mut command).trim()).unwrap();
    let matrix = ranked["probability"].as_array().unwrap();
    eprintln!("{}", ranked["probability"]);
    assert_eq!(matrix.len(), 3);
    let at = |i: usize, j: usize| matrix[i][j].as_f64().unwrap();
    assert!(at(0, 1) > 0.0 && at(0, 1) < 1.0 && at(0, 1) != 0.5, "log-probabilities were read");
}
