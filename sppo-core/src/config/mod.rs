//! The settings of a run, put together from defaults, a preset, files and flags, in this order; the later
//! wins. Each section is defined beside the code that takes it, and checks itself. The documentation of
//! the fields is what `sppo config schema` prints.

mod absolute;
mod layers;
mod overrides;
mod validate;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) use absolute::is_same_path;
pub(crate) use layers::parse_toml;
pub use layers::{Layers, Preset, Resolved, Source};
pub(crate) use overrides::short_text;
pub use overrides::{Override, PluginSchema};

use crate::datasets::PromptSettings;
use crate::error::{Error, Result};
use crate::evaluation::EvaluationSettings;
use crate::notify::NotifySettings;
use crate::plugin::PolicySpec;
use crate::plugins::{BackendChoice, OracleChoice, PluginSearch, SamplerChoice};
use crate::selection::SelectionRule;
use crate::stages::{PreferenceSettings, SamplingSettings, TrainingSettings};

/// Settings of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the run: its directory within `run_directory`.
    pub name: String,
    /// Directory that holds all runs.
    pub run_directory: PathBuf,
    /// Model to start from: a short name, a Hugging Face model directory, a `.gguf` file, or a Hugging Face
    /// hub id.
    pub model: String,
    /// Branch, tag or commit of a hub model; the main branch when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Variables that the model's chat template takes, for instance `enable_thinking = false`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub template_variables: BTreeMap<String, Value>,
    /// Iterations of self-play.
    pub iterations: u32,
    /// Seed of every random draw.
    pub seed: u64,
    /// Program that computes, and its settings.
    pub backend: BackendChoice,
    /// Judge, and its settings.
    pub oracle: OracleChoice,
    /// Source of responses, and its settings.
    pub sampler: SamplerChoice,
    /// Places of plugins that are not built in.
    pub plugins: PluginSearch,
    /// Prompts to train on and to compare models on.
    pub prompts: PromptSettings,
    /// Number of responses, and the way they are drawn.
    pub sampling: SamplingSettings,
    /// Way from verdicts to probabilities.
    pub preference: PreferenceSettings,
    /// Responses that are trained on.
    pub selection: SelectionRule,
    /// Loss, optimiser, lengths and adapters.
    pub training: TrainingSettings,
    /// Comparison of models on held-out prompts.
    pub evaluation: EvaluationSettings,
    /// Messages about the run.
    #[serde(skip_serializing_if = "NotifySettings::is_default")]
    pub notify: NotifySettings,
}

impl Config {
    /// The policy in `path`, to be trained as the settings say: all weights, or adapters.
    #[must_use]
    pub fn policy_spec(&self, path: PathBuf) -> PolicySpec {
        PolicySpec {
            path,
            adapters: self.training.lora.seeded(self.seed),
            recompute_activations: self.training.recompute_activations(),
            sharding: self.training.sharding(),
            gradient_dtype: self.training.gradient_dtype,
            frozen_weights: self.training.frozen_weights,
            template_variables: self.template_variables_json(),
        }
    }

    /// The variables of the chat template as a backend takes them.
    #[must_use]
    pub fn template_variables_json(&self) -> String {
        match self.template_variables.is_empty() {
            true => String::new(),
            false => Value::from_iter(self.template_variables.clone()).to_string(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "sppo".into(),
            run_directory: "runs".into(),
            model: "smollm2-135m-instruct".into(),
            revision: None,
            template_variables: BTreeMap::new(),
            iterations: 3,
            seed: 42,
            backend: BackendChoice::default(),
            oracle: OracleChoice::default(),
            sampler: SamplerChoice::default(),
            plugins: PluginSearch::default(),
            prompts: PromptSettings::default(),
            sampling: SamplingSettings::default(),
            preference: PreferenceSettings::default(),
            selection: SelectionRule::default(),
            training: TrainingSettings::default(),
            evaluation: EvaluationSettings::default(),
            notify: NotifySettings::default(),
        }
    }
}

impl Config {
    /// The directory of this run.
    #[must_use]
    pub fn run_path(&self) -> PathBuf {
        self.run_directory.join(&self.name)
    }

    /// The settings as TOML, readable back.
    ///
    /// # Errors
    /// When a setting has no TOML form, for instance a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string_pretty(self).map_err(|error| {
            Error::configuration("configuration", format!("cannot be written as TOML: {error}"))
        })
    }

    /// JSON Schema of all settings, plugins' own ones aside.
    #[must_use]
    pub fn json_schema() -> Value {
        crate::plugin::schema_of::<Self>()
    }

    /// The keys whose values differ.
    ///
    /// # Errors
    /// When a setting cannot be written down, for instance a path that is not UTF-8.
    pub fn differences(&self, after: &Self) -> Result<Vec<Difference>> {
        Ok(differences_of_values(&self.to_value()?, &after.to_value()?))
    }

    pub(crate) fn to_value(&self) -> Result<Value> {
        serde_json::to_value(self)
            .map_err(|error| Error::configuration("configuration", error.to_string()))
    }
}

/// A setting that has another value, or exists on one side only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The dotted key.
    pub key: String,
    /// The value before, in JSON notation; `None` when there was none.
    pub before: Option<String>,
    /// The value after; `None` when there is none.
    pub after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.before.as_deref().unwrap_or("not set");
        let after = self.after.as_deref().unwrap_or("not set");
        write!(formatter, "{}: {before} -> {after}", self.key)
    }
}

/// Compares two JSON documents, table by table; arrays are compared as a whole.
pub(crate) fn differences_of_values(before: &Value, after: &Value) -> Vec<Difference> {
    let (before, after) = (leaves(before), leaves(after));
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            before: before.get(key).map(ToString::to_string),
            after: after.get(key).map(ToString::to_string),
        })
        .collect()
}

fn leaves(value: &Value) -> BTreeMap<String, &Value> {
    fn visit<'a>(prefix: &str, value: &'a Value, found: &mut BTreeMap<String, &'a Value>) {
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    let path =
                        if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    visit(&path, value, found);
                }
            }
            leaf => {
                found.insert(prefix.into(), leaf);
            }
        }
    }
    let mut found = BTreeMap::new();
    visit("", value, &mut found);
    found
}

/// TOML has no null, and a later layer must be able to switch a limit off: 0 stands for none.
pub(crate) mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize + Default + Copy,
        S: Serializer,
    {
        value.unwrap_or_default().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
    where
        T: Deserialize<'de> + Default + PartialEq,
        D: Deserializer<'de>,
    {
        let value = T::deserialize(deserializer)?;
        Ok((value != T::default()).then_some(value))
    }
}

#[cfg(test)]
mod tests;
