//! Settings of adapters in PEFT's `adapter_config.json`.
//!
//! An adapter is `W + s B A` with the model's own `W`. Whatever makes it something else is refused by name,
//! and so is every key that is not known, unless its value is empty.

use serde_json::Value;

use super::targets::{ModulePattern, Targets};
use crate::error::{ModelError, Result};
use crate::formats::JsonObject;

/// The remedy for adapters that only PEFT understands.
pub(super) const BY_PEFT: &str = "if PEFT can merge them, do so with merge_and_unload() and save_pretrained(), and name \
                                  the whole model";

/// PEFT's values of keys that are not there.
const DEFAULT_RANK: usize = 8;
const DEFAULT_ALPHA: f64 = 8.0;

/// Ways to begin that leave the model as it is, in lower case; `true` and `false` do so too.
const SOUND_BEGINNINGS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Ways to begin for which PEFT changes the model's weights, by their first letters.
const CHANGING_BEGINNINGS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Keys that are read.
const KNOWN_KEYS: [&str; 19] = [
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "use_dora",
    "use_rslora",
];

/// Keys that say how adapters were begun or trained, and change nothing of what they are.
const HARMLESS_KEYS: [&str; 12] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// Modules with a rank or a scale of their own: more than a model of a thousand matrices has.
const MOST_PATTERNS: usize = 2_000;

/// Settings of adapters.
#[derive(Debug)]
pub(super) struct AdapterConfig {
    /// The model that they were made for: a path, or an id on the hub.
    pub(super) base: String,
    /// Its revision on the hub.
    pub(super) revision: Option<String>,
    /// The probability that a feature was left out in training.
    pub(super) dropout: f64,
    /// Whether alpha is divided by the root of the rank.
    pub(super) rank_stabilized: bool,
    /// Modules that were announced.
    pub(super) targets: Targets,
    rank: usize,
    alpha: f64,
    ranks: Vec<(ModulePattern, usize)>,
    alphas: Vec<(ModulePattern, f64)>,
}

impl AdapterConfig {
    /// Reads the settings, and refuses those that make something else of an adapter.
    pub(super) fn read(config: &JsonObject<'_>) -> Result<Self> {
        check_variant(config)?;
        check_beginning(config)?;
        let base = config.text("base_model_name_or_path")?.ok_or_else(|| {
            config
                .wrong("base_model_name_or_path", "a model's name or path")
                .with_hint("write the path of the model that the adapters were made for into it")
        })?;
        let read = Self {
            base: base.to_string(),
            revision: config.text("revision")?.map(String::from),
            dropout: config.number("lora_dropout")?.unwrap_or(0.0),
            rank_stabilized: config.flag("use_rslora")?.unwrap_or(false),
            targets: Targets::read(config)?,
            rank: config.count("r")?.unwrap_or(DEFAULT_RANK),
            alpha: config.number("lora_alpha")?.unwrap_or(DEFAULT_ALPHA),
            ranks: patterns(config, "rank_pattern", "a positive integer", |value| {
                value.as_u64().filter(|&rank| rank > 0).and_then(|rank| usize::try_from(rank).ok())
            })?,
            alphas: patterns(config, "alpha_pattern", "a number above 0", positive)?,
        };
        let alpha = Value::from(read.alpha);
        if positive(&alpha).is_none() {
            return Err(config.wrong("lora_alpha", "a number above 0"));
        }
        if !(0.0..1.0).contains(&read.dropout) {
            return Err(config.wrong("lora_dropout", "a number from 0 to below 1"));
        }
        Ok(read)
    }

    /// The rank of a module's adapter.
    pub(super) fn rank(&self, module: &str) -> usize {
        of_module(&self.ranks, module).unwrap_or(self.rank)
    }

    /// The alpha of a module's adapter.
    pub(super) fn alpha(&self, module: &str) -> f64 {
        of_module(&self.alphas, module).unwrap_or(self.alpha)
    }
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number > 0.0)
}

fn of_module<T: Copy>(patterns: &[(ModulePattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(module)).map(|&(_, value)| value)
}

/// Values of single modules. A key is the end of a module's path, or a regular expression of it.
fn patterns<T>(
    config: &JsonObject<'_>,
    key: &str,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(ModulePattern, T)>> {
    let Some(patterns) = config.object(key)? else { return Ok(Vec::new()) };
    let count = patterns.keys().count();
    if count > MOST_PATTERNS {
        return Err(ModelError::file(
            config.path(),
            format!("`{key}` names {count} modules; at most {MOST_PATTERNS} are read"),
        ));
    }
    patterns
        .keys()
        .map(|name| {
            let value = patterns.get(name).and_then(&read);
            let value =
                value.ok_or_else(|| patterns.wrong(name, &format!("{expected} in `{key}`")))?;
            Ok((ModulePattern::of_path_end(name, config.path())?, value))
        })
        .collect()
}

/// Refuses what is no LoRA, and variants of it.
fn check_variant(config: &JsonObject<'_>) -> Result<()> {
    let is = |key: &str, supported: Value| match config.get(key) {
        Some(value) if *value != supported => {
            Err(unsupported(config, key, &format!("only {supported} is")))
        }
        _ => Ok(()),
    };
    is("peft_type", "LORA".into())?;
    is("bias", "none".into())?;
    for key in ["use_dora", "fan_in_fan_out", "lora_bias"] {
        is(key, false.into())?;
    }
    let unknown = config.keys().find(|key| {
        let is_known = KNOWN_KEYS.contains(key) || HARMLESS_KEYS.contains(key);
        !is_known && !config.get(key).is_none_or(is_empty)
    });
    match unknown {
        Some(key) => Err(unsupported(config, key, "it may change what the adapters mean")),
        None => Ok(()),
    }
}

/// Whether a value of an unknown key says that it is not in use.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        Value::Number(_) => false,
    }
}

/// Refuses adapters whose beginning was taken from the model's own weights.
fn check_beginning(config: &JsonObject<'_>) -> Result<()> {
    const KEY: &str = "init_lora_weights";
    let name = match config.get(KEY) {
        None | Some(Value::Bool(_)) => return Ok(()),
        Some(Value::String(name)) => name.to_lowercase(),
        Some(_) => return Err(config.wrong(KEY, "true, false or a text")),
    };
    if SOUND_BEGINNINGS.contains(&name.as_str()) {
        return Ok(());
    }
    if CHANGING_BEGINNINGS.iter().any(|changing| name.starts_with(changing)) {
        return Err(ModelError::file(
            config.path(),
            format!(
                "`{KEY}` is `{name}`: PEFT then takes the first adapters out of the model's weights, so \
                 these belong to a changed model and not to the one that it names"
            ),
        )
        .with_hint(
            "save them again with PEFT: save_pretrained(..., path_initial_model_for_weight_conversion=...) \
             writes adapters for the unchanged model; or merge them there with merge_and_unload()",
        ));
    }
    Err(unsupported(config, KEY, "it may have changed the model's weights"))
}

fn unsupported(config: &JsonObject<'_>, key: &str, why: &str) -> ModelError {
    let value = config.get(key).map_or_else(|| "null".to_string(), Value::to_string);
    ModelError::file(config.path(), format!("`{key}` = {value} is not supported; {why}"))
        .with_hint(BY_PEFT)
}
