//! Finds plugins by name. Built-in ones register themselves at link time; the rest are in libraries, which
//! are opened only to make one of their plugins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::Value;

use super::added::AddedPlugins;
use super::check_settings::check_settings;
use super::inspect::{LibraryPlugin, Trouble};
use super::open::{Opened, open};
use super::search::{Found, SearchStep, search};
use super::sections::PluginSearch;
use crate::error::{Error, Result};
use crate::plugin::abi::{Pluggable, object_of};
use crate::plugin::{
    Backend, EmbeddedPlugin, Manifest, Oracle, PluginError, PluginKind, RolloutEngine, inventory,
    label,
};

/// Origin of a plugin's code.
#[derive(Clone, Debug)]
enum Code {
    Embedded(&'static EmbeddedPlugin),
    Library {
        path: PathBuf,
        plugin: LibraryPlugin,
    },
    /// A file that cannot be read as a library with plugins.
    Unreadable {
        path: PathBuf,
    },
}

/// A plugin that was found, or a file that should be one.
#[derive(Clone, Debug)]
pub struct PluginEntry {
    code: Code,
    step: SearchStep,
    trouble: Option<Trouble>,
    is_hidden: bool,
}

impl PluginEntry {
    /// Its manifest; `None` for a file without one.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.code {
            Code::Embedded(plugin) => Some(&plugin.manifest),
            Code::Library { plugin, .. } => Some(&plugin.manifest),
            Code::Unreadable { .. } => None,
        }
    }

    /// Its library; `None` for a built-in plugin.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.code {
            Code::Library { path, .. } | Code::Unreadable { path } => Some(path),
            Code::Embedded(_) => None,
        }
    }

    /// The place of the search that found it.
    #[must_use]
    pub fn step(&self) -> SearchStep {
        self.step
    }

    /// Its fault, if it cannot be used.
    #[must_use]
    pub fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// Whether another plugin of the same kind and name comes first.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        self.is_hidden
    }

    fn is(&self, kind: PluginKind, name: &str) -> bool {
        self.manifest().is_some_and(|manifest| manifest.kind == kind && manifest.name == name)
    }

    fn name_in_messages(&self) -> String {
        match (self.manifest(), self.path()) {
            (Some(manifest), Some(path)) => format!("{} ({})", manifest.label(), path.display()),
            (Some(manifest), None) => manifest.label(),
            (None, path) => path.map(|path| path.display().to_string()).unwrap_or_default(),
        }
    }

    fn error(&self, trouble: &Trouble) -> Error {
        let error = PluginError::failed(&trouble.message).with_hint(&trouble.hint);
        Error::Plugin { plugin: self.name_in_messages(), source: error }
    }
}

/// A plugin that this process has used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsedPlugin {
    /// Kind.
    pub kind: PluginKind,
    /// Name.
    pub name: String,
    /// Its own version.
    pub version: String,
    /// SHA-256 of its library, in hexadecimal; `None` for a built-in plugin.
    pub sha256: Option<String>,
}

/// All plugins that are available by name.
#[derive(Debug, Default)]
pub struct PluginRegistry {
    entries: Vec<PluginEntry>,
    added: AddedPlugins,
    used: Mutex<BTreeSet<UsedPlugin>>,
}

impl PluginRegistry {
    /// The built-in plugins.
    #[must_use]
    pub fn embedded() -> Self {
        let mut registry = Self::default();
        registry.take_embedded();
        registry
    }

    /// The built-in plugins and those in libraries: named files, the configured directories,
    /// `SPPO_PLUGIN_PATH`, the user's own, then the built-in ones, and at last those beside the
    /// program. Of two that share a kind and a name, the first counts. No library is opened.
    ///
    /// # Errors
    /// When the list of added plugins cannot be read.
    pub fn discover(places: &PluginSearch) -> Result<Self> {
        let added = AddedPlugins::load()?;
        let mut registry = Self::default();
        let mut found = search(places, &added).into_iter().peekable();
        while let Some(library) = found.next_if(|found| found.step < SearchStep::Embedded) {
            registry.take(library);
        }
        registry.take_embedded();
        found.for_each(|library| registry.take(library));
        registry.added = added;
        Ok(registry)
    }

    fn take_embedded(&mut self) {
        let mut plugins: Vec<_> = inventory::iter::<EmbeddedPlugin>().collect();
        plugins.sort_by_key(|plugin| (plugin.manifest.kind, &plugin.manifest.name));
        for plugin in plugins {
            self.push(Code::Embedded(plugin), SearchStep::Embedded, None);
        }
    }

    fn take(&mut self, Found { path, step, content }: Found) {
        match content {
            Ok(plugins) => {
                for plugin in plugins {
                    let trouble = plugin.trouble.clone();
                    self.push(Code::Library { path: path.clone(), plugin }, step, trouble);
                }
            }
            Err(trouble) => self.push(Code::Unreadable { path }, step, Some(trouble)),
        }
    }

    fn push(&mut self, code: Code, step: SearchStep, trouble: Option<Trouble>) {
        let mut entry = PluginEntry { code, step, trouble, is_hidden: false };
        entry.is_hidden = entry
            .manifest()
            .is_some_and(|new| self.entries.iter().any(|entry| entry.is(new.kind, &new.name)));
        self.entries.push(entry);
    }

    /// All plugins, those that are searched first in front.
    #[must_use]
    pub fn entries(&self) -> &[PluginEntry] {
        &self.entries
    }

    /// The names of all plugins of a kind.
    #[must_use]
    pub fn names(&self, kind: PluginKind) -> Vec<&str> {
        let of_kind = |entry: &&PluginEntry| {
            !entry.is_hidden && entry.manifest().is_some_and(|manifest| manifest.kind == kind)
        };
        let found = self.entries.iter().filter(of_kind).filter_map(PluginEntry::manifest);
        let mut names: Vec<&str> = found.map(|manifest| manifest.name.as_ref()).collect();
        names.sort_unstable();
        names
    }

    /// Marks the plugins whose libraries have changed since they were added; reads all added libraries.
    pub fn check_added(&mut self) {
        for entry in &mut self.entries {
            if let (None, Code::Library { path, .. }) = (&entry.trouble, &entry.code) {
                entry.trouble = self.added.check_file(path);
            }
        }
    }

    /// Refuses named files that cannot be used.
    ///
    /// # Errors
    /// Names the first such file and its fault.
    pub fn check_named(&self) -> Result<()> {
        let named = self.entries.iter().filter(|entry| entry.step == SearchStep::Named);
        for entry in named {
            if let Some(trouble) = &entry.trouble {
                return Err(entry.error(trouble));
            }
        }
        Ok(())
    }

    /// The plugin of this kind and name.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(&self, kind: PluginKind, name: &str) -> Result<&PluginEntry> {
        self.entries.iter().find(|entry| entry.is(kind, name)).ok_or_else(|| {
            let unreadable = self.entries.iter().find(|entry| {
                let stem = entry.path().and_then(Path::file_stem);
                entry.manifest().is_none()
                    && stem.is_some_and(|stem| stem.to_string_lossy().contains(name))
            });
            match unreadable {
                Some(PluginEntry { trouble: Some(trouble), code, .. }) => Error::Plugin {
                    plugin: label(kind, name),
                    source: PluginError::failed(format!(
                        "the only file found is {}, which {}",
                        match code {
                            Code::Unreadable { path } => path.display().to_string(),
                            _ => String::new(),
                        },
                        trouble.message
                    ))
                    .with_hint(&trouble.hint),
                },
                _ => Error::configuration(
                    kind.name(),
                    format!("there is no {} named `{name}`", kind.name()),
                )
                .with_hint(format!(
                    "choose one of: {}; `sppo plugin list` describes them",
                    self.names(kind).join(", ")
                )),
            }
        })
    }

    /// Makes the oracle of this name. Its errors name it.
    ///
    /// # Errors
    /// When there is none of this name, it cannot be opened, or its settings are refused.
    pub fn create_oracle(&self, name: &str, settings: Value) -> Result<Box<dyn Oracle>> {
        self.create(name, settings)
    }

    /// Makes the backend of this name. Its errors, and those of all that it makes, name it.
    ///
    /// # Errors
    /// When there is none of this name, it cannot be opened, or its settings are refused.
    pub fn create_backend(&self, name: &str, settings: Value) -> Result<Box<dyn Backend>> {
        self.create(name, settings)
    }

    /// Makes the sampler of this name. Its errors name it.
    ///
    /// # Errors
    /// When there is none of this name, it cannot be opened, or its settings are refused.
    pub fn create_sampler(&self, name: &str, settings: Value) -> Result<Box<dyn RolloutEngine>> {
        self.create(name, settings)
    }

    /// Makes the plugin of the kind `K` and this name.
    ///
    /// # Errors
    /// As [`Self::create_oracle`].
    pub fn create<K: Pluggable + ?Sized>(&self, name: &str, settings: Value) -> Result<Box<K>> {
        let entry = self.find(K::KIND, name)?;
        check_settings(name, &self.config_schema(entry)?, &settings)
            .map_err(|error| Error::of_plugin(label(K::KIND, name), error))?;
        let made = match &entry.code {
            Code::Embedded(plugin) => {
                self.note_use(entry, None);
                (plugin.create)(interned(label(K::KIND, name)), settings)
            }
            _ => {
                let Opened { module, label, .. } = self.opened(entry)?;
                module.create(label, &settings.to_string())
            }
        };
        made.and_then(object_of).map_err(|error| Error::of_plugin(label(K::KIND, name), error))
    }

    /// JSON Schema of a plugin's settings. A plugin in a library is opened for it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn config_schema(&self, entry: &PluginEntry) -> Result<Value> {
        if let Code::Embedded(plugin) = &entry.code {
            return Ok((plugin.config_schema)());
        }
        let opened = self.opened(entry)?;
        let text = opened
            .module
            .config_schema(opened.label)
            .map_err(|error| Error::of_plugin(entry.name_in_messages(), error))?;
        serde_json::from_str(&text).map_err(|error| {
            entry.error(&Trouble::new(
                format!("describes its settings in a way that is not JSON: {error}"),
                "this is a defect of the plugin: report it to its author",
            ))
        })
    }

    /// Every plugin that this process has made.
    #[must_use]
    pub fn used(&self) -> Vec<UsedPlugin> {
        self.lock_used().iter().cloned().collect()
    }

    fn lock_used(&self) -> std::sync::MutexGuard<'_, BTreeSet<UsedPlugin>> {
        self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn opened(&self, entry: &PluginEntry) -> Result<Opened> {
        if let Some(trouble) = &entry.trouble {
            return Err(entry.error(trouble));
        }
        let Code::Library { path, plugin } = &entry.code else {
            return Err(entry.error(&Trouble::new(
                "is not what it was found as",
                "look at `sppo plugin list`",
            )));
        };
        let opened = open(path, plugin, &self.added).map_err(|trouble| entry.error(&trouble))?;
        self.note_use(entry, Some(opened.sha256.clone()));
        Ok(opened)
    }

    fn note_use(&self, entry: &PluginEntry, sha256: Option<String>) {
        if let Some(manifest) = entry.manifest() {
            self.lock_used().insert(UsedPlugin {
                kind: manifest.kind,
                name: manifest.name.clone().into_owned(),
                version: manifest.version.clone().into_owned(),
                sha256,
            });
        }
    }
}

/// The schema of a plugin's settings, where there is such a plugin. A library is opened for it; one that cannot
/// be is named where it is used.
#[must_use]
pub fn schema_of(kind: PluginKind, name: &str, places: &PluginSearch) -> Option<Value> {
    let schema =
        |plugins: PluginRegistry| plugins.config_schema(plugins.find(kind, name).ok()?).ok();
    schema(PluginRegistry::embedded()).or_else(|| schema(PluginRegistry::discover(places).ok()?))
}

/// A label that lives as long as the program, made once for each plugin.
fn interned(label: String) -> &'static str {
    static LABELS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut labels = LABELS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(known) = labels.get(label.as_str()) {
        return known;
    }
    let label: &'static str = label.leak();
    labels.insert(label);
    label
}
