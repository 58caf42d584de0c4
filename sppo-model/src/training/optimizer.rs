//! Applies gradients: norm, clipping, the optimiser's step, and its state on disk.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize_to_file};
use serde::{Deserialize, Serialize};
use sppo_plugin::{Optimizer, StepReport, StepSettings};

use crate::error::{ModelError, Result};
use crate::ops::{Ops, ParameterStore, UpdateRule};

/// The key of the file's metadata under which [`Training`] stands as JSON.
const METADATA_KEY: &str = "training";

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
        for entry in parameters.entries_mut() {
            ops.clear_gradient(&mut entry.value)?;
            ops.set_optimizer_state(&mut entry.value, Vec::new())?;
        }
        Ok(Self { optimizer: optimizer.clone(), steps: 0 })
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

    /// Writes `<parameter>.<index>` for every state tensor.
    pub(crate) fn save<O: Ops>(
        &self,
        ops: &O,
        parameters: &ParameterStore<O>,
        file: &Path,
    ) -> Result<()> {
        let mut tensors = Vec::new();
        for entry in parameters.entries() {
            for (index, values) in ops.optimizer_state(&entry.value)?.into_iter().enumerate() {
                let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                tensors.push((state_name(&entry.name, index), &entry.shape, bytes));
            }
        }
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| {
                TensorView::new(Dtype::F32, shape.to_vec(), bytes).map(|view| (name, view))
            })
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| ModelError::Backend(format!("optimiser state: {error}")))?;
        let json = serde_json::to_string(self)
            .map_err(|error| ModelError::Backend(format!("optimiser state: {error}")))?;
        let metadata = HashMap::from([(METADATA_KEY.to_string(), json)]);
        serialize_to_file(views, Some(metadata), file).map_err(|error| {
            ModelError::file(file, format!("cannot be written: {error}"))
                .with_hint("check that its directory exists, is writable and has room")
        })
    }

    pub(crate) fn load<O: Ops>(
        &mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        file: &Path,
    ) -> Result<()> {
        let bytes = fs_err::read(file)
            .map_err(|error| ModelError::file(file, format!("cannot be read: {error}")))?;
        let damaged = |message: String| {
            ModelError::file(file, message)
                .with_hint("the file is damaged or belongs to another run; train from the start")
        };
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| damaged(format!("is not a safetensors file: {error}")))?;
        let saved: Self = (header.metadata().as_ref())
            .and_then(|metadata| serde_json::from_str(metadata.get(METADATA_KEY)?).ok())
            .ok_or_else(|| damaged("holds no optimiser state".into()))?;
        if saved.optimizer != self.optimizer {
            return Err(damaged(format!(
                "holds the state of {:?}, but training uses {:?}",
                saved.optimizer, self.optimizer
            )));
        }
        let tensors = SafeTensors::deserialize(&bytes)
            .map_err(|error| damaged(format!("is not a safetensors file: {error}")))?;
        let states = collect_states(parameters, &tensors).map_err(damaged)?;
        for (entry, state) in parameters.entries_mut().iter_mut().zip(states) {
            ops.set_optimizer_state(&mut entry.value, state)?;
        }
        self.steps = saved.steps;
        Ok(())
    }
}

/// Hands a weight's state tensors, which the argument reads, to all that hold the model.
pub(crate) type StateSharing<'a> =
    dyn FnMut(&mut dyn FnMut() -> Result<Vec<Vec<f32>>>) -> Result<Vec<Vec<f32>>> + 'a;

impl Training {
    /// Takes the state of `steps` steps that `share` gives for each weight.
    pub(crate) fn share<O: Ops>(
        &mut self,
        ops: &O,
        parameters: &mut ParameterStore<O>,
        steps: u64,
        share: &mut StateSharing<'_>,
    ) -> Result<()> {
        for entry in parameters.entries_mut() {
            let state = share(&mut || ops.optimizer_state(&entry.value))?;
            ops.set_optimizer_state(&mut entry.value, state)?;
        }
        self.steps = steps;
        Ok(())
    }
}

fn state_name(parameter: &str, index: usize) -> String {
    format!("{parameter}.{index}")
}

/// The state tensors of each parameter, after checking that they are all of them and fit.
fn collect_states<O: Ops>(
    parameters: &ParameterStore<O>,
    tensors: &SafeTensors<'_>,
) -> std::result::Result<Vec<Vec<Vec<f32>>>, String> {
    let mut used = 0;
    let mut states = Vec::with_capacity(parameters.entries().len());
    for entry in parameters.entries() {
        let mut state = Vec::new();
        while let Ok(view) = tensors.tensor(&state_name(&entry.name, state.len())) {
            if view.dtype() != Dtype::F32 || view.shape() != entry.shape {
                return Err(format!("the state of `{}` does not have its shape", entry.name));
            }
            let value = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).unwrap_or(f32::NAN);
            state.push(view.data().chunks_exact(4).map(value).collect());
        }
        used += state.len();
        states.push(state);
    }
    if used != tensors.len() {
        return Err(format!("{} of its tensors belong to no weight", tensors.len() - used));
    }
    Ok(states)
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
