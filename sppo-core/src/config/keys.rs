//! Refusal of keys that no setting has, with the key that was probably meant.

use std::sync::LazyLock;

use serde_json::Value;
use toml::Table;

use super::Config;
use crate::schema::{Schema, closest_key};

/// A key that no setting has.
#[derive(Debug, PartialEq)]
pub(super) struct UnknownKey {
    pub(super) path: String,
    pub(super) hint: String,
}

static DOCUMENT: LazyLock<Value> = LazyLock::new(Config::json_schema);

/// The first key of a layer that no setting has.
pub(super) fn first_unknown(layer: &Table) -> Option<UnknownKey> {
    let schema = Schema::new(&DOCUMENT);
    let path = unknown_in(&[schema], layer, "")?;
    Some(UnknownKey { hint: hint_for(&path, schema), path })
}

/// `forms` are all forms that the table may have.
fn unknown_in(forms: &[Schema<'_>], table: &Table, prefix: &str) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let path = joined(prefix, name);
        let found: Vec<Schema<'_>> =
            forms.iter().filter_map(|form| form.property(name)).flat_map(Schema::forms).collect();
        match value {
            _ if found.is_empty() => (!is_open(forms)).then_some(path),
            // A value that should not be a table cannot have keys; its deserialiser says so better.
            toml::Value::Table(inner) if has_keys(&found) => unknown_in(&found, inner, &path),
            _ => None,
        }
    })
}

/// Whether other keys are allowed too: those of plugins.
fn is_open(forms: &[Schema<'_>]) -> bool {
    let mut additional = forms.iter().filter_map(|form| form.keyword("additionalProperties"));
    additional.any(|value| value != &Value::Bool(false))
}

fn has_keys(forms: &[Schema<'_>]) -> bool {
    forms.iter().any(|form| form.properties().next().is_some()) || is_open(forms)
}

fn joined(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") }
}

fn hint_for(path: &str, schema: Schema<'_>) -> String {
    let mut all = Vec::new();
    collect(schema, "", &mut all);
    if let Some(key) = closest_key(path, all.iter().map(String::as_str)) {
        return format!("did you mean `{key}`?");
    }
    let table = path.rsplit_once('.').map_or("", |(table, _)| table);
    let forms = schema.at(table).map(Schema::forms).unwrap_or_default();
    let mut known: Vec<&str> =
        forms.iter().flat_map(|form| form.properties()).map(|(name, _)| name).collect();
    known.sort_unstable();
    known.dedup();
    format!("known here: {}; `sppo config schema` explains all keys", known.join(", "))
}

/// All dotted keys, those of a table before the table.
fn collect(schema: Schema<'_>, prefix: &str, found: &mut Vec<String>) {
    for (name, property) in schema.forms().into_iter().flat_map(Schema::properties) {
        let path = joined(prefix, name);
        collect(property, &path, found);
        found.push(path);
    }
}
