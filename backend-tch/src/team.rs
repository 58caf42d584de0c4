//! A group of processes as the team that holds a backend's models.

use std::rc::Rc;
use std::time::Duration;

use sppo_model::Result as ModelResult;
use sppo_model::ops::ParameterStore;
use sppo_model::serve::{Channel, Collective};
use sppo_plugin::{PluginError, Sharding, StepReport};

use crate::ops::TchOps;
use crate::parameter::Parameter;
use crate::process_group::{GroupSettings, Launch, ProcessGroup};

/// Joins the processes of a launcher; `None` where this process is alone.
pub(crate) fn join(timeout_seconds: f64) -> Result<Option<ProcessGroup>, PluginError> {
    let Some(launch) = Launch::from_environment()? else { return Ok(None) };
    let timeout = Duration::try_from_secs_f64(timeout_seconds).ok().filter(|time| !time.is_zero());
    let timeout = timeout.ok_or_else(|| {
        PluginError::configuration(format!(
            "collective_timeout_seconds: {timeout_seconds} is no time to wait"
        ))
        .with_hint("give a number of seconds above 0, for instance 600")
    })?;
    Ok(Some(ProcessGroup::join(launch, &GroupSettings::new(timeout))?))
}

/// The processes of a group, each with models on an op set of its own.
pub(crate) struct TchTeam {
    group: Rc<ProcessGroup>,
}

impl TchTeam {
    pub(crate) fn new(group: ProcessGroup) -> Rc<Self> {
        Rc::new(Self { group: Rc::new(group) })
    }
}

impl Channel for TchTeam {
    fn rank(&self) -> usize {
        self.group.rank()
    }

    fn size(&self) -> usize {
        self.group.size()
    }

    fn name(&self, rank: usize) -> String {
        self.group.name(rank)
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Result<Vec<u8>, PluginError> {
        Ok(self.group.broadcast_bytes(&bytes)?)
    }

    fn all_gather(&self, bytes: Vec<u8>) -> Result<Vec<Vec<u8>>, PluginError> {
        Ok(self.group.all_gather_bytes(&bytes)?)
    }
}

impl Collective<TchOps> for TchTeam {
    fn divide(&self, ops: &TchOps, sharding: Sharding) -> Result<TchOps, PluginError> {
        Ok(ops.divided(Rc::clone(&self.group), sharding))
    }

    fn sum_gradients(
        &self,
        ops: &TchOps,
        parameters: &mut ParameterStore<TchOps>,
    ) -> Result<(), PluginError> {
        Ok(ops.sum_gradients(parameters)?)
    }

    fn end_backward(
        &self,
        ops: &TchOps,
        parameters: &mut ParameterStore<TchOps>,
        own: ModelResult<()>,
    ) -> ModelResult<()> {
        ops.end_backward(parameters, own)
    }

    fn share_updates(
        &self,
        ops: &TchOps,
        parameters: &mut ParameterStore<TchOps>,
        own: ModelResult<StepReport>,
    ) -> ModelResult<StepReport> {
        ops.share_updates(parameters, own)
    }

    fn gather_values(&self, ops: &TchOps, parameter: &Parameter) -> ModelResult<Vec<f32>> {
        ops.gather_values(parameter)
    }

    fn gather_state(&self, ops: &TchOps, parameter: &Parameter) -> ModelResult<Vec<Vec<f32>>> {
        ops.gather_state(parameter)
    }

    fn replica_values(&self, _ops: &TchOps, parameter: &Parameter) -> ModelResult<Vec<f32>> {
        Ok(parameter.replica_values()?)
    }
}
