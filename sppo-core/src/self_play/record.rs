//! A run as its directory tells it, for whoever looks at it while it is played or afterwards.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::artifacts::{Names, read_json};
use super::kept::run_of;
use crate::datasets::Stored;
use crate::error::Result;
use crate::metrics::{self, MetricsEntry};
use crate::model_card::{ModelCard, Publication};
use crate::observer::IterationReport;
use crate::records::{HeldOutDuels, Judgment, Prompt, Rollout, TrainingExample};
use crate::run_directory::{ArtifactName, ProcessRecord, RunDirectory, RunIdentity};
use crate::tables;

/// The record of a run. Reading takes no lock, and what a process is writing meanwhile is not seen before it is
/// committed. Whatever is not there yet, or was not kept by the version that played the run, is `None` or empty.
#[derive(Clone, Debug)]
pub struct RunRecord {
    root: PathBuf,
    identity: RunIdentity,
}

/// A row of rollouts of which only the prompt is read.
#[derive(Serialize, Deserialize)]
struct PromptRow {
    prompt: Prompt,
}

impl RunRecord {
    /// The record of the run in this directory.
    ///
    /// # Errors
    /// When there is no run, or its identity cannot be read.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let identity = RunDirectory::read_identity(&root)?;
        Ok(Self { root, identity })
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Settings, model and plugins.
    #[must_use]
    pub fn identity(&self) -> &RunIdentity {
        &self.identity
    }

    /// Whether a process is playing it.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        RunDirectory::is_in_use(&self.root)
    }

    /// The processes that played it, in order.
    ///
    /// # Errors
    /// When their record cannot be read.
    pub fn processes(&self) -> Result<Vec<ProcessRecord>> {
        RunDirectory::read_processes(&self.root)
    }

    /// Everything that was logged, in order.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn metrics(&self) -> Result<Vec<MetricsEntry>> {
        metrics::read_metrics(&self.root)
    }

    /// The report of a finished iteration; 0 is the starting model.
    ///
    /// # Errors
    /// When the file cannot be read; so for all that follow.
    pub fn report(&self, iteration: u32) -> Result<Option<IterationReport>> {
        self.committed(&Names::report(iteration)).map(|file| read_json(&file)).transpose()
    }

    /// Responses of the model after an iteration to the held-out prompts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn held_out(&self, iteration: u32) -> Result<Option<Vec<Rollout>>> {
        self.rows(&Names::held_out(iteration))
    }

    /// Judgments of these responses against earlier models' ones.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn held_out_duels(&self, iteration: u32) -> Result<Option<Vec<HeldOutDuels>>> {
        self.rows(&Names::held_out_duels(iteration))
    }

    /// The preferences among the sampled responses, prompt by prompt.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn judgments(&self, iteration: u32) -> Result<Vec<Judgment>> {
        let shards = (0..).map_while(|shard| self.committed(&Names::judgments(iteration, shard)));
        Ok(shards.map(|file| Judgment::read(&file)).collect::<Result<Vec<_>>>()?.concat())
    }

    /// The sampled responses, prompt by prompt.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn rollouts(&self, iteration: u32) -> Result<Vec<Rollout>> {
        let shards = (0..).map_while(|shard| self.committed(&Names::rollouts(iteration, shard)));
        Ok(shards.map(|file| Rollout::read(&file)).collect::<Result<Vec<_>>>()?.concat())
    }

    /// The prompts of an iteration.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn prompts(&self, iteration: u32) -> Result<Vec<Prompt>> {
        let mut prompts = Vec::new();
        for file in (0..).map_while(|shard| self.committed(&Names::rollouts(iteration, shard))) {
            let rows: Vec<PromptRow> = tables::read_columns(&file, &["prompt"])?;
            prompts.extend(rows.into_iter().map(|row| row.prompt));
        }
        Ok(prompts)
    }

    /// The responses that were trained on.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn training_set(&self, iteration: u32) -> Result<Option<Vec<TrainingExample>>> {
        self.rows(&Names::training_set(iteration))
    }

    /// The run and the iteration that this checkpoint is of, by its path; `None` for any other directory.
    #[must_use]
    pub fn of_checkpoint(checkpoint: &Path) -> Option<(Self, u32)> {
        let (root, iteration) = run_of(checkpoint)?;
        Some((Self::open(root).ok()?, iteration))
    }

    /// The last iteration that is finished.
    #[must_use]
    pub fn last_iteration(&self) -> Option<u32> {
        let is_finished = |iteration: &u32| {
            let files = [Names::checkpoint(*iteration), Names::report(*iteration)];
            files.iter().all(|name| self.committed(name).is_some())
        };
        (1..=self.identity.config.iterations).rev().find(is_finished)
    }

    /// The checkpoint of an iteration, compared with its manifest: `None` if it is not there or was altered.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn checkpoint(&self, iteration: u32) -> Result<Option<PathBuf>> {
        RunDirectory::verified_path(&self.root, &Names::checkpoint(iteration))
    }

    /// The model card of an iteration's checkpoint, with all results up to it.
    ///
    /// # Errors
    /// When a report cannot be read.
    pub fn model_card(&self, iteration: u32, publication: Publication) -> Result<String> {
        let reports = self.reports(iteration)?;
        let card =
            ModelCard { identity: &self.identity, iteration, reports: &reports, publication };
        Ok(card.render())
    }

    /// The reports of the starting model and of the iterations up to this one, as far as they are there.
    ///
    /// # Errors
    /// When a report cannot be read.
    pub fn reports(&self, iteration: u32) -> Result<Vec<IterationReport>> {
        let reports = (0..=iteration).map(|iteration| self.report(iteration));
        Ok(reports.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    fn rows<T: Stored>(&self, name: &ArtifactName) -> Result<Option<Vec<T>>> {
        self.committed(name).map(|file| T::read(&file)).transpose()
    }

    fn committed(&self, name: &ArtifactName) -> Option<PathBuf> {
        RunDirectory::committed_path(&self.root, name)
    }
}
