//! A run is a directory. The output of a stage is an *artefact*: it is written beside its final name,
//! synced, renamed, and only then entered into a manifest with the size and SHA-256 of each of its
//! files. Resuming trusts only the manifests, so a process may be killed at any moment: an artefact
//! without a manifest does not exist, and one that differs from its manifest is set aside and made again.
//!
//! ```text
//! runs/<name>/
//!     run.json            settings, model and plugins
//!     run.lock            held while a process works here
//!     processes.json      the processes that worked here
//!     iteration-1/...     artefacts
//!     manifests/...       one manifest per artefact, at the artefact's own path
//!     set-aside/...       artefacts that were found truncated or altered
//! ```

mod identity;
mod lock;
mod manifest;
mod processes;
mod store;

use std::fs;
use std::path::{Path, PathBuf};

pub use identity::{ModelIdentity, PluginIdentity, RunIdentity};
pub(crate) use lock::Lock;
pub use processes::{ProcessRecord, StageMemory};
pub(crate) use store::Store;
pub use store::{ArtifactName, SetAside};

use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error};

const IDENTITY: &str = "run.json";
const LOCK: &str = "run.lock";

/// A run's directory, locked for this process. Dropping it releases the lock.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    identity: RunIdentity,
    store: Store,
    _lock: Lock,
}

impl RunDirectory {
    /// Makes the directory of a new run.
    ///
    /// # Errors
    /// When the name is in use, the directory holds something else, or it cannot be written.
    pub fn create(path: impl Into<PathBuf>, identity: RunIdentity) -> Result<Self> {
        let path = path.into();
        refuse_foreign_directory(&path)?;
        create_directory(&path)?;
        let lock = Lock::acquire(&path.join(LOCK))?;
        if path.join(IDENTITY).exists() {
            return Err(Error::run_directory(&path, "there is already a run of this name")
                .with_hint(
                    "add `--resume` to go on with it, or choose another name with `--name`",
                ));
        }
        identity.write(&path.join(IDENTITY))?;
        Ok(Self { store: Store::open(&path)?, path, identity, _lock: lock })
    }

    /// Resumes a run. Every artefact is checked against its manifest; see [`Self::set_aside`].
    /// Settings, model and plugins must be those that the run was started with, up to the dotted keys
    /// in `allow` and those below them; the new ones are then recorded.
    ///
    /// # Errors
    /// When there is no such run, another process works on it, something changed that is not
    /// allowed to, or the directory cannot be read or written.
    pub fn resume(
        path: impl Into<PathBuf>,
        identity: RunIdentity,
        allow: &[String],
    ) -> Result<Self> {
        let path = path.into();
        let file = path.join(IDENTITY);
        if !file.is_file() {
            return Err(Error::run_directory(&path, "there is no run to resume")
                .with_hint("leave out `--resume` to start one, or check `--name`"));
        }
        let lock = Lock::acquire(&path.join(LOCK))?;
        let changed = identity.changes_since(&file, allow)?;
        if !changed.is_empty() {
            let list: Vec<String> = changed.iter().map(|change| format!("\n  {change}")).collect();
            let message = format!("this run was started with other settings:{}", list.concat());
            return Err(Error::run_directory(&path, message).with_hint(
                "restore them, accept a change with `--allow KEY`, or start another run with `--name` and \
                 without `--resume`",
            ));
        }
        identity.write(&file)?;
        Ok(Self { store: Store::open(&path)?, path, identity, _lock: lock })
    }

    /// The recorded identity of a run, read without locking it.
    ///
    /// # Errors
    /// When there is no run or its record cannot be read.
    pub fn read_identity(path: &Path) -> Result<RunIdentity> {
        RunIdentity::read(&path.join(IDENTITY))
    }

    /// Whether a process is working on a run.
    #[must_use]
    pub fn is_in_use(path: &Path) -> bool {
        Lock::is_held(&path.join(LOCK))
    }

    /// Path of an artefact that some process committed, found without locking the run; `None` when there is
    /// none of this name. Its content is not compared with its manifest.
    #[must_use]
    pub fn committed_path(root: &Path, name: &ArtifactName) -> Option<PathBuf> {
        store::committed_path(root, name)
    }

    /// The processes that worked on a run, in order; none in runs of earlier versions.
    ///
    /// # Errors
    /// When their record cannot be read.
    pub fn read_processes(path: &Path) -> Result<Vec<ProcessRecord>> {
        processes::read(path)
    }

    /// Records a process that works on a run. A later record with the same start replaces it.
    ///
    /// # Errors
    /// When the record cannot be written.
    pub fn record_process(path: &Path, process: &ProcessRecord) -> Result<()> {
        processes::record(path, process)
    }

    /// Path of an artefact of a run that is not locked, if it agrees with its manifest.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn verified_path(root: &Path, name: &ArtifactName) -> Result<Option<PathBuf>> {
        Store::verified_path(root, name)
    }

    /// Whether another run has the same identity, up to the dotted keys in `allow` and those below them.
    ///
    /// # Errors
    /// When its record cannot be read.
    pub fn is_like(&self, other: &Path, allow: &[&str]) -> Result<bool> {
        let file = other.join(IDENTITY);
        let allow: Vec<String> = allow.iter().map(|key| (*key).to_owned()).collect();
        Ok(file.is_file() && self.identity.changes_since(&file, &allow)?.is_empty())
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.path
    }

    /// Settings, model and plugins.
    #[must_use]
    pub fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    /// Artefacts that resuming found truncated, altered or missing, and that will be made again.
    #[must_use]
    pub fn set_aside(&self) -> &[SetAside] {
        self.store.set_aside()
    }

    /// Whether an artefact is there, complete and unaltered.
    #[must_use]
    pub fn has(&self, name: &ArtifactName) -> bool {
        self.store.has(name)
    }

    /// The names of all artefacts, sorted.
    pub fn artifacts(&self) -> impl Iterator<Item = &ArtifactName> {
        self.store.names()
    }

    /// Path of a committed artefact.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn path(&self, name: &ArtifactName) -> Result<PathBuf> {
        self.store.path(name)
    }

    /// Makes an artefact: `write` makes a file or a directory at the path that it is given (which has
    /// the extension of `name`). Replaces an artefact of the same name; a crash at any moment leaves
    /// the old or the new. Returns its final path.
    ///
    /// # Errors
    /// When `write` fails, or the directory cannot be written. An older artefact is then still there.
    pub fn commit(
        &mut self,
        name: &ArtifactName,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        self.store.commit(name, write)
    }

    /// Removes an artefact if it is there.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn remove(&mut self, name: &ArtifactName) -> Result<()> {
        self.store.remove(name)
    }
}

/// A directory that is not a run may be anything of the user's.
fn refuse_foreign_directory(path: &Path) -> Result<()> {
    if !path.exists() || path.join(IDENTITY).exists() {
        return Ok(());
    }
    let entries = fs::read_dir(path)
        .map_err(|error| run_directory_error(path, "use this as a run directory", &error))?;
    for entry in entries {
        let entry =
            entry.map_err(|error| run_directory_error(path, "list this directory", &error))?;
        let name = entry.file_name();
        // Left by a process that ended before it had recorded the run.
        let ours = name == LOCK || name.to_string_lossy().starts_with(crate::files::PARTIAL);
        if !ours {
            let message = "this directory is not empty and not a run of sppo";
            return Err(Error::run_directory(path, message)
                .with_hint("choose another name with `--name`, or an empty directory"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
