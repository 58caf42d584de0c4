//! Committed artefacts and their manifests.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{Manifest, entries};
use crate::error::{Error, Result};
use crate::files::{
    PARTIAL, create_directory, remove_any, rename, run_directory_error, sync_parent, with_prefix,
    write_atomically,
};

const MANIFESTS: &str = "manifests";
const SET_ASIDE: &str = "set-aside";
/// Prefix of the artefact that a commit is replacing, until the new manifest is in place.
const PREVIOUS: &str = ".previous-";

/// An artefact's path within the run directory, `/`-separated, for instance
/// `iteration-1/rollouts/shard-0003.parquet`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ArtifactName(String);

impl ArtifactName {
    /// A name; it is checked when something is committed under it.
    pub fn new(path: impl Into<String>) -> Self {
        Self(path.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is the artefact's path in a run directory.
    pub(crate) fn is_at(&self, root: &Path, path: &Path) -> bool {
        self.within(root) == path
    }

    fn within(&self, directory: &Path) -> PathBuf {
        self.0.split('/').fold(directory.to_path_buf(), |path, part| path.join(part))
    }

    /// Names must lie below the run directory, clear of what it keeps for itself.
    fn check(&self, root: &Path) -> Result<()> {
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\\');
        let first = self.0.split('/').next().unwrap_or_default();
        let reserved = [MANIFESTS, SET_ASIDE, super::IDENTITY, super::LOCK].contains(&first);
        if self.0.split('/').all(plain) && !reserved {
            return Ok(());
        }
        Err(Error::run_directory(root, format!("`{self}` cannot be the name of an artefact")))
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// An artefact that differed from its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Its name.
    pub name: ArtifactName,
    /// Its fault.
    pub reason: String,
    /// Its new path; `None` when it was missing.
    pub moved_to: Option<PathBuf>,
}

impl fmt::Display for SetAside {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "`{}` cannot be trusted: {}; it will be made anew",
            self.name, self.reason
        )?;
        match &self.moved_to {
            Some(path) => write!(formatter, " (the old one is now {})", path.display()),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    /// Artefacts that were found to agree with their manifests, or were committed by this process.
    trusted: BTreeMap<ArtifactName, Manifest>,
    set_aside: Vec<SetAside>,
}

/// Path of an artefact that has a manifest.
pub(super) fn committed_path(root: &Path, name: &ArtifactName) -> Option<PathBuf> {
    let (path, manifest) = (name.within(root), manifest_path(root, name));
    (manifest.is_file() && path.exists()).then_some(path)
}

fn manifest_path(root: &Path, name: &ArtifactName) -> PathBuf {
    ArtifactName(format!("{name}.json")).within(&root.join(MANIFESTS))
}

impl Store {
    /// Checks every artefact, finishes or undoes interrupted commits, and removes their leftovers.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let mut store =
            Self { root: root.to_path_buf(), trusted: BTreeMap::new(), set_aside: Vec::new() };
        for name in store.manifest_names()? {
            store.verify(name)?;
        }
        remove_leftovers(&store.root)?;
        Ok(store)
    }

    /// Path of an artefact that agrees with its manifest, in a directory that is not opened.
    pub(super) fn verified_path(root: &Path, name: &ArtifactName) -> Result<Option<PathBuf>> {
        let store =
            Self { root: root.to_path_buf(), trusted: BTreeMap::new(), set_aside: Vec::new() };
        if !store.manifest_path(name).is_file() {
            return Ok(None);
        }
        let path = name.within(root);
        match store.read_manifest(name)? {
            Some(manifest) if manifest.fault(&path)?.is_none() => Ok(Some(path)),
            _ => Ok(None),
        }
    }

    pub(super) fn set_aside(&self) -> &[SetAside] {
        &self.set_aside
    }

    pub(crate) fn has(&self, name: &ArtifactName) -> bool {
        self.trusted.contains_key(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ArtifactName> {
        self.trusted.keys()
    }

    pub(crate) fn path(&self, name: &ArtifactName) -> Result<PathBuf> {
        if self.has(name) {
            return Ok(name.within(&self.root));
        }
        Err(Error::run_directory(&self.root, format!("`{name}` has not been made yet")))
    }

    pub(crate) fn commit(
        &mut self,
        name: &ArtifactName,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        name.check(&self.root)?;
        let path = name.within(&self.root);
        let partial = with_prefix(&path, PARTIAL);
        let written = self.write_partial(&partial, write);
        let manifest = match written {
            Ok(manifest) => manifest,
            Err(error) => {
                // The first error is the one to report; leftovers are cleared on the next opening too.
                let _ = remove_any(&partial);
                return Err(about_artifact(error, &partial, &path));
            }
        };
        self.publish(name, &path, &partial, manifest)?;
        Ok(path)
    }

    fn write_partial(
        &self,
        partial: &Path,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Manifest> {
        if let Some(parent) = partial.parent() {
            create_directory(parent)?;
            self.sync_up_from(parent)?;
        }
        remove_any(partial)?;
        write(partial)?;
        Manifest::seal(partial)
    }

    /// Moves the finished artefact into place, the manifest last. Until the manifest is there, what it
    /// replaces stays beside it, so that [`Self::verify`] can undo the move.
    fn publish(
        &mut self,
        name: &ArtifactName,
        path: &Path,
        partial: &Path,
        manifest: Manifest,
    ) -> Result<()> {
        let previous = with_prefix(path, PREVIOUS);
        remove_any(&previous)?;
        if self.has(name) {
            rename(path, &previous)?;
        } else {
            remove_any(path)?;
        }
        rename(partial, path)?;
        sync_parent(path)?;
        self.write_manifest(name, &manifest)?;
        self.trusted.insert(name.clone(), manifest);
        remove_any(&previous)
    }

    pub(super) fn remove(&mut self, name: &ArtifactName) -> Result<()> {
        if self.trusted.remove(name).is_none() {
            return Ok(());
        }
        self.remove_manifest(name)?;
        remove_any(&name.within(&self.root))
    }

    fn verify(&mut self, name: ArtifactName) -> Result<()> {
        let path = name.within(&self.root);
        let previous = with_prefix(&path, PREVIOUS);
        let reason = match self.read_manifest(&name)? {
            None => "its manifest is damaged".to_owned(),
            Some(manifest) => match manifest.fault(&path)? {
                None => {
                    self.trusted.insert(name, manifest);
                    return Ok(());
                }
                // A commit was interrupted before its manifest: go back to what it was replacing.
                Some(_) if previous.exists() && manifest.fault(&previous)?.is_none() => {
                    remove_any(&path)?;
                    rename(&previous, &path)?;
                    sync_parent(&path)?;
                    self.trusted.insert(name, manifest);
                    return Ok(());
                }
                Some(reason) => reason,
            },
        };
        let moved_to = if path.exists() { Some(self.move_aside(&name, &path)?) } else { None };
        self.remove_manifest(&name)?;
        let fault = SetAside { name, reason, moved_to };
        tracing::warn!("{fault}");
        self.set_aside.push(fault);
        Ok(())
    }

    fn move_aside(&self, name: &ArtifactName, path: &Path) -> Result<PathBuf> {
        let target = name.within(&self.root.join(SET_ASIDE));
        let free = (1..)
            .map(|attempt| match attempt {
                1 => target.clone(),
                _ => with_prefix(&target, &format!("{attempt}-")),
            })
            .find(|candidate| !candidate.exists())
            .unwrap_or(target);
        if let Some(parent) = free.parent() {
            create_directory(parent)?;
        }
        rename(path, &free)?;
        Ok(free)
    }

    fn manifest_path(&self, name: &ArtifactName) -> PathBuf {
        manifest_path(&self.root, name)
    }

    fn write_manifest(&self, name: &ArtifactName, manifest: &Manifest) -> Result<()> {
        let path = self.manifest_path(name);
        if let Some(parent) = path.parent() {
            create_directory(parent)?;
            self.sync_up_from(parent)?;
        }
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| Error::run_directory(&path, format!("cannot be written: {error}")))?;
        write_atomically(&path, &text)
    }

    fn read_manifest(&self, name: &ArtifactName) -> Result<Option<Manifest>> {
        let path = self.manifest_path(name);
        let text = fs::read(&path)
            .map_err(|error| run_directory_error(&path, "read this manifest", &error))?;
        Ok(serde_json::from_slice(&text).ok())
    }

    fn remove_manifest(&self, name: &ArtifactName) -> Result<()> {
        let path = self.manifest_path(name);
        remove_any(&path)?;
        if path.parent().is_some_and(Path::exists) { sync_parent(&path) } else { Ok(()) }
    }

    /// A new directory is durable once its parents are.
    fn sync_up_from(&self, directory: &Path) -> Result<()> {
        directory
            .ancestors()
            .take_while(|ancestor| ancestor.starts_with(&self.root))
            .try_for_each(sync_parent)
    }

    fn manifest_names(&self) -> Result<Vec<ArtifactName>> {
        let root = self.root.join(MANIFESTS);
        let mut names = Vec::new();
        let mut pending: Vec<PathBuf> = root.is_dir().then(|| root.clone()).into_iter().collect();
        while let Some(directory) = pending.pop() {
            for path in entries(&directory)? {
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                let inside = path.strip_prefix(&root).unwrap_or(&path);
                let parts: Vec<_> =
                    inside.components().map(|part| part.as_os_str().to_string_lossy()).collect();
                let name = parts.join("/");
                match name.strip_suffix(".json").map(ArtifactName::new) {
                    Some(name) if name.check(&self.root).is_ok() => names.push(name),
                    _ => {}
                }
            }
        }
        names.sort();
        Ok(names)
    }
}

/// Removes leftovers of interrupted commits: everything with one of our prefixes.
fn remove_leftovers(directory: &Path) -> Result<()> {
    for path in entries(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(PARTIAL) || name.starts_with(PREVIOUS) {
            remove_any(&path)?;
        } else if path.is_dir() && !path.is_symlink() && name != SET_ASIDE {
            remove_leftovers(&path)?;
        }
    }
    Ok(())
}

/// An error about the file being written is an error of the run directory, and names the file by the
/// name that people know.
fn about_artifact(error: Error, partial: &Path, path: &Path) -> Error {
    match error {
        Error::Input { path: at, message, hint, .. } if at.starts_with(partial) => {
            Error::RunDirectory { path: path.to_path_buf(), message, hint }
        }
        Error::RunDirectory { path: at, message, hint } if at == partial => {
            Error::RunDirectory { path: path.to_path_buf(), message, hint }
        }
        other => other,
    }
}
