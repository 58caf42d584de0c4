//! Files mapped into memory.

use std::path::Path;

use memmap2::Mmap;

use crate::error::{ModelError, Result};

/// Maps a file for reading, so that weights are paged in as they are converted.
pub(super) fn map_file(path: &Path) -> Result<Mmap> {
    let file = fs_err::File::open(path).map_err(|error| ModelError::file(path, cause(&error)))?;
    // SAFETY: the map is only read. Another process that truncates or rewrites the file while it is
    // mapped could change or fault those reads; the weights of a model in use are not to be altered,
    // which is what every reader of these formats relies on.
    unsafe { Mmap::map(file.file()) }
        .map_err(|error| ModelError::file(path, format!("cannot be mapped into memory: {error}")))
}

/// Lets the system take back the pages of a part that has been read: they count as this process's
/// memory otherwise, beside the weights that were made from them.
pub(super) fn release(map: &Mmap, start: usize, end: usize) {
    #[cfg(unix)]
    {
        let length = end.saturating_sub(start);
        // SAFETY: the map is of a file and is never written to, so what is read there again is what
        // was read before.
        let released = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, length)
        };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of weights stay in memory");
        }
    }
    #[cfg(not(unix))]
    let _ = (map, start, end);
}

/// An input-output error without the path that `fs_err` adds.
pub(super) fn cause(error: &std::io::Error) -> String {
    let kind = error.kind();
    match error.get_ref().and_then(std::error::Error::source) {
        Some(source) => format!("cannot be read or written: {source}"),
        None => format!("cannot be read or written: {kind}"),
    }
}
