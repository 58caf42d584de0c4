//! `sppo plugin info`: a plugin and its settings.

use serde::Serialize;
use serde_json::Value;
use sppo_core::plugin::Manifest;
use sppo_core::plugins::{PluginEntry, PluginRegistry};

use super::list::{Listed, place};
use crate::failure::Result;
use crate::output;
use crate::terminal::Terminal;

/// A plugin and its settings.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(flatten)]
    listed: Listed<'a>,
    /// JSON Schema of its settings.
    settings: Value,
}

/// One setting of a plugin, for people.
#[derive(Debug, PartialEq)]
struct Setting {
    key: String,
    kind: String,
    default: String,
    description: String,
}

pub(super) fn info(
    plugins: &PluginRegistry,
    entry: &PluginEntry,
    json: bool,
    terminal: &Terminal,
) -> Result<()> {
    let settings = plugins.config_schema(entry)?;
    if json {
        return output::json(&Described { listed: Listed::of(entry), settings });
    }
    match entry.manifest() {
        Some(manifest) => print(manifest, &place(entry), &settings, terminal),
        None => Ok(()),
    }
}

fn print(manifest: &Manifest, place: &str, settings: &Value, terminal: &Terminal) -> Result<()> {
    let style = terminal.stdout_style();
    let Manifest { kind, name, version, interface_version, summary } = manifest;
    let kind = kind.name();
    let mut text = format!(
        "{kind} {} {version}\n{summary}\n{place}, plugin interface {interface_version}\n\n{}\n",
        style.bold(name),
        style.bold(&format!("Settings, below [{kind}.{name}]"))
    );
    let found = settings_of(settings);
    if found.is_empty() {
        text.push_str("none\n");
    }
    for Setting { key, kind, default, description } in found {
        let default = if default.is_empty() { default } else { format!(", default {default}") };
        text.push_str(&format!("\n{} ({kind}{default})\n", style.bold(&key)));
        for line in wrapped(&description, 92) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    output::text(&text)
}

/// The settings that a schema describes, tables before what is in them.
fn settings_of(schema: &Value) -> Vec<Setting> {
    fn visit(
        schema: &Value,
        root: &Value,
        prefix: &str,
        default: &Value,
        found: &mut Vec<Setting>,
    ) {
        let properties = schema.get("properties").and_then(Value::as_object);
        for (name, property) in properties.into_iter().flatten() {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            let target = resolved(property, root);
            let default = property.get("default").or_else(|| default.get(name));
            let is_table = target.get("properties").is_some();
            let description = property.get("description").or_else(|| target.get("description"));
            found.push(Setting {
                key: key.clone(),
                kind: kind_of(target),
                default: match default {
                    Some(value) if !is_table => value.to_string(),
                    _ => String::new(),
                },
                description: description.and_then(Value::as_str).unwrap_or_default().into(),
            });
            visit(target, root, &key, default.unwrap_or(&Value::Null), found);
        }
    }
    let mut found = Vec::new();
    visit(schema, schema, "", &Value::Null, &mut found);
    found
}

/// What a property refers to, or the property itself.
fn resolved<'a>(property: &'a Value, root: &'a Value) -> &'a Value {
    property
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| reference.strip_prefix('#'))
        .and_then(|pointer| root.pointer(pointer))
        .unwrap_or(property)
}

fn kind_of(schema: &Value) -> String {
    let choices = |list: &Vec<Value>| {
        let names = list.iter().filter_map(|choice| {
            choice.get("const").unwrap_or(choice).as_str().map(|name| format!("`{name}`"))
        });
        names.collect::<Vec<_>>().join(" or ")
    };
    for key in ["enum", "oneOf"] {
        if let Some(list) = schema.get(key).and_then(Value::as_array) {
            return choices(list);
        }
    }
    let named = |name: &str| match name {
        "object" => "table",
        "array" => "list",
        "string" => "text",
        "integer" => "whole number",
        "boolean" => "true or false",
        _ => "number",
    };
    match schema.get("type") {
        Some(Value::String(name)) => named(name).into(),
        Some(Value::Array(names)) => {
            let names = names.iter().filter_map(Value::as_str).filter(|name| *name != "null");
            names.map(named).collect::<Vec<_>>().join(" or ")
        }
        _ => "value".into(),
    }
}

/// Lines of at most `width` characters, broken at spaces.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.into()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nested_settings_are_listed_with_their_defaults() {
        let schema = json!({
            "properties": {
                "length": {"$ref": "#/$defs/Length", "description": "How long.", "default": {"words": 5}},
                "mode": {"oneOf": [{"const": "fast"}, {"const": "slow"}], "default": "fast"},
            },
            "$defs": {"Length": {"type": "object", "properties": {"words": {"type": "integer"}}}},
        });
        let setting = |key: &str, kind: &str, default: &str, description: &str| Setting {
            key: key.into(),
            kind: kind.into(),
            default: default.into(),
            description: description.into(),
        };
        let found = settings_of(&schema);
        assert_eq!(found.len(), 3);
        assert!(found.contains(&setting("length", "table", "", "How long.")));
        assert!(found.contains(&setting("length.words", "whole number", "5", "")));
        assert!(found.contains(&setting("mode", "`fast` or `slow`", "\"fast\"", "")));
    }
}
