//! Applies gradients: norm, clipping, and the optimiser's step.

use serde::{Deserialize, Serialize};
use sppo_plugin::{Optimizer, StepReport, StepSettings};

use super::state_file::StateSource;
use crate::error::{ModelError, Result};
use crate::ops::{Ops, ParameterStore, UpdateRule};

/// An optimiser and how many steps it has taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Training {
    optimizer: Optimizer,
    steps: u64,
}

impl Training {
    /// Forgets all gradients and optimiser state.
    pub(crate) fn begin<O: Ops>(
        ops: &O,
        parameters: &mut ParameterStore<O>,
        optimizer: &Optimizer,
    ) -> Result<Self> {
        Self::end(ops, parameters)?;
        Ok(Self { optimizer: optimizer.clone(), steps: 0 })
    }

    /// Gives all gradients and optimiser state up.
    pub(crate) fn end<O: Ops>(ops: &O, parameters: &mut ParameterStore<O>) -> Result<()> {
        for entry in parameters.entries_mut() {
            ops.clear_gradient(&mut entry.value)?;
            ops.set_optimizer_state(&mut entry.value, Vec::new())?;
        }
        Ok(())
    }

    /// The optimiser.
    pub(super) fn optimizer(&self) -> &Optimizer {
        &self.optimizer
    }

    /// Steps taken so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn step<O: Ops>(
        &mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        settings: &StepSettings,
    ) -> Result<StepReport> {
        let gradient_norm = gradient_norm(ops, parameters)?;
        // As torch.nn.utils.clip_grad_norm_ does it.
        let gradient_scale = settings
            .max_gradient_norm
            .map_or(1.0, |maximum| (maximum / (gradient_norm + 1e-6)).min(1.0));
        let rule = UpdateRule {
            optimizer: self.optimizer.clone(),
            learning_rate: settings.learning_rate,
            gradient_scale,
            step: self.steps + 1,
        };
        for entry in parameters.entries_mut().iter_mut().filter(|entry| entry.trainable) {
            ops.update(&mut entry.value, &rule)?;
            ops.clear_gradient(&mut entry.value)?;
        }
        self.steps += 1;
        Ok(StepReport::new(gradient_norm))
    }

    /// Takes the state of `steps` steps that `source` reads for each weight.
    pub(crate) fn take_state<O: Ops>(
        &mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        steps: u64,
        source: &mut StateSource<'_>,
    ) -> Result<()> {
        for (weight, entry) in parameters.entries_mut().iter_mut().enumerate() {
            ops.set_optimizer_state(&mut entry.value, source(weight)?)?;
        }
        self.steps = steps;
        Ok(())
    }
}

/// L2 norm over all trainable parameters.
fn gradient_norm<O: Ops>(ops: &O, parameters: &ParameterStore<O>) -> Result<f64> {
    let mut square_sum = 0.0;
    for entry in parameters.entries().iter().filter(|entry| entry.trainable) {
        let of_entry = ops.gradient_square_sum(&entry.value)?;
        if !of_entry.is_finite() {
            return Err(ModelError::Backend(format!(
                "the gradient of `{}` is not finite, so the step was not taken; lower the learning \
                 rate or eta, or limit the gradient norm",
                entry.name
            )));
        }
        square_sum += of_entry;
    }
    Ok(square_sum.sqrt())
}
