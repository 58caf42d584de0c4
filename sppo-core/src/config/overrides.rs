//! Settings from flags, and the kind of value that their text is.

use serde_json::Value as Json;
use toml::{Table, Value};

use super::validate::DOCUMENT;
use crate::error::{Error, Result};
use crate::plugin::PluginKind;
use crate::plugins::{PluginSearch, kinds};
use crate::schema::Schema;

/// A source of JSON Schemas: kind and name of a plugin, and the places of plugins, to the schema of its settings.
pub type PluginSchema<'a> = dyn Fn(PluginKind, &str, &PluginSearch) -> Option<Json> + 'a;

/// Settings from one flag of the command line.
#[derive(Clone, Debug, PartialEq)]
pub struct Override {
    pub(super) flag: String,
    table: Table,
    /// Key and text of a value that was read as something else than text.
    typed: Option<(String, String)>,
}

impl Override {
    /// `key=value`, the key dotted, the value in TOML notation; a value that is not TOML is text, so
    /// that `prompts.train=questions.jsonl` needs no quotes. Where the setting is a text, the value is one even
    /// if it looks like a number. `flag` names it in error messages.
    ///
    /// # Errors
    /// When there is no `=` or the key is malformed.
    pub fn parse(flag: impl Into<String>, assignment: &str) -> Result<Self> {
        let flag = flag.into();
        let Some((key, text)) = assignment.split_once('=') else {
            return Err(Error::configuration(&flag, format!("`{assignment}` has no `=`"))
                .with_hint("write key=value, for instance `training.eta=1000`"));
        };
        let (key, text) = (key.trim(), text.trim());
        let read = toml::from_str::<Table>(&format!("value = {text}"))
            .ok()
            .filter(|table| table.len() == 1)
            .and_then(|mut table| table.remove("value"));
        match read {
            None => Self::set(flag, key, text),
            Some(Value::String(text)) => Self::set(flag, key, text),
            Some(other) => {
                let typed = Some((key.to_owned(), text.to_owned()));
                Ok(Self { typed, ..Self::set(flag, key, other)? })
            }
        }
    }

    /// One setting, for a flag of its own such as `--eta`.
    ///
    /// # Errors
    /// When the dotted key has an empty part.
    pub fn set(flag: impl Into<String>, key: &str, value: impl Into<Value>) -> Result<Self> {
        let flag = flag.into();
        if key.split('.').any(str::is_empty) {
            return Err(Error::configuration(&flag, format!("`{key}` is not a dotted key"))
                .with_hint("write key=value, for instance `training.eta=1000`"));
        }
        Ok(Self { flag, table: table_of(key, value.into()), typed: None })
    }

    /// Whether the setting is in this section, or is this key.
    #[must_use]
    pub fn is_in(&self, section: &str) -> bool {
        self.table.contains_key(section)
    }

    /// What it sets: dotted keys, and values in TOML notation.
    pub(crate) fn values(&self) -> Vec<(String, String)> {
        fn visit(prefix: &str, table: &Table, found: &mut Vec<(String, String)>) {
            for (name, value) in table {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                match value {
                    Value::Table(inner) => visit(&key, inner, found),
                    value => found.push((key, short_text(value))),
                }
            }
        }
        let mut found = Vec::new();
        visit("", &self.table, &mut found);
        found
    }

    /// Name of the flag or file that sets it.
    pub(crate) fn source(&self) -> &str {
        &self.flag
    }

    /// The setting as a table. `plugin_schema` gives the schema of a plugin's own settings.
    pub(super) fn table(&self, plugin_schema: &PluginSchema<'_>, places: &PluginSearch) -> Table {
        let Some((key, text)) = &self.typed else { return self.table.clone() };
        let is_text = match of_plugin(key) {
            Some((kind, name, key)) => plugin_schema(kind, name, places)
                .is_some_and(|document| is_text(&document, key, text)),
            None => is_text(&DOCUMENT, key, text),
        };
        if is_text { table_of(key, Value::String(text.clone())) } else { self.table.clone() }
    }
}

/// A value in TOML notation, numbers as short as people write them.
pub(crate) fn short_text(value: &Value) -> String {
    match value {
        Value::Float(number) if *number == 0.0 || (1e-3..1e6).contains(&number.abs()) => {
            number.to_string()
        }
        Value::Float(number) => format!("{number:e}"),
        other => other.to_string(),
    }
}

/// The places of plugins that these layers name.
pub(super) fn places_of_plugins(merged: &Table, overrides: &[Override]) -> PluginSearch {
    let mut places = merged.get("plugins").and_then(Value::as_table).cloned().unwrap_or_default();
    for given in overrides {
        places.extend(
            given.table.get("plugins").and_then(Value::as_table).cloned().unwrap_or_default(),
        );
    }
    // A list of something else than paths is refused where all settings are read.
    Value::Table(places).try_into().unwrap_or_default()
}

/// Kind and name of the plugin to which a key belongs, and the key within its settings.
fn of_plugin(key: &str) -> Option<(PluginKind, &str, &str)> {
    let (section, rest) = key.split_once('.')?;
    let (name, inner) = rest.split_once('.')?;
    let kind = kinds().find(|kind| kind.name() == section)?;
    Some((kind, name, inner))
}

fn table_of(key: &str, value: Value) -> Table {
    let (outer, inner) = match key.split_once('.') {
        Some((outer, inner)) => (outer, Value::Table(table_of(inner, value))),
        None => (key, value),
    };
    Table::from_iter([(outer.to_owned(), inner)])
}

/// Whether the setting of this key takes a text, and not what this text would be read as.
fn is_text(document: &Json, key: &str, text: &str) -> bool {
    let Some(schema) = schema_at(Schema::new(document), key) else { return false };
    let forms = schema.forms();
    let kinds: Vec<&str> = forms.iter().flat_map(|form| kinds_of(*form)).collect();
    let takes = |kind: &str| kinds.contains(&kind);
    let as_read = match text.as_bytes().first() {
        Some(b'[') => takes("array"),
        Some(b'{') => takes("object"),
        _ if matches!(text, "true" | "false") => takes("boolean"),
        _ => takes("number") || takes("integer"),
    };
    takes("string") && !as_read && !takes("anything")
}

/// The kinds of values that one form of a setting allows by itself.
fn kinds_of(form: Schema<'_>) -> Vec<&str> {
    const COMBINED: [&str; 4] = ["$ref", "oneOf", "anyOf", "allOf"];
    let mut kinds = form.types();
    for choice in form.list("enum").iter().chain(form.keyword("const")) {
        kinds.push(match choice {
            Json::String(_) => "string",
            Json::Number(_) => "number",
            Json::Bool(_) => "boolean",
            _ => "null",
        });
    }
    if kinds.is_empty() && COMBINED.iter().all(|keyword| form.keyword(keyword).is_none()) {
        kinds.push("anything");
    }
    kinds
}

/// The schema of a dotted key, which may be one that a table takes beside its own.
fn schema_at<'a>(root: Schema<'a>, key: &str) -> Option<Schema<'a>> {
    key.split('.').try_fold(root, |schema, name| {
        let forms = schema.forms();
        let own = forms.iter().find_map(|form| form.property(name));
        let other = || forms.iter().find_map(|form| form.subschema("additionalProperties"));
        own.or_else(other)
    })
}
