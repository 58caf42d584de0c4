//! Processes that a test starts and watches.

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use sppo_backend_tch::Fault;

/// Names the task of a process that a test started.
pub(crate) const TASK: &str = "SPPO_TEST_TASK";
/// By then all ranks must have ended that were not stopped.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// A process of a test.
pub(crate) struct Rank {
    child: Child,
    output: Receiver<String>,
    seen: String,
}

impl Rank {
    pub(crate) fn start(task: &str, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rank", "--nocapture", "--test-threads", "1"]);
        for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE"] {
            command.env_remove(name);
        }
        command.env(TASK, task).envs(variables.iter().map(|(name, value)| (*name, value)));
        command.env("RUST_BACKTRACE", "0");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, output) = channel();
        let pipes: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for mut pipe in pipes {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                    let _ = sender.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
                }
            });
        }
        Self { child, output, seen: String::new() }
    }

    /// Waits for a line, or for the end; returns all output so far.
    pub(crate) fn wait_for(&mut self, line: Option<&str>) -> &str {
        let deadline = Instant::now() + LONGEST;
        while !line.is_some_and(|line| self.seen.lines().any(|seen| seen == line)) {
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(remaining) {
                Ok(text) => self.seen.push_str(&text),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("nothing for {LONGEST:?} after: {}", self.seen)
                }
            }
        }
        &self.seen
    }

    /// The sentence that a rank ended with.
    pub(crate) fn told(mut self) -> String {
        let output = self.wait_for(None);
        let told = output.lines().find_map(|line| line.strip_prefix("told: ")).map(String::from);
        assert!(!output.contains("frame #"), "a call stack: {output}");
        told.unwrap_or_else(|| panic!("no end: {output}"))
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the process is a child that was not waited for, so its number is still its own.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(crate) fn variables(rank: usize, size: usize, port: u16) -> Vec<(&'static str, String)> {
    let numbers =
        [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", size)];
    let numbers = numbers.map(|(name, number)| (name, number.to_string()));
    let place = [("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())];
    numbers.into_iter().chain(place).collect()
}

/// Starts some ranks of a group.
pub(crate) fn start(task: &str, ranks: impl IntoIterator<Item = usize>, size: usize) -> Vec<Rank> {
    let port = free_port();
    ranks.into_iter().map(|rank| Rank::start(task, &variables(rank, size, port))).collect()
}

/// Lets ranks end, which must all tell of this fault of this rank, in a sentence with its host.
#[track_caller]
pub(crate) fn assert_all_tell(ranks: Vec<Rank>, fault: Fault, culprit: usize, words: &str) {
    for (index, rank) in ranks.into_iter().enumerate() {
        let told = rank.told();
        println!("{told}");
        assert!(told.starts_with(&format!("{fault:?} Some({culprit}): ")), "{index}: {told}");
        assert!(told.contains(words), "{index}: {told}");
        assert!(told.contains(&format!("rank {culprit} on host ")), "{index}: {told}");
    }
}
