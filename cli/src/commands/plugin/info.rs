//! `sppo plugin info`: a plugin and its settings.

use serde::Serialize;
use serde_json::Value;
use sppo_core::plugin::Manifest;
use sppo_core::plugins::{PluginEntry, PluginRegistry};
use sppo_core::schema::Schema;

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
    let found = settings_of(Schema::new(settings));
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

/// The settings that a schema describes, each table before its keys.
fn settings_of(schema: Schema<'_>) -> Vec<Setting> {
    let mut found = Vec::new();
    collect(schema, "", &Value::Null, &mut found);
    found
}

/// `default` is that of the whole table.
fn collect(schema: Schema<'_>, prefix: &str, default: &Value, found: &mut Vec<Setting>) {
    for (name, property) in schema.properties() {
        let key = if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") };
        let target = property.resolved();
        let default = property.keyword("default").or_else(|| default.get(name));
        let is_table = target.keyword("properties").is_some();
        let description = property.text("description").or_else(|| target.text("description"));
        found.push(Setting {
            key: key.clone(),
            kind: kind_of(target),
            default: match default {
                Some(value) if !is_table => value.to_string(),
                _ => String::new(),
            },
            description: description.unwrap_or_default().into(),
        });
        collect(target, &key, default.unwrap_or(&Value::Null), found);
    }
}

fn kind_of(schema: Schema<'_>) -> String {
    let choices = schema.choices();
    if !choices.is_empty() {
        let names = choices.iter().filter_map(|choice| choice.value.as_str());
        return names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
    }
    let named = |name: &str| match name {
        "object" => "table",
        "array" => "list",
        "string" => "text",
        "integer" => "whole number",
        "boolean" => "true or false",
        _ => "number",
    };
    let types = schema.types().into_iter().filter(|name| *name != "null");
    match types.map(named).collect::<Vec<_>>() {
        types if types.is_empty() => "value".into(),
        types => types.join(" or "),
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
        let found = settings_of(Schema::new(&schema));
        assert_eq!(found.len(), 3);
        assert!(found.contains(&setting("length", "table", "", "How long.")));
        assert!(found.contains(&setting("length.words", "whole number", "5", "")));
        assert!(found.contains(&setting("mode", "`fast` or `slow`", "\"fast\"", "")));
    }
}
