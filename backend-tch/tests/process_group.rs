//! Groups of real processes: the test's own program, started once per rank with the variables that a
//! launcher sets. No launcher, no Python.
#![cfg(all(feature = "libtorch", target_os = "linux"))]

use std::io::Read;
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sppo_backend_tch::{
    AgentStore, Fault, GroupResult, GroupSettings, Launch, ProcessGroup, TchOps, TchOptions,
};
use sppo_model::ops::{Ops, ParameterStore};
use tch::{Device, Kind, Tensor};

/// Names the task of a process that a test started.
const TASK: &str = "SPPO_TEST_TASK";
/// Time-out of groups in tests of faults.
const SHORT: Duration = Duration::from_secs(3);
/// By then all ranks must have ended that were not stopped.
const LONGEST: Duration = Duration::from_secs(30);

// What a rank does.

/// The entry of processes that a test started; nothing in a run of all tests.
#[test]
fn rank() {
    let Ok(task) = std::env::var(TASK) else { return };
    if task == "agent" {
        return serve_as_agent();
    }
    tch::set_num_threads(1);
    let launch = Launch::from_environment().unwrap().unwrap();
    let settings = settings(&task, launch.rank);
    let told = match ProcessGroup::join(launch, &settings) {
        Ok(group) => match perform(&task, &group) {
            Ok(()) => "done".into(),
            Err(error) => format!("{:?} {:?}: {error}", error.fault(), error.rank()),
        },
        Err(error) => format!("{:?} {:?}: {error}", error.fault(), error.rank()),
    };
    println!("\ntold: {told}");
}

fn settings(task: &str, rank: usize) -> GroupSettings {
    let settings = GroupSettings::new(match task {
        "collectives" | "gradients" | "restart" => Duration::from_secs(20),
        _ => SHORT,
    });
    match (task, rank) {
        ("other build", 1) => GroupSettings { build: "sppo-backend-tch 0.0.9".into(), ..settings },
        _ => settings,
    }
}

fn perform(task: &str, group: &ProcessGroup) -> GroupResult<()> {
    let rank = group.rank();
    let pause = |seconds| std::thread::sleep(Duration::from_secs_f64(seconds));
    match task {
        "collectives" => {
            for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
                check_tensors(group, kind)?;
            }
            check_pairs_and_places(group)?;
            check_bytes(group)?;
            group.barrier(Duration::from_secs(10))
        }
        "gradients" => check_gradients(group),
        // Sums until something happens to another rank.
        "sum" | "restart" => {
            let mut tensor = Tensor::ones([100_000], (Kind::Float, Device::Cpu));
            for step in 0..2000 {
                if step == 20 && rank == 1 && task == "restart" && is_first_attempt() {
                    std::process::abort();
                }
                group.all_reduce(&mut tensor)?.wait()?;
                if step == 60 && task == "restart" {
                    return Ok(());
                }
                let _ = tensor.fill_(1.0);
                if step == 10 {
                    println!("\nready");
                }
                pause(0.005);
            }
            Ok(())
        }
        // The others wait for a word of rank 0, which is busy.
        "command" => {
            group.barrier(SHORT)?;
            println!("\nready");
            if rank == 0 {
                pause(60.0);
            }
            group.broadcast_bytes(b"do something").map(drop)
        }
        "patience" => {
            if rank == 0 {
                pause(SHORT.as_secs_f64() + 1.5);
            }
            assert_eq!(group.broadcast_bytes(b"finally")?, b"finally");
            Ok(())
        }
        "late" => {
            group.barrier(SHORT)?;
            if rank == 1 {
                pause(2.5);
            }
            group.barrier(Duration::from_secs(1))
        }
        "desynchronised" => {
            group.barrier(SHORT)?;
            match rank {
                1 => group.all_gather_bytes(b"an answer").map(drop),
                _ => group.broadcast_bytes(b"a command").map(drop),
            }
        }
        "other model" => {
            group.barrier(SHORT)?;
            group.agree(&format!("a model of {} layers", 10 + rank))
        }
        "panic" => {
            group.barrier(SHORT)?;
            assert!(rank != 1, "a mistake");
            group.broadcast_bytes(if rank == 0 { b"one" } else { b"" })?;
            group.all_gather_bytes(b"two").map(drop)
        }
        "other build" | "join" => group.barrier(SHORT),
        other => panic!("there is no task {other}"),
    }
}

fn is_first_attempt() -> bool {
    std::env::var("TORCHELASTIC_RESTART_COUNT").is_ok_and(|count| count == "0")
}

/// Small integers: exact in bf16 too, whatever the order of a sum.
fn ramp(length: i64, rank: usize, kind: Kind) -> Tensor {
    let ramp = Tensor::arange(length, (Kind::Int64, Device::Cpu)).remainder(16);
    (ramp + 1 + rank as i64).to_kind(kind)
}

fn sum_of_ramps(length: i64, size: usize, kind: Kind) -> Tensor {
    (0..size).map(|rank| ramp(length, rank, kind)).reduce(|a, b| a + b).unwrap()
}

fn check_tensors(group: &ProcessGroup, kind: Kind) -> GroupResult<()> {
    let (rank, size) = (group.rank(), group.size());
    let (part, length) = (1000, 1000 * size as i64);
    let sum = sum_of_ramps(length, size, kind);

    let mut tensor = ramp(length, rank, kind);
    group.all_reduce(&mut tensor)?.wait()?;
    assert_eq!(tensor, sum, "all_reduce {kind:?}");

    let mut shard = Tensor::zeros([part], (kind, Device::Cpu));
    group.reduce_scatter(&mut shard, &ramp(length, rank, kind))?.wait()?;
    assert_eq!(shard, sum.narrow(0, rank as i64 * part, part), "reduce_scatter {kind:?}");

    let mut whole = Tensor::zeros([length], (kind, Device::Cpu));
    group.all_gather_tensor(&mut whole, &ramp(part, rank, kind))?.wait()?;
    let ramps: Vec<Tensor> = (0..size).map(|rank| ramp(part, rank, kind)).collect();
    assert_eq!(whole, Tensor::cat(&ramps, 0), "all_gather {kind:?}");

    let mut tensor = ramp(length, rank, kind);
    group.broadcast_tensor(&mut tensor, size - 1)?.wait()?;
    assert_eq!(tensor, ramp(length, size - 1, kind), "broadcast {kind:?}");
    Ok(())
}

fn check_pairs_and_places(group: &ProcessGroup) -> GroupResult<()> {
    let (rank, size) = (group.rank(), group.size());
    let (part, length) = (1000, 1000 * size as i64);
    let sum = sum_of_ramps(length, size, Kind::Float);
    // Begun together, with bytes in between, and waited for in the other order.
    let (mut first, mut second) =
        (ramp(length, rank, Kind::Float), ramp(length, rank, Kind::Float));
    let one = group.all_reduce(&mut first)?;
    assert_eq!(group.broadcast_bytes(b"between")?, b"between");
    let two = group.all_reduce(&mut second)?;
    two.wait()?;
    // Dropped, so waited for as well.
    drop(one);
    assert_eq!((&first, &second), (&sum, &sum));
    // A shard that is a part of the whole.
    let mut whole = ramp(length, rank, Kind::Float);
    let mut shard = whole.narrow(0, rank as i64 * part, part);
    group.reduce_scatter(&mut shard, &whole)?.wait()?;
    assert_eq!(shard, sum.narrow(0, rank as i64 * part, part));
    group.all_gather_tensor(&mut whole, &shard)?.wait()?;
    assert_eq!(whole, sum);
    // Sums that round are the same on all ranks, bit for bit.
    tch::manual_seed(rank as i64);
    let mut noise = Tensor::randn([100_003], (Kind::Float, Device::Cpu));
    group.all_reduce(&mut noise)?.wait()?;
    let bits: Vec<u8> = noise.view_dtype(Kind::Uint8).flatten(0, -1).try_into().unwrap();
    let all = group.all_gather_bytes(&bits)?;
    assert!(all.iter().all(|other| *other == bits));
    Ok(())
}

fn check_bytes(group: &ProcessGroup) -> GroupResult<()> {
    let (rank, size) = (group.rank(), group.size());
    let own = |rank: usize| format!("I am {rank}; ").repeat(rank * 1000).into_bytes();
    let all = group.all_gather_bytes(&own(rank))?;
    assert_eq!(all, (0..size).map(own).collect::<Vec<_>>());
    assert_eq!(group.all_gather_bytes(b"")?, vec![Vec::<u8>::new(); size]);
    for bytes in [&b""[..], b"from rank 0", &[7; 300_000]] {
        let told = group.broadcast_bytes(if rank == 0 { bytes } else { b"ignored" })?;
        assert_eq!(told, bytes);
    }
    assert_eq!(group.hosts().len(), 1);
    assert!(group.name(size - 1).starts_with(&format!("rank {} on host ", size - 1)));
    assert!(group.threads() >= 1);
    assert_eq!(group.cuda_device(), rank);
    Ok(())
}

/// Rank 0 has a gradient for the first weight, rank 1 for the first and second, nobody for the third; the
/// fourth is frozen.
fn check_gradients(group: &ProcessGroup) -> GroupResult<()> {
    let ops = TchOps::new(&TchOptions {
        device: Device::Cpu,
        compute_dtype: Kind::Float,
        threads: 1,
        keep_logits_limit: 0,
    });
    let ops = ops.unwrap();
    let mut parameters = ParameterStore::default();
    for (name, trainable) in [("first", true), ("second", true), ("third", true), ("frozen", false)]
    {
        let values = vec![0.5; 6];
        parameters.push(&ops, name.into(), vec![3, 2], values, trainable).unwrap();
    }
    let rank = group.rank();
    for (index, ranks) in [(0, 0..group.size()), (1, 1..2)] {
        if ranks.contains(&rank) {
            let gradient = ops.tensor(vec![1.0 + rank as f32; 2], 1, 2).unwrap();
            let entry = &mut parameters.entries_mut()[index];
            ops.embedding_backward(&mut entry.value, &[1], &gradient).unwrap();
        }
    }
    ops.sum_gradients(group, &mut parameters).unwrap();
    let gradient = |index: usize| {
        let parameter = &parameters.entries()[index].value;
        ops.parameter_gradient(parameter).unwrap()
    };
    let sum = (1..=group.size()).sum::<usize>() as f32;
    assert_eq!(gradient(0), Some(vec![0., 0., sum, sum, 0., 0.]));
    assert_eq!(gradient(1), Some(vec![0., 0., 2., 2., 0., 0.]));
    assert_eq!((gradient(2), gradient(3)), (None, None));
    Ok(())
}

/// Serves a store as torchrun's agent does, until this process is killed.
fn serve_as_agent() {
    let port: u16 = std::env::var("MASTER_PORT").unwrap().parse().unwrap();
    let _store = AgentStore::serve(TcpListener::bind(("127.0.0.1", port)).unwrap()).unwrap();
    println!("\nready");
    std::thread::sleep(LONGEST);
}

// The side of the tests.

/// A process of a test.
struct Rank {
    child: Child,
    output: std::sync::mpsc::Receiver<String>,
    seen: String,
}

impl Rank {
    fn start(task: &str, variables: &[(&str, String)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "rank", "--nocapture", "--test-threads", "1"]);
        for name in ["RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_USE_AGENT_STORE"] {
            command.env_remove(name);
        }
        command.env(TASK, task).envs(variables.iter().map(|(name, value)| (*name, value)));
        command.env("RUST_BACKTRACE", "0");
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, output) = std::sync::mpsc::channel();
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
    fn wait_for(&mut self, line: Option<&str>) -> &str {
        let deadline = Instant::now() + LONGEST;
        while !line.is_some_and(|line| self.seen.lines().any(|seen| seen == line)) {
            let remaining = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(remaining) {
                Ok(text) => self.seen.push_str(&text),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    panic!("nothing for {LONGEST:?} after: {}", self.seen)
                }
            }
        }
        &self.seen
    }

    /// The sentence that a rank ended with.
    fn told(mut self) -> String {
        let output = self.wait_for(None);
        let told = output.lines().find_map(|line| line.strip_prefix("told: ")).map(String::from);
        assert!(!output.contains("frame #"), "a call stack: {output}");
        told.unwrap_or_else(|| panic!("no end: {output}"))
    }

    fn signal(&self, signal: i32) {
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

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn variables(rank: usize, size: usize, port: u16) -> Vec<(&'static str, String)> {
    let numbers =
        [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size), ("LOCAL_WORLD_SIZE", size)];
    let numbers = numbers.map(|(name, number)| (name, number.to_string()));
    let place = [("MASTER_ADDR", "127.0.0.1".to_owned()), ("MASTER_PORT", port.to_string())];
    numbers.into_iter().chain(place).collect()
}

/// Starts some ranks of a group.
fn start(task: &str, ranks: impl IntoIterator<Item = usize>, size: usize) -> Vec<Rank> {
    let port = free_port();
    ranks.into_iter().map(|rank| Rank::start(task, &variables(rank, size, port))).collect()
}

/// Lets ranks end, which must all tell of this fault of this rank, in a sentence with its host.
#[track_caller]
fn assert_all_tell(ranks: Vec<Rank>, fault: Fault, culprit: usize, words: &str) {
    for (index, rank) in ranks.into_iter().enumerate() {
        let told = rank.told();
        println!("{told}");
        assert!(told.starts_with(&format!("{fault:?} Some({culprit}): ")), "{index}: {told}");
        assert!(told.contains(words), "{index}: {told}");
        assert!(told.contains(&format!("rank {culprit} on host ")), "{index}: {told}");
    }
}

#[test]
fn two_three_and_four_ranks_agree_on_every_operation() {
    for size in [2, 3, 4] {
        for rank in start("collectives", 0..size, size) {
            assert_eq!(rank.told(), "done");
        }
    }
}

#[test]
fn gradients_are_summed_and_absent_ones_count_as_zeros() {
    for rank in start("gradients", 0..3, 3) {
        assert_eq!(rank.told(), "done");
    }
}

#[test]
fn commands_may_take_longer_than_the_time_out() {
    for rank in start("patience", 0..2, 2) {
        assert_eq!(rank.told(), "done");
    }
}

#[test]
fn a_killed_rank_is_named_to_all_others_at_once() {
    for (task, victim) in [("sum", 1), ("sum", 0), ("command", 0), ("command", 2)] {
        let mut ranks = start(task, 0..3, 3);
        ranks[victim].wait_for(Some("ready"));
        let began = Instant::now();
        ranks[victim].signal(libc::SIGKILL);
        let _killed = ranks.remove(victim);
        // Rank 0 is busy in this task, and hears of it when it is done.
        let _busy = (task == "command" && victim != 0).then(|| ranks.remove(0));
        assert_all_tell(ranks, Fault::Died, victim, "ended without leaving the group");
        assert!(began.elapsed() < SHORT, "{:?}", began.elapsed());
    }
}

#[test]
fn a_stopped_rank_is_named_within_the_time_out() {
    for victim in [1, 0] {
        let mut ranks = start("sum", 0..3, 3);
        ranks[victim].wait_for(Some("ready"));
        let stopped = ranks.remove(victim);
        stopped.signal(libc::SIGSTOP);
        let began = Instant::now();
        assert_all_tell(ranks, Fault::Silent, victim, "it is stopped, or the network");
        assert!(began.elapsed() < SHORT * 2, "{:?}", began.elapsed());
    }
}

#[test]
fn ranks_that_never_come_are_named() {
    for rank in start("join", [0, 2], 3) {
        let told = rank.told();
        assert!(told.starts_with("Missing Some(1): rank 1 of 3 did not come within 3 s"), "{told}");
        assert!(told.contains("those that came are on host "), "{told}");
    }
    for rank in start("join", [1, 2], 3) {
        let told = rank.told();
        assert!(
            told.starts_with("Missing Some(0): rank 0 on host 127.0.0.1 did not come"),
            "{told}"
        );
    }
}

#[test]
fn a_rank_that_is_late_at_a_barrier_is_named() {
    assert_all_tell(start("late", 0..3, 3), Fault::Late, 1, "did not come to the barrier");
}

#[test]
fn another_build_is_refused_on_all_ranks() {
    assert_all_tell(
        start("other build", 0..3, 3),
        Fault::Mismatch,
        1,
        "has sppo-backend-tch 0.0.9",
    );
}

#[test]
fn ranks_that_call_different_operations_are_named_before_the_time_out() {
    let began = Instant::now();
    let words = "called gathering of bytes (operation 2), where rank 0 on host ";
    assert_all_tell(start("desynchronised", 0..2, 2), Fault::Desynchronised, 1, words);
    assert!(began.elapsed() < SHORT * 2, "{:?}", began.elapsed());
}

#[test]
fn ranks_that_do_not_agree_are_named() {
    let words = "has a model of 11 layers, and rank 0 on host ";
    assert_all_tell(start("other model", 0..3, 3), Fault::Mismatch, 1, words);
}

#[test]
fn a_rank_that_panics_tells_the_others() {
    let mut ranks = start("panic", 0..3, 3);
    let mut panicked = ranks.remove(1);
    assert!(panicked.wait_for(None).contains("a mistake"));
    assert_all_tell(ranks, Fault::Left, 1, "it panicked");
}

#[test]
fn two_processes_with_one_rank_are_refused() {
    let ranks = start("join", [0, 1, 1], 3);
    let told: Vec<String> = ranks.into_iter().map(Rank::told).collect();
    assert!(
        told.iter().any(|told| told.contains("two processes say that they are rank 1")),
        "{told:?}"
    );
    assert!(told[0].contains("rank 2 of 3 did not come"), "{told:?}");
}

/// The agent's store outlives the processes, which meet in a new one at each attempt.
#[test]
fn processes_started_again_by_an_agent_meet_again() {
    let port = free_port();
    let mut agent = Rank::start("agent", &variables(0, 2, port));
    agent.wait_for(Some("ready"));
    let directory = tempfile::tempdir().unwrap();
    for attempt in 0..3 {
        let start = |rank: usize| {
            let error_file = directory.path().join(format!("{attempt}-{rank}.json"));
            let mut variables = variables(rank, 2, port);
            variables.push(("TORCHELASTIC_USE_AGENT_STORE", "True".into()));
            variables.push(("TORCHELASTIC_RESTART_COUNT", attempt.to_string()));
            variables.push(("TORCHELASTIC_ERROR_FILE", error_file.display().to_string()));
            Rank::start("restart", &variables)
        };
        // Rank 1 first, so that it finds what the last attempt left.
        let one = start(1);
        std::thread::sleep(Duration::from_millis(300));
        let zero = start(0);
        if attempt > 0 {
            assert_eq!([zero.told(), one.told()], ["done", "done"]);
            continue;
        }
        let told = zero.told();
        assert!(told.starts_with("Died Some(1)"), "{told}");
        let report = std::fs::read_to_string(directory.path().join("0-0.json")).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let message = report["message"]["message"].as_str().unwrap();
        assert!(message.starts_with("rank 1 on host "), "{message}");
        assert!(
            message.ends_with("start all ranks again with --resume: what was committed is kept")
        );
    }
}
