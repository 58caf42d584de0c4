//! What the ranks of a test do.

use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use sppo_backend_tch::{
    AgentStore, GroupResult, GroupSettings, Launch, ProcessGroup, TchOps, TchOptions, choose_device,
};
use sppo_model::ops::{Ops, ParameterStore};
use sppo_plugin::Sharding;
use tch::{Device, Kind, Tensor};

use crate::SHORT;
use crate::processes::LONGEST;

/// Names the device of a group of one.
pub(crate) const DEVICE: &str = "SPPO_TEST_DEVICE";

/// Joins the group that the environment describes, does a task there, and prints the end.
pub(crate) fn run(task: &str) {
    if task == "agent" {
        return serve_as_agent();
    }
    tch::set_num_threads(1);
    let launch = match task {
        // A process without others is no launcher's.
        "alone" => launch_of_one(),
        _ => Launch::from_environment().unwrap().unwrap(),
    };
    let settings = settings(task, launch.rank);
    let joined = ProcessGroup::join(launch, &settings).map(Rc::new);
    let end = joined.and_then(|group| perform(task, &group));
    match end {
        Ok(()) => println!("\ntold: done"),
        Err(error) => {
            println!("\ntold: {:?} {:?}: {error}", error.fault(), error.rank());
            // A launcher must see that it failed.
            std::process::exit(3);
        }
    }
}

fn launch_of_one() -> Launch {
    let port = std::env::var("MASTER_PORT").unwrap().parse().unwrap();
    Launch {
        rank: 0,
        size: 1,
        local_rank: Some(0),
        local_size: Some(1),
        master: "127.0.0.1".into(),
        port,
        agent_serves: false,
        restarts: 0,
        error_file: None,
    }
}

/// All operations of training, on the device of a group of one.
fn check_alone(group: &ProcessGroup) -> GroupResult<()> {
    let device = choose_device(&std::env::var(DEVICE).unwrap(), None).unwrap();
    if let Device::Cuda(number) = device {
        group.open_nccl(number, &[])?;
    }
    assert_eq!(group.broadcast_bytes(b"order")?, b"order");
    assert_eq!(group.all_gather_bytes(b"reply")?, [b"reply"]);
    for kind in [Kind::Float, Kind::BFloat16] {
        let own = Tensor::arange(1_000_003, (Kind::Float, device)).to_kind(kind);
        let sum = group.begin_sum(own.copy())?;
        let part = group.begin_broadcast(own.copy().narrow(0, 7, 500_000), 0)?;
        assert!(group.finish(sum)?.equal(&own), "sum in {kind:?}");
        assert!(group.finish(part)?.equal(&own.narrow(0, 7, 500_000)), "part in {kind:?}");
    }
    group.barrier(LONGEST)
}

fn settings(task: &str, rank: usize) -> GroupSettings {
    let settings = GroupSettings::new(match task {
        "alone" | "collectives" | "gradients" | "sharding" | "restart" => Duration::from_secs(20),
        _ => SHORT,
    });
    match (task, rank) {
        ("other build", 1) => GroupSettings { build: "sppo-backend-tch 0.0.9".into(), ..settings },
        _ => settings,
    }
}

fn perform(task: &str, group: &Rc<ProcessGroup>) -> GroupResult<()> {
    match task {
        "collectives" => check_collectives(group),
        "gradients" => check_gradients(group),
        "alone" => check_alone(group),
        "sharding" => crate::sharding::check(group),
        "sum" => sum_on_and_on(group, 2000, None),
        "restart" => sum_on_and_on(group, 60, Some(20).filter(|_| is_first_attempt())),
        "nccl" => open_nccl(group),
        "join" | "other build" => group.barrier(SHORT),
        task => {
            group.barrier(SHORT)?;
            println!("\nready");
            wait_or_differ(task, group)
        }
    }
}

fn pause(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

/// Sums until something happens to another rank. Rank 1 aborts at a step.
fn sum_on_and_on(group: &ProcessGroup, steps: usize, abort_at: Option<usize>) -> GroupResult<()> {
    let mut tensor = Tensor::ones([100_000], (Kind::Float, Device::Cpu));
    for step in 0..steps {
        if Some(step) == abort_at && group.rank() == 1 {
            std::process::abort();
        }
        sum(group, &tensor)?;
        let _ = tensor.fill_(1.0);
        if step == 10 {
            println!("\nready");
        }
        pause(0.005);
    }
    Ok(())
}

/// By hand with a real library, in the directory of this variable, and LIBTORCH with CUDA.
fn open_nccl(group: &ProcessGroup) -> GroupResult<()> {
    let directory = std::env::var_os("SPPO_TEST_NCCL").map(std::path::PathBuf::from);
    if directory.is_some() {
        println!("device: {:?}", choose_device("cuda", None));
    }
    group.open_nccl(0, &directory.into_iter().collect::<Vec<_>>())
}

fn wait_or_differ(task: &str, group: &ProcessGroup) -> GroupResult<()> {
    let rank = group.rank();
    match task {
        // The others wait for a word of rank 0, which is busy.
        "command" => {
            pause(if rank == 0 { 60.0 } else { 0.0 });
            group.broadcast_bytes(b"do something").map(drop)
        }
        "patience" => {
            pause(if rank == 0 { SHORT.as_secs_f64() + 1.5 } else { 0.0 });
            assert_eq!(group.broadcast_bytes(b"finally")?, b"finally");
            Ok(())
        }
        "late" => {
            pause(if rank == 1 { 2.5 } else { 0.0 });
            group.barrier(Duration::from_secs(1))
        }
        "desynchronised" => match rank {
            1 => group.all_gather_bytes(b"an answer").map(drop),
            _ => group.broadcast_bytes(b"a command").map(drop),
        },
        "other model" => group.agree(&format!("a model of {} layers", 10 + rank)),
        "give up" if rank == 1 => {
            group.give_up("the disk is full");
            group.agree("nothing more")
        }
        "give up" => group.agree("something"),
        "panic" => {
            assert!(rank != 1, "a mistake");
            group.broadcast_bytes(if rank == 0 { b"one" } else { b"" })?;
            group.all_gather_bytes(b"two").map(drop)
        }
        other => panic!("there is no task {other}"),
    }
}

fn check_collectives(group: &ProcessGroup) -> GroupResult<()> {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Int64] {
        check_tensors(group, kind)?;
    }
    check_pairs_and_places(group)?;
    check_bytes(group)?;
    group.barrier(Duration::from_secs(10))
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

/// Makes a tensor the sum of all ranks'.
fn sum(group: &ProcessGroup, tensor: &Tensor) -> GroupResult<()> {
    group.finish(group.begin_sum(tensor.shallow_clone())?).map(drop)
}

fn check_tensors(group: &ProcessGroup, kind: Kind) -> GroupResult<()> {
    let (rank, size) = (group.rank(), group.size());
    let length = 1000;
    let tensor = ramp(length, rank, kind);
    sum(group, &tensor)?;
    assert_eq!(tensor, sum_of_ramps(length, size, kind), "all_reduce {kind:?}");

    let tensor = ramp(length, rank, kind);
    let tensor = group.finish(group.begin_broadcast(tensor, size - 1)?)?;
    assert_eq!(tensor, ramp(length, size - 1, kind), "broadcast {kind:?}");
    Ok(())
}

fn check_pairs_and_places(group: &ProcessGroup) -> GroupResult<()> {
    let (rank, size) = (group.rank(), group.size());
    let length = 1000 * size as i64;
    let expected = sum_of_ramps(length, size, Kind::Float);
    // Begun together, with bytes in between, and waited for in the other order.
    let one = group.begin_sum(ramp(length, rank, Kind::Float))?;
    assert_eq!(group.broadcast_bytes(b"between")?, b"between");
    let two = group.begin_sum(ramp(length, rank, Kind::Float))?;
    assert_eq!([group.finish(two)?, group.finish(one)?], [expected.shallow_clone(), expected]);
    // A part, in the memory of the whole.
    let whole = ramp(length, rank, Kind::Float);
    for root in 0..size {
        let part = whole.narrow(0, 1000 * root as i64, 1000);
        let _ = group.finish(group.begin_broadcast(part, root)?)?;
    }
    let parts: Vec<Tensor> = (0..size)
        .map(|root| ramp(length, root, Kind::Float).narrow(0, 1000 * root as i64, 1000))
        .collect();
    assert_eq!(whole, Tensor::cat(&parts, 0));
    // Sums that round are the same on all ranks, bit for bit.
    tch::manual_seed(rank as i64);
    let noise = Tensor::randn([100_003], (Kind::Float, Device::Cpu));
    sum(group, &noise)?;
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
    assert_eq!(group.hosts().iter().map(|(_, count)| count).sum::<usize>(), size);
    assert!(group.name(size - 1).starts_with(&format!("rank {} on host ", size - 1)));
    assert!(group.threads() >= 1);
    Ok(())
}

/// Rank 0 has a gradient for the first weight, rank 1 for the first and second, nobody for the third; the
/// fourth is frozen.
fn check_gradients(group: &Rc<ProcessGroup>) -> GroupResult<()> {
    let ops = TchOps::new(&TchOptions {
        device: Device::Cpu,
        compute_dtype: Kind::Float,
        threads: 1,
        keep_logits_limit: 0,
    });
    let ops = ops.unwrap().divided(Rc::clone(group), Sharding::None);
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
    ops.sum_gradients(&mut parameters).unwrap();
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
