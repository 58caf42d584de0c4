//! Manifests: size and hash of every file of an artefact.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{run_directory_error, size_and_sha256, sync_directory};

/// Sizes and hashes of an artefact's files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// By path within the artefact, `/`-separated; the empty path when the artefact is a file.
    files: BTreeMap<String, FileRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileRecord {
    bytes: u64,
    sha256: String,
}

impl Manifest {
    /// Makes every file of an artefact durable and records it.
    pub(super) fn seal(artifact: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for (name, path) in files_of(artifact)? {
            // Syncing needs a handle for writing on some systems.
            File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|error| run_directory_error(&path, "write this file", &error))?;
            files.insert(name, record(&path)?);
        }
        for directory in directories_of(artifact)? {
            sync_directory(&directory)?;
        }
        Ok(Self { files })
    }

    /// The fault of the artefact at this path, if it has one.
    pub(super) fn fault(&self, artifact: &Path) -> Result<Option<String>> {
        if !artifact.exists() {
            return Ok(Some("it is missing".into()));
        }
        let found: BTreeMap<String, PathBuf> = files_of(artifact)?.into_iter().collect();
        if let Some(extra) = found.keys().find(|name| !self.files.contains_key(*name)) {
            return Ok(Some(format!("{} was added", spoken(extra))));
        }
        for (name, expected) in &self.files {
            let Some(path) = found.get(name) else {
                return Ok(Some(format!("{} is missing", spoken(name))));
            };
            let bytes = fs::metadata(path)
                .map_err(|error| run_directory_error(path, "examine this file", &error))?
                .len();
            if bytes != expected.bytes {
                let due = expected.bytes;
                return Ok(Some(format!("{} has {bytes} bytes in place of {due}", spoken(name))));
            }
        }
        for (name, expected) in &self.files {
            if let Some(path) = found.get(name)
                && record(path)?.sha256 != expected.sha256
            {
                return Ok(Some(format!("the content of {} was altered", spoken(name))));
            }
        }
        Ok(None)
    }
}

fn spoken(name: &str) -> String {
    if name.is_empty() { "the file".into() } else { format!("`{name}`") }
}

fn record(path: &Path) -> Result<FileRecord> {
    let (bytes, sha256) = size_and_sha256(path)
        .map_err(|error| run_directory_error(path, "read this file", &error))?;
    Ok(FileRecord { bytes, sha256 })
}

/// Every file of an artefact with its name inside it. Hidden files belong to desktops and tools, and
/// nothing reads them.
fn files_of(artifact: &Path) -> Result<Vec<(String, PathBuf)>> {
    if artifact.is_file() {
        return Ok(vec![(String::new(), artifact.to_path_buf())]);
    }
    let mut files = Vec::new();
    for directory in directories_of(artifact)? {
        for path in entries(&directory)? {
            let inside = path.strip_prefix(artifact).unwrap_or(&path);
            let parts: Option<Vec<&str>> =
                inside.components().map(|part| part.as_os_str().to_str()).collect();
            let Some(parts) = parts else {
                return Err(Error::run_directory(&path, "the file's name is not UTF-8"));
            };
            if !path.is_dir() && parts.last().is_some_and(|name| !name.starts_with('.')) {
                files.push((parts.join("/"), path.clone()));
            }
        }
    }
    Ok(files)
}

/// The artefact's directories, the deepest first; none when it is a file.
fn directories_of(artifact: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    let mut pending = Vec::new();
    if artifact.is_dir() {
        pending.push(artifact.to_path_buf());
    }
    while let Some(directory) = pending.pop() {
        for entry in entries(&directory)? {
            if entry.is_dir() {
                pending.push(entry);
            }
        }
        directories.push(directory);
    }
    directories.reverse();
    Ok(directories)
}

pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
    };
    list().map_err(|error| run_directory_error(directory, "list this directory", &error))
}
