//! The plugin: its settings, and the op set that they make.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use sppo_model::GenerationLimits;
use sppo_model::serve::{CopiedMatrices, MemoryTraits, ModelBackend};
use sppo_plugin::{Backend, IntoObject, Plugin, PluginError};
use tch::{Device, Kind};

use crate::device::{Context, choose_device, has_bf16_units};
use crate::libraries::{MISSING_LIBTORCH_HINT, check_version};
use crate::ops::{TchOps, TchOptions};
use crate::process_group::ProcessGroup;
use crate::quantized_weight::DEQUANTIZED_BYTES;
use crate::team::{self, TchTeam};

/// Memory of libtorch without a model.
const PROGRAM_BYTES: u64 = 256 << 20;

/// The table `[backend.tch]`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TchConfig {
    /// Device to compute on: `auto` (the first CUDA device, or else the CPU), `cpu`, or `cuda:N`.
    pub device: String,
    /// The dtype of matrix products. Weights, gradients, log-probabilities and the optimiser are f32
    /// always.
    #[serde(rename = "data_type")]
    pub dtype: DataType,
    /// CPU threads to compute on; 0 takes one per core.
    pub threads: usize,
    /// Training keeps the logits of a batch for its backward pass if they take at most this many MiB,
    /// and otherwise computes them twice: more memory or more time.
    pub keep_logits_limit_mebibytes: usize,
    /// Most responses that are sampled together; more are faster and take more memory. 0 means 64 on the
    /// CPU and 512 on a CUDA device.
    pub max_rows: usize,
    /// Most MiB of the key-value cache; 0 means 1024 on the CPU and 8192 on a CUDA device. If it is too
    /// small for `max_rows` responses, fewer are sampled together.
    pub cache_limit_mebibytes: usize,
    /// A directory with libtorch's CUDA library, for instance that of the Python package torch. By
    /// default it is looked for in the directory that LIBTORCH names, and beside the CPU's library.
    #[schemars(extend("format" = "path"))]
    pub libtorch: Option<PathBuf>,
    /// Seconds that ranks wait for each other: to come together, and in each exchange of gradients. Longer
    /// than the slowest rank may be behind the fastest in a step.
    pub collective_timeout_seconds: f64,
}

/// A dtype of matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataType {
    /// 32-bit floats.
    #[default]
    F32,
    /// bfloat16 operands and results, accumulated in f32.
    Bf16,
}

impl DataType {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}

impl Default for TchConfig {
    fn default() -> Self {
        Self {
            device: "auto".into(),
            dtype: DataType::default(),
            threads: 0,
            keep_logits_limit_mebibytes: 512,
            max_rows: 0,
            cache_limit_mebibytes: 0,
            libtorch: None,
            collective_timeout_seconds: 600.0,
        }
    }
}

/// The backend `tch`.
pub struct TchBackend(ModelBackend<TchOps>);

impl Plugin for TchBackend {
    type Config = TchConfig;
    const NAME: &'static str = "tch";
    const SUMMARY: &'static str = "libtorch, in f32 or bf16, on the CPU and on CUDA devices";
    const MISSING_LIBRARY_HINT: &'static str = MISSING_LIBTORCH_HINT;

    fn create(config: TchConfig) -> Result<Self, PluginError> {
        check_version()?;
        let group = team::join(config.collective_timeout_seconds)?;
        let device = device_of_rank(&config, group.as_ref())?;
        if config.dtype == DataType::Bf16 && !has_bf16_units(device) {
            tracing::warn!(
                "this CPU has no bf16 arithmetic, so data_type = \"bf16\" is slower here than \"f32\""
            );
        }
        let ops = TchOps::new(&TchOptions {
            device,
            compute_dtype: config.dtype.kind(),
            threads: match (&group, config.threads) {
                (Some(group), 0) => group.threads(),
                (_, threads) => threads,
            },
            keep_logits_limit: config.keep_logits_limit_mebibytes.saturating_mul(1 << 20),
        })?;
        let memory = memory_traits(&ops);
        let backend = ModelBackend::new(ops, generation_limits(&config, device), Some(memory));
        Ok(Self(match group {
            Some(group) => backend.with_team(TchTeam::new(group)),
            None => backend,
        }))
    }
}

/// The device of the settings; where several processes share a host, each rank's own CUDA device.
fn device_of_rank(config: &TchConfig, group: Option<&ProcessGroup>) -> Result<Device, PluginError> {
    let libtorch = config.libtorch.as_deref();
    let Some(group) = group else { return choose_device(&config.device, libtorch) };
    let shared = config.device.starts_with("cuda:") && group.shares_cuda_devices();
    if shared {
        return Err(PluginError::configuration(format!(
            "device: `{}` is one device, and several ranks of this host would share it",
            config.device
        ))
        .with_hint("set device = \"auto\" or \"cuda\", which gives each rank its own"));
    }
    let device = match choose_device(&config.device, libtorch)? {
        Device::Cuda(0) if config.device == "auto" || config.device == "cuda" => {
            choose_device(&format!("cuda:{}", group.cuda_device()), libtorch)?
        }
        device => device,
    };
    let (kind, dtype) = (if device.is_cuda() { "CUDA" } else { "the CPU" }, config.dtype.name());
    group.agree(&format!("data_type = \"{dtype}\" on {kind}"))?;
    if let Device::Cuda(number) = device {
        group.open_nccl(number, &config.libtorch.iter().cloned().collect::<Vec<_>>())?;
    }
    Ok(device)
}

fn generation_limits(config: &TchConfig, device: Device) -> GenerationLimits {
    let mut limits = GenerationLimits::default();
    if device.is_cuda() {
        limits.max_batch_size = 512;
        limits.prefill_tokens *= 8;
        limits.cache_bytes *= 8;
    }
    if config.max_rows > 0 {
        limits.max_batch_size = config.max_rows;
    }
    if config.cache_limit_mebibytes > 0 {
        limits.cache_bytes = config.cache_limit_mebibytes.saturating_mul(1 << 20);
    }
    limits
}

/// Traits on the device that computes; the host's memory is not counted where that is another.
fn memory_traits(ops: &TchOps) -> MemoryTraits {
    let Context { device, compute_dtype, .. } = ops.context;
    MemoryTraits {
        number_bytes: size_of::<f32>() as u64,
        operand_bytes: if compute_dtype == Kind::Float { 4 } else { 2 },
        splits_masters: compute_dtype == Kind::BFloat16,
        keeps_frozen_bf16: false,
        copied_for_decoding: match ops.context.kernels {
            Some(_) => CopiedMatrices::Trained,
            None => CopiedMatrices::None,
        },
        dequantized: DEQUANTIZED_BYTES,
        logits: ops.limits,
        program: match device.is_cuda() {
            true => MemoryTraits::CUDA_PROGRAM_BYTES,
            false => PROGRAM_BYTES,
        },
    }
}

impl IntoObject<dyn Backend> for TchBackend {
    fn into_object(self) -> Box<dyn Backend> {
        Box::new(self.0)
    }
}

sppo_plugin::export_backend!(TchBackend);

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;
    use sppo_plugin::{PlannedWork, PolicySpec, SequenceBatch, create_backend};

    use super::*;

    #[test]
    fn a_registered_backend_scores_a_checkpoint_in_bf16_within_a_hundredth_of_f32() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
        let log_probs = ["f32", "bf16"].map(|data_type| {
            let config = json!({"device": "cpu", "data_type": data_type, "threads": 2});
            let backend = create_backend("tch", config).unwrap();
            let mut policy = backend.load_policy(&PolicySpec::new(&path)).unwrap();
            assert_eq!((&*policy.info().device, &*policy.info().dtype), ("cpu", data_type));
            assert!(backend.matrix_product_rate(64, 64, 64).unwrap() > 0.0);
            let mut batch = SequenceBatch::new();
            let prompt = batch.push_prompt(&[1, 5, 9]);
            batch.push_response(prompt, &[7, 3, 8, 100, 200, 300]);
            policy.token_log_probs(&batch).unwrap()[0].iter().sum::<f32>()
        });
        let [in_f32, in_bf16] = log_probs;
        assert!(in_f32 < 0.0 && (in_bf16 / in_f32 - 1.0).abs() < 0.01, "{log_probs:?}");
    }

    #[test]
    fn weights_of_copies_in_bf16_and_remainders_are_estimated_to_take_what_those_in_f32_take() {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
        let estimate = |data_type: &str| {
            let backend = create_backend("tch", json!({"device": "cpu", "data_type": data_type}));
            let work = PlannedWork { sampling: Vec::new(), training: None };
            backend.unwrap().estimate_memory(&PolicySpec::new(&path), &work)
        };
        let [f32, bf16] = ["f32", "bf16"].map(|data_type| estimate(data_type).unwrap().loading);
        let share = bf16.weights as f64 / f32.weights as f64;
        assert!(f32.weights > 0 && (0.99..1.01).contains(&share), "{share}");
    }

    #[test]
    fn a_gpu_samples_more_at_once_and_settings_come_first() {
        let limits = |config: &TchConfig, device| {
            let GenerationLimits { max_batch_size, cache_bytes, .. } =
                generation_limits(config, device);
            (max_batch_size, cache_bytes >> 20)
        };
        let plain = TchConfig::default();
        assert_eq!(limits(&plain, Device::Cpu), (64, 1024));
        assert_eq!(limits(&plain, Device::Cuda(0)), (512, 8192));
        let given = TchConfig { max_rows: 3, cache_limit_mebibytes: 100, ..plain };
        assert_eq!(limits(&given, Device::Cuda(0)), (3, 100));
    }

    #[test]
    fn invalid_settings_are_refused_by_name() {
        let refusal = |config| {
            let error = create_backend("tch", config).err().unwrap();
            error.to_string()
        };
        assert!(refusal(json!({"device": "gpu"})).contains("there is no device `gpu`"));
        assert!(refusal(json!({"device": "cuda:x"})).contains("there is no device `cuda:x`"));
        assert!(refusal(json!({"data_type": "f16"})).contains("data_type"));
        assert!(refusal(json!({"thread": 1})).contains("unknown field `thread`"));
    }
}
