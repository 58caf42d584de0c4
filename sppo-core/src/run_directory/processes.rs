//! The processes that have worked on a run: their commands, versions and memory.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{run_directory_error, write_atomically};

const FILE: &str = "processes.json";

/// A process that worked on a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessRecord {
    /// Its start, in seconds since 1970.
    pub started: f64,
    /// The last time that it was heard of, in seconds since 1970.
    pub last_seen: f64,
    /// The version of sppo.
    pub version: String,
    /// The command as it was typed, word by word.
    pub command: Vec<String>,
    /// Operating system and architecture, for instance `linux x86_64`.
    pub system: String,
    /// Threads that the machine runs at a time.
    pub threads: usize,
    /// Memory of the machine or of its container, in bytes, where it is known.
    pub machine_memory: Option<u64>,
    /// Memory that was predicted for the policy, by stage; empty where it is not known.
    pub predicted_memory: Vec<StageMemory>,
    /// The most memory that the process has had in RAM so far, in bytes, where it is known.
    pub peak_memory: Option<u64>,
}

/// Memory of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StageMemory {
    /// `loading`, `sampling`, `training` or `saving`.
    pub stage: String,
    /// In bytes.
    pub bytes: u64,
}

/// All processes that were recorded, in order; none in runs of earlier versions.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read(root: &Path) -> Result<Vec<ProcessRecord>> {
    let path = root.join(FILE);
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| Error::run_directory(&path, format!("is damaged: {error}"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(run_directory_error(&path, "read this file", &error)),
    }
}

/// Records a process, which is known by its start: a later record of it takes the place of the earlier.
///
/// # Errors
/// When the file cannot be read or written.
pub(super) fn record(root: &Path, process: &ProcessRecord) -> Result<()> {
    // A record that cannot be read is worth less than the new one.
    let mut all = read(root).unwrap_or_default();
    all.retain(|known| known.started != process.started);
    all.push(process.clone());
    let path = root.join(FILE);
    let text = serde_json::to_vec_pretty(&all)
        .map_err(|error| Error::run_directory(&path, error.to_string()))?;
    write_atomically(&path, &text)
}
