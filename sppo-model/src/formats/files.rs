//! Files of a model: mapped into memory for reading, written whole, and their SHA-256.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::error::{ModelError, Result};

/// Maps a file for reading, so that weights are paged in as they are converted.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = fs_err::File::open(path).map_err(|error| ModelError::file(path, cause(&error)))?;
    // SAFETY: the map is only read. Another process that truncates or rewrites the file while it is
    // mapped could change or fault those reads; the weights of a model in use are not to be altered,
    // which is what every reader of these formats relies on.
    unsafe { Mmap::map(file.file()) }
        .map_err(|error| ModelError::file(path, format!("cannot be mapped into memory: {error}")))
}

/// Lets go of pages that were read, so that a file that is converted part by part does not fill memory
/// beside what it is converted to.
pub(crate) fn release(map: &Mmap, range: Range<usize>) {
    #[cfg(unix)]
    {
        use memmap2::UncheckedAdvice;
        // SAFETY: the map is of a file and is only read; pages that are read again come from the file
        // with the same content, on which `map_file` relies already.
        let released = unsafe {
            map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of a mapped file were not released");
        }
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

/// An input-output error without the path that `fs_err` adds.
pub(crate) fn cause(error: &std::io::Error) -> String {
    let kind = error.kind();
    match error.get_ref().and_then(std::error::Error::source) {
        Some(source) => format!("cannot be read or written: {source}"),
        None => format!("cannot be read or written: {kind}"),
    }
}

/// Makes a directory, and refuses one that holds any of these files.
pub(crate) fn prepare_directory(directory: &Path, files: &[&str]) -> Result<()> {
    fs_err::create_dir_all(directory).map_err(|error| unwritable(directory, &error))?;
    match files.iter().find(|name| directory.join(name).exists()) {
        Some(name) => Err(ModelError::file(directory, format!("already holds {name}"))
            .with_hint("choose another directory or remove the model in it")),
        None => Ok(()),
    }
}

/// Writes a whole file and waits until it is on the disk.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = fs_err::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| unwritable(path, &error))
}

pub(crate) fn unwritable(path: &Path, error: &std::io::Error) -> ModelError {
    let hint = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "free some space on this disk, or write elsewhere"
        }
        _ => "check that the directory exists and can be written",
    };
    ModelError::file(path, cause(error)).with_hint(hint)
}

/// SHA-256 of a file in hexadecimal, read part by part: a mapped file would count as memory of this process.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    let read = || {
        let mut file = fs_err::File::open(path)?;
        let (mut hash, mut part) = (Sha256::new(), vec![0; 1 << 20]);
        loop {
            match file.read(&mut part)? {
                0 => return Ok(hexadecimal(&hash.finalize())),
                length => hash.update(&part[..length]),
            }
        }
    };
    read().map_err(|error| ModelError::file(path, cause(&error)))
}

/// Two lower-case hexadecimal digits per byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// SHA-256 of the lines `<sha256>  <name>` of these files, sorted by name.
pub(crate) fn listing_sha256(directory: &Path, mut paths: Vec<PathBuf>) -> Result<String> {
    paths.sort();
    let mut listing = Sha256::new();
    for path in paths {
        let name = path.strip_prefix(directory).unwrap_or(&path);
        listing.update(format!("{}  {}\n", file_sha256(&path)?, name.display()));
    }
    Ok(hexadecimal(&listing.finalize()))
}
