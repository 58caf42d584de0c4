//! Durable writes, and error messages for failed file operations.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// Prefix of a file that is still being written. It precedes the name so that the extension, by which
/// writers choose a format, stays.
pub(crate) const PARTIAL: &str = ".partial-";

/// An error about the run directory: `doing` completes "cannot ...".
pub(crate) fn run_directory_error(path: &Path, doing: &str, error: &io::Error) -> Error {
    let fault = Error::run_directory(path, format!("cannot {doing}: {}", reason(error)));
    match remedy(error) {
        Some(hint) => fault.with_hint(hint),
        None => fault,
    }
}

/// An error about a file of the user: `doing` completes "cannot ...".
pub(crate) fn input_error(path: &Path, doing: &str, error: &io::Error) -> Error {
    let fault = Error::input(path, format!("cannot {doing}: {}", reason(error)));
    match remedy(error) {
        Some(hint) => fault.with_hint(hint),
        None => fault,
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "there is no such file or directory".into(),
        ErrorKind::PermissionDenied => "permission denied".into(),
        ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "the disk is full".into(),
        ErrorKind::NotADirectory => "a part of the path is not a directory".into(),
        ErrorKind::IsADirectory => "it is a directory".into(),
        _ => error.to_string(),
    }
}

fn remedy(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        ErrorKind::NotFound => Some("check the path"),
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory => Some("choose a path that this user may read and write"),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            Some("free some space, then go on with `--resume`: what was committed is kept")
        }
        _ => None,
    }
}

/// A file's size in bytes and its SHA-256 in hexadecimal.
pub(crate) fn size_and_sha256(path: &Path) -> io::Result<(u64, String)> {
    const BUFFER_BYTES: usize = 1 << 20;
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..count).filter(|chunk| !chunk.is_empty()) else { break };
        hasher.update(chunk);
        bytes += count as u64;
    }
    let sha256 = hasher.finalize().iter().fold(String::with_capacity(64), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    Ok((bytes, sha256))
}

/// Creates a directory and its missing parents.
pub(crate) fn create_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path)
        .map_err(|error| run_directory_error(path, "create this directory", &error))
}

/// `dir/name` with [`PARTIAL`] or a similar prefix before the name.
pub(crate) fn with_prefix(path: &Path, prefix: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(path.file_name().unwrap_or_default());
    path.with_file_name(name)
}

/// Writes a small file so that a crash leaves the old content or the new, never a mixture.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let partial = with_prefix(path, PARTIAL);
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|error| run_directory_error(path, "write this file", &error))?;
    sync_parent(path)
}

/// Makes renames within the parent directory durable.
pub(crate) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => sync_directory(Path::new(".")),
        Some(parent) => sync_directory(parent),
        None => Ok(()),
    }
}

/// Makes a directory's entries durable.
#[cfg(unix)]
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| run_directory_error(path, "sync this directory", &error))
}

/// Directories cannot be synced here; the file system orders renames itself.
#[cfg(not(unix))]
pub(crate) fn sync_directory(_path: &Path) -> Result<()> {
    Ok(())
}

/// Removes a file or a whole directory; nothing there is fine.
pub(crate) fn remove_any(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.map_err(|error| run_directory_error(path, "remove this", &error))
}

/// Moves a file or directory; the target's parent must exist.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|error| {
        run_directory_error(from, &format!("move this to {}", to.display()), &error)
    })
}
