//! `sppo generate`: prompts in, candidates out.

use sppo_core::datasets::{CandidateSet, Stored, write_candidates};
use sppo_core::observer::Stage;
use sppo_core::plugin::Policy;
use sppo_core::records::{Prompt, Rollout};
use sppo_core::stages::{self, SamplingPass};

use super::session::Session;
use crate::args::{GenerateArguments, SamplingArguments};
use crate::failure::Result;
use crate::models;
use crate::output::RowsTo;
use crate::prompts;
use crate::settings::{Flags, SettingFlags};
use crate::terminal::{Terminal, percent};

impl SettingFlags for GenerateArguments {
    fn add_to(&self, flags: &mut Flags) -> sppo_core::Result<()> {
        flags.set_path("PROMPTS", "prompts.train", self.prompts.as_deref())?;
        self.seed.add_to(flags)
    }
}

pub(super) fn generate(arguments: &GenerateArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.model, &arguments.backend, arguments])?;
    let session = Session::open(arguments.settings.resolve(flags)?.config, terminal)?;
    let file = session.config.prompts.train.as_deref();
    let mut prompts = prompts::training(file)?;
    prompts.truncate(session.config.prompts.limit.unwrap_or(usize::MAX));
    let candidates_to = RowsTo::new(arguments.output.as_deref())?;
    let rollouts_to =
        arguments.rollouts.as_deref().map(|path| RowsTo::new(Some(path))).transpose()?;

    let model = session.find_model(arguments.model.offline)?;
    models::check_prompts(&models::open(&model)?, &prompts, file, None)?;
    let mut policy = session.load(model)?;
    let rollouts = answer(&session, &arguments.sampling, policy.as_mut(), &prompts)?;

    let sets: Vec<CandidateSet> = rollouts.iter().map(CandidateSet::from_rollout).collect();
    write_candidates(candidates_to.path(), &sets)?;
    if let Some(rollouts_to) = rollouts_to {
        Rollout::write(rollouts_to.path(), &rollouts)?;
    }
    candidates_to.finish(sets.len(), arguments.report)
}

fn answer(
    session: &Session,
    typed: &SamplingArguments,
    policy: &mut dyn Policy,
    prompts: &[Prompt],
) -> Result<Vec<Rollout>> {
    let sampling = typed.over(session.config.sampling.clone())?;
    let (samples, parameters) = (sampling.samples_per_prompt, sampling.parameters());
    let pass = SamplingPass {
        samples_per_prompt: samples,
        parameters: &parameters,
        rule: session.config.training.tokenization,
        seed: session.config.seed,
        stream: 1,
    };
    let tokens_per_prompt = samples * parameters.max_new_tokens;
    let meter = session.stage(Stage::Sample, prompts.len() * tokens_per_prompt, "tokens");
    let mut rollouts = Vec::with_capacity(prompts.len());
    for part in prompts.chunks(sampling.prompts_per_shard) {
        let answered = stages::sample(policy, part, &pass, &meter.host())
            .map_err(|error| session.blame_backend(error))?;
        rollouts.extend(answered);
        meter.reach(rollouts.len() * tokens_per_prompt)?;
    }
    let (tokens, ended) = stages::length_statistics(&rollouts);
    meter.finish(format!("{tokens:.0} tokens on average, {} ended by themselves", percent(ended)));
    Ok(rollouts)
}
