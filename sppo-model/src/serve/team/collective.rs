//! The means by which the processes of a team speak to each other.

use sppo_plugin::{PluginError, Sharding, StepReport};

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

/// A channel that also brings together what the ranks of an op set have computed. Whatever it is asked, all
/// ranks ask it at the same time about the same weights.
pub trait Collective<O: Ops>: Channel {
    /// The op set of a policy whose training state the ranks divide.
    ///
    /// # Errors
    /// When they cannot.
    fn divide(&self, ops: &O, sharding: Sharding) -> Result<O, PluginError>;

    /// Replaces the gradient of every trained weight by the sum over all ranks, the same to the bit on each
    /// that keeps it. A rank without a gradient adds zeros.
    ///
    /// # Errors
    /// When another process has ended, cannot be reached or takes too long.
    fn sum_gradients(&self, ops: &O, parameters: &mut ParameterStore<O>)
    -> Result<(), PluginError>;

    /// Ends a backward pass in which at least one rank had a part; `own` is how this rank's part ended. Where
    /// ranks divide gradients, those of the pass are summed by then.
    ///
    /// # Errors
    /// That of `own`, and as [`Self::sum_gradients`].
    fn end_backward(
        &self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        own: crate::Result<()>,
    ) -> crate::Result<()> {
        let _ = (ops, parameters);
        own
    }

    /// Gives each rank the parts of the weights that the others have updated, after this rank's own update.
    ///
    /// # Errors
    /// That of `own`, and as [`Self::sum_gradients`].
    fn share_updates(
        &self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        own: crate::Result<StepReport>,
    ) -> crate::Result<StepReport> {
        let _ = (ops, parameters);
        own
    }

    /// Row-major values of a whole weight, of which ranks may hold a part each; of use on rank 0 alone.
    ///
    /// # Errors
    /// As [`Self::sum_gradients`].
    fn gather_values(&self, ops: &O, parameter: &O::Parameter) -> crate::Result<Vec<f32>> {
        ops.parameter_values(parameter)
    }

    /// The whole state tensors of a weight, of which ranks may hold a part each; of use on rank 0 alone.
    ///
    /// # Errors
    /// As [`Self::sum_gradients`].
    fn gather_state(&self, ops: &O, parameter: &O::Parameter) -> crate::Result<Vec<Vec<f32>>> {
        ops.optimizer_state(parameter)
    }

    /// Row-major values of a weight as this rank computes with it, which are the same on all ranks.
    ///
    /// # Errors
    /// When the tensor library fails.
    fn replica_values(&self, ops: &O, parameter: &O::Parameter) -> crate::Result<Vec<f32>> {
        ops.parameter_values(parameter)
    }
}
