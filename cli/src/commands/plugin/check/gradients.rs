//! The check of a backend that changes checkpoints: its gradients against finite differences.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use sppo_core::plugin::conformance::{Finding, example_batch};
use sppo_core::plugin::{
    Backend, Learner, Optimizer, PluginError, Policy, PolicySpec, StepSettings,
};

/// Relative error of a gradient against finite differences in f32.
const SAME_GRADIENT: f64 = 0.05;

/// Checks the gradients of a model; `scratch` is a directory for checkpoints.
pub(super) fn check(backend: &dyn Backend, model: &Path, scratch: &Path) -> Finding {
    let trial = Trial { backend, model: model.into(), scratch: scratch.into() };
    let name = "the gradient of every tensor agrees with finite differences";
    Finding::new(name, trial.gradients())
}

struct Trial<'a> {
    backend: &'a dyn Backend,
    model: PathBuf,
    scratch: PathBuf,
}

fn said(error: PluginError) -> String {
    error.to_string()
}

impl Trial<'_> {
    fn load(&self, path: &Path) -> Result<Box<dyn Policy>, String> {
        self.backend.load_policy(&PolicySpec::new(path)).map_err(said)
    }

    /// One step of plain gradient descent shows the gradient: `w - w' = learning rate * g`.
    fn gradients(&self) -> Result<(), String> {
        const LEARNING_RATE: f64 = 1.0;
        let coefficients = [1.0, -0.5, 0.25, -1.0];
        let mut policy = self.load(&self.model)?;
        let before = self.saved(policy.as_ref(), "before")?;
        let batch = example_batch(policy.as_ref(), &[0, 1, 2, 3]);
        policy.begin_training(&Optimizer::Sgd { momentum: 0.0 }).map_err(said)?;
        policy.forward(&batch).map_err(said)?;
        policy.backward(&coefficients).map_err(said)?;
        policy
            .step(&StepSettings { learning_rate: LEARNING_RATE, max_gradient_norm: None })
            .map_err(said)?;
        let after = self.saved(policy.as_ref(), "after")?;

        let moved = self.scratch.join("moved");
        let value_with = |name: &str, values: &[f32]| {
            before.write_with(&moved, name, values)?;
            let sums = self.load(&moved)?.forward(&batch).map_err(said)?;
            Ok::<f64, String>(sums.iter().zip(coefficients).map(|(sum, by)| sum * by).sum())
        };
        for (name, start) in &before.tensors {
            let end = after.tensors.get(name).ok_or(format!("`{name}` was not saved again"))?;
            let gradient: Vec<f64> = start
                .iter()
                .zip(end)
                .map(|(&start, &end)| (f64::from(start) - f64::from(end)) / LEARNING_RATE)
                .collect();
            let norm = gradient.iter().map(|value| value * value).sum::<f64>().sqrt();
            if norm == 0.0 {
                return Err(format!("`{name}` has no gradient"));
            }
            // Far enough for f32, near enough for a derivative: the value changes by about 0.02.
            let step = (0.01 / norm).min(0.02);
            let towards = |sign: f64| -> Vec<f32> {
                let moved = |(&start, by): (&f32, &f64)| {
                    (f64::from(start) + sign * step * by / norm) as f32
                };
                start.iter().zip(&gradient).map(moved).collect()
            };
            let slope = (value_with(name, &towards(1.0))? - value_with(name, &towards(-1.0))?)
                / (2.0 * step);
            if (slope - norm).abs() > SAME_GRADIENT * norm {
                return Err(format!(
                    "along its gradient `{name}` has slope {norm:.5} by `backward` and {slope:.5} \
                     by finite differences"
                ));
            }
        }
        Ok(())
    }

    fn saved(&self, policy: &dyn Learner, name: &str) -> Result<Weights, String> {
        let directory = self.scratch.join(name);
        policy.save(&directory).map_err(said)?;
        Weights::read(&directory)
    }
}

/// The tensors of a checkpoint that a policy has saved: in f32, by name, with the files that they lie in.
struct Weights {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Weights {
    /// Reads all safetensors files of a directory.
    fn read(directory: &Path) -> Result<Self, String> {
        let mut weights =
            Self { directory: directory.into(), files: BTreeMap::new(), tensors: BTreeMap::new() };
        let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
            let tensors = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
            for (name, view) in tensors.iter() {
                if view.dtype() != Dtype::F32 {
                    return Err(format!("`{name}` was saved as {:?}, not as F32", view.dtype()));
                }
                let (values, _) = view.data().as_chunks::<4>();
                let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                weights.tensors.insert(name.to_owned(), values);
                weights.files.insert(name.to_owned(), path.clone());
            }
        }
        Ok(weights)
    }

    /// Writes a copy of the checkpoint with one tensor replaced.
    fn write_with(&self, target: &Path, replaced: &str, values: &[f32]) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        std::fs::create_dir_all(target).map_err(said)?;
        for entry in std::fs::read_dir(&self.directory).map_err(said)?.flatten() {
            std::fs::copy(entry.path(), target.join(entry.file_name())).map_err(said)?;
        }
        let file = &self.files[replaced];
        let mut bytes = std::fs::read(file).map_err(said)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| error.to_string())?;
        let info = metadata.info(replaced).ok_or("the tensor is gone")?;
        let start = 8 + header + info.data_offsets.0;
        let place =
            bytes.get_mut(start..start + 4 * values.len()).ok_or("the file is too short")?;
        let (places, _) = place.as_chunks_mut::<4>();
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_le_bytes();
        }
        let name = file.file_name().ok_or("the file has no name")?;
        std::fs::write(target.join(name), bytes).map_err(said)
    }
}
