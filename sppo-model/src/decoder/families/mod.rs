//! The families of decoders, one per file.
//!
//! A new family is one file here, which says everything about it, and one line in [`FAMILIES`].

mod gemma2;
mod gemma3;
mod gguf;
mod gguf_writing;
mod hugging_face;
mod llama;
mod mistral;
mod olmo2;
mod olmo3;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod rotary_settings;
mod smollm3;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::{Container, DecoderConfig, Family};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, JsonObject};

pub(crate) use gguf::gguf_source;
pub(crate) use gguf_writing::{as_gguf_says, gguf_tensors, rotary_tensors, write_gguf_settings};

/// Every family.
pub static FAMILIES: &[&dyn Family] = &[
    &llama::Llama,
    &mistral::Mistral,
    &gemma2::Gemma2,
    &gemma3::Gemma3,
    &qwen2::Qwen2,
    &qwen3::Qwen3,
    &qwen3_moe::Qwen3Moe,
    &smollm3::SmolLm3,
    &olmo3::Olmo3,
    &olmo2::Olmo2,
    &phi3::Phi3,
];

/// A family between processes is its `model_type`.
impl Serialize for dyn Family {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        self.model_type().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for &'static dyn Family {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let found = FAMILIES.iter().find(|family| family.model_type() == name);
        found.copied().ok_or_else(|| D::Error::custom(format!("there is no family `{name}`")))
    }
}

impl DecoderConfig {
    /// Reads a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// When the architecture or a setting is not supported, or a value is missing or malformed.
    pub fn from_hugging_face(json: &Value, path: &Path) -> Result<Self> {
        let settings = JsonObject::of(json, path)?;
        let family = family_of(&settings)?;
        Self::of_family(family, &model_settings(family, settings)?)
    }

    /// Reads the settings of a model of a known family.
    pub(crate) fn of_family(family: &dyn Family, settings: &JsonObject<'_>) -> Result<Self> {
        family.read_hugging_face(settings)?.check(settings.path())
    }

    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the architecture or a setting is not supported, or a value is missing or malformed.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let keys = GgufKeys::of(file.metadata())?;
        for family in FAMILIES {
            if family.gguf_architecture() == Some(keys.architecture())
                && family.reads_gguf(&keys)?
            {
                return family.read_gguf(file, &keys)?.check(file.metadata().path());
            }
        }
        let mut supported: Vec<_> =
            FAMILIES.iter().filter_map(|family| family.gguf_architecture()).collect();
        supported.dedup();
        Err(ModelError::Unsupported(format!(
            "{}: the GGUF architecture `{}` is not supported; supported: {}",
            file.metadata().path().display(),
            keys.architecture(),
            supported.join(", ")
        )))
    }
}

/// The settings of the language model in a `config.json` that may be its container's.
fn model_settings<'a>(family: &dyn Family, settings: JsonObject<'a>) -> Result<JsonObject<'a>> {
    let container =
        family.container().filter(|container| container.is_described_by(settings.value()));
    let Some(Container { settings: key, .. }) = container else { return Ok(settings) };
    settings.refuse_unless("quantization_config", &Value::Null)?;
    settings.object(key)?.ok_or_else(|| settings.wrong(key, "the settings of the language model"))
}

/// The family that `architectures` and `model_type` name; one of the two is enough.
fn family_of(settings: &JsonObject<'_>) -> Result<&'static dyn Family> {
    let architecture = settings
        .typed("architectures", "a list of names", |value| value.get(0).and_then(Value::as_str))?;
    let model_type = settings.text("model_type")?;
    let known = FAMILIES.iter().find(|family| {
        let is_named = |own_architecture: &str, own_type: &str| {
            architecture.is_none_or(|name| name == own_architecture)
                && model_type.is_none_or(|name| name == own_type)
        };
        let container = family.container();
        is_named(family.architecture(), family.model_type())
            || container.is_some_and(|outer| is_named(outer.architecture, outer.model_type))
    });
    match known {
        Some(family) if architecture.is_some() || model_type.is_some() => Ok(*family),
        _ => {
            let supported: Vec<_> = FAMILIES.iter().map(|family| family.architecture()).collect();
            Err(ModelError::Unsupported(format!(
                "{}: the architecture {} (model_type {}) is not supported; supported: {}",
                settings.path().display(),
                architecture.unwrap_or("that is not named"),
                model_type.unwrap_or("not given"),
                supported.join(", ")
            )))
        }
    }
}
