//! Judgments between runs, kept on disk: a comparison that goes on after it was stopped judges no two answers
//! again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error, size_and_sha256};
use crate::run_directory::{ArtifactName, Store};
use crate::statistics::Duel;

/// Judged duels in a directory.
#[derive(Debug)]
pub(super) struct VerdictStore {
    store: Store,
    judge: String,
}

/// A file of duels, and what it was made from.
#[derive(Serialize, Deserialize)]
struct Verdicts {
    judge: String,
    /// SHA-256 of the first model's answers.
    first: String,
    /// SHA-256 of the second model's answers.
    second: String,
    duels: Vec<Vec<Duel>>,
}

impl VerdictStore {
    /// Judgments in this directory, all by the judge of this identity. Others' are made anew.
    ///
    /// # Errors
    /// When the directory cannot be read or written.
    pub(super) fn open(directory: &Path, judge: impl Into<String>) -> Result<Self> {
        create_directory(directory)?;
        Ok(Self { store: Store::open(directory)?, judge: judge.into() })
    }

    /// The duels of the answers in two files, by prompt: those that are kept under this name, if they are
    /// about these files, or else what `judge` says.
    ///
    /// # Errors
    /// When a file cannot be read or written, or `judge` fails.
    pub(super) fn duels(
        &mut self,
        name: &str,
        files: [&Path; 2],
        judge: impl FnOnce() -> Result<Vec<Vec<Duel>>>,
    ) -> Result<Vec<Vec<Duel>>> {
        let name = ArtifactName::new(name);
        let [first, second] = files.map(sha256);
        let (first, second) = (first?, second?);
        if let Some(kept) = self.kept(&name)?
            && (&kept.judge, &kept.first, &kept.second) == (&self.judge, &first, &second)
        {
            return Ok(kept.duels);
        }
        let verdicts = Verdicts { judge: self.judge.clone(), first, second, duels: judge()? };
        self.store.commit(&name, |file| {
            let text = serde_json::to_vec(&verdicts)
                .map_err(|error| Error::run_directory(file, error.to_string()))?;
            std::fs::write(file, text)
                .map_err(|error| run_directory_error(file, "write this file", &error))
        })?;
        Ok(verdicts.duels)
    }

    fn kept(&self, name: &ArtifactName) -> Result<Option<Verdicts>> {
        if !self.store.has(name) {
            return Ok(None);
        }
        let path = self.store.path(name)?;
        let text = std::fs::read(&path)
            .map_err(|error| run_directory_error(&path, "read this file", &error))?;
        // Another version of sppo may have kept something else.
        Ok(serde_json::from_slice(&text).ok())
    }
}

fn sha256(file: &Path) -> Result<String> {
    let (_, sha256) = size_and_sha256(file)
        .map_err(|error| run_directory_error(file, "read this file", &error))?;
    Ok(sha256)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_again_only_if_they_or_the_judge_changed() {
        let directory = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        std::fs::write(&a, "answers").unwrap();
        std::fs::write(&b, "others").unwrap();
        let ask = |judge: &str, win_rate: f64| {
            let mut store = VerdictStore::open(&directory.path().join("verdicts"), judge).unwrap();
            let said = || Ok(vec![vec![Duel { win_rate, length_difference: 0.0 }]]);
            store.duels("a/against-b.json", [&a, &b], said).unwrap()[0][0].win_rate
        };
        assert_eq!(ask("rules", 0.1), 0.1);
        assert_eq!(ask("rules", 0.2), 0.1);
        assert_eq!(ask("http", 0.3), 0.3);
        std::fs::write(&b, "better ones").unwrap();
        assert_eq!(ask("http", 0.4), 0.4);
        std::fs::write(directory.path().join("verdicts/a/against-b.json"), "{}").unwrap();
        assert_eq!(ask("http", 0.5), 0.5);
    }
}
