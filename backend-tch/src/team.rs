//! A group of processes as the team that holds a backend's models.

use std::rc::Rc;
use std::time::Duration;

use sppo_model::ops::ParameterStore;
use sppo_model::serve::{Channel, Collective};
use sppo_plugin::PluginError;

use crate::ops::TchOps;
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
    group: ProcessGroup,
    ops: TchOps,
}

impl TchTeam {
    pub(crate) fn new(group: ProcessGroup, ops: TchOps) -> Rc<Self> {
        Rc::new(Self { group, ops })
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
    fn sum_gradients(&self, parameters: &mut ParameterStore<TchOps>) -> Result<(), PluginError> {
        Ok(self.ops.sum_gradients(&self.group, parameters)?)
    }
}
