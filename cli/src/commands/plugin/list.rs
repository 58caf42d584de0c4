//! `sppo plugin list`: all plugins, without opening one.

use std::path::Path;

use serde::Serialize;
use sppo_core::plugin::Manifest;
use sppo_core::plugins::{PluginEntry, PluginRegistry, SearchStep, Trouble};

use crate::failure::Result;
use crate::output;
use crate::terminal::{Alignment, Table, Terminal};

/// A plugin, as JSON.
#[derive(Serialize)]
pub(super) struct Listed<'a> {
    #[serde(flatten)]
    manifest: Option<&'a Manifest>,
    /// Its library, unless it is built in.
    path: Option<&'a Path>,
    found_by: SearchStep,
    /// Whether another plugin of this kind and name comes first.
    hidden: bool,
    /// Its fault, if it cannot be used.
    trouble: Option<&'a Trouble>,
}

impl<'a> Listed<'a> {
    pub(super) fn of(entry: &'a PluginEntry) -> Self {
        Self {
            manifest: entry.manifest(),
            path: entry.path(),
            found_by: entry.step(),
            hidden: entry.is_hidden(),
            trouble: entry.trouble(),
        }
    }
}

pub(super) fn list(plugins: &PluginRegistry, json: bool, terminal: &Terminal) -> Result<()> {
    let entries = plugins.entries();
    if json {
        return output::json(&entries.iter().map(Listed::of).collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ("kind", Alignment::Left),
        ("name", Alignment::Left),
        ("version", Alignment::Left),
        ("interface", Alignment::Right),
        ("where", Alignment::Left),
        ("what it does", Alignment::Left),
    ]);
    for entry in entries {
        let told = match (entry.trouble(), entry.manifest()) {
            (Some(trouble), _) => {
                format!(
                    "{}: it {}; {}",
                    terminal.stdout_style().red("unusable"),
                    trouble.message,
                    trouble.hint
                )
            }
            (None, _) if entry.is_hidden() => "hidden: another of this name comes first".into(),
            (None, manifest) => manifest.map(|found| found.summary.to_string()).unwrap_or_default(),
        };
        let row = match entry.manifest() {
            Some(manifest) => [
                manifest.kind.name().into(),
                manifest.name.to_string(),
                manifest.version.to_string(),
                manifest.interface_version.to_string(),
            ],
            None => ["?", "?", "", ""].map(String::from),
        };
        let [kind, name, version, interface] = row;
        table.row([kind, name, version, interface, place(entry), told]);
    }
    output::text(&table.render(terminal.stdout_style()))
}

/// Path of a plugin, or `built in`.
pub(super) fn place(entry: &PluginEntry) -> String {
    entry.path().map_or("built in".into(), |path| path.display().to_string())
}
