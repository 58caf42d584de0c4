//! The directory of a comparison.
//!
//! ```text
//! comparisons/<name>/
//!     runs/<run>/...      a run directory for each run
//!     verdicts/...        judgments between runs
//!     comparison.json     the outcome
//!     comparison.html     the same, to look at
//!     comparison.lock     held while a process works here
//! ```

use std::path::{Path, PathBuf};

use super::report::ComparisonReport;
use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error, write_atomically};
use crate::run_directory::Lock;

const LOCK: &str = "comparison.lock";
const OUTCOME: &str = "comparison.json";
const PAGE: &str = "comparison.html";

/// A comparison's directory, locked for this process. Dropping it releases the lock.
#[derive(Debug)]
pub struct ComparisonDirectory {
    path: PathBuf,
    _lock: Lock,
}

impl ComparisonDirectory {
    /// Opens a directory, which is made if it is not there.
    ///
    /// # Errors
    /// When it holds something else, another process works there, or it cannot be written.
    pub fn open(path: &Path) -> Result<Self> {
        create_directory(path)?;
        let is_ours = path.join(LOCK).exists();
        let mut entries = std::fs::read_dir(path)
            .map_err(|error| run_directory_error(path, "list this directory", &error))?;
        if !is_ours && entries.next().is_some() {
            let message = "this directory is not empty and not a comparison of sppo";
            return Err(Error::run_directory(path, message)
                .with_hint("choose another one with `--output`, or an empty directory"));
        }
        Ok(Self { path: path.into(), _lock: Lock::acquire(&path.join(LOCK))? })
    }

    /// The directory of the judgments between runs.
    #[must_use]
    pub fn verdicts(&self) -> PathBuf {
        self.path.join("verdicts")
    }

    /// Path of the page to look at.
    #[must_use]
    pub fn page(&self) -> PathBuf {
        self.path.join(PAGE)
    }

    /// Writes the outcome; returns its file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, report: &ComparisonReport) -> Result<PathBuf> {
        let file = self.path.join(OUTCOME);
        let text = serde_json::to_vec_pretty(report)
            .map_err(|error| Error::run_directory(&file, error.to_string()))?;
        write_atomically(&file, &text)?;
        Ok(file)
    }
}
