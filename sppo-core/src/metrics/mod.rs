//! The numbers of a run: one JSON object per line in `metrics.jsonl`, and the same as TensorBoard
//! scalars. The lines are the record; the TensorBoard file follows from them and is made anew whenever
//! a run goes on, so that both always tell the same.

mod observer;
mod tensorboard;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

pub use observer::MetricsObserver;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error, write_atomically};
use tensorboard::EventFile;

const LINES: &str = "metrics.jsonl";
const TENSORBOARD: &str = "tensorboard";

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricsEntry {
    /// Seconds since 1970.
    pub time: f64,
    /// Kind of entry: `training_step`, `iteration`, `stage` or `notice`.
    pub kind: String,
    /// The position on TensorBoard's horizontal axis; rises within a kind.
    pub global_step: u64,
    /// The numbers, by name. What is not finite becomes `null`.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

/// Appends to `metrics.jsonl` and to the TensorBoard file in `tensorboard/`.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    lines: File,
    entries: Vec<MetricsEntry>,
    tensorboard: EventFile,
}

impl MetricsLog {
    /// Opens the log of a run's directory and keeps the entries that `keep` wants: going on after a
    /// crash, those that belong to committed work. A line that was cut short by a crash is dropped.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn open(directory: &Path, keep: impl FnMut(&MetricsEntry) -> bool) -> Result<Self> {
        let path = directory.join(LINES);
        let (mut entries, damaged) = read_entries(&path)?;
        let before = entries.len();
        entries.retain(keep);
        if damaged || entries.len() < before {
            rewrite(&path, &entries)?;
        }
        let lines = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| run_directory_error(&path, "write this file", &error))?;
        let tensorboard = directory.join(TENSORBOARD);
        create_directory(&tensorboard)?;
        let mut tensorboard = EventFile::replace(&tensorboard, now())?;
        for entry in &entries {
            tensorboard.append(entry)?;
        }
        Ok(Self { path, lines, entries, tensorboard })
    }

    /// Appends an entry with the fields of `values`, which must serialise to an object and have none
    /// named `time`, `kind` or `global_step`.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn append(&mut self, kind: &str, global_step: u64, values: &impl Serialize) -> Result<()> {
        let values = match serde_json::to_value(values) {
            Ok(Value::Object(values)) => values,
            Ok(_) => return Err(Error::run_directory(&self.path, "metrics must be objects")),
            Err(error) => return Err(Error::run_directory(&self.path, error.to_string())),
        };
        let entry = MetricsEntry { time: now(), kind: kind.into(), global_step, values };
        let line = line_of(&entry, &self.path)?;
        // One call, so that a crash cuts at most the last line.
        self.lines
            .write_all(&line)
            .map_err(|error| run_directory_error(&self.path, "write this file", &error))?;
        self.tensorboard.append(&entry)?;
        self.entries.push(entry);
        Ok(())
    }

    /// Everything that was logged, in order.
    #[must_use]
    pub fn entries(&self) -> &[MetricsEntry] {
        &self.entries
    }
}

impl MetricsEntry {
    /// The numbers of the entry as TensorBoard names them: `kind/field`, or `kind/field/part`.
    fn scalars(&self) -> Vec<(String, f64)> {
        fn visit(prefix: &str, values: &Map<String, Value>, found: &mut Vec<(String, f64)>) {
            for (name, value) in values {
                let tag = format!("{prefix}/{name}");
                match value {
                    Value::Number(number) => {
                        found.extend(number.as_f64().map(|value| (tag, value)))
                    }
                    Value::Object(inner) => visit(&tag, inner, found),
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        visit(&self.kind, &self.values, &mut found);
        found
    }
}

/// The entries of a run's directory, whether or not a process is appending to them; none without a log.
///
/// # Errors
/// When the file cannot be read.
pub fn read_metrics(directory: &Path) -> Result<Vec<MetricsEntry>> {
    read_entries(&directory.join(LINES)).map(|(entries, _)| entries)
}

/// The readable entries, and whether there was anything else.
fn read_entries(path: &Path) -> Result<(Vec<MetricsEntry>, bool)> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(run_directory_error(path, "read this file", &error)),
    };
    let complete = bytes.last().is_none_or(|last| *last == b'\n');
    let lines: Vec<&[u8]> =
        bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    let entries: Vec<MetricsEntry> =
        lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let unreadable = lines.len() - entries.len();
    // The last line may be cut short by a crash; more than that is worth a word.
    if unreadable > usize::from(!complete) {
        tracing::warn!("{}: {unreadable} unreadable lines are dropped", path.display());
    }
    Ok((entries, unreadable > 0 || !complete))
}

fn rewrite(path: &Path, entries: &[MetricsEntry]) -> Result<()> {
    let lines: Result<Vec<Vec<u8>>> = entries.iter().map(|entry| line_of(entry, path)).collect();
    write_atomically(path, &lines?.concat())
}

fn line_of(entry: &MetricsEntry, path: &Path) -> Result<Vec<u8>> {
    let mut line =
        serde_json::to_vec(entry).map_err(|error| Error::run_directory(path, error.to_string()))?;
    line.push(b'\n');
    Ok(line)
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests;
