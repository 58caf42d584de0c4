//! `sppo config`: the settings of a run.

use sppo_core::config::{Config, Resolved, Source};
use toml::{Table, Value};

use crate::args::ConfigCommand;
use crate::failure::Result;
use crate::output;
use crate::settings::Flags;

pub(super) fn config(command: &ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Schema => output::json(&Config::json_schema()),
        ConfigCommand::Show { sources, settings, backend, oracle, sampler, report } => {
            let flags = Flags::of(&[settings, backend, oracle, sampler])?;
            let resolved = settings.resolve(flags)?;
            match (report.json, sources) {
                (true, _) => output::json(&shown(&resolved)?),
                (false, true) => output::text(&with_sources(&resolved)?),
                (false, false) => output::text(&document(&shown(&resolved)?)?),
            }
        }
    }
}

/// `key = value  # where it comes from`, one setting a line.
fn with_sources(resolved: &Resolved) -> sppo_core::Result<String> {
    let table = shown(resolved)?;
    let mut lines = Vec::new();
    leaves(&table, "", &mut lines);
    let width = lines.iter().map(|(key, value)| key.len() + value.len()).max().unwrap_or(0) + 3;
    let source = |key: &String| resolved.sources.get(key).map(ToString::to_string);
    Ok(lines
        .iter()
        .map(|(key, value)| {
            let setting = format!("{key} = {value}");
            let source = source(key).unwrap_or_else(|| "default".into());
            format!("{setting:<width$}  # {source}\n")
        })
        .collect())
}

/// The settings, without a name that nobody gave: every run then gets one of its own.
fn shown(resolved: &Resolved) -> sppo_core::Result<Table> {
    let mut table: Table = toml::from_str(&resolved.config.to_toml()?)
        .map_err(|error| sppo_core::Error::configuration("configuration", error.to_string()))?;
    if resolved.sources.get("name").is_none_or(|source| *source == Source::Default) {
        table.remove("name");
    }
    Ok(table)
}

fn document(table: &Table) -> sppo_core::Result<String> {
    toml::to_string_pretty(table)
        .map_err(|error| sppo_core::Error::configuration("configuration", error.to_string()))
}

fn leaves(table: &Table, prefix: &str, found: &mut Vec<(String, String)>) {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Table(inner) => leaves(inner, &key, found),
            leaf => found.push((key, leaf.to_string())),
        }
    }
}
