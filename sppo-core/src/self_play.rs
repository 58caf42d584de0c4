//! Self-play preference optimisation: Algorithm 1 of arXiv 2405.00675, top to bottom.
//!
//! ```text
//! for t = 1 .. T
//!     sample   K answers to each prompt from the policy pi_t
//!     judge    every pair of them: P(y_k > y_j | x)
//!     select   the answers to train on, each with its win rate P(y > pi_t | x)
//!     regress  log(pi / pi_t) of each answer onto eta (P(y > pi_t | x) - 1/2)
//!     the result is pi_{t+1}
//! ```
//!
//! Everything that a stage produces is committed to the run directory before the next stage begins,
//! long stages in shards. A stage whose result is already there reads it instead, so going on after
//! a crash is the same code as running.

mod artifacts;
mod evaluate;
mod prompt_set;

use std::path::PathBuf;
use std::time::Instant;

use artifacts::{Names, StageMeter};
pub use prompt_set::PromptSet;

use crate::config::Config;
use crate::datasets::write_generated;
use crate::error::Result;
use crate::observer::{Event, IterationReport, Observer, PluginServices, Stage};
use crate::plugin::{Backend, Oracle, Policy};
use crate::plugins::PluginRegistry;
use crate::records::{Judgment, Rollout, TrainingExample};
use crate::run_directory::RunDirectory;
use crate::selection::SkipCounts;
use crate::stages::{
    self, ReferenceLogProbs, SamplingPass, TokenizationRule, TrainingPass, TrainingProgress,
};

/// Who plays, by which rules.
pub struct Game<'a> {
    /// All settings.
    pub config: &'a Config,
    /// Holds and trains the policy.
    pub backend: &'a dyn Backend,
    /// Judges the answers.
    pub oracle: &'a mut dyn Oracle,
    /// What these two may use.
    pub plugins: &'a PluginRegistry,
    /// The model that self-play starts from.
    pub starting_model: PathBuf,
    /// The prompts.
    pub prompts: PromptSet,
    /// Watches, and may stop the run.
    pub observer: &'a dyn Observer,
}

/// Plays all iterations, or those that are left, and reports on each; the first report (iteration 0)
/// is about the starting model.
///
/// # Errors
/// When a plugin or the run directory fails, or the observer cancels. What was committed stays.
pub fn self_play(game: Game<'_>, run: &mut RunDirectory) -> Result<Vec<IterationReport>> {
    let iterations = game.config.iterations;
    let mut play = SelfPlay { game, run, policy: None };
    let mut reports = vec![play.starting_report()?];
    for iteration in 1..=iterations {
        let report = match play.finished_report(iteration)? {
            Some(report) => report,
            None => play.iteration(iteration)?,
        };
        play.run.remove(&Names::training_state(iteration))?;
        reports.push(report);
    }
    Ok(reports)
}

impl<'a> Game<'a> {
    fn services(&self) -> PluginServices<'a> {
        PluginServices { backend: Some(self.backend), plugins: self.plugins, config: self.config }
    }
}

struct SelfPlay<'a, 'r> {
    game: Game<'a>,
    run: &'r mut RunDirectory,
    /// The policy in memory, and the number of iterations that it is the result of.
    policy: Option<(u32, Box<dyn Policy>)>,
}

impl SelfPlay<'_, '_> {
    /// One pass through the loop.
    fn iteration(&mut self, iteration: u32) -> Result<IterationReport> {
        let started = Instant::now();
        let iterations = self.game.config.iterations;
        self.game.observer.event(Event::IterationStarted { iteration, iterations });

        let rollouts = self.sample(iteration)?;
        let judgments = self.judge(iteration, &rollouts)?;
        let (examples, skipped) = self.select(iteration, &rollouts, &judgments)?;
        drop((rollouts, judgments));
        if examples.is_empty() {
            let notice = format!("iteration {iteration} leaves the model as it is: {skipped}");
            self.game.observer.event(Event::Notice(notice));
        }
        let checkpoint = self.regress(iteration, &examples)?;

        let report = self.evaluate(iteration, checkpoint, &examples, skipped, started)?;
        self.game.observer.event(Event::IterationFinished(&report));
        Ok(report)
    }

    /// `y_1 .. y_K ~ pi_t(. | x)` for the prompts of this iteration.
    fn sample(&mut self, iteration: u32) -> Result<Vec<Rollout>> {
        let config = self.game.config;
        let prompts = config
            .prompts
            .of_iteration(&self.game.prompts.training, iteration, config.iterations)
            .to_vec();
        let answers_per_prompt = config.sampling.samples_per_prompt;
        let tokens_per_prompt = (answers_per_prompt * config.sampling.max_new_tokens) as u64;
        let meter = StageMeter::start(
            self.game.observer,
            Stage::Sample,
            prompts.len() as u64 * tokens_per_prompt,
            "tokens",
        );

        let parameters = config.sampling.parameters();
        let pass = SamplingPass {
            samples_per_prompt: answers_per_prompt,
            parameters: &parameters,
            rule: config.training.tokenization,
            seed: config.seed,
            stream: u64::from(iteration),
        };
        let mut rollouts: Vec<Rollout> = Vec::with_capacity(prompts.len());
        for (shard, prompts) in prompts.chunks(config.sampling.prompts_per_shard).enumerate() {
            let name = Names::rollouts(iteration, shard);
            let answered = self.table(&name, |play| {
                let host = meter.host(play.game.services());
                stages::sample(play.policy_after(iteration - 1)?, prompts, &pass, &host)
            })?;
            self.require_prompts(&name, &answered, prompts)?;
            rollouts.extend(answered);
            meter.advance(prompts.len() as u64 * tokens_per_prompt);
        }
        let (tokens, ended) = stages::length_statistics(&rollouts);
        meter.finish(format!(
            "{} answers, {tokens:.0} tokens on average, {:.0} % ended by themselves",
            rollouts.len() * answers_per_prompt,
            100.0 * ended
        ));
        Ok(rollouts)
    }

    /// `P(y_k > y_j | x)` for every pair of answers.
    fn judge(&mut self, iteration: u32, rollouts: &[Rollout]) -> Result<Vec<Judgment>> {
        let config = self.game.config;
        let settings = config.preference;
        let meter =
            StageMeter::start(self.game.observer, Stage::Judge, rollouts.len() as u64, "prompts");
        let mut judgments: Vec<Judgment> = Vec::with_capacity(rollouts.len());
        for (shard, rollouts) in rollouts.chunks(config.sampling.prompts_per_shard).enumerate() {
            let name = Names::judgments(iteration, shard);
            let judged = self.table(&name, |play| {
                let host = meter.host(play.game.services());
                let comparisons: Vec<_> = rollouts.iter().map(stages::comparison).collect();
                let judged = stages::judge(play.game.oracle, &comparisons, &settings, &host)
                    .map_err(|error| {
                        error.from_plugin(format!("oracle `{}`", config.oracle.name))
                    })?;
                Ok(rollouts
                    .iter()
                    .zip(&judged)
                    .map(|(rollout, judged)| stages::judgment(rollout, judged))
                    .collect())
            })?;
            self.require_prompts(&name, &judged, rollouts)?;
            judgments.extend(judged);
            meter.advance(rollouts.len() as u64);
        }
        meter.finish(format!("{} comparisons", judgments.len()));
        let generated = Names::generated(iteration);
        if !self.run.has(&generated) {
            self.run.commit(&generated, |file| write_generated(file, rollouts, &judgments))?;
        }
        Ok(judgments)
    }

    /// The answers to train on, their win rates, and their reference log-probabilities
    /// `log pi_t(y | x)`.
    fn select(
        &mut self,
        iteration: u32,
        rollouts: &[Rollout],
        judgments: &[Judgment],
    ) -> Result<(Vec<TrainingExample>, SkipCounts)> {
        let config = self.game.config;
        let (mut examples, skipped) =
            stages::assemble(rollouts, judgments, &config.selection, config.training.max_length)?;
        let examples = self.table(&Names::training_set(iteration), |play| {
            if config.training.tokenization == TokenizationRule::Official {
                let policy = play.policy_after(iteration - 1)?;
                let settings = config.training.tokenization_settings(policy.info().context_length);
                stages::retokenize(policy, &mut examples, settings)?;
            }
            if config.training.reference_log_probs == ReferenceLogProbs::Recomputed {
                play.reference_log_probs(iteration, &mut examples)?;
            }
            Ok(examples)
        })?;
        Ok((examples, skipped))
    }

    fn reference_log_probs(
        &mut self,
        iteration: u32,
        examples: &mut [TrainingExample],
    ) -> Result<()> {
        let micro_batch_tokens = self.game.config.training.micro_batch_tokens;
        let meter = StageMeter::start(
            self.game.observer,
            Stage::Reference,
            examples.len() as u64,
            "examples",
        );
        let policy = self.policy_after(iteration - 1)?;
        stages::reference_log_probs(policy, examples, micro_batch_tokens, |done| {
            meter.reach(done as u64)
        })?;
        meter.finish(String::new());
        Ok(())
    }

    /// `theta_{t+1} = argmin E [ log(pi / pi_t) - eta (P(y > pi_t | x) - 1/2) ]^2`; returns where the
    /// checkpoint of `pi_{t+1}` lies.
    fn regress(&mut self, iteration: u32, examples: &[TrainingExample]) -> Result<PathBuf> {
        let name = Names::checkpoint(iteration);
        if self.run.has(&name) {
            return self.run.path(&name);
        }
        let config = self.game.config;
        let settings = &config.training;
        let seed = config.seed.wrapping_add(u64::from(iteration));
        let (mut policy, mut progress) = self.policy_in_training(iteration)?;
        let meter = StageMeter::start(
            self.game.observer,
            Stage::Train,
            settings.steps(examples.len()),
            "steps",
        );
        meter.reach(progress.step)?;

        let commit_every = config.training.commit_every_steps.max(1);
        let run = &mut *self.run;
        stages::train(
            policy.as_mut(),
            examples,
            &TrainingPass { settings, seed },
            iteration,
            &mut progress,
            self.game.observer,
            |policy, progress| {
                meter.reach(progress.step)?;
                let finished = progress.step == settings.steps(examples.len());
                if progress.step % commit_every == 0 && !finished {
                    artifacts::commit_training_state(run, iteration, policy, examples, progress)?;
                }
                Ok(())
            },
        )
        .or_else(|error| {
            artifacts::keep_progress(run, iteration, policy.as_mut(), examples, progress, error)
        })?;
        meter.finish(String::new());

        stages::require_finite(policy.as_mut(), examples)?;
        let saving = StageMeter::start(self.game.observer, Stage::Save, 1, "checkpoint");
        let path = self.run.commit(&name, |directory| {
            policy.save(directory).map_err(|error| artifacts::not_saved(directory, error))
        })?;
        self.policy = Some((iteration, policy));
        saving.finish(path.display().to_string());
        Ok(path)
    }

    /// The policy `pi_{t}` after `iterations` iterations: the one in memory if it is that, else loaded
    /// from its checkpoint.
    fn policy_after(&mut self, iterations: u32) -> Result<&mut dyn Policy> {
        if self.policy.as_ref().is_none_or(|(loaded, _)| *loaded != iterations) {
            self.policy = None;
            let path = match iterations {
                0 => self.game.starting_model.clone(),
                _ => self.run.path(&Names::checkpoint(iterations))?,
            };
            let policy = self.load(path)?;
            self.policy = Some((iterations, policy));
        }
        match &mut self.policy {
            Some((_, policy)) => Ok(policy.as_mut()),
            None => unreachable!("the policy was loaded just above"),
        }
    }

    /// The policy ready to be trained in this iteration: from a state that an earlier process left,
    /// or from `pi_t` with a fresh optimiser.
    fn policy_in_training(
        &mut self,
        iteration: u32,
    ) -> Result<(Box<dyn Policy>, TrainingProgress)> {
        let optimizer = &self.game.config.training.optimizer;
        let state = Names::training_state(iteration);
        if self.run.has(&state) {
            self.policy = None;
            let directory = self.run.path(&state)?;
            let mut policy = self.load(artifacts::weights_in(&directory))?;
            policy.begin_training(optimizer)?;
            let progress = artifacts::restore_training_state(policy.as_mut(), &directory)?;
            return Ok((policy, progress));
        }
        self.policy_after(iteration - 1)?;
        match self.policy.take() {
            Some((_, mut policy)) => {
                policy.begin_training(optimizer)?;
                Ok((policy, TrainingProgress::default()))
            }
            None => unreachable!("the policy was loaded just above"),
        }
    }

    fn load(&self, path: PathBuf) -> Result<Box<dyn Policy>> {
        let meter = StageMeter::start(self.game.observer, Stage::Load, 1, "model");
        let spec = self.game.config.policy_spec(path);
        let policy = self.game.backend.load_policy(&spec)?;
        meter.finish(spec.path.display().to_string());
        Ok(policy)
    }
}
