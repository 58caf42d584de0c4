//! Artefacts of self-play in the run directory: their names, tables of records, and training states.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SelfPlay;
use crate::datasets::Stored;
use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error};
use crate::plugin::{Learner, PluginError};
use crate::records::{Judgment, Prompt, Rollout, TrainingExample};
use crate::run_directory::{ArtifactName, RunDirectory};
use crate::stages::{self, TrainingProgress};

const WEIGHTS: &str = "model";
const OPTIMIZER_STATE: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";

/// The names of a run's artefacts.
pub(crate) struct Names;

impl Names {
    pub(crate) fn rollouts(iteration: u32, shard: usize) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/rollouts/shard-{shard:04}.parquet"))
    }

    pub(crate) fn judgments(iteration: u32, shard: usize) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/judgments/shard-{shard:04}.parquet"))
    }

    /// Rollouts and judgments in one file, with the official repository's columns.
    pub(crate) fn generated(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/generated.parquet"))
    }

    pub(crate) fn training_set(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/training-set.parquet"))
    }

    pub(crate) fn training_state(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/training-state"))
    }

    pub(crate) fn checkpoint(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/checkpoint"))
    }

    pub(crate) fn held_out(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/held-out.parquet"))
    }

    /// Judgments of its responses to the held-out prompts.
    pub(crate) fn held_out_duels(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/held-out-duels.parquet"))
    }

    pub(crate) fn report(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/report.json"))
    }
}

impl SelfPlay<'_> {
    /// The rows of a table that was committed, which must be about these prompts; `None` where it is
    /// still to be made.
    pub(super) fn committed<T: Stored + OfPrompt>(
        &self,
        name: &ArtifactName,
        prompts: &[impl OfPrompt],
    ) -> Result<Option<Vec<T>>> {
        if !self.run.has(name) {
            return Ok(None);
        }
        let rows = self.rows(name)?;
        self.require_prompts(name, &rows, prompts)?;
        Ok(Some(rows))
    }

    /// The rows of a committed table.
    pub(super) fn rows<T: Stored>(&self, name: &ArtifactName) -> Result<Vec<T>> {
        T::read(&self.run.path(name)?)
    }

    /// Commits rows as a table.
    pub(super) fn commit_rows<T: Stored>(&mut self, name: &ArtifactName, rows: &[T]) -> Result<()> {
        self.run.commit(name, |file| T::write(file, rows))?;
        Ok(())
    }

    /// Refuses the rows of a table that an earlier process made for other prompts.
    fn require_prompts(
        &self,
        name: &ArtifactName,
        rows: &[impl OfPrompt],
        wanted: &[impl OfPrompt],
    ) -> Result<()> {
        if rows.iter().map(OfPrompt::prompt_id).eq(wanted.iter().map(OfPrompt::prompt_id)) {
            return Ok(());
        }
        let message = "is about other prompts than the settings ask for";
        Err(Error::run_directory(self.run.path(name)?, message).with_hint(
            "put `sampling.prompts_per_shard`, `iterations` and the prompts back as they were, or begin \
             another run",
        ))
    }
}

/// A record about one prompt.
pub(super) trait OfPrompt {
    fn prompt_id(&self) -> u64;
}

impl OfPrompt for Prompt {
    fn prompt_id(&self) -> u64 {
        self.id
    }
}

impl OfPrompt for Rollout {
    fn prompt_id(&self) -> u64 {
        self.prompt.id
    }
}

impl OfPrompt for Judgment {
    fn prompt_id(&self) -> u64 {
        self.prompt_id
    }
}

/// Commits weights, optimiser state and position, so that training can go on from here.
pub(super) fn commit_training_state(
    run: &mut RunDirectory,
    iteration: u32,
    policy: &mut dyn Learner,
    examples: &[TrainingExample],
    progress: TrainingProgress,
) -> Result<()> {
    stages::require_finite(policy, examples)?;
    run.commit(&Names::training_state(iteration), |directory| {
        create_directory(directory)?;
        policy
            .save(&directory.join(WEIGHTS))
            .and_then(|()| policy.save_optimizer_state(&directory.join(OPTIMIZER_STATE)))
            .map_err(|error| not_saved(directory, error))?;
        write_json(&directory.join(PROGRESS), &progress)
    })?;
    Ok(())
}

/// The error of a policy that cannot be saved: usually the disk is full, so the run directory is at fault.
pub(super) fn not_saved(directory: &Path, error: PluginError) -> Error {
    Error::run_directory(directory, error.message)
        .with_hint(error.hint.unwrap_or("make room on the disk, then resume the run".into()))
}

/// Writes a small record.
pub(super) fn write_json(file: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(record)
        .map_err(|error| Error::run_directory(file, error.to_string()))?;
    write_bytes(file, &text)
}

/// Writes a small text.
pub(super) fn write_text(file: &Path, text: &str) -> Result<()> {
    write_bytes(file, text.as_bytes())
}

fn write_bytes(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes)
        .map_err(|error| run_directory_error(file, "write this file", &error))
}

/// Reads a record of [`write_json`].
pub(super) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        std::fs::read(file).map_err(|error| run_directory_error(file, "read this file", &error))?;
    serde_json::from_slice(&text).map_err(|error| Error::run_directory(file, error.to_string()))
}

/// Path of the weights in a training state.
pub(super) fn weights_in(state: &Path) -> PathBuf {
    state.join(WEIGHTS)
}

/// Gives the policy its optimiser state back and returns the progress of training.
pub(super) fn restore_training_state(
    policy: &mut dyn Learner,
    state: &Path,
) -> Result<TrainingProgress> {
    policy.load_optimizer_state(&state.join(OPTIMIZER_STATE))?;
    read_json(&state.join(PROGRESS))
}
