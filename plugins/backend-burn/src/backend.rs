//! The plugin: its settings, and the op set that they make.

use burn_tensor::Device;
use schemars::JsonSchema;
use serde::Deserialize;
use sppo_model::GenerationLimits;
use sppo_model::serve::ModelBackend;
use sppo_plugin::{Backend, IntoObject, Plugin, PluginError};

use crate::ops::BurnOps;

/// The table `[backend.burn]`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BurnConfig {
    /// Device to compute on: `cpu`, or `wgpu` for the best GPU that wgpu finds, if the backend was built
    /// with that feature.
    pub device: String,
    /// Training keeps the logits of a batch for its backward pass if they take at most this many MiB,
    /// and otherwise computes them twice: more memory or more time.
    pub keep_logits_limit_mebibytes: usize,
    /// Most responses that are sampled together. More are faster and take more memory.
    pub max_rows: usize,
}

impl Default for BurnConfig {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            keep_logits_limit_mebibytes: 512,
            max_rows: GenerationLimits::default().max_batch_size,
        }
    }
}

/// The backend `burn`.
pub struct BurnBackend(ModelBackend<BurnOps>);

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
        let limits =
            GenerationLimits { max_batch_size: config.max_rows, ..GenerationLimits::default() };
        Ok(Self(ModelBackend::new(ops, limits, None)))
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

impl IntoObject<dyn Backend> for BurnBackend {
    fn into_object(self) -> Box<dyn Backend> {
        Box::new(self.0)
    }
}

sppo_plugin::export_backend!(BurnBackend);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use sppo_plugin::{PolicySpec, SequenceBatch, create_backend};

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
    fn invalid_settings_are_refused_by_name() {
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
