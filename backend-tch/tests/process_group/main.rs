//! Groups of real processes: the test's own program, started once per rank with the variables that a
//! launcher sets. No launcher, no Python.
#![cfg(all(feature = "libtorch", target_os = "linux"))]

mod processes;
mod sharding;
mod tasks;

use std::time::{Duration, Instant};

use processes::{Rank, assert_all_tell, free_port, start, variables};
use sppo_backend_tch::Fault;

/// Time-out of groups in tests of faults.
const SHORT: Duration = Duration::from_secs(3);

/// The entry of processes that a test started; nothing in a run of all tests.
#[test]
fn rank() {
    if let Ok(task) = std::env::var(processes::TASK) {
        tasks::run(&task);
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

/// Over NCCL where SPPO_TCH_TEST_DEVICE is `cuda`. `backend-tch/gpu-check` runs it there.
#[test]
fn a_group_of_one_gives_back_what_it_gets() {
    let device = std::env::var("SPPO_TCH_TEST_DEVICE").unwrap_or_else(|_| "cpu".into());
    let mut variables = variables(0, 1, free_port());
    variables.push((tasks::DEVICE, device));
    assert_eq!(Rank::start("alone", &variables).told(), "done");
}

#[test]
fn gradients_are_summed_and_absent_ones_count_as_zeros() {
    for rank in start("gradients", 0..3, 3) {
        assert_eq!(rank.told(), "done");
    }
}

#[test]
fn what_ranks_divide_is_to_the_bit_what_each_of_them_computes_whole() {
    for size in [2, 3, 4] {
        for rank in start("sharding", 0..size, size) {
            assert_eq!(rank.told(), "done");
        }
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
fn a_rank_that_gives_up_tells_the_others_why() {
    assert_all_tell(start("give up", 0..3, 3), Fault::Left, 1, "has failed: the disk is full");
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

#[test]
fn nccl_that_is_not_there_is_missed_by_name() {
    for rank in start("nccl", 0..2, 2) {
        let told = rank.told();
        assert!(told.contains(" cannot use NCCL: "), "{told}");
        assert!(told.contains("libsppo_nccl.so"), "{told}");
    }
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
