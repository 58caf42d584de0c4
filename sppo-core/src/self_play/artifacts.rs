//! What self-play leaves in the run directory: names, committed tables, and training states.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SelfPlay;
use crate::datasets::Stored;
use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error};
use crate::observer::{Event, Observer, PluginServices, Stage, StageHost};
use crate::plugin::{Learner, PluginError};
use crate::records::{Judgment, Prompt, Rollout, TrainingExample};
use crate::run_directory::{ArtifactName, RunDirectory};
use crate::stages::{self, TrainingProgress};

const WEIGHTS: &str = "model";
const OPTIMIZER_STATE: &str = "optimizer.safetensors";
const PROGRESS: &str = "progress.json";

/// The names of a run's artefacts.
pub(super) struct Names;

impl Names {
    pub(super) fn rollouts(iteration: u32, shard: usize) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/rollouts/shard-{shard:04}.parquet"))
    }

    pub(super) fn judgments(iteration: u32, shard: usize) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/judgments/shard-{shard:04}.parquet"))
    }

    /// Rollouts and judgments in one file, with the official repository's columns.
    pub(super) fn generated(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/generated.parquet"))
    }

    pub(super) fn training_set(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/training-set.parquet"))
    }

    pub(super) fn training_state(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/training-state"))
    }

    pub(super) fn checkpoint(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/checkpoint"))
    }

    pub(super) fn held_out(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/held-out.parquet"))
    }

    pub(super) fn report(iteration: u32) -> ArtifactName {
        ArtifactName::new(format!("iteration-{iteration}/report.json"))
    }
}

impl SelfPlay<'_, '_> {
    /// The rows of a committed table, or those that `make` makes, committed before they are returned.
    pub(super) fn table<T: Stored>(
        &mut self,
        name: &ArtifactName,
        make: impl FnOnce(&mut Self) -> Result<Vec<T>>,
    ) -> Result<Vec<T>> {
        if self.run.has(name) {
            return T::read(&self.run.path(name)?);
        }
        if self.game.observer.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let rows = make(self)?;
        self.run.commit(name, |file| T::write(file, &rows))?;
        Ok(rows)
    }

    /// Refuses the rows of a table that an earlier process made for other prompts.
    pub(super) fn require_prompts(
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

/// Belongs to a prompt.
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

/// A policy that cannot be saved is the run directory's trouble: a full disk, usually.
pub(super) fn not_saved(directory: &Path, error: PluginError) -> Error {
    Error::run_directory(directory, error.message)
        .with_hint(error.hint.unwrap_or("make room on the disk, then resume the run".into()))
}

/// Writes a small record.
pub(super) fn write_json(file: &Path, record: &impl Serialize) -> Result<()> {
    let text = serde_json::to_vec_pretty(record)
        .map_err(|error| Error::run_directory(file, error.to_string()))?;
    std::fs::write(file, text).map_err(|error| run_directory_error(file, "write this file", &error))
}

/// Reads what [`write_json`] wrote.
pub(super) fn read_json<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text =
        std::fs::read(file).map_err(|error| run_directory_error(file, "read this file", &error))?;
    serde_json::from_slice(&text).map_err(|error| Error::run_directory(file, error.to_string()))
}

/// On a request to stop, commits the training state first; any other error passes through.
pub(super) fn keep_progress(
    run: &mut RunDirectory,
    iteration: u32,
    policy: &mut dyn Learner,
    examples: &[TrainingExample],
    progress: TrainingProgress,
    error: Error,
) -> Result<()> {
    if matches!(error, Error::Cancelled) && progress.step > 0 {
        commit_training_state(run, iteration, policy, examples, progress)?;
    }
    Err(error)
}

/// Where a training state keeps its weights.
pub(super) fn weights_in(state: &Path) -> PathBuf {
    state.join(WEIGHTS)
}

/// Gives the policy its optimiser state back and tells where training stands.
pub(super) fn restore_training_state(
    policy: &mut dyn Learner,
    state: &Path,
) -> Result<TrainingProgress> {
    policy.load_optimizer_state(&state.join(OPTIMIZER_STATE))?;
    read_json(&state.join(PROGRESS))
}

/// Tells the observer how a stage gets on.
pub(super) struct StageMeter<'a> {
    observer: &'a dyn Observer,
    total: u64,
    completed: Cell<u64>,
    started: Instant,
}

impl<'a> StageMeter<'a> {
    pub(super) fn start(
        observer: &'a dyn Observer,
        stage: Stage,
        total: u64,
        unit: &'static str,
    ) -> Self {
        observer.event(Event::StageStarted { stage, total, unit });
        Self { observer, total, completed: Cell::new(0), started: Instant::now() }
    }

    /// The host that a plugin sees during the next call: what it reports is added to what is done.
    pub(super) fn host<'h>(&self, services: PluginServices<'h>) -> StageHost<'h>
    where
        'a: 'h,
    {
        StageHost::new(self.observer, services, self.completed.get(), self.total)
    }

    pub(super) fn advance(&self, units: u64) {
        self.completed.set(self.completed.get() + units);
        self.observer
            .event(Event::StageProgress { completed: self.completed.get(), total: self.total });
    }

    /// Sets what is done so far; fails when the user asked to stop.
    pub(super) fn reach(&self, completed: u64) -> Result<()> {
        self.completed.set(completed);
        self.advance(0);
        if self.observer.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }

    pub(super) fn finish(self, summary: String) {
        self.observer.event(Event::StageFinished { elapsed: self.started.elapsed(), summary });
    }
}
