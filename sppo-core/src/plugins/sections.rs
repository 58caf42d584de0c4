//! Sections of the configuration that name plugins and hold their settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::PluginRegistry;
use crate::config::Resolved;
use crate::error::Result;
use crate::plugin::PluginKind;
use crate::plugin::check::{self, Check};
use crate::schema::closest;

/// The section `[backend]`: the backend, and settings of backends, each in a table of its name such as
/// `[backend.candle]`; `sppo plugin info` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BackendChoice {
    /// Name of the backend; `sppo plugin list` shows all.
    pub name: String,
    /// One table per backend.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl Default for BackendChoice {
    fn default() -> Self {
        Self { name: "candle".into(), settings: BTreeMap::new() }
    }
}

impl BackendChoice {
    /// Settings of the chosen backend; empty when there are none.
    #[must_use]
    pub fn chosen_settings(&self) -> Value {
        self.settings_of(&self.name)
    }

    /// Settings of the backend of this name; empty when there are none.
    #[must_use]
    pub fn settings_of(&self, name: &str) -> Value {
        settings_of(name, &self.settings)
    }
}

/// The section `[oracle]`: the oracle, and settings of oracles, each in a table of its name such as
/// `[oracle.rules]`; `sppo plugin info` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OracleChoice {
    /// Name of the oracle; `sppo plugin list` shows all.
    pub name: String,
    /// One table per oracle.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl Default for OracleChoice {
    fn default() -> Self {
        Self { name: "rules".into(), settings: BTreeMap::new() }
    }
}

impl OracleChoice {
    /// Settings of the chosen oracle; empty when there are none.
    #[must_use]
    pub fn chosen_settings(&self) -> Value {
        self.settings_of(&self.name)
    }

    /// Settings of the oracle of this name; empty when there are none.
    #[must_use]
    pub fn settings_of(&self, name: &str) -> Value {
        settings_of(name, &self.settings)
    }
}

/// The section `[sampler]`: the source of responses, and settings of samplers, each in a table of its name
/// such as `[sampler.vllm]`; `sppo plugin info` lists them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SamplerChoice {
    /// Name of the sampler: `policy`, which is the model itself on its backend, or a plugin that draws responses
    /// from the same weights; `sppo plugin list` shows all.
    pub name: String,
    /// Largest mean difference between a sampler's log-probabilities and the policy's own, per token; beyond it
    /// the sampler holds other weights. 0 for a limit that suits the number formats of both.
    pub log_prob_limit: f64,
    /// One table per sampler.
    #[serde(flatten)]
    pub settings: BTreeMap<String, Value>,
}

impl Default for SamplerChoice {
    fn default() -> Self {
        Self { name: Self::POLICY.into(), log_prob_limit: 0.0, settings: BTreeMap::new() }
    }
}

impl SamplerChoice {
    /// The name that stands for the model itself.
    pub const POLICY: &'static str = "policy";

    /// Whether the model itself draws its responses.
    #[must_use]
    pub fn is_policy(&self) -> bool {
        self.name == Self::POLICY
    }

    /// Settings of the chosen sampler; empty when there are none.
    #[must_use]
    pub fn chosen_settings(&self) -> Value {
        settings_of(&self.name, &self.settings)
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn check(&self) -> Check {
        check::not_negative("log_prob_limit", self.log_prob_limit)
    }
}

fn settings_of(name: &str, settings: &BTreeMap<String, Value>) -> Value {
    settings.get(name).cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()))
}

/// The section `[plugins]`: places of plugins that are not built in. After these come `SPPO_PLUGIN_PATH`
/// and the plugins that `sppo plugin add` added.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PluginSearch {
    /// Libraries of plugins.
    pub files: Vec<PathBuf>,
    /// Directories with such libraries.
    pub path: Vec<PathBuf>,
}

/// Refuses settings of plugins that do not exist. Libraries are only read where the built-in plugins do
/// not explain all settings.
///
/// # Errors
/// Names the layer and the key of settings that no plugin takes.
pub fn check_sections(resolved: &Resolved) -> Result<()> {
    let config = &resolved.config;
    let sections = [
        (PluginKind::BACKEND, &config.backend.name, &config.backend.settings),
        (PluginKind::ORACLE, &config.oracle.name, &config.oracle.settings),
        (PluginKind::SAMPLER, &config.sampler.name, &config.sampler.settings),
    ];
    let mut known = PluginRegistry::embedded();
    let explained = sections.iter().all(|(kind, chosen, settings)| {
        let names = known.names(*kind);
        settings.keys().all(|name| name == *chosen || names.contains(&name.as_str()))
    });
    if !explained {
        known = PluginRegistry::discover(&config.plugins).unwrap_or(known);
    }
    for (kind, chosen, settings) in sections {
        check_section(kind, chosen, settings, &known.names(kind))
            .map_err(|refusal| resolved.refuse(refusal))?;
    }
    Ok(())
}

/// Below the section of a kind stand tables of plugins, and nothing else that has no name there.
fn check_section(
    kind: PluginKind,
    chosen: &str,
    settings: &BTreeMap<String, Value>,
    known: &[&str],
) -> Check {
    let key = kind.name();
    check::require(
        !chosen.is_empty(),
        key,
        "has an empty name",
        "`sppo plugin list` shows all plugins",
    )?;
    for (name, settings) in settings {
        let meant = closest(name, known.iter().copied().chain([chosen])).unwrap_or(chosen);
        check::require(
            settings.is_object(),
            key,
            format!("`{key}.{name}` is not a table"),
            format!("settings of a plugin stand in its own table, `[{key}.{chosen}]`"),
        )?;
        check::require(
            name == chosen || known.contains(&name.as_str()),
            key,
            format!("there is no {key} named `{name}` to take the settings in `[{key}.{name}]`"),
            format!("did you mean `[{key}.{meant}]`?"),
        )?;
    }
    Ok(())
}
