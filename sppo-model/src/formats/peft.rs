//! Low-rank adapters in the layout of Python's PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use sppo_plugin::LoraSettings;

use super::WeightFile;
use super::files::{prepare_directory, unwritable, write_file};
use super::json::{JsonObject, read_json, write_json};
use super::safetensors::SafetensorsFiles;
use crate::error::{ModelError, Result};

pub(crate) const ADAPTER_CONFIG: &str = "adapter_config.json";
pub(crate) const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's prefix of the names of a causal language model's modules.
const PREFIX: &str = "base_model.model.";

/// The matrices of a layer, any of which may be adapted.
pub const TARGET_MODULES: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// The values of an adapter's matrices, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterValues {
    /// `[rank, input]`.
    pub a: Vec<f32>,
    /// `[output, rank]`.
    pub b: Vec<f32>,
}

/// The checkpoint names of a module's `A` and `B`, without the prefix that PEFT puts before them.
#[must_use]
pub fn adapter_names(module: &str) -> [String; 2] {
    ["lora_A", "lora_B"].map(|matrix| format!("{module}.{matrix}.weight"))
}

/// Adapters on disk, opened for reading.
#[derive(Debug)]
pub struct AdapterFiles {
    directory: PathBuf,
    base: String,
    revision: Option<String>,
    settings: LoraSettings,
    weights: SafetensorsFiles,
}

impl AdapterFiles {
    /// Whether a directory holds adapters rather than a whole model.
    pub(crate) fn are_in(directory: &Path) -> bool {
        directory.join(ADAPTER_CONFIG).is_file()
    }

    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let path = directory.join(ADAPTER_CONFIG);
        let json = read_json(&path)?;
        let config = JsonObject::of(&json, &path)?;
        let settings = lora_settings(&config)?;
        let base = config
            .text("base_model_name_or_path")?
            .ok_or_else(|| config.wrong("base_model_name_or_path", "a model's name or path"))?;
        Ok(Self {
            directory: directory.to_path_buf(),
            base: base.to_string(),
            revision: config.text("revision")?.map(String::from),
            settings,
            weights: SafetensorsFiles::open_file(directory.join(ADAPTER_WEIGHTS))?,
        })
    }

    /// The model that the adapters were made for: a path, or an id on the hub.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The hub's revision of that model, where one is recorded.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Rank, alpha and the like, as they were trained with; the seed is not recorded.
    #[must_use]
    pub fn settings(&self) -> &LoraSettings {
        &self.settings
    }

    /// The two files.
    pub(crate) fn paths(&self) -> [PathBuf; 2] {
        [ADAPTER_CONFIG, ADAPTER_WEIGHTS].map(|name| self.directory.join(name))
    }

    /// The adapter of a module (for instance `model.layers.0.self_attn.q_proj`), a matrix of
    /// `[output, input]`; `None` where it has none.
    ///
    /// # Errors
    /// When one of its two matrices is missing or has another shape.
    pub fn values(
        &self,
        module: &str,
        [output, input]: [usize; 2],
    ) -> Result<Option<AdapterValues>> {
        let names = adapter_names(module).map(|name| format!("{PREFIX}{name}"));
        if names.iter().all(|name| self.weights.shape(name).is_none()) {
            return Ok(None);
        }
        let rank = self.settings.rank;
        for (name, expected) in names.iter().zip([[rank, input], [output, rank]]) {
            let path = self.directory.join(ADAPTER_WEIGHTS);
            match self.weights.shape(name) {
                Some(found) if found == expected => {}
                Some(found) => {
                    return Err(ModelError::file(
                        path,
                        format!("the adapter `{name}` has the shape {found:?}; {expected:?} was expected"),
                    )
                    .with_hint("the adapters do not belong to this model"));
                }
                None => {
                    return Err(ModelError::file(path, format!("the adapter `{name}` is missing"))
                        .with_hint("the file is incomplete; save the adapters again"));
                }
            }
        }
        let [a, b] = &names;
        Ok(Some(AdapterValues { a: self.weights.values(a)?, b: self.weights.values(b)? }))
    }

    /// Refuses adapters that have no place in a model, or lack one that the settings announce.
    /// `weights` are the names and shapes of all weights of the model.
    pub(crate) fn check<'a>(
        &self,
        weights: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Result<()> {
        let modules = weights.filter_map(|(name, shape)| {
            let module = name.strip_suffix(".weight")?;
            let target = module.rsplit('.').next()?;
            let adapted = self.settings.target_modules.iter().any(|name| name == target);
            adapted.then_some((module, <[usize; 2]>::try_from(shape).ok()?))
        });
        let path = self.directory.join(ADAPTER_WEIGHTS);
        let mut expected = 0;
        for (module, shape) in modules {
            expected += 2;
            if self.values(module, shape)?.is_none() {
                return Err(ModelError::file(path, format!("there is no adapter of `{module}`"))
                    .with_hint("the adapters do not belong to this model"));
            }
        }
        let found = self.weights.names().count();
        if found != expected {
            return Err(ModelError::file(
                path,
                format!("holds {found} matrices, of which the model has a place for {expected}"),
            )
            .with_hint("the adapters do not belong to this model"));
        }
        Ok(())
    }
}

/// Reads PEFT's settings; those that change the result and are not supported are refused.
fn lora_settings(config: &JsonObject<'_>) -> Result<LoraSettings> {
    config.refuse_unless("peft_type", &json!("LORA"))?;
    config.refuse_unless("bias", &json!("none"))?;
    for key in ["use_dora", "fan_in_fan_out", "lora_bias", "use_qalora"] {
        config.refuse_unless(key, &json!(false))?;
    }
    for key in [
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "exclude_modules",
        "target_parameters",
        "trainable_token_indices",
        "layer_replication",
        "rank_pattern",
        "alpha_pattern",
    ] {
        config.refuse_unless_empty(key)?;
    }
    let rank = config.count("r")?.ok_or_else(|| config.wrong("r", "the rank"))?;
    let target_modules = match config.get("target_modules") {
        Some(Value::String(all)) if all == "all-linear" => {
            TARGET_MODULES.map(String::from).to_vec()
        }
        _ => config
            .texts("target_modules")?
            .ok_or_else(|| config.wrong("target_modules", "a list of modules"))?
            .into_iter()
            .map(String::from)
            .collect(),
    };
    let settings = LoraSettings {
        rank,
        alpha: config.number("lora_alpha")?.unwrap_or(8.0),
        dropout: config.number("lora_dropout")?.unwrap_or(0.0),
        target_modules,
        rank_stabilized: config.flag("use_rslora")?.unwrap_or(false),
        seed: 0,
    };
    check_lora_settings(&settings)
        .map_err(|error| ModelError::file(config.path(), error.to_string()))?;
    Ok(settings)
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
    match settings.target_modules.iter().find(|name| !TARGET_MODULES.contains(&name.as_str())) {
        Some(name) => wrong(format!(
            "there is no target module `{name}`; there are {}",
            TARGET_MODULES.join(", ")
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
