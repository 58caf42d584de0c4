//! Parts of a large file that have been sent, kept on this machine so that a push that was interrupted sends none of
//! them again.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// An upload in parts, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartsUnderWay {
    endpoint: String,
    pub(super) part_size: u64,
    /// Address that is told when all parts are there.
    pub(super) completion: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    url: String,
    /// The storage's receipt.
    etag: Option<String>,
}

impl PartsUnderWay {
    /// An upload of which nothing has been sent.
    pub(super) fn new(
        endpoint: &str,
        part_size: u64,
        completion: String,
        addresses: impl Iterator<Item = String>,
    ) -> Self {
        let parts = addresses.map(|url| Part { url, etag: None }).collect();
        Self { endpoint: endpoint.into(), part_size, completion, parts }
    }

    /// Whether both divide the same file in the same way, on the same hub.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint
            && self.part_size == other.part_size
            && self.parts.len() == other.parts.len()
    }

    /// The first part that is missing: its number, from 0, and its address.
    pub(super) fn next(&self) -> Option<(usize, String)> {
        let number = self.parts.iter().position(|part| part.etag.is_none())?;
        Some((number, self.parts.get(number)?.url.clone()))
    }

    /// The number of parts that have been sent.
    pub(super) fn sent(&self) -> usize {
        self.parts.iter().filter(|part| part.etag.is_some()).count()
    }

    /// Takes note of the storage's receipt.
    pub(super) fn finish(&mut self, number: usize, etag: String) {
        if let Some(part) = self.parts.get_mut(number) {
            part.etag = Some(etag);
        }
    }

    /// The message that all parts of an object are there.
    pub(super) fn completion_of(&self, oid: &str) -> Value {
        let part =
            |(index, part): (usize, &Part)| json!({ "partNumber": index + 1, "etag": part.etag });
        let parts: Vec<Value> = self.parts.iter().enumerate().map(part).collect();
        json!({ "oid": oid, "parts": parts })
    }
}

/// The place of uploads under way on this machine, one file each. A file that cannot be kept costs only the sending of
/// parts once more, so failures are no errors.
#[derive(Clone, Debug)]
pub(super) struct SavedParts {
    directory: Option<PathBuf>,
}

impl SavedParts {
    pub(super) fn in_directory(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    pub(super) fn load(&self, oid: &str) -> Option<PartsUnderWay> {
        serde_json::from_slice(&std::fs::read(self.file(oid)?).ok()?).ok()
    }

    pub(super) fn save(&self, oid: &str, parts: &PartsUnderWay) {
        let Some(file) = self.file(oid) else { return };
        if let Err(error) = write_private(&file, parts) {
            tracing::debug!("{}: {error}", file.display());
        }
    }

    pub(super) fn forget(&self, oid: &str) {
        if let Some(file) = self.file(oid) {
            // There is none if nothing was saved.
            let _ = std::fs::remove_file(file);
        }
    }

    fn file(&self, oid: &str) -> Option<PathBuf> {
        Some(self.directory.as_ref()?.join(format!("{oid}.json")))
    }
}

/// The addresses are signed: whoever has them may write these parts.
fn write_private(file: &std::path::Path, parts: &PartsUnderWay) -> std::io::Result<()> {
    let directory = file.parent().unwrap_or(file);
    std::fs::create_dir_all(directory)?;
    // Made readable by its owner alone.
    let mut partial = tempfile::NamedTempFile::new_in(directory)?;
    serde_json::to_writer(&mut partial, parts)?;
    partial.persist(file)?;
    Ok(())
}
