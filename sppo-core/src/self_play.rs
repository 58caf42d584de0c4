//! Self-play preference optimisation: Algorithm 1 of arXiv 2405.00675, top to bottom.
//!
//! ```text
//! for t = 1 .. T
//!     sample   K responses to each prompt from the policy pi_t
//!     judge    every pair of them: P(y_k > y_j | x)
//!     select   the responses to train on, each with its win rate P(y > pi_t | x)
//!     train    regress log(pi / pi_t) of each response onto eta (P(y > pi_t | x) - 1/2)
//!     the result is pi_{t+1}
//! ```
//!
//! A stage *makes* records, through the [`Session`]; the run directory *commits* them before the next stage
//! begins, long stages in shards. A stage whose result is already committed reads it instead, so resuming
//! after a crash is the same code as running.

mod artifacts;
mod commits;
mod evaluate;
mod kept;
mod record;

use std::path::PathBuf;
use std::time::Instant;

pub(crate) use artifacts::Names;
use evaluate::{Begun, Counts};
pub use kept::kept_answers;
pub use record::RunRecord;

use crate::datasets::{PromptSet, write_generated};
use crate::engine::{EngineWork, SamplingEngine};
use crate::error::Result;
use crate::metrics::MetricsObserver;
use crate::model_card::{MODEL_CARD, ModelCard, Publication};
use crate::observer::{Event, IterationReport, Observers, Stage};
use crate::oracle_quality::{ServiceMeter, VerdictCounts};
use crate::plugin::{Learner, Oracle, PluginError, Policy, Sampler, ServedWeights};
use crate::records::{Judgment, Prompt, ResponseStatistics, Rollout, TrainingExample};
use crate::run_directory::RunDirectory;
use crate::selection::SkipCounts;
use crate::session::Session;
use crate::stages::{self, ReferenceLogProbs, TokenizationRule, TrainingProgress};

use self::commits::Commits;

/// Directory within the run for files of the engine that samples.
const ENGINE_DIRECTORY: &str = "sampler";

/// Inputs of a run, beside its settings.
#[derive(Clone, Debug)]
pub struct RunInputs {
    /// The model that self-play starts from.
    pub starting_model: PathBuf,
    /// The prompts.
    pub prompts: PromptSet,
}

/// Plays all iterations, or those that are left, and reports on each; the first report (iteration 0)
/// is about the starting model. `engine` samples in place of the policy, where it is given. The numbers go to `metrics.jsonl` in the run directory.
///
/// # Errors
/// When a plugin or the run directory fails, or the observer cancels. What was committed stays.
pub fn self_play(
    session: Session<'_>,
    oracle: &mut dyn Oracle,
    mut engine: Option<SamplingEngine>,
    inputs: RunInputs,
    run: &mut RunDirectory,
) -> Result<Vec<IterationReport>> {
    let metrics = MetricsObserver::of_run(run.root());
    let service = ServiceMeter::default();
    let observer = &Observers(&[session.observer, &metrics, &service]);
    let session = Session { observer, ..session };
    let shards_per_call = session.backend.place().size;
    if let Some(engine) = &mut engine {
        engine.keep_files_in(run.root().join(ENGINE_DIRECTORY));
    }
    let service = &service;
    let mut play =
        SelfPlay { session, oracle, inputs, run, policy: None, engine, shards_per_call, service };
    let outcome = play.play();
    drop(play);
    metrics.outcome(outcome)
}

struct SelfPlay<'a> {
    session: Session<'a>,
    oracle: &'a mut dyn Oracle,
    inputs: RunInputs,
    run: &'a mut RunDirectory,
    /// The policy in memory, and the number of iterations that it is the result of.
    policy: Option<(u32, Box<dyn Policy>)>,
    /// The engine that samples in place of the policy, where there is one.
    engine: Option<SamplingEngine>,
    /// Shards that are sampled in one call; each is committed by itself.
    shards_per_call: usize,
    /// Counters of the service that the oracle asks.
    service: &'a ServiceMeter,
}

impl SelfPlay<'_> {
    fn play(&mut self) -> Result<Vec<IterationReport>> {
        let mut reports = vec![self.starting_report()?];
        for iteration in 1..=self.session.config.iterations {
            let report = match self.finished_report(iteration)? {
                Some(report) => report,
                None => self.iteration(iteration)?,
            };
            self.run.remove(&Names::training_state(iteration))?;
            reports.push(report);
        }
        Ok(reports)
    }

    /// One pass through the loop.
    fn iteration(&mut self, iteration: u32) -> Result<IterationReport> {
        let begun = Begun { at: Instant::now(), service: self.service.counters() };
        let Session { config, observer, .. } = self.session;
        observer.event(Event::IterationStarted { iteration, iterations: config.iterations });

        let rollouts = self.sample(iteration)?;
        let judgments = self.judge(iteration, &rollouts)?;
        let (examples, skipped, cut) = self.select(iteration, &rollouts, &judgments)?;
        let verdicts = VerdictCounts::of(&judgments);
        drop((rollouts, judgments));
        if examples.is_empty() {
            let notice = format!("iteration {iteration} leaves the model as it is: {skipped}");
            observer.event(Event::Notice(notice));
        }
        if cut > 0 {
            observer.event(Event::Notice(stages::cut_notice(cut, examples.len())));
        }
        let checkpoint = self.train(iteration, &examples)?;

        let counts = Counts { skipped, cut, verdicts };
        let report = self.evaluate(iteration, checkpoint, &examples, counts, &begun)?;
        observer.event(Event::IterationFinished(&report));
        Ok(report)
    }

    /// `y_1 .. y_K ~ pi_t(. | x)` for the prompts of this iteration.
    fn sample(&mut self, iteration: u32) -> Result<Vec<Rollout>> {
        let config = self.session.config;
        let all = &self.inputs.prompts.training;
        let prompts = config.prompts.of_iteration(all, iteration, config.iterations).to_vec();
        let pass = self.session.sampling_pass(u64::from(iteration));
        let meter = self.session.stage(Stage::Sample, pass.most_tokens(prompts.len()), "tokens");

        let shards: Vec<&[Prompt]> = prompts.chunks(config.sampling.prompts_per_shard).collect();
        let mut rollouts: Vec<Option<Vec<Rollout>>> = Vec::with_capacity(shards.len());
        for (shard, prompts) in shards.iter().enumerate() {
            rollouts.push(self.committed(&Names::rollouts(iteration, shard), prompts)?);
        }
        let missing: Vec<usize> =
            (0..shards.len()).filter(|shard| rollouts[*shard].is_none()).collect();
        let left: usize = missing.iter().map(|&shard| shards[shard].len()).sum();
        meter.advance(pass.most_tokens(prompts.len() - left));
        for together in missing.chunks(self.shards_per_call) {
            let asked: Vec<&[Prompt]> = together.iter().map(|&shard| shards[shard]).collect();
            let session = self.session;
            let made = self.sampled_by(iteration - 1, |sampler| {
                session.rollouts(&meter, sampler, &asked, &pass)
            })?;
            for (&shard, made) in together.iter().zip(made) {
                self.commit_rows(&Names::rollouts(iteration, shard), &made)?;
                rollouts[shard] = Some(made);
            }
        }
        let rollouts: Vec<Rollout> = rollouts.into_iter().flatten().flatten().collect();
        meter.finish(ResponseStatistics::of(&rollouts).to_string());
        Ok(rollouts)
    }

    /// `P(y_k > y_j | x)` for every pair of responses.
    fn judge(&mut self, iteration: u32, rollouts: &[Rollout]) -> Result<Vec<Judgment>> {
        let session = self.session;
        let meter = session.stage(Stage::Judge, rollouts.len() as u64, "prompts");
        let mut judgments: Vec<Judgment> = Vec::with_capacity(rollouts.len());
        let shards = rollouts.chunks(session.config.sampling.prompts_per_shard);
        for (shard, rollouts) in shards.enumerate() {
            let name = Names::judgments(iteration, shard);
            if let Some(committed) = self.committed(&name, rollouts)? {
                judgments.extend(committed);
                meter.advance(rollouts.len() as u64);
                continue;
            }
            let comparisons: Vec<_> = rollouts.iter().map(stages::comparison).collect();
            let judged = self.judged_after(iteration - 1, |oracle| {
                session.preferences(&meter, oracle, &comparisons, iteration)
            })?;
            let of_prompts = rollouts.iter().map(|rollout| rollout.prompt.id).zip(judged);
            let made: Vec<Judgment> =
                of_prompts.map(|(id, judged)| Judgment::new(id, judged)).collect();
            self.commit_rows(&name, &made)?;
            judgments.extend(made);
        }
        meter.finish(format!("{} comparisons", judgments.len()));
        let generated = Names::generated(iteration);
        if !self.run.has(&generated) {
            self.run.commit(&generated, |file| write_generated(file, rollouts, &judgments))?;
        }
        Ok(judgments)
    }

    /// The responses to train on, their win rates, and their reference log-probabilities
    /// `log pi_t(y | x)`; then the prompts without any, and the number of examples that were cut to fit.
    fn select(
        &mut self,
        iteration: u32,
        rollouts: &[Rollout],
        judgments: &[Judgment],
    ) -> Result<(Vec<TrainingExample>, SkipCounts, usize)> {
        let session = self.session;
        let training = &session.config.training;
        let (mut examples, skipped, mut cut) = stages::assemble(
            rollouts,
            judgments,
            &session.config.selection,
            &training.targets(),
            training.max_length,
        )?;
        let name = Names::training_set(iteration);
        if self.run.has(&name) {
            return Ok((self.rows(&name)?, skipped, cut));
        }
        session.require_running()?;
        if training.tokenization == TokenizationRule::Official {
            let policy = self.policy_after(iteration - 1)?;
            let settings = training.tokenization_settings(policy.info().context_length);
            cut = stages::retokenize(policy, &mut examples, settings)?;
        }
        if training.objective.requires().anchor {
            self.add_earlier_log_probs(iteration, &mut examples)?;
        }
        if training.reference_log_probs == ReferenceLogProbs::Recomputed {
            let policy = self.policy_after(iteration - 1)?;
            session.reference_log_probs(policy, &mut examples)?;
        }
        self.commit_rows(&name, &examples)?;
        Ok((examples, skipped, cut))
    }

    /// The log-probabilities under the starting model and under the policies before `pi_t`, which the objective
    /// stays near to: each policy is loaded again.
    fn add_earlier_log_probs(
        &mut self,
        iteration: u32,
        examples: &mut [TrainingExample],
    ) -> Result<()> {
        let session = self.session;
        let of_start = self.policy_after(0)?;
        session.response_log_probs(of_start, examples, |response, log_prob| {
            response.starting_log_prob = Some(log_prob);
            response.earlier_log_probs = Some(Vec::new());
        })?;
        let history = session.config.training.weights_of_earlier().len() as u32;
        for age in (1..history).take_while(|age| iteration > *age) {
            let earlier = self.policy_after(iteration - 1 - age)?;
            session.response_log_probs(earlier, examples, |response, log_prob| {
                response.earlier_log_probs.get_or_insert_default().push(log_prob);
            })?;
        }
        Ok(())
    }

    /// `theta_{t+1} = argmin E [ log(pi / pi_t) - eta (P(y > pi_t | x) - 1/2) ]^2`; returns the path of
    /// the checkpoint of `pi_{t+1}`.
    fn train(&mut self, iteration: u32, examples: &[TrainingExample]) -> Result<PathBuf> {
        let name = Names::checkpoint(iteration);
        if self.run.has(&name) {
            return self.run.path(&name);
        }
        let session = self.session;
        let pass = session.training_pass(iteration);
        let (mut policy, mut progress) = self.policy_in_training(iteration)?;
        let (begun_at, steps) = (progress.step, pass.settings.steps(examples.len()));
        let mut commits = Commits::new(session.config.training.commit_interval());
        let run = &mut *self.run;
        let mut commit = |policy: &mut dyn Learner, progress: TrainingProgress| {
            if progress.step < steps && commits.is_due(progress.step) {
                commits.timed(|| {
                    artifacts::commit_training_state(run, iteration, policy, examples, progress)
                })?;
            }
            Ok(())
        };
        let trained = session.train(policy.as_mut(), examples, &pass, &mut progress, &mut commit);
        if matches!(trained, Err(crate::Error::Cancelled)) && progress.step > begun_at {
            artifacts::commit_training_state(run, iteration, policy.as_mut(), examples, progress)?;
        }
        trained?;

        stages::require_finite(policy.as_mut(), examples)?;
        let saving = session.stage(Stage::Save, 1, "checkpoint");
        let card = self.card(iteration)?;
        let path = self.run.commit(&name, |directory| {
            policy.save(directory).map_err(|error| artifacts::not_saved(directory, error))?;
            artifacts::write_text(&directory.join(MODEL_CARD), &card)
        })?;
        // Nothing of what training kept is needed any more, and sampling needs room.
        policy.end_training()?;
        self.policy = Some((iteration, policy));
        saving.finish(path.display().to_string());
        Ok(path)
    }

    /// The model card of an iteration's checkpoint, with the results of those before it.
    fn card(&mut self, iteration: u32) -> Result<String> {
        let earlier = (0..iteration).map(|earlier| self.finished_report(earlier));
        let reports: Vec<IterationReport> =
            earlier.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
        let identity = self.run.identity();
        let card = ModelCard {
            identity,
            iteration,
            reports: &reports,
            publication: Publication::default(),
        };
        Ok(card.render())
    }

    /// Samples from the policy `pi_{t}` after `iterations` iterations: by itself, or by the engine that holds its
    /// weights.
    fn sampled_by<T>(
        &mut self,
        iterations: u32,
        sample: impl FnOnce(&mut dyn Sampler) -> Result<T>,
    ) -> Result<T> {
        self.policy_after(iterations)?;
        let version = format!("{}/iteration-{iterations}", self.session.config.name);
        let weights = ServedWeights { path: self.weights_after(iterations)?, version };
        let pass = self.session.sampling_pass(0);
        let Self { session, inputs, policy: Some((_, policy)), engine, .. } = self else {
            return Err(PluginError::failed("the policy was not loaded").into());
        };
        let PromptSet { training, held_out } = &inputs.prompts;
        let work = EngineWork { prompts: &[training, held_out], pass: &pass, weights_change: true };
        session.sampled_by(engine.as_mut(), policy.as_mut(), &weights, work, sample)
    }

    /// Has the oracle judge, with the policy after `iterations` iterations at its disposal if it asks the policy.
    fn judged_after<T>(
        &mut self,
        iterations: u32,
        judge: impl FnOnce(&mut dyn Oracle) -> Result<T>,
    ) -> Result<T> {
        let Some(lent) = self.session.lent_policy.filter(|lent| lent.is_wanted()) else {
            return judge(self.oracle);
        };
        let policy = self.take_policy_after(iterations)?;
        let (policy, judged) = lent.lend(policy, || judge(self.oracle));
        self.policy = policy.map(|policy| (iterations, policy));
        judged
    }

    fn log_prob_difference(&self) -> Option<f64> {
        self.engine.as_ref()?.log_prob_difference()
    }

    /// Path of the weights after `iterations` iterations.
    fn weights_after(&self, iterations: u32) -> Result<PathBuf> {
        match iterations {
            0 => Ok(self.inputs.starting_model.clone()),
            _ => self.run.path(&Names::checkpoint(iterations)),
        }
    }

    /// The policy `pi_{t}` after `iterations` iterations, which stays in memory.
    fn policy_after(&mut self, iterations: u32) -> Result<&mut dyn Policy> {
        let policy = self.take_policy_after(iterations)?;
        Ok(self.policy.insert((iterations, policy)).1.as_mut())
    }

    /// The policy `pi_{t}` after `iterations` iterations: the one in memory if it is that, else loaded
    /// from its checkpoint.
    fn take_policy_after(&mut self, iterations: u32) -> Result<Box<dyn Policy>> {
        // Another policy is given up before this one is loaded.
        if let Some((_, policy)) = self.policy.take().filter(|(after, _)| *after == iterations) {
            return Ok(policy);
        }
        let path = self.weights_after(iterations)?;
        self.session.load_for_training(&path)
    }

    /// The policy ready to be trained in this iteration: from a state that an earlier process left,
    /// or from `pi_t` with a fresh optimiser.
    fn policy_in_training(
        &mut self,
        iteration: u32,
    ) -> Result<(Box<dyn Policy>, TrainingProgress)> {
        let state = Names::training_state(iteration);
        if !self.run.has(&state) {
            let mut policy = self.take_policy_after(iteration - 1)?;
            self.session.begin_training(policy.as_mut())?;
            return Ok((policy, TrainingProgress::default()));
        }
        self.policy = None;
        let directory = self.run.path(&state)?;
        let mut policy = self.session.load_for_training(&artifacts::weights_in(&directory))?;
        self.session.begin_training(policy.as_mut())?;
        let progress = artifacts::restore_training_state(policy.as_mut(), &directory)?;
        Ok((policy, progress))
    }
}

#[cfg(test)]
mod tests;
