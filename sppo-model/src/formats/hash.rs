//! SHA-256 of files, in hexadecimal.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::files::map_file;
use crate::error::Result;

/// SHA-256 of a file in hexadecimal.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    let map = map_file(path)?;
    Ok(hexadecimal(&Sha256::digest(&map)))
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
