//! `sppo generate`: prompts in, candidates out.

use sppo_core::datasets::{CandidateSet, Stored, write_candidates};
use sppo_core::engine::EngineWork;
use sppo_core::records::Rollout;
use sppo_core::stages::SamplingPass;

use super::session::{Setup, served};
use crate::args::GenerateArguments;
use crate::failure::Result;
use crate::output::{self, RowsTo};
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::Terminal;

/// The stream of random draws of a run's first iteration, so that its rollouts are these.
const STREAM: u64 = 1;

impl SettingFlags for GenerateArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        flags.set_path("PROMPTS", "prompts.train", self.prompts.as_deref())?;
        self.seed.add_to(flags)
    }
}

pub(super) fn generate(arguments: &GenerateArguments, terminal: &Terminal) -> Result<()> {
    let GenerateArguments { settings, model, backend, sampler, .. } = arguments;
    let flags = Flags::of(&[settings, model, backend, sampler, arguments])?;
    let setup = Setup::new(arguments.settings.resolve(flags)?.config, terminal)?;
    let file = setup.config.prompts.train.as_deref();
    let mut prompts = prompts::training(file, &setup.config.prompts.columns)?;
    prompts.truncate(setup.config.prompts.limit.unwrap_or(usize::MAX));
    let candidates_to = RowsTo::new(arguments.output.as_deref())?;
    let rollouts_to =
        arguments.rollouts.as_deref().map(|path| RowsTo::new(Some(path))).transpose()?;
    output::require_distinct(
        &[("--output", arguments.output.as_deref()), ("--rollouts", arguments.rollouts.as_deref())],
        &[("PROMPTS", file)],
    )?;

    let sampling = arguments.sampling.over(setup.config.sampling.clone())?;

    let model = setup.find_model(arguments.model.offline)?;
    model.check_prompts(&prompts, file, None)?;
    let path = model.path.clone();
    let session = setup.session();
    let mut engine = session.sampling_engine()?;
    let mut policy = setup.load(model)?;
    let pass = SamplingPass {
        samples_per_prompt: sampling.samples_per_prompt,
        parameters: sampling.parameters(),
        ..session.sampling_pass(STREAM)
    };
    let work = EngineWork { prompts: &[&prompts], pass: &pass, weights_change: false };
    let (policy, weights) = (policy.as_mut(), served(path));
    let rollouts = session.sampled_by(engine.as_mut(), policy, &weights, work, |sampler| {
        session.sample(sampler, &prompts, &pass)
    })?;

    let sets: Vec<CandidateSet> = rollouts.iter().map(CandidateSet::from_rollout).collect();
    write_candidates(candidates_to.path(), &sets)?;
    if let Some(rollouts_to) = rollouts_to {
        Rollout::write(rollouts_to.path(), &rollouts)?;
    }
    candidates_to.finish(sets.len(), arguments.report)
}
