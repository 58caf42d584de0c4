//! Search for plugin libraries. The working directory is not searched.

use std::env::consts::DLL_EXTENSION;
use std::path::{Path, PathBuf};

use super::added::{AddedPlugins, data_directory};
use super::inspect::{LibraryPlugin, Trouble, inspect};
use super::sections::PluginSearch;

/// Environment variable with directories and files, separated as in `PATH`.
const PATH_VARIABLE: &str = "SPPO_PLUGIN_PATH";

/// Places of the search, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchStep {
    /// `--plugin`, or `plugins.files` in a configuration file.
    Named,
    /// `plugins.path` in a configuration file.
    Configuration,
    /// `SPPO_PLUGIN_PATH`.
    Environment,
    /// Added with `sppo plugin add`, or in the user's data directory.
    User,
    /// Built into the program.
    Embedded,
    /// In the directory of the program, or in `lib/sppo` beside that.
    BesideProgram,
}

/// A library and its plugins.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) step: SearchStep,
    pub(super) content: Result<Vec<LibraryPlugin>, Trouble>,
}

/// All libraries that may hold plugins, those that are searched first in front.
pub(super) fn search(places: &PluginSearch, added: &AddedPlugins) -> Vec<Found> {
    let mut found = Search::default();
    for file in &places.files {
        found.file(file, SearchStep::Named);
    }
    for place in &places.path {
        found.place(place, SearchStep::Configuration);
    }
    if let Some(more) = std::env::var_os(PATH_VARIABLE) {
        for place in std::env::split_paths(&more).filter(|place| !place.as_os_str().is_empty()) {
            if place.is_absolute() {
                found.place(&place, SearchStep::Environment);
            } else {
                tracing::warn!(
                    "{PATH_VARIABLE}: `{}` is not an absolute path and is left out",
                    place.display()
                );
            }
        }
    }
    for plugin in added.iter() {
        found.file(&plugin.path, SearchStep::User);
    }
    if let Some(data) = data_directory() {
        found.directory(&data.join("plugins"), SearchStep::User);
    }
    if let Some(directory) = program_directory() {
        found.directory(&directory, SearchStep::BesideProgram);
        if let Some(prefix) = directory.parent() {
            found.directory(&prefix.join("lib").join("sppo"), SearchStep::BesideProgram);
        }
    }
    found.0
}

fn program_directory() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.canonicalize().ok()?.parent()?.to_owned())
}

#[derive(Default)]
struct Search(Vec<Found>);

impl Search {
    fn place(&mut self, place: &Path, step: SearchStep) {
        if place.is_file() {
            self.file(place, step);
        } else {
            self.directory(place, step);
        }
    }

    fn file(&mut self, file: &Path, step: SearchStep) {
        let path = file.canonicalize().or_else(|_| std::path::absolute(file));
        let path = path.unwrap_or_else(|_| file.to_owned());
        if self.0.iter().all(|found| found.path != path) {
            let content = inspect(&path);
            self.0.push(Found { path, step, content });
        }
    }

    /// The libraries in a directory; those that have nothing to do with this program are passed over.
    fn directory(&mut self, directory: &Path, step: SearchStep) {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let is_library =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == DLL_EXTENSION);
        let mut files: Vec<_> = entries.map(|entry| entry.path()).filter(is_library).collect();
        files.sort();
        for file in files {
            self.file(&file, step);
            let is_noise = |found: &Found| match &found.content {
                Err(trouble) => trouble.is_foreign || step == SearchStep::BesideProgram,
                Ok(_) => false,
            };
            if self.0.last().is_some_and(|found| found.step == step && is_noise(found)) {
                self.0.pop();
            }
        }
    }
}
