//! Processes that work together, over torch.distributed's c10d as libtorch ships it: gloo between CPUs, and
//! NCCL between CUDA devices.
//!
//! A launcher (`torchrun`, or any other) starts the processes and tells each its rank
//! ([`Launch`]). They meet in a store that rank 0 serves (`meeting`), connect to each other
//! ([`ProcessGroup::join`]), and from then on call the same operations in the same order. Beside the engine a
//! thread of each rank watches the others (`watch`), so that a failure names the rank that is at fault.
//! Nothing of this exists in a process that was started alone.

mod board;
mod connection;
mod engine;
mod fault;
mod group;
mod hub;
mod launch;
mod meeting;
mod nccl;
mod operations;
mod roster;
mod spoke;
mod store;
mod watch;

pub use fault::{Fault, GroupError};
pub use group::{GroupResult, GroupSettings, ProcessGroup};
pub use launch::Launch;
pub use operations::UnderWay;
pub use store::AgentStore;
