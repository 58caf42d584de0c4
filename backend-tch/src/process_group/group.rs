//! The group itself: joining, leaving, and the life of an operation.

use std::cell::{Cell, OnceCell};
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::time::Duration;

use tch::Tensor;

use super::board::{Post, Step, Trouble, left};
use super::connection::Deadline;
use super::engine::{Engine, EngineLimits, Operation, Place};
use super::fault::{Fault, GroupError};
use super::launch::Launch;
use super::meeting::{Meeting, meet};
use super::nccl::{self, NcclPlace};
use super::roster::Roster;
use super::store::{EngineResult, Store};
use super::watch::{Door, Watch};

/// Result of an operation of a group.
pub type GroupResult<T> = std::result::Result<T, GroupError>;

/// Time-out of operations that wait for whatever rank 0 does between them: as good as none. That a rank
/// ends or falls silent is noticed all the same.
const PATIENCE_OF_CONTROL: Duration = Duration::from_secs(30 * 24 * 3600);
/// Time between two looks at the verdict of the watch while an operation is waited for.
const SLICE: Duration = Duration::from_millis(50);
/// In the store: rank 0's door for the watch.
const DOOR_KEY: &str = "door";

/// Settings of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupSettings {
    /// Time for all ranks to come, and for each operation on tensors.
    pub timeout: Duration,
    /// Build of the program and the plugin, which must be the same on all ranks.
    pub build: String,
}

impl GroupSettings {
    /// Settings with a time-out, for this build.
    #[must_use]
    pub fn new(timeout: Duration) -> Self {
        let build = format!(
            "sppo-backend-tch {} (plugin interface {}, libtorch {})",
            env!("CARGO_PKG_VERSION"),
            sppo_plugin::abi::INTERFACE_VERSION,
            env!("SPPO_LIBTORCH_VERSION")
        );
        Self { timeout, build }
    }
}

/// Processes that work together, one rank each. All ranks call the same operations in the same order.
///
/// Operations on bytes are for control: they wait as long as it takes. Those on tensors are for data: they
/// fail when a rank does not come within the time-out. Whatever fails on one rank fails the group: every
/// rank gets the same error, at once if it waits and else from its next operation, and the group is of no
/// use any more. The tensors of a failed operation have any values.
pub struct ProcessGroup {
    launch: Launch,
    roster: Roster,
    timeout: Duration,
    /// Freed before the engines, so that the others know that this rank leaves before its connections end.
    watch: Watch,
    engines: ManuallyDrop<Engines>,
    /// Operations that were begun.
    steps: Cell<u64>,
    failure: OnceCell<GroupError>,
}

/// Groups of the engine. Those on the CPU are two, so that bytes and tensors may be under way together.
struct Engines {
    control: Engine,
    data: Engine,
    cuda: OnceCell<Engine>,
    /// The engine of CUDA devices asks it at its first operation.
    store: Store,
}

impl ProcessGroup {
    /// Joins the other ranks of a launch.
    ///
    /// # Errors
    /// When a rank does not come in time, is of another build, or goes away meanwhile.
    pub fn join(launch: Launch, settings: &GroupSettings) -> GroupResult<Self> {
        let joined = Self::try_join(launch.clone(), settings);
        if let Err(error) = &joined {
            launch.report(&format!("{error}; {}", error.advice()));
        }
        joined
    }

    fn try_join(launch: Launch, settings: &GroupSettings) -> GroupResult<Self> {
        let GroupSettings { timeout, build } = settings;
        let deadline = Deadline::after(*timeout);
        let Meeting { store, roster } = meet(&launch, build, *timeout)?;
        let rank = launch.rank;
        let broken = |text| GroupError::new(Fault::Engine, Some(rank), text);
        let address = roster.members()[rank].address;
        let post = Post { rank, roster: roster.clone(), longest_silence: *timeout };
        let watch = if rank == 0 {
            let door = Door::open(address).map_err(|error| broken(error.to_string()))?;
            let line = door.to_line().map_err(|error| broken(error.to_string()))?;
            store.set(DOOR_KEY, line.as_bytes()).map_err(broken)?;
            Watch::over(door, post, deadline)?
        } else {
            let door = store.wait(DOOR_KEY, *timeout).map_err(|text| {
                let message = format!("{} ended while the ranks met: {text}", roster.name(0));
                GroupError::new(Fault::Died, Some(0), message)
            })?;
            Watch::under(&String::from_utf8_lossy(&door), post, deadline)?
        };
        let connect = |name, operation| {
            let place = Place { rank, size: launch.size, address };
            let limits = EngineLimits { threads: 2, connect: *timeout, operation };
            let step = Step { number: 0, what: String::new() };
            Engine::gloo(&store, name, place, limits).map_err(|text| {
                watch.judge(&Trouble { step, timeout: Some(*timeout), text }, &roster.name(rank))
            })
        };
        let control = connect("control", PATIENCE_OF_CONTROL)?;
        let data = connect("data", *timeout)?;
        let engines = Engines { control, data, cuda: OnceCell::new(), store };
        let (engines, timeout) = (ManuallyDrop::new(engines), *timeout);
        let (steps, failure) = (Cell::new(0), OnceCell::new());
        Ok(Self { launch, roster, timeout, watch, engines, steps, failure })
    }

    /// Number of this process among all: 0 and up.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.launch.rank
    }

    /// Number of processes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.launch.size
    }

    /// A rank with the name of its host, for instance "rank 1 on host b".
    #[must_use]
    pub fn name(&self, rank: usize) -> String {
        self.roster.name(rank)
    }

    /// Hosts with the number of their ranks, in the order of ranks.
    #[must_use]
    pub fn hosts(&self) -> Vec<(String, usize)> {
        self.roster.hosts()
    }

    /// CPU threads for this rank: an equal part of the cores that it shares with other ranks.
    #[must_use]
    pub fn threads(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / self.roster.ranks_on_cpus(self.rank())).max(1)
    }

    /// Whether another rank of this host sees the same CUDA devices.
    #[must_use]
    pub fn shares_cuda_devices(&self) -> bool {
        self.roster.ranks_on_gpus(self.rank()) > 1
    }

    /// Opens NCCL, so that tensors of this CUDA device can be operated on. All ranks must call it. The library
    /// `libsppo_nccl.so` is looked for beside this plugin and in `directories`.
    ///
    /// # Errors
    /// When there is no such library, or NCCL refuses.
    pub fn open_nccl(&self, device: usize, directories: &[PathBuf]) -> GroupResult<()> {
        let Engines { cuda, store, .. } = &*self.engines;
        let place = NcclPlace { rank: self.rank(), size: self.size(), device };
        let engine = nccl::open(store, place, self.timeout, directories).map_err(|reason| {
            let message = format!("{} cannot use NCCL: {reason}", self.name(self.rank()));
            self.fail(GroupError::new(Fault::Engine, Some(self.rank()), message).with_advice(
                "run backend-tch/install with a Python package torch that has CUDA, or set device = \
                 \"cpu\"",
            ))
        })?;
        // A second call finds what the first one opened.
        let _ = cuda.set(engine);
        Ok(())
    }

    /// Number of the CUDA device for this rank, by LOCAL_RANK or else by its place among the ranks of its
    /// host that see the same devices.
    #[must_use]
    pub fn cuda_device(&self) -> usize {
        let by_place = self.roster.cuda_device(self.rank());
        match self.launch.local_rank {
            // A launcher that shows each rank its own devices numbers these from 0.
            Some(local_rank) if self.roster.sees_all_of_host(self.rank()) => local_rank,
            _ => by_place,
        }
    }

    /// The error that ended the group, if one did.
    #[must_use]
    pub fn failure(&self) -> Option<GroupError> {
        self.failure.get().cloned().or_else(|| self.watch.verdict())
    }

    /// Leaves the group for a reason that the other ranks are told: each gets an error with it. It is told
    /// when this returns, so the process may end.
    pub fn give_up(&self, reason: &str) {
        self.fail(left(self.rank(), &self.name(self.rank()), reason));
        self.watch.leave(reason);
    }

    /// The launcher's word to this process.
    #[must_use]
    pub fn launch(&self) -> &Launch {
        &self.launch
    }

    /// The engine of bytes.
    pub(super) fn control(&self) -> &Engine {
        &self.engines.control
    }

    /// The engine for a tensor's device.
    pub(super) fn data(&self, tensor: &Tensor) -> GroupResult<&Engine> {
        if !tensor.device().is_cuda() {
            return Ok(&self.engines.data);
        }
        self.engines.cuda.get().ok_or_else(|| {
            let message = "tensors of CUDA devices need NCCL, which was not opened";
            GroupError::new(Fault::Engine, Some(self.rank()), message)
        })
    }

    /// Time for an operation on tensors.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Writes an operation down that begins now.
    pub(super) fn begin(&self, what: String) -> GroupResult<Step> {
        if let Some(failure) = self.failure() {
            return Err(self.fail(failure));
        }
        self.steps.set(self.steps.get() + 1);
        let step = Step { number: self.steps.get(), what };
        self.watch.begin(step.clone());
        Ok(step)
    }

    /// Waits for an operation, no longer than `timeout`.
    pub(super) fn complete(
        &self,
        step: &Step,
        timeout: Option<Duration>,
        operation: EngineResult<Operation>,
    ) -> GroupResult<()> {
        let operation = operation.map_err(|text| self.judge(step.clone(), None, text))?;
        let deadline = Deadline::after(timeout.unwrap_or(PATIENCE_OF_CONTROL));
        loop {
            match operation.wait(SLICE.min(deadline.remaining())) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(text) => {
                    // The engine's own time-out may come a little before this one's.
                    let timed_out = timeout.filter(|_| text.contains("imed out"));
                    return Err(self.judge(step.clone(), timed_out, text));
                }
            }
            if let Some(verdict) = self.watch.verdict() {
                return Err(self.fail(verdict));
            }
            if deadline.is_over() {
                return Err(self.judge(step.clone(), timeout, "the time is over".into()));
            }
        }
    }

    /// The error of an operation that failed here, as all ranks get it.
    pub(super) fn judge(&self, step: Step, timeout: Option<Duration>, text: String) -> GroupError {
        let trouble = Trouble { step, timeout, text };
        self.fail(self.watch.judge(&trouble, &self.name(self.rank())))
    }

    /// Remembers the error that ends the group.
    pub(super) fn fail(&self, error: GroupError) -> GroupError {
        if self.failure.set(error.clone()).is_ok() {
            self.launch.report(&format!("{error}; {}", error.advice()));
        }
        error
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.watch.leave(if std::thread::panicking() { "it panicked" } else { "" });
        if self.failure().is_none() {
            // SAFETY: dropped once, here. After a failure operations may be under way that never end, for
            // which the engine would wait; then it stays until the process ends.
            unsafe { ManuallyDrop::drop(&mut self.engines) };
        }
    }
}
