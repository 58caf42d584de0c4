//! Answers that a run has kept, found again by the checkpoint that gave them.

use std::path::{Path, PathBuf};

use super::artifacts::Names;
use crate::config::Config;
use crate::datasets::Stored;
use crate::error::Result;
use crate::records::{Prompt, Rollout};
use crate::run_directory::RunDirectory;
use crate::stages::SamplingPass;

/// The answers to these prompts that the run which made this checkpoint has kept, with their file: what
/// sampling them once more would give. `None` if `model` is no unaltered checkpoint of a run, or the run
/// answered other prompts or sampled in another way.
///
/// # Errors
/// When the run's files cannot be read.
pub fn kept_answers(
    model: &Path,
    config: &Config,
    prompts: &[Prompt],
    pass: &SamplingPass,
) -> Result<Option<(PathBuf, Vec<Rollout>)>> {
    let Some((run, iteration)) = run_of(model) else { return Ok(None) };
    let Ok(identity) = RunDirectory::read_identity(&run) else { return Ok(None) };
    let recorded = identity.config;
    let is_sampled_alike = recorded.backend == config.backend
        && recorded.sampler == config.sampler
        && recorded.template_variables == config.template_variables
        && recorded.sampling.parameters() == pass.parameters
        && recorded.evaluation.samples_per_prompt == pass.samples_per_prompt
        && recorded.training.tokenization == pass.tokenization
        && recorded.seed == pass.seed;
    if !is_sampled_alike {
        return Ok(None);
    }
    let Some(file) = RunDirectory::verified_path(&run, &Names::held_out(iteration))? else {
        return Ok(None);
    };
    let answers = Rollout::read(&file)?;
    let is_asked =
        |(rollout, prompt): (&Rollout, &Prompt)| rollout.prompt.messages == prompt.messages;
    let are_answers = answers.len() == prompts.len() && answers.iter().zip(prompts).all(is_asked);
    // Last, because it reads all weights.
    let is_unaltered = || RunDirectory::verified_path(&run, &Names::checkpoint(iteration));
    Ok((are_answers && is_unaltered()?.is_some()).then_some((file, answers)))
}

/// The run directory and the iteration of a checkpoint, by its path.
pub(super) fn run_of(model: &Path) -> Option<(PathBuf, u32)> {
    let model = std::path::absolute(model).ok()?;
    let directory = model.parent()?;
    let iteration = directory.file_name()?.to_str()?.strip_prefix("iteration-")?.parse().ok()?;
    let run = directory.parent()?;
    Names::checkpoint(iteration).is_at(run, &model).then(|| (run.to_path_buf(), iteration))
}
