//! The means by which the processes of a team speak to each other.

use sppo_plugin::PluginError;

use crate::ops::{Ops, ParameterStore};

/// Processes that exchange bytes. Every rank makes the same calls in the same order.
pub trait Channel {
    /// Number of this process, from 0.
    fn rank(&self) -> usize;

    /// Number of processes.
    fn size(&self) -> usize;

    /// Name of a rank in messages, for instance `rank 1 on node-b`.
    fn name(&self, rank: usize) -> String;

    /// Rank 0's bytes, on all ranks; those of the others are not looked at. Waits for as long as rank 0
    /// takes, and ends when a process does.
    ///
    /// # Errors
    /// When another process has ended or cannot be reached.
    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, PluginError>;

    /// The bytes of all ranks, in their order.
    ///
    /// # Errors
    /// As [`Self::broadcast`].
    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, PluginError>;
}

/// A channel that also adds up what the ranks of an op set have computed.
pub trait Collective<O: Ops>: Channel {
    /// Replaces the gradient of every trained weight by the sum over all ranks, the same to the bit on each.
    /// A rank without a gradient adds zeros.
    ///
    /// # Errors
    /// When another process has ended, cannot be reached or takes too long.
    fn sum_gradients(&self, parameters: &mut ParameterStore<O>) -> Result<(), PluginError>;
}
