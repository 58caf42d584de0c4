//! A repository in the hub's cache on this machine, in the layout that Python's `huggingface_hub` shares: content by
//! its hash in `blobs/`, names by commit in `snapshots/`, commits by branch in `refs/`.

use std::io;
use std::path::{Path, PathBuf};

/// A repository of models in the cache.
#[derive(Clone, Debug)]
pub(crate) struct CachedRepository {
    folder: PathBuf,
}

impl CachedRepository {
    pub(crate) fn new(cache: &Path, id: &str) -> Self {
        Self { folder: cache.join(format!("models--{}", id.replace('/', "--"))) }
    }

    /// Directory of the files of a commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Path of a content by its hash.
    pub(super) fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// The commit that a branch or tag pointed to when it was fetched last.
    pub(crate) fn commit_of(&self, revision: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(text.trim().to_owned())
    }

    /// Lets offline programs, here and in Python, find a commit by the name of its branch or tag.
    pub(crate) fn set_commit(&self, revision: &str, commit: &str) -> io::Result<()> {
        let file = self.folder.join("refs").join(revision);
        if let Some(directory) = file.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(file, commit)
    }

    /// Gives a content its name within a commit.
    pub(super) fn link(&self, hash: &str, commit: &str, file: &str) -> io::Result<()> {
        let name = self.snapshot(commit).join(file);
        if let Some(directory) = name.parent() {
            std::fs::create_dir_all(directory)?;
        }
        match point(&name, hash) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                // A file system without links keeps the content under its name alone.
                std::fs::rename(self.blob(hash), name)
            }
            _ => Ok(()),
        }
    }
}

/// A link to a content by the way from `snapshots/<commit>/`, so that the cache may be moved.
#[cfg(unix)]
fn point(name: &Path, hash: &str) -> io::Result<()> {
    std::os::unix::fs::symlink(Path::new("../../blobs").join(hash), name)
}

#[cfg(windows)]
fn point(name: &Path, hash: &str) -> io::Result<()> {
    std::os::windows::fs::symlink_file(Path::new(r"..\..\blobs").join(hash), name)
}
