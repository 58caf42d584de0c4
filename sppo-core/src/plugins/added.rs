//! Plugins added by the user, with the hashes of their files at that time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::inspect::{Trouble, inspect};
use super::kinds;
use crate::error::{Error, Result};
use crate::files::{size_and_sha256, write_atomically};
use crate::plugin::PluginKind;

/// Environment variable with the directory of the user's data.
const DATA_VARIABLE: &str = "SPPO_DATA_DIRECTORY";

/// `~/.local/share/sppo`, or the equivalent of this system.
pub(super) fn data_directory() -> Option<PathBuf> {
    let named = std::env::var_os(DATA_VARIABLE).map(PathBuf::from);
    named.filter(|path| path.is_absolute()).or_else(|| Some(dirs::data_dir()?.join("sppo")))
}

/// A library added by the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddedPlugin {
    /// Kind.
    #[serde(deserialize_with = "kinds::deserialize")]
    pub kind: PluginKind,
    /// Name.
    pub name: String,
    /// Version at the time.
    pub version: String,
    /// Its library.
    pub path: PathBuf,
    /// SHA-256 of the library at the time, in hexadecimal.
    pub sha256: String,
}

/// All libraries added by the user. They are not copied.
#[derive(Clone, Debug, Default)]
pub struct AddedPlugins {
    plugins: Vec<AddedPlugin>,
}

impl AddedPlugins {
    /// Reads the list; there may be none.
    ///
    /// # Errors
    /// When the list is there and cannot be read.
    pub fn load() -> Result<Self> {
        let Some(file) = list_file() else { return Ok(Self::default()) };
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => return Err(Error::input(&file, format!("cannot be read: {error}"))),
        };
        let plugins = serde_json::from_slice(&text).map_err(|error| {
            Error::input(&file, format!("the list of added plugins is damaged: {error}"))
                .with_hint("remove this file, and add your plugins again")
        })?;
        Ok(Self { plugins })
    }

    /// The added plugins, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = &AddedPlugin> {
        self.plugins.iter()
    }

    /// Adds the plugins in a library, in place of earlier ones of the same kind and name, and returns
    /// them.
    ///
    /// # Errors
    /// When the file is not a library with plugins that this program can open, or the list cannot be
    /// written.
    pub fn add(&mut self, library: &Path) -> Result<Vec<AddedPlugin>> {
        let refuse = |trouble: Trouble| {
            Error::input(library, format!("it {}", trouble.message)).with_hint(trouble.hint)
        };
        let found = inspect(library).map_err(refuse)?;
        if let Some(trouble) = found.iter().find_map(|plugin| plugin.trouble.clone()) {
            return Err(refuse(trouble));
        }
        let path = library
            .canonicalize()
            .map_err(|error| Error::input(library, format!("cannot be read: {error}")))?;
        let (_, sha256) = size_and_sha256(&path)
            .map_err(|error| Error::input(&path, format!("cannot be read: {error}")))?;
        let added: Vec<_> = found
            .into_iter()
            .map(|plugin| AddedPlugin {
                kind: plugin.manifest.kind,
                name: plugin.manifest.name.into_owned(),
                version: plugin.manifest.version.into_owned(),
                path: path.clone(),
                sha256: sha256.clone(),
            })
            .collect();
        self.plugins.retain(|old| {
            old.path != path
                && !added.iter().any(|new| new.kind == old.kind && new.name == old.name)
        });
        self.plugins.extend(added.iter().cloned());
        self.save()?;
        Ok(added)
    }

    /// Forgets plugins by name and returns them; their files stay.
    ///
    /// # Errors
    /// When none of this name was added, or the list cannot be written.
    pub fn remove(&mut self, name: &str) -> Result<Vec<AddedPlugin>> {
        let (removed, kept) = self.plugins.drain(..).partition(|plugin| plugin.name == name);
        self.plugins = kept;
        let removed: Vec<AddedPlugin> = removed;
        if removed.is_empty() {
            return Err(Error::configuration(
                "NAME",
                format!("no plugin named `{name}` was added"),
            )
            .with_hint("`sppo plugin list` shows which there are"));
        }
        self.save()?;
        Ok(removed)
    }

    /// Refuses an added library whose file has changed since.
    pub(super) fn check(&self, library: &Path, sha256: &str) -> std::result::Result<(), Trouble> {
        let changed = |plugin: &&AddedPlugin| plugin.path == library && plugin.sha256 != sha256;
        match self.plugins.iter().find(changed) {
            None => Ok(()),
            Some(_) => Err(Trouble::new(
                "has changed since it was added",
                format!(
                    "if you changed it, accept it with `sppo plugin add {}`",
                    library.display()
                ),
            )),
        }
    }

    /// As [`Self::check`]; reads the file only if it was added.
    pub(super) fn check_file(&self, library: &Path) -> Option<Trouble> {
        if self.plugins.iter().all(|plugin| plugin.path != library) {
            return None;
        }
        match size_and_sha256(library) {
            Ok((_, sha256)) => self.check(library, &sha256).err(),
            Err(error) => Some(Trouble::new(
                format!("cannot be read: {error}"),
                "build it again, or forget it with `sppo plugin remove`",
            )),
        }
    }

    fn save(&self) -> Result<()> {
        let file = list_file().ok_or_else(|| {
            Error::configuration(
                DATA_VARIABLE,
                "this system does not say where a user's data belongs",
            )
            .with_hint(format!("set {DATA_VARIABLE} to a directory"))
        })?;
        let unwritable =
            |error: std::io::Error| Error::input(&file, format!("cannot be written: {error}"));
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory).map_err(unwritable)?;
        }
        let text = serde_json::to_vec_pretty(&self.plugins)
            .map_err(|error| Error::input(&file, format!("cannot be written: {error}")))?;
        write_atomically(&file, &text)
    }
}

fn list_file() -> Option<PathBuf> {
    Some(data_directory()?.join("plugins.json"))
}
