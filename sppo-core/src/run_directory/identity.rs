//! Identity of a run: its settings, model, prompts and plugins. A run may only resume with the same.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Config, Difference, differences_of_values, is_same_path};
use crate::error::{Error, Result};
use crate::files::{run_directory_error, write_atomically};

/// Settings, model, prompts and plugins of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunIdentity {
    /// All settings.
    pub config: Config,
    /// The model that self-play starts from.
    pub model: ModelIdentity,
    /// SHA-256 of the prompts, in hexadecimal: their files may change under the same name.
    #[serde(default)]
    pub prompts_sha256: String,
    /// The backend, the oracle, and the plugins that these use.
    pub plugins: Vec<PluginIdentity>,
}

/// Identity of the weights that self-play starts from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// Its short name, hub id or path.
    pub name: String,
    /// SHA-256 of its weights, in hexadecimal.
    pub sha256: String,
    /// Its id on the Hugging Face hub, if that is where it comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub_id: Option<String>,
    /// Its licence as it declares it, by the hub's identifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub license: Option<String>,
}

/// Identity of a plugin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PluginIdentity {
    /// `backend` or `oracle`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// SHA-256 of its library, in hexadecimal; `None` for built-in plugins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Further origin of its judgments, for instance a model and its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

impl RunIdentity {
    pub(super) fn read(file: &Path) -> Result<Self> {
        serde_path_to_error::deserialize(read_value(file)?).map_err(|error| {
            let message = format!("{}: {}", error.path(), error.inner());
            Error::run_directory(file, message)
                .with_hint("another version of sppo may have written it")
        })
    }

    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::run_directory(file, format!("cannot be written: {error}")))?;
        write_atomically(file, &text)
    }

    /// Differences from the recorded identity, without the keys in `allow` and those below them. Compares
    /// documents, not types, so that a record of another version of sppo can be compared too: a setting
    /// that the record lacks was not there yet, and its default changes nothing.
    pub(super) fn changes_since(&self, file: &Path, allow: &[String]) -> Result<Vec<Difference>> {
        let unwritable =
            |error: serde_json::Error| Error::configuration("configuration", error.to_string());
        let recorded = read_value(file)?;
        let current = serde_json::to_value(self).map_err(unwritable)?;
        // The texts of prompts tell, wherever the files lie.
        let by_content = has_prompts_hash(&recorded) && has_prompts_hash(&current);
        let (recorded, current) =
            (comparable(&recorded, by_content), comparable(&current, by_content));
        let defaults = serde_json::to_value(Config::default()).map_err(unwritable)?;
        let chosen = differences_of_values(&defaults, &current);
        let is_new_default = |change: &Difference| {
            change.before.is_none() && chosen.iter().all(|choice| choice.key != change.key)
        };
        let allowed = |key: &str| {
            allow.iter().any(|prefix| {
                key.strip_prefix(prefix.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let mut changes = differences_of_values(&recorded, &current);
        let is_moved = |change: &Difference| match (&change.before, &change.after) {
            (Some(before), Some(after)) => is_same_path(before, after),
            _ => false,
        };
        changes
            .retain(|change| !allowed(&change.key) && !is_new_default(change) && !is_moved(change));
        Ok(changes)
    }
}

fn read_value(file: &Path) -> Result<Value> {
    let bytes = fs::read(file)
        .map_err(|error| run_directory_error(file, "read this run's record", &error))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Error::run_directory(file, format!("this run's record is damaged: {error}"))
            .with_hint("start another run with `--name`")
    })
}

fn has_prompts_hash(identity: &Value) -> bool {
    identity.get("prompts_sha256").and_then(Value::as_str).is_some_and(|hash| !hash.is_empty())
}

/// Settings keep their keys, but for the files of prompts where `by_content` is set; the rest becomes `model.sha256`, `prompts.sha256`,
/// `plugin.backend.version`, `plugin.oracle-rules.version` (used by another oracle) and so on.
fn comparable(identity: &Value, by_content: bool) -> Value {
    let mut all = match identity.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => Map::new(),
    };
    // Each rank's memory, and not what comes out.
    if let Some(Value::Object(training)) = all.get_mut("training") {
        training.shift_remove("sharding");
        training.shift_remove("recompute_activations");
    }
    // A model may be named in several ways (a short name, a path); its weights tell.
    let weights = identity.get("model").and_then(|model| model.get("sha256")).cloned();
    let model = Map::from_iter([("sha256".to_owned(), weights.unwrap_or_default())]);
    all.insert("model".into(), Value::Object(model));
    if let (Some(Value::Object(prompts)), Some(hash)) =
        (all.get_mut("prompts"), identity.get("prompts_sha256"))
    {
        if by_content {
            prompts.retain(|key, _| !["train", "held_out", "columns"].contains(&key.as_str()));
        }
        prompts.insert("sha256".into(), hash.clone());
    }
    let plugins = identity.get("plugins").and_then(Value::as_array).into_iter().flatten();
    let chosen = |kind: &str| identity.pointer(&format!("/config/{kind}/name"));
    let by_use: Map<String, Value> = plugins
        .filter_map(|plugin| {
            let mut plugin = plugin.as_object()?.clone();
            let kind = plugin.shift_remove("kind")?.as_str()?.to_owned();
            let is_chosen = plugin.get("name") == chosen(&kind);
            // An oracle may use others.
            let key =
                if is_chosen { kind } else { format!("{kind}-{}", plugin.get("name")?.as_str()?) };
            Some((key, Value::Object(plugin)))
        })
        .collect();
    all.insert("plugin".into(), Value::Object(by_use));
    Value::Object(all)
}
