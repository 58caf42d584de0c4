//! Settings of adapters that a run makes, and writing them in the layout of Python's PEFT.

use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use sppo_plugin::LoraSettings;

use crate::error::{ModelError, Result};
use crate::formats::files::{prepare_directory, unwritable, write_file};
use crate::formats::json::write_json;

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(super) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's prefix of the names of a causal language model's modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// The matrices of a layer, any of which may be adapted.
pub const TARGET_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The matrices that some models have in place of several of [`TARGET_MODULES`].
const FUSED_MODULES: [&str; 2] = ["qkv_proj", "gate_up_proj"];

/// Whether a matrix of a layer, by the last part of its name, may be adapted.
pub(super) fn may_be_adapted(target: &str) -> bool {
    TARGET_MODULES.iter().chain(&FUSED_MODULES).any(|name| *name == target)
}

/// Refuses settings that no adapter can have.
pub(crate) fn check_lora_settings(settings: &LoraSettings) -> Result<()> {
    let wrong = |message: String| Err(ModelError::Unsupported(format!("LoRA: {message}")));
    if settings.rank == 0 {
        return wrong("the rank is 0".into());
    }
    if !settings.alpha.is_finite() || settings.alpha <= 0.0 {
        return wrong(format!("alpha is {}, but must be above 0", settings.alpha));
    }
    if !(0.0..1.0).contains(&settings.dropout) {
        return wrong(format!("dropout is {}, but must be from 0 to below 1", settings.dropout));
    }
    if settings.target_modules.is_empty() {
        return wrong("there are no target modules".into());
    }
    match settings.target_modules.iter().find(|name| !may_be_adapted(name)) {
        Some(name) => wrong(format!(
            "there is no target module `{name}`; there are {}, and where these are fused {}",
            TARGET_MODULES.join(", "),
            FUSED_MODULES.join(", ")
        )),
        None => Ok(()),
    }
}

/// Writes adapters in the layout of PEFT.
///
/// `base` names the model that they were made for; `tensors` yields name (without PEFT's prefix),
/// shape and values of every matrix.
///
/// # Errors
/// When the directory already holds adapters or cannot be written.
pub fn write_adapters(
    directory: &Path,
    base: &Path,
    settings: &LoraSettings,
    tensors: impl IntoIterator<Item = Result<(String, Vec<usize>, Vec<f32>)>>,
) -> Result<()> {
    let base = base.to_str().ok_or_else(|| {
        ModelError::file(base, "is not UTF-8, so adapters cannot refer to it")
            .with_hint("rename the directory of the model")
    })?;
    prepare_directory(directory, &[ADAPTER_CONFIG, ADAPTER_WEIGHTS])?;
    let config = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "peft_type": "LORA",
        "r": settings.rank,
        "target_modules": settings.target_modules,
        "task_type": "CAUSAL_LM",
        "use_rslora": settings.rank_stabilized,
    });
    let mut matrices = Vec::new();
    for tensor in tensors {
        let (name, shape, values) = tensor?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        matrices.push((format!("{PREFIX}{name}"), shape, bytes));
    }
    let path = directory.join(ADAPTER_WEIGHTS);
    let views = matrices
        .iter()
        .map(|(name, shape, bytes)| {
            TensorView::new(Dtype::F32, shape.clone(), bytes).map(|view| (name, view))
        })
        .collect::<std::result::Result<Vec<_>, _>>();
    let metadata = std::collections::HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|error| unwritable(&path, &std::io::Error::other(error.to_string())))?;
    write_file(&path, &bytes)?;
    write_json(&directory.join(ADAPTER_CONFIG), &config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LoraSettings {
        LoraSettings {
            rank: 2,
            alpha: 6.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into()],
            rank_stabilized: false,
            seed: 3,
        }
    }

    #[test]
    fn settings_that_no_adapter_can_have_are_refused() {
        for (settings, expected) in [
            (LoraSettings { rank: 0, ..settings() }, "rank is 0"),
            (LoraSettings { alpha: f64::NAN, ..settings() }, "alpha is NaN"),
            (LoraSettings { dropout: 1.0, ..settings() }, "dropout is 1"),
            (LoraSettings { target_modules: Vec::new(), ..settings() }, "no target modules"),
            (
                LoraSettings { target_modules: vec!["lm_head".into()], ..settings() },
                "no target module `lm_head`; there are q_proj",
            ),
        ] {
            let error = check_lora_settings(&settings).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
