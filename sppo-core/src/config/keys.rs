//! Which keys exist, read off the JSON Schema, and which one a misspelt key was meant to be.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::Value;
use toml::Table;

use super::Config;

/// How alike two keys must be, from 0 to 1, for one to be suggested in place of the other.
const ALIKE: f64 = 0.8;

/// The keys below a key.
#[derive(Debug, Default)]
struct Keys {
    known: BTreeMap<String, Keys>,
    /// Any other key is fine too: the tables of plugins.
    open: bool,
}

/// A key that no setting has.
#[derive(Debug, PartialEq)]
pub(super) struct UnknownKey {
    pub(super) path: String,
    pub(super) hint: String,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| {
    let schema = Config::json_schema();
    let definitions = schema.get("$defs").cloned().unwrap_or_default();
    Keys::of_schema(&schema, &definitions)
});

impl Keys {
    fn of_schema(schema: &Value, definitions: &Value) -> Self {
        let mut keys = Self::default();
        let referenced = schema
            .get("$ref")
            .and_then(Value::as_str)
            .and_then(|reference| reference.strip_prefix("#/$defs/"))
            .and_then(|name| definitions.get(name));
        if let Some(referenced) = referenced {
            keys.add(Self::of_schema(referenced, definitions));
        }
        for alternatives in ["oneOf", "anyOf", "allOf"] {
            for alternative in
                schema.get(alternatives).and_then(Value::as_array).into_iter().flatten()
            {
                keys.add(Self::of_schema(alternative, definitions));
            }
        }
        for (name, property) in
            schema.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            keys.known.entry(name.clone()).or_default().add(Self::of_schema(property, definitions));
        }
        keys.open |=
            schema.get("additionalProperties").is_some_and(|value| value != &Value::Bool(false));
        keys
    }

    fn add(&mut self, other: Self) {
        for (name, keys) in other.known {
            self.known.entry(name).or_default().add(keys);
        }
        self.open |= other.open;
    }

    fn unknown_in(&self, table: &Table, prefix: &str) -> Option<String> {
        table.iter().find_map(|(name, value)| {
            let path = joined(prefix, name);
            match (self.known.get(name), value) {
                (None, _) if self.open => None,
                (None, _) => Some(path),
                // What is not a table cannot have keys; its deserialiser says so better.
                (Some(keys), toml::Value::Table(inner)) if !keys.known.is_empty() || keys.open => {
                    keys.unknown_in(inner, &path)
                }
                (Some(_), _) => None,
            }
        })
    }

    fn at(&self, path: &str) -> Option<&Self> {
        path.split('.')
            .filter(|name| !name.is_empty())
            .try_fold(self, |keys, name| keys.known.get(name))
    }

    fn collect(&self, prefix: &str, found: &mut Vec<String>) {
        for (name, keys) in &self.known {
            let path = joined(prefix, name);
            keys.collect(&path, found);
            found.push(path);
        }
    }
}

fn joined(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") }
}

/// The first key of a layer that no setting has.
pub(super) fn first_unknown(layer: &Table) -> Option<UnknownKey> {
    let path = KEYS.unknown_in(layer, "")?;
    Some(UnknownKey { hint: hint_for(&path), path })
}

fn hint_for(path: &str) -> String {
    let (table, name) = path.rsplit_once('.').unwrap_or(("", path));
    let mut all = Vec::new();
    KEYS.collect("", &mut all);
    let best = all
        .into_iter()
        .map(|key| {
            let (its_table, its_name) = key.rsplit_once('.').unwrap_or(("", &key));
            // The same table first, then the same word elsewhere.
            let closeness = if its_table == table { 0.05 } else { 0.0 };
            (strsim::jaro_winkler(name, its_name) + closeness, key)
        })
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match best {
        Some((score, key)) if score >= ALIKE => format!("did you mean `{key}`?"),
        _ => {
            let known = KEYS.at(table).map(|keys| keys.known.keys().cloned().collect::<Vec<_>>());
            format!(
                "known here: {}; `sppo config schema` explains all keys",
                known.unwrap_or_default().join(", ")
            )
        }
    }
}
