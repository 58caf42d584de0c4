//! Differences between two sets of settings.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

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
