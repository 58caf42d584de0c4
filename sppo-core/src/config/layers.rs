//! Layers of a configuration, presets among them: merges them, and remembers the layer of every value.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::{Table, Value};

use super::Config;
use super::overrides::{Override, PluginSchema, places_of_plugins};
use super::validate::first_unknown_key;
use crate::error::{Error, Result};
use crate::files::input_error;
use crate::plugin::check::InvalidSetting;
use crate::stages::ReferenceLogProbs;

/// Layers of a configuration; the later wins: defaults, preset, files in order, overrides in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Layers {
    /// A named set of settings.
    pub preset: Option<Preset>,
    /// TOML files.
    pub files: Vec<PathBuf>,
    /// Flags.
    pub overrides: Vec<Override>,
}

/// A named set of settings, a layer between the defaults and the user's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// A small model on a small machine, within minutes.
    Quick,
    /// The settings of the paper's released code (`scripts/` of uclaml/SPPO).
    Official,
    /// The settings of the paper's text (arXiv 2405.00675), where they differ from the code's.
    Paper,
}

impl Preset {
    /// All presets.
    pub const ALL: [Self; 3] = [Self::Quick, Self::Official, Self::Paper];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Official => "official",
            Self::Paper => "paper",
        }
    }

    /// Its settings, a commented TOML document.
    #[must_use]
    pub fn toml(self) -> &'static str {
        match self {
            Self::Quick => include_str!("presets/quick.toml"),
            Self::Official => include_str!("presets/official.toml"),
            Self::Paper => include_str!("presets/paper.toml"),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|preset| preset.name() == name).ok_or_else(|| {
            Error::configuration("preset", format!("there is no preset named `{name}`"))
                .with_hint(format!("choose one of: {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// Origin of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The default.
    Default,
    /// A preset.
    Preset(Preset),
    /// A TOML file.
    File(PathBuf),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => formatter.write_str("default"),
            Self::Preset(preset) => write!(formatter, "preset {preset}"),
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Flag(flag) => formatter.write_str(flag),
        }
    }
}

impl Source {
    /// Name of a key of this layer in error messages.
    fn locate(&self, key: &str) -> String {
        match self {
            Self::Default => key.into(),
            other => format!("{other}: {key}"),
        }
    }
}

/// The key of the setting that is `recomputed` by itself where another engine than the policy samples.
const REFERENCE_LOG_PROBS: &str = "training.reference_log_probs";

/// A complete, valid configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The settings.
    pub config: Config,
    /// The layer that set each dotted key.
    pub sources: BTreeMap<String, Source>,
}

impl Resolved {
    /// The error of a refused setting, with the layer that set it.
    pub(crate) fn refuse(&self, refusal: InvalidSetting) -> Error {
        fault(&self.sources, &refusal.key, refusal.message).with_hint(refusal.hint)
    }
}

impl Config {
    /// Merges the layers and checks the result.
    ///
    /// # Errors
    /// When a file cannot be read, a key is unknown, or a value is malformed or makes no sense; the
    /// error names the layer and the key.
    pub fn resolve(layers: &Layers) -> Result<Resolved> {
        Self::resolve_with(layers, &|_, _, _| None)
    }

    /// As [`Self::resolve`]; a flag's value for a plugin becomes a text where the plugin's schema says so.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub fn resolve_with(layers: &Layers, plugin_schema: &PluginSchema<'_>) -> Result<Resolved> {
        let mut merged = Merged::default();
        let defaults = parse_toml(&Self::default().to_toml()?, "defaults")?;
        merged.add(defaults, &Source::Default)?;
        if let Some(preset) = layers.preset {
            let source = Source::Preset(preset);
            merged.add(parse_toml(preset.toml(), &source.to_string())?, &source)?;
        }
        for path in &layers.files {
            merged.add(read(path)?, &Source::File(path.clone()))?;
        }
        let places = places_of_plugins(&merged.table, &layers.overrides);
        for given in &layers.overrides {
            let table = given.table(plugin_schema, &places);
            merged.add(table, &Source::Flag(given.flag.clone()))?;
        }
        let mut config = merged.deserialize()?;
        if !config.sampler.is_policy() && !merged.says(REFERENCE_LOG_PROBS) {
            config.training.reference_log_probs = ReferenceLogProbs::Recomputed;
        }
        let resolved = Resolved { config, sources: merged.sources };
        resolved.config.check().map_err(|refusal| resolved.refuse(refusal))?;
        Ok(resolved)
    }
}

fn read(path: &Path) -> Result<Table> {
    let bytes = fs::read(path)
        .map_err(|error| input_error(path, "read this configuration file", &error))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::input(path, "this configuration file is not UTF-8 text"))?;
    parse_toml(&text, &path.display().to_string())
}

/// Reads a TOML document; `name` stands for it in errors.
pub(crate) fn parse_toml(text: &str, name: &str) -> Result<Table> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        Error::configuration(format!("{name}:{line}"), error.message().replace('\n', ", "))
            .with_hint("the file must be TOML, for instance `[training]` and below it `eta = 1000`")
    })
}

#[derive(Default)]
struct Merged {
    table: Table,
    sources: BTreeMap<String, Source>,
}

impl Merged {
    fn add(&mut self, mut layer: Table, source: &Source) -> Result<()> {
        hoist_template_variables(&mut layer);
        if let Some(unknown) = first_unknown_key(&layer) {
            return Err(Error::configuration(
                source.locate(&unknown.path),
                "there is no such setting",
            )
            .with_hint(unknown.hint));
        }
        merge(&mut self.table, layer, "", source, &mut self.sources);
        Ok(())
    }

    /// Whether a layer above the defaults sets this key.
    fn says(&self, key: &str) -> bool {
        self.sources.get(key).is_some_and(|source| *source != Source::Default)
    }

    fn deserialize(&self) -> Result<Config> {
        let value = self.json_of(&Value::Table(self.table.clone()), "")?;
        serde_path_to_error::deserialize(value).map_err(
            |error: serde_path_to_error::Error<serde_json::Error>| {
                let key = error.path().to_string();
                let message = error.inner().to_string();
                let fault = fault(&self.sources, &key, in_plain_words(&message));
                match key.as_str() {
                    "backend" | "oracle" | "sampler" => fault.with_hint(format!(
                        "write `{key}.name = \"...\"`, and its settings below `[{key}.<name>]`"
                    )),
                    _ if is_text_without_quotes(&message) => {
                        fault.with_hint("put the value in quotes, which make it a text")
                    }
                    _ => fault.with_hint("`sppo config schema` explains all keys"),
                }
            },
        )
    }

    /// The value as JSON, from which the settings of plugins and records of runs are read too. A date is its
    /// text.
    ///
    /// # Errors
    /// When a number is not finite: JSON has none of these, and no setting allows them.
    fn json_of(&self, value: &Value, key: &str) -> Result<serde_json::Value> {
        let below = |name: &str| match key {
            "" => name.to_owned(),
            _ => format!("{key}.{name}"),
        };
        Ok(match value {
            Value::String(text) => text.as_str().into(),
            Value::Integer(number) => (*number).into(),
            Value::Float(number) if !number.is_finite() => {
                let message = format!("{number} is not a finite number");
                return Err(fault(&self.sources, key, message).with_hint("give a finite number"));
            }
            Value::Float(number) => (*number).into(),
            Value::Boolean(flag) => (*flag).into(),
            Value::Datetime(date) => date.to_string().into(),
            Value::Array(items) => {
                items.iter().map(|item| self.json_of(item, key)).collect::<Result<_>>()?
            }
            Value::Table(table) => {
                let values = table
                    .iter()
                    .map(|(name, value)| Ok((name.clone(), self.json_of(value, &below(name))?)));
                values.collect::<Result<_>>()?
            }
        })
    }
}

/// The error of a key's value, with the layer that set it.
fn fault(sources: &BTreeMap<String, Source>, key: &str, message: String) -> Error {
    Error::configuration(source_of(sources, key).locate(key), message)
}

/// Whether a number, a date or the like stands where a text is expected.
fn is_text_without_quotes(message: &str) -> bool {
    let is_scalar = ["integer", "floating point", "boolean", "datetime"]
        .iter()
        .any(|kind| message.starts_with(&format!("invalid type: {kind}")));
    is_scalar && (message.contains("expected a string") || message.contains("expected path string"))
}

/// The table `model.template_variables` is `template_variables`, because the key `model` holds a name.
fn hoist_template_variables(layer: &mut Table) {
    const NAME: &str = "template_variables";
    let Some(Value::Table(model)) = layer.get_mut("model") else { return };
    let Some(variables) = model.remove(NAME) else { return };
    if model.is_empty() {
        layer.remove("model");
    }
    layer.insert(NAME.into(), variables);
}

/// The layer that set this key, or last set anything below or above it.
fn source_of<'a>(sources: &'a BTreeMap<String, Source>, key: &str) -> &'a Source {
    let below = format!("{key}.");
    let within = || {
        let of_table = sources.iter().filter(|(name, _)| name.starts_with(&below));
        let mut candidates = of_table.map(|(_, source)| source);
        let first = candidates.next()?;
        Some(candidates.find(|source| **source != Source::Default).unwrap_or(first))
    };
    sources.get(key).or_else(within).unwrap_or(&Source::Default)
}

/// Lays `layer` over `base`. Tables are merged key by key, except that one of another `type` replaces
/// the whole table: the constants of one optimiser mean nothing to another.
fn merge(
    base: &mut Table,
    layer: Table,
    prefix: &str,
    source: &Source,
    sources: &mut BTreeMap<String, Source>,
) {
    for (name, value) in layer {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match (base.get_mut(&name), value) {
            (Some(Value::Table(below)), Value::Table(above)) if !changes_type(below, &above) => {
                merge(below, above, &path, source, sources);
            }
            (_, value) => {
                let below = format!("{path}.");
                sources.retain(|key, _| *key != path && !key.starts_with(&below));
                record(&value, &path, source, sources);
                base.insert(name, value);
            }
        }
    }
}

fn changes_type(below: &Table, above: &Table) -> bool {
    above.get("type").is_some_and(|kind| below.get("type") != Some(kind))
}

fn record(value: &Value, path: &str, source: &Source, sources: &mut BTreeMap<String, Source>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                record(value, &format!("{path}.{name}"), source, sources);
            }
        }
        _ => {
            sources.insert(path.into(), source.clone());
        }
    }
}

/// Replaces names of Rust types in serde's messages by plain words.
fn in_plain_words(message: &str) -> String {
    let types = [
        ("expected usize", "expected a whole number from 0"),
        ("expected u64", "expected a whole number from 0"),
        ("expected u32", "expected a whole number from 0"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("expected a string", "expected text"),
        ("expected path string", "expected a path"),
    ];
    let line = message.lines().next().unwrap_or_default();
    types.iter().fold(line.to_owned(), |text, (rust, plain)| text.replace(rust, plain))
}
