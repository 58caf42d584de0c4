//! Shared parts of the whole-program tests: the binary, a tiny model, and a small run on it.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Time limit for everything that tests wait for, generous enough for a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The binary under test, without a user's environment.
pub(crate) fn sppo() -> Command {
    without_environment(Path::new(env!("CARGO_BIN_EXE_sppo")))
}

/// The same in a directory of its own: plugins beside the program are found, and cargo puts the test plugins there
/// when it builds the workspace.
pub(crate) fn sppo_alone_in(directory: &Path) -> Command {
    let program = directory.join("sppo");
    if !program.exists() {
        let built = env!("CARGO_BIN_EXE_sppo");
        fs::create_dir_all(directory).expect("a directory");
        let linked = fs::hard_link(built, &program);
        linked.or_else(|_| fs::copy(built, &program).map(drop)).expect("a copy of the program");
    }
    without_environment(&program)
}

fn without_environment(program: &Path) -> Command {
    let mut command = Command::new(program);
    let of_the_hub =
        ["HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH"];
    for name in of_the_hub {
        command.env_remove(name);
    }
    command.env_remove("SPPO_LOG").env_remove("SPPO_PLUGIN_PATH").env("NO_COLOR", "1");
    command.env("SPPO_DATA_DIRECTORY", fixture("no-user-data"));
    command
}

/// A program that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts a program; ignores its standard output and reads its standard error with [`Said`].
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().expect("the binary starts"))
    }

    /// Waits until a condition holds that the program brings about.
    pub(crate) fn wait_until(&mut self, is_so: impl Fn() -> bool) {
        self.wait_at_most(PATIENCE, is_so);
    }

    /// As [`Self::wait_until`], for a program that takes minutes to start.
    pub(crate) fn wait_longer_until(&mut self, is_so: impl Fn() -> bool) {
        self.wait_at_most(10 * PATIENCE, is_so);
    }

    fn wait_at_most(&mut self, patience: Duration, is_so: impl Fn() -> bool) {
        let started = Instant::now();
        while !is_so() {
            let ended = self.0.try_wait().unwrap();
            assert!(ended.is_none(), "it ended too early: {ended:?}");
            assert!(started.elapsed() < patience, "waited in vain");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until a server listens on a port of this machine.
    pub(crate) fn wait_for_port(&mut self, port: u16) {
        self.wait_until(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
    }

    /// Presses Ctrl-C.
    #[cfg(unix)]
    pub(crate) fn interrupt(&self) {
        // Every shell has a `kill` of its own, but not every system a program of that name.
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -INT \"$0\"", &self.0.id().to_string()]);
        assert!(shell.status().expect("there is a shell").success());
    }

    /// Waits until the program has ended.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A port of this machine that nothing listens on.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

/// Standard error of a program.
pub(crate) struct Said {
    lines: mpsc::Receiver<String>,
    text: String,
}

impl Said {
    /// Reads a program's standard error on a thread of its own: reading has no deadline, and the program
    /// must not wait for a reader.
    pub(crate) fn by(running: &mut Running) -> Self {
        let stderr = running.0.stderr.take().expect("standard error is piped");
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may have ended.
                let _ = sender.send(line + "\n");
            }
        });
        Self { lines, text: String::new() }
    }

    /// Waits until the program has printed this.
    pub(crate) fn wait_for(&mut self, part: &str) {
        let started = Instant::now();
        while !self.text.contains(part) {
            let left = PATIENCE.saturating_sub(started.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.text.push_str(&line),
                Err(error) => panic!("`{part}` was not said ({error}):\n{}", self.text),
            }
        }
    }

    /// All output of a program that has ended.
    pub(crate) fn everything(mut self) -> String {
        self.text.extend(self.lines.iter());
        self.text
    }
}

/// Starts a program and kills it after a while; `Err` is the time it took if it ended before that.
pub(crate) fn kill_after(command: &mut Command, after: Duration) -> Result<(), Duration> {
    let started = Instant::now();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut running = Running(command.spawn().expect("the binary starts"));
    while started.elapsed() < after {
        if running.0.try_wait().unwrap().is_some() {
            return Err(started.elapsed());
        }
        thread::sleep(Duration::from_millis(1));
    }
    running.0.kill().unwrap();
    // It may have ended meanwhile.
    let status = running.0.wait().unwrap();
    if status.success() { Err(started.elapsed()) } else { Ok(()) }
}

/// A file or directory below `tests/`.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(path)
}

/// The standard output of a command that must succeed.
pub(crate) fn stdout_of(command: &mut Command) -> String {
    let output = command.output().expect("the binary starts");
    require_success(&output);
    String::from_utf8(output.stdout).expect("UTF-8 on standard output")
}

pub(crate) fn require_success(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Asserts that a command fails with this exit code and prints all of these texts.
pub(crate) fn refused(command: &mut Command, code: i32, told: &[&str]) {
    let output = command.output().expect("the binary starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for part in told {
        assert!(text.contains(part), "`{part}` is not in\n{text}");
    }
}

/// A two-iteration run of a random three-layer model that takes well under a second, with shards and
/// training states small enough that a kill lands between commits.
pub(crate) fn small_run(directory: &Path, name: &str) -> Command {
    small_run_of(&fixture("fixtures/lm/llama"), directory, name)
}

/// As [`small_run`], of another model.
pub(crate) fn small_run_of(model: &Path, directory: &Path, name: &str) -> Command {
    let mut command = sppo();
    command
        .arg("run")
        .args(["--name", name, "--iterations", "2", "--seed", "7", "--json"])
        .arg("--run-directory")
        .arg(directory)
        .arg("--model")
        .arg(model)
        .arg("--prompts")
        .arg(fixture("fixtures/prompts-small.jsonl"))
        .arg("--held-out")
        .arg(fixture("fixtures/prompts-held-out-small.jsonl"))
        .args(["--set", "sampling.samples_per_prompt=3"])
        .args(["--set", "sampling.max_new_tokens=24"])
        .args(["--set", "sampling.prompts_per_shard=2"])
        .args(["--set", "training.global_batch_size=2"])
        .args(["--set", "training.commit_every_steps=1"])
        .args(["--set", "evaluation.samples_per_prompt=1"])
        // No answer of this model is too long or ends by itself as the rules are, and where all are
        // judged equal nothing is trained.
        .args(["--set", "oracle.rules.length.min_words=1"])
        .args(["--set", "oracle.rules.length.max_words=1"]);
    command
}

/// The library of a crate of this workspace, built by cargo beside the tests.
pub(crate) fn library(crate_name: &str) -> PathBuf {
    let path = library_file(crate_name);
    assert!(path.is_file(), "{} was not built", path.display());
    path
}

/// Path of a crate's library after cargo builds it.
pub(crate) fn library_file(crate_name: &str) -> PathBuf {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
    let file = format!("{DLL_PREFIX}{}{DLL_SUFFIX}", crate_name.replace('-', "_"));
    let test = std::env::current_exe().expect("a test has a file");
    test.parent().expect("a file lies in a directory").join(file)
}

/// The library of the backend tch, if it was built with libtorch.
pub(crate) fn tch_library() -> Option<PathBuf> {
    let library = library_file("sppo-backend-tch");
    let listed = stdout_of(sppo().args(["plugin", "list", "--json", "--plugin"]).arg(&library));
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let is_built = listed.iter().any(|plugin| plugin["name"] == "tch");
    if !is_built {
        eprintln!("skipped: the backend tch was built without libtorch");
    }
    is_built.then_some(library)
}

/// `target/<profile>`, the directory of the tests' build.
fn profile_directory() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a file");
    test.ancestors().nth(2).expect("target/<profile>/deps/test").into()
}

/// The directory that cargo builds into.
pub(crate) fn target_directory() -> PathBuf {
    profile_directory().parent().expect("a profile lies in the target directory").into()
}

/// Cargo, building into the directory that the tests were built in.
pub(crate) fn cargo(action: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(action).env("CARGO_TARGET_DIR", target_directory());
    // What cargo tells these tests about their own package makes build scripts run again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// Builds a library of another workspace. The build is the one of its own tests, so their artefacts are
/// reused.
pub(crate) fn build_library(manifest: &Path, crate_name: &str) -> PathBuf {
    let mut build = cargo("test");
    build.args(["--no-run", "--manifest-path"]).arg(manifest);
    let profile = profile_directory();
    let profile = profile.file_name().expect("a profile has a name");
    if profile != "debug" {
        build.arg("--profile").arg(profile);
    }
    require_success(&build.output().expect("cargo starts"));
    library(crate_name)
}

/// The pairs of the reference's training in `optim-llama.json`, in the format of `sppo train`.
pub(crate) fn reference_pairs(golden: &Value) -> String {
    golden["pairs"].as_array().unwrap().iter().fold(String::new(), |mut lines, pair| {
        let line = json!({
            "prompt_tokens": pair["prompt"],
            "chosen_tokens": pair["chosen"],
            "rejected_tokens": pair["rejected"],
            "chosen_probs": 0.5,
            "chosen_probs_win": pair["p_win"],
            "chosen_probs_lose": pair["p_lose"],
        });
        writeln!(lines, "{line}").unwrap();
        lines
    })
}

/// The reference's sequences in a model's `golden.json`, in the format of `sppo score`.
pub(crate) fn reference_sequences(golden: &Value) -> String {
    golden["sequences"].as_array().unwrap().iter().fold(String::new(), |mut lines, sequence| {
        let tokens = sequence.as_array().unwrap();
        let line = json!({ "prompt_tokens": tokens[..1], "response_tokens": tokens[1..] });
        writeln!(lines, "{line}").unwrap();
        lines
    })
}

pub(crate) fn read_json(path: &Path) -> Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Path and JSON body of the next request to a server; the body is null where there is none.
pub(crate) fn read_request(reader: &mut impl BufRead) -> Option<(String, Value)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((path, serde_json::from_slice(&body).unwrap_or(Value::Null)))
}
