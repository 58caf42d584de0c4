//! What runs of a comparison share: work of one run that another would do again to the last bit.
//!
//! Runs that start from the same model with the same seed give the same answers to the held-out prompts before
//! they have learned anything, and sample and judge the same responses in their first iteration, whatever
//! they then learn from them. The artefacts are copied from the run that made them, so that each run's
//! directory is complete.

use std::path::Path;

use crate::datasets::Stored;
use crate::error::Result;
use crate::files::run_directory_error;
use crate::records::Rollout;
use crate::run_directory::{ArtifactName, RunDirectory};
use crate::self_play::{Names, RunInputs};

/// Settings that come into play after the first responses are sampled and judged.
const LATER: [&str; 25] = [
    "name",
    "run_directory",
    "selection",
    "training.baseline",
    "training.commit_every",
    "training.commit_every_steps",
    "training.epochs",
    "training.eta",
    "training.global_batch_size",
    "training.gradient_dtype",
    "training.history_weights",
    "training.label_smoothing",
    "training.learning_rate",
    "training.max_gradient_norm",
    "training.micro_batch_tokens",
    "training.objective",
    "training.optimizer",
    "training.planned_epochs",
    "training.reference_log_probs",
    "training.reference_share",
    "training.schedule",
    "training.score_limit",
    "training.sharding",
    "training.target",
    "training.warmup_ratio",
];
/// Settings of whoever judges what was sampled.
const OF_ORACLE: [&str; 3] = ["oracle", "preference", "plugin.oracle"];
/// Settings of the training prompts and of the responses to them.
const OF_TRAINING_PROMPTS: [&str; 4] =
    ["iterations", "prompts", "sampling.samples_per_prompt", "sampling.prompts_per_shard"];

/// Copies into `run` what `donor`, another run of the comparison, has committed and `run` would make anew: the
/// starting model's answers to the held-out prompts, and the responses and judgments of the first iteration.
/// Returns the number of artefacts.
///
/// # Errors
/// When a directory cannot be read or written.
pub fn share(run: &mut RunDirectory, donor: &Path, inputs: &RunInputs) -> Result<usize> {
    let is_equal_but_for = |keys: &[&[&str]]| run.is_like(donor, &keys.concat());
    let start = is_equal_but_for(&[&LATER, &OF_ORACLE, &OF_TRAINING_PROMPTS])?;
    let responses = is_equal_but_for(&[&LATER, &OF_ORACLE, &["evaluation"]])?;
    let judgments = is_equal_but_for(&[&LATER, &["evaluation"]])?;

    let mut copied = 0;
    // The files of prompts may have changed under their names.
    if start && answers_these(donor, inputs)? {
        copied += usize::from(copy(run, donor, &Names::held_out(0))?);
    }
    if responses {
        copied += copy_shards(run, donor, |shard| Names::rollouts(1, shard))?;
    }
    if judgments {
        copied += copy_shards(run, donor, |shard| Names::judgments(1, shard))?;
    }
    Ok(copied)
}

/// Whether the donor's answers of the starting model are to the held-out prompts of these inputs.
fn answers_these(donor: &Path, inputs: &RunInputs) -> Result<bool> {
    let Some(file) = RunDirectory::verified_path(donor, &Names::held_out(0))? else {
        return Ok(false);
    };
    let answered = Rollout::read(&file)?;
    Ok(answered.iter().map(|rollout| &rollout.prompt).eq(&inputs.prompts.held_out))
}

/// Copies the shards that the donor has, from the first on.
fn copy_shards(
    run: &mut RunDirectory,
    donor: &Path,
    name: impl Fn(usize) -> ArtifactName,
) -> Result<usize> {
    let mut copied = 0;
    for shard in 0.. {
        let name = name(shard);
        if run.has(&name) {
            continue;
        }
        if !copy(run, donor, &name)? {
            break;
        }
        copied += 1;
    }
    Ok(copied)
}

/// Copies a file that the donor has unaltered and the run has not; returns whether it did.
fn copy(run: &mut RunDirectory, donor: &Path, name: &ArtifactName) -> Result<bool> {
    if run.has(name) {
        return Ok(false);
    }
    let Some(source) = RunDirectory::verified_path(donor, name)? else { return Ok(false) };
    run.commit(name, |file| {
        std::fs::copy(&source, file)
            .map(|_| ())
            .map_err(|error| run_directory_error(file, "write this file", &error))
    })?;
    Ok(true)
}
