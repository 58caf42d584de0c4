//! The plugin: its settings, and policies on the op set.

use burn_tensor::Device;
use schemars::JsonSchema;
use serde::Deserialize;
use sppo_model::GenerationLimits;
use sppo_model::serve::{DecoderPolicy, load_scorer, measure_matrix_products};
use sppo_plugin::{Backend, ModelSpec, Plugin, PluginError, Policy, PolicySpec, Scorer};

use crate::engine::BurnOps;

/// The table `[backend.burn]`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BurnConfig {
    /// Where to compute: `cpu`, or `wgpu` for the best GPU that wgpu finds, where the backend was built
    /// with that feature.
    pub device: String,
    /// Training keeps the logits of a batch for its backward pass where they take at most this many
    /// MiB, and otherwise computes them twice: more memory or more time.
    pub keep_logits_limit_mebibytes: usize,
    /// Most responses that are sampled together. More are faster and take more memory.
    pub max_rows: usize,
}

impl Default for BurnConfig {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            keep_logits_limit_mebibytes: 512,
            max_rows: GenerationLimits::default().max_rows,
        }
    }
}

/// The backend `burn`.
pub struct BurnBackend {
    ops: BurnOps,
    limits: GenerationLimits,
}

impl Plugin for BurnBackend {
    type Config = BurnConfig;
    const NAME: &'static str = "burn";
    const SUMMARY: &'static str = "burn tensors, in f32 on the CPU, and on GPUs through wgpu";

    fn create(config: BurnConfig) -> Result<Self, PluginError> {
        if config.max_rows == 0 {
            return Err(PluginError::configuration("max_rows: 0 rows cannot be sampled")
                .with_hint("set it to 1 or more"));
        }
        let device = choose_device(&config.device)?;
        let ops = BurnOps::new(device, config.keep_logits_limit_mebibytes.saturating_mul(1 << 20));
        let limits = GenerationLimits { max_rows: config.max_rows, ..GenerationLimits::default() };
        Ok(Self { ops, limits })
    }
}

/// The device of a setting.
///
/// # Errors
/// When there is no such device, or this build cannot use it.
pub fn choose_device(setting: &str) -> Result<Device, PluginError> {
    match setting {
        "cpu" => Ok(Device::flex()),
        "wgpu" => gpu(),
        _ => Err(PluginError::configuration(format!("device: there is no device `{setting}`"))
            .with_hint("set device = \"cpu\" or \"wgpu\"")),
    }
}

#[cfg(feature = "wgpu")]
fn gpu() -> Result<Device, PluginError> {
    Ok(Device::wgpu(burn_tensor::DeviceKind::DefaultDevice))
}

#[cfg(not(feature = "wgpu"))]
fn gpu() -> Result<Device, PluginError> {
    Err(PluginError::unsupported("device: this backend was built without `wgpu`").with_hint(
        "build it with `--features wgpu` (docs/backend-burn.md), or set device = \"cpu\"",
    ))
}

impl Backend for BurnBackend {
    fn load_policy(&self, spec: &PolicySpec) -> Result<Box<dyn Policy>, PluginError> {
        Ok(Box::new(DecoderPolicy::load(self.ops.clone(), spec, self.limits)?))
    }

    fn load_scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        Ok(load_scorer(self.ops.clone(), &model.path)?)
    }

    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> Result<f64, PluginError> {
        let product = self.ops.matrix_product(rows, inner, columns);
        Ok(measure_matrix_products([rows, inner, columns], product)?)
    }
}

sppo_plugin::export_backend!(BurnBackend);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use sppo_plugin::{SequenceBatch, create_backend};

    use super::*;

    #[test]
    fn a_registered_backend_loads_a_checkpoint_and_scores_it() {
        let backend = create_backend("burn", json!({})).unwrap();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lm/llama");
        let mut policy = backend.load_policy(&PolicySpec::new(path)).unwrap();
        assert_eq!((&*policy.info().device, &*policy.info().dtype), ("cpu", "f32"));
        let mut batch = SequenceBatch::new();
        let prompt = batch.push_prompt(&[1, 5, 9]);
        batch.push_response(prompt, &[7, 3]);
        let log_probs = policy.token_log_probs(&batch).unwrap();
        assert!(log_probs[0].len() == 2 && log_probs[0].iter().all(|&log_prob| log_prob < 0.0));
        assert!(backend.matrix_product_rate(64, 64, 64).unwrap() > 0.0);
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_name() {
        let refusal = |config| {
            let error = create_backend("burn", config).err().unwrap();
            error.to_string()
        };
        assert!(refusal(json!({"device": "gpu"})).contains("there is no device `gpu`"));
        assert!(refusal(json!({"max_rows": 0})).contains("max_rows"));
        assert!(refusal(json!({"thread": 1})).contains("unknown field `thread`"));
        if cfg!(not(feature = "wgpu")) {
            assert!(refusal(json!({"device": "wgpu"})).contains("built without `wgpu`"));
        }
    }
}
