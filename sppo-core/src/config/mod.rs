//! The settings of a run: typed, documented (the docs are what `sppo config schema` prints), and put
//! together from defaults, a preset, files and flags, in this order; the later wins.

mod differences;
mod keys;
mod layers;
mod preset;
mod training;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use differences::Difference;
pub(crate) use differences::differences_of_values;
pub use layers::{Layers, Override, Resolved, Source};
pub use preset::Preset;
pub use training::{LoraTable, ReferenceLogProbs, TrainingTable};

use crate::error::{Error, Result};
use crate::plugin::{PolicySpec, SamplingParameters};
use crate::records::Prompt;
use crate::selection::SelectionRule;
use crate::stages::PreferenceSettings;
use crate::win_rate::WinRateEstimator;

/// Everything that a run depends on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The run's name: its directory within `run_directory`.
    pub name: String,
    /// The directory that holds all runs.
    pub run_directory: PathBuf,
    /// The model to start from: a model's short name, a Hugging Face model directory, a `.gguf` file,
    /// or a Hugging Face hub id.
    pub model: String,
    /// The branch, tag or commit of a hub model; the main branch when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Iterations of self-play.
    pub iterations: u32,
    /// Every random draw follows from it.
    pub seed: u64,
    /// The program that computes, and its settings.
    pub backend: BackendTable,
    /// The judge, and its settings.
    pub oracle: OracleTable,
    /// Where to look for plugins that are not built in.
    pub plugins: PluginsTable,
    /// What is answered.
    pub prompts: PromptsTable,
    /// How answers are drawn.
    pub sampling: SamplingTable,
    /// How verdicts become probabilities.
    pub preference: PreferenceTable,
    /// Which answers are trained on.
    pub selection: SelectionRule,
    /// The regression.
    pub training: TrainingTable,
    /// How models are compared.
    pub evaluation: EvaluationTable,
}

impl Config {
    /// The policy in `path`, to be trained as the settings say: all weights, or adapters.
    #[must_use]
    pub fn policy_spec(&self, path: PathBuf) -> PolicySpec {
        PolicySpec {
            path,
            adapters: self.training.lora.settings(self.seed),
            recompute_activations: self.training.recompute_activations,
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
            iterations: 3,
            seed: 42,
            backend: BackendTable::default(),
            oracle: OracleTable::default(),
            plugins: PluginsTable::default(),
            prompts: PromptsTable::default(),
            sampling: SamplingTable::default(),
            preference: PreferenceTable::default(),
            selection: SelectionRule::default(),
            training: TrainingTable::default(),
            evaluation: EvaluationTable::default(),
        }
    }
}

/// The backend. Its own settings stand in a table of its name, for instance `[backend.candle]`;
/// `sppo plugin info` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackendTable {
    /// The backend's name; `sppo plugin list` shows which there are.
    pub name: String,
    /// One table per backend.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl Default for BackendTable {
    fn default() -> Self {
        Self { name: "candle".into(), settings: BTreeMap::new() }
    }
}

impl BackendTable {
    /// The chosen backend's settings; empty when there are none.
    #[must_use]
    pub fn chosen_settings(&self) -> Value {
        self.settings_of(&self.name)
    }

    /// The settings of the backend of this name; empty when there are none.
    #[must_use]
    pub fn settings_of(&self, name: &str) -> Value {
        settings_of(name, &self.settings)
    }
}

/// The oracle. Its own settings stand in a table of its name, for instance `[oracle.rules]`;
/// `sppo plugin info` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OracleTable {
    /// The oracle's name; `sppo plugin list` shows which there are.
    pub name: String,
    /// One table per oracle.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl Default for OracleTable {
    fn default() -> Self {
        Self { name: "rules".into(), settings: BTreeMap::new() }
    }
}

impl OracleTable {
    /// The chosen oracle's settings; empty when there are none.
    #[must_use]
    pub fn chosen_settings(&self) -> Value {
        self.settings_of(&self.name)
    }

    /// The settings of the oracle of this name; empty when there are none.
    #[must_use]
    pub fn settings_of(&self, name: &str) -> Value {
        settings_of(name, &self.settings)
    }
}

fn settings_of(name: &str, settings: &BTreeMap<String, Value>) -> Value {
    settings.get(name).cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()))
}

/// Where to look for plugins that are not built in; after these come `SPPO_PLUGIN_PATH` and the plugins
/// that `sppo plugin add` added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PluginsTable {
    /// Libraries of plugins.
    pub files: Vec<PathBuf>,
    /// Directories with such libraries.
    pub path: Vec<PathBuf>,
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptsTable {
    /// A JSONL or Parquet file with `prompt` or `messages`; the bundled prompts when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// Prompts that are never trained on, to compare models; the bundled ones when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// Which prompts an iteration answers.
    pub per_iteration: PromptsPerIteration,
    /// Use at most so many training prompts; 0 uses all.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub limit: Option<usize>,
}

/// Which prompts an iteration answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptsPerIteration {
    /// All of them, every time.
    #[default]
    All,
    /// Each iteration its own portion, as equal as possible (the released recipe: three portions of
    /// UltraFeedback).
    Portions,
}

impl PromptsTable {
    /// The prompts of an iteration (from 1) out of `iterations`.
    #[must_use]
    pub fn of_iteration<'a>(
        &self,
        prompts: &'a [Prompt],
        iteration: u32,
        iterations: u32,
    ) -> &'a [Prompt] {
        let boundary = |portion: u32| {
            let share = prompts.len() as u128 * u128::from(portion);
            (share / u128::from(iterations.max(1))) as usize
        };
        match self.per_iteration {
            PromptsPerIteration::All => prompts,
            PromptsPerIteration::Portions => prompts
                .get(boundary(iteration.saturating_sub(1))..boundary(iteration))
                .unwrap_or_default(),
        }
    }
}

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingTable {
    /// Answers per prompt (K in the paper), at least 2.
    pub samples_per_prompt: usize,
    /// Divides the logits before sampling; 0 takes the most probable token.
    pub temperature: f64,
    /// Keeps the most probable tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Longest answer, in tokens, the end token included.
    pub max_new_tokens: usize,
    /// No end token is drawn before this many tokens.
    pub min_new_tokens: usize,
    /// Answers and judgments are committed every so many prompts.
    pub prompts_per_shard: usize,
}

impl Default for SamplingTable {
    fn default() -> Self {
        Self {
            samples_per_prompt: 5,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            max_new_tokens: 512,
            min_new_tokens: 0,
            prompts_per_shard: 64,
        }
    }
}

impl SamplingTable {
    /// How to draw tokens, as backends take it.
    #[must_use]
    pub fn parameters(&self) -> SamplingParameters {
        SamplingParameters {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
        }
    }
}

/// How verdicts become probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PreferenceTable {
    /// For oracles that return pairwise logits: how these become win rates.
    pub estimator: WinRateEstimator,
    /// For oracles that return scores: `P(i > j) = sigmoid((s_i - s_j) / temperature)`.
    pub bradley_terry_temperature: f64,
}

impl Default for PreferenceTable {
    fn default() -> Self {
        Self { estimator: WinRateEstimator::default(), bradley_terry_temperature: 1.0 }
    }
}

impl PreferenceTable {
    /// How to make sense of verdicts.
    #[must_use]
    pub fn settings(&self) -> PreferenceSettings {
        PreferenceSettings {
            estimator: self.estimator,
            bradley_terry_temperature: self.bradley_terry_temperature,
        }
    }
}

/// How models are compared: held-out prompts, answered by both, judged by the run's oracle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationTable {
    /// Compare each iteration with the starting model.
    pub enabled: bool,
    /// Answers per held-out prompt and model.
    pub samples_per_prompt: usize,
    /// Resamples of the bootstrap over prompts.
    pub bootstrap_resamples: usize,
    /// The interval's confidence, between 0 and 1.
    pub confidence: f64,
}

impl Default for EvaluationTable {
    fn default() -> Self {
        Self { enabled: true, samples_per_prompt: 1, bootstrap_resamples: 2000, confidence: 0.95 }
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

/// TOML has no null, and a later layer must be able to switch a limit off: 0 stands for none.
mod zero_is_none {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T, S>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error>
    where
        T: Serialize + Default + Copy,
        S: Serializer,
    {
        value.unwrap_or_default().serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
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
