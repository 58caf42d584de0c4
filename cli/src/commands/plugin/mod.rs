//! `sppo plugin`: the backends and oracles at hand, and those to come.

mod check;
mod info;
mod list;
mod new;

use std::path::Path;

use sppo_core::Error;
use sppo_core::config::Config;
use sppo_core::plugins::{AddedPlugins, PluginEntry, PluginRegistry, kinds};

use crate::args::{ModelArguments, PluginArguments, PluginCommand, SettingsArguments};
use crate::failure::Result;
use crate::output;
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn plugin(arguments: &PluginArguments, terminal: &Terminal) -> Result<()> {
    let PluginArguments { config, plugin, command } = arguments;
    let settings = SettingsArguments {
        config: config.clone(),
        plugin: plugin.clone(),
        ..SettingsArguments::default()
    };
    match command {
        PluginCommand::List { report } => list::list(&plugins(&settings)?, report.json, terminal),
        PluginCommand::Info { plugin, report } => with(plugin, settings, |plugins, entry| {
            info::info(plugins, entry, report.json, terminal)
        }),
        PluginCommand::Schema { plugin } => {
            with(plugin, settings, |plugins, entry| output::json(&plugins.config_schema(entry)?))
        }
        PluginCommand::Check { plugin, settings: typed, model, report } => {
            let settings = SettingsArguments { set: typed.clone(), ..settings };
            with_settings(plugin, settings, model, |config, plugins, entry| {
                check::check(config, plugins, entry, *report, terminal)
            })
        }
        PluginCommand::New { directory, sppo_core } => {
            Ok(new::new(directory, sppo_core.as_deref(), terminal)?)
        }
        PluginCommand::Add { library } => add(library, terminal),
        PluginCommand::Remove { name } => remove(name, terminal),
    }
}

fn plugins(settings: &SettingsArguments) -> Result<PluginRegistry> {
    discovered(&settings.resolve(Flags::of(&[settings])?)?.config)
}

fn discovered(config: &Config) -> Result<PluginRegistry> {
    let mut plugins = PluginRegistry::discover(&config.plugins)?;
    plugins.check_added();
    Ok(plugins)
}

/// Does something with the plugin of this name or in this file.
fn with(
    named: &str,
    settings: SettingsArguments,
    act: impl FnOnce(&PluginRegistry, &PluginEntry) -> Result<()>,
) -> Result<()> {
    let no_model = ModelArguments::default();
    with_settings(named, settings, &no_model, |_, plugins, entry| act(plugins, entry))
}

/// As [`with`], with all settings.
fn with_settings(
    named: &str,
    mut settings: SettingsArguments,
    model: &ModelArguments,
    act: impl FnOnce(&Config, &PluginRegistry, &PluginEntry) -> Result<()>,
) -> Result<()> {
    let file = Path::new(named);
    let is_file = file.components().count() > 1 || file.is_file();
    if is_file {
        settings.plugin.insert(0, file.into());
    }
    let config = settings.resolve(Flags::of(&[&settings, model])?)?.config;
    let plugins = discovered(&config)?;
    let entry = if is_file {
        plugins.check_named()?;
        plugins.entries().first().ok_or_else(|| Error::input(file, "holds no plugin"))?
    } else {
        // An oracle comes first, should a backend have the same name.
        kinds().rev().find_map(|kind| plugins.find(kind, named).ok()).ok_or_else(|| {
            let all: Vec<&str> = kinds().flat_map(|kind| plugins.names(kind)).collect();
            Error::configuration("PLUGIN", format!("there is no plugin named `{named}`"))
                .with_hint(format!("choose one of: {}", all.join(", ")))
        })?
    };
    act(&config, &plugins, entry)
}

fn add(library: &Path, terminal: &Terminal) -> Result<()> {
    for plugin in AddedPlugins::load()?.add(library)? {
        terminal.note(&format!(
            "added the {} `{}` {} from {}; run this again when the file has changed",
            plugin.kind.name(),
            plugin.name,
            plugin.version,
            plugin.path.display()
        ));
    }
    Ok(())
}

fn remove(name: &str, terminal: &Terminal) -> Result<()> {
    for plugin in AddedPlugins::load()?.remove(name)? {
        terminal.note(&format!(
            "removed the {} `{}`; its file {} stays",
            plugin.kind.name(),
            plugin.name,
            plugin.path.display()
        ));
    }
    Ok(())
}
