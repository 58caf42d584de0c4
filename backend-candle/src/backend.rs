//! The plugin: its settings, and the op set that they make.

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_kernels::parts::DEQUANTIZED_BYTES;
use sppo_model::GenerationLimits;
use sppo_model::serve::{CopiedMatrices, MemoryTraits, ModelBackend};
use sppo_plugin::{Backend, IntoObject, Plugin, PluginError};

use crate::ops::CandleOps;

/// Memory of the program without a model, its tokenizer included.
const PROGRAM_BYTES: u64 = 64 << 20;

/// The table `[backend.candle]`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CandleConfig {
    /// Device to compute on: `cpu`.
    pub device: String,
    /// Threads to compute on; 0 takes one per core.
    pub threads: usize,
    /// Training keeps the logits of a batch for its backward pass if they take at most this many MiB,
    /// and otherwise computes them twice: more memory or more time.
    pub keep_logits_limit_mebibytes: usize,
    /// Most responses that are sampled together. More are faster and take more memory.
    pub max_rows: usize,
}

impl Default for CandleConfig {
    fn default() -> Self {
        Self {
            device: "cpu".into(),
            threads: 0,
            keep_logits_limit_mebibytes: 512,
            max_rows: GenerationLimits::default().max_batch_size,
        }
    }
}

/// The backend `candle`.
pub struct CandleBackend(ModelBackend<CandleOps>);

impl Plugin for CandleBackend {
    type Config = CandleConfig;
    const NAME: &'static str = "candle";
    const SUMMARY: &'static str = "candle tensors with fused kernels, in f32 on the CPU";

    fn create(config: CandleConfig) -> Result<Self, PluginError> {
        check_device(&config.device)?;
        if config.max_rows == 0 {
            return Err(PluginError::configuration("max_rows: 0 rows cannot be sampled")
                .with_hint("set it to 1 or more"));
        }
        let keep_logits_limit = config.keep_logits_limit_mebibytes.saturating_mul(1 << 20);
        let ops = CandleOps::new(config.threads, keep_logits_limit)?;
        let limits =
            GenerationLimits { max_batch_size: config.max_rows, ..GenerationLimits::default() };
        let memory = MemoryTraits {
            number_bytes: size_of::<f32>() as u64,
            operand_bytes: size_of::<f32>() as u64,
            splits_masters: false,
            keeps_frozen_bf16: true,
            copied_for_decoding: CopiedMatrices::All,
            dequantized: DEQUANTIZED_BYTES,
            logits: ops.limits,
            program: PROGRAM_BYTES,
        };
        Ok(Self(ModelBackend::new(ops, limits, Some(memory))))
    }
}

fn check_device(device: &str) -> Result<(), PluginError> {
    let kind = device.split(':').next().unwrap_or_default();
    match kind {
        "cpu" if device == kind => Ok(()),
        "cuda" | "metal" => Err(PluginError::unsupported(format!(
            "device: the backend `candle` does not compute on `{device}`"
        ))
        .with_hint("set device = \"cpu\", or choose another backend")),
        _ => Err(PluginError::configuration(format!("device: there is no device `{device}`"))
            .with_hint("set device = \"cpu\"")),
    }
}

impl IntoObject<dyn Backend> for CandleBackend {
    fn into_object(self) -> Box<dyn Backend> {
        Box::new(self.0)
    }
}

sppo_plugin::export_backend!(CandleBackend);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use sppo_plugin::{PolicySpec, SequenceBatch, create_backend};

    #[test]
    fn a_registered_backend_loads_a_checkpoint_and_scores_it() {
        let backend = create_backend("candle", json!({"threads": 2})).unwrap();
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
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
            let error = create_backend("candle", config).err().unwrap();
            error.to_string()
        };
        assert!(refusal(json!({"device": "cuda:0"})).contains("does not compute on `cuda:0`"));
        assert!(refusal(json!({"device": "gpu"})).contains("there is no device `gpu`"));
        assert!(refusal(json!({"max_rows": 0})).contains("max_rows"));
        assert!(refusal(json!({"thread": 1})).contains("unknown field `thread`"));
    }
}
