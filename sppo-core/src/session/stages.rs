//! The stages as a session runs them: each tells the observer of its progress, and takes what it can from
//! the settings.

use std::path::Path;

use super::{Session, StageMeter};
use crate::datasets::{LabelledPair, ScoredResponse};
use crate::error::Result;
use crate::evaluation::{self, JudgedPair};
use crate::observer::{Event, Stage, TrainingStep};
use crate::oracle_quality::LabelledVerdict;
use crate::plugin::{Comparison, Learner, Oracle, Sampler};
use crate::records::{
    DuelVerdict, Prompt, ResponseStatistics, Rollout, TrainingExample, TrainingResponse,
};
use crate::stages::{
    self, JudgedComparison, LabelDraw, SamplingPass, TokenizedResponse, TrainingPass,
    TrainingProgress,
};
use crate::statistics::{Bootstrap, Interval};

/// Iteration `t` samples on stream `t`; all models that are compared share this one, so that two equal
/// models give equal responses.
const EVALUATION_STREAM: u64 = u64::MAX;

/// Labelled pairs that an oracle is asked about in one call: an even number.
const LABELLED_PAIRS_PER_CALL: usize = 256;

/// Training examples that changes of log-probability are measured on.
const MEASURED_EXAMPLES: usize = 16;

/// Losses of a training stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TrainingSummary {
    /// Optimiser steps taken.
    pub steps: usize,
    /// Mean loss of the first step, before its update.
    pub first_loss: Option<f64>,
    /// Mean loss of the last step, before its update.
    pub last_loss: Option<f64>,
}

impl TrainingSummary {
    fn add(&mut self, step: &TrainingStep) {
        self.steps += 1;
        self.first_loss.get_or_insert(step.loss);
        self.last_loss = Some(step.loss);
    }
}

impl<'a> Session<'a> {
    /// Sampling as the settings say, on a stream of random draws; iteration `t` uses stream `t`.
    #[must_use]
    pub fn sampling_pass(&self, stream: u64) -> SamplingPass {
        SamplingPass {
            samples_per_prompt: self.config.sampling.samples_per_prompt,
            parameters: self.config.sampling.parameters(),
            tokenization: self.config.training.tokenization,
            seed: self.config.seed,
            stream,
        }
    }

    /// Sampling as the settings say for comparing models.
    #[must_use]
    pub fn evaluation_pass(&self) -> SamplingPass {
        SamplingPass {
            samples_per_prompt: self.config.evaluation.samples_per_prompt,
            ..self.sampling_pass(EVALUATION_STREAM)
        }
    }

    /// Samples responses to all prompts, one shard after the other.
    ///
    /// # Errors
    /// As [`stages::sample`], or when the observer cancels.
    pub fn sample(
        &self,
        sampler: &mut dyn Sampler,
        prompts: &[Prompt],
        pass: &SamplingPass,
    ) -> Result<Vec<Rollout>> {
        let meter = self.stage(Stage::Sample, pass.most_tokens(prompts.len()), "tokens");
        let mut rollouts = Vec::with_capacity(prompts.len());
        let shards: Vec<&[Prompt]> =
            prompts.chunks(self.config.sampling.prompts_per_shard).collect();
        for together in shards.chunks(sampler.info().replicas.max(1)) {
            rollouts.extend(self.rollouts(&meter, sampler, together, pass)?.concat());
        }
        meter.finish(ResponseStatistics::of(&rollouts).to_string());
        Ok(rollouts)
    }

    /// Samples responses to held-out prompts in one call, to compare models by.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn sample_held_out(
        &self,
        sampler: &mut dyn Sampler,
        prompts: &[Prompt],
        pass: &SamplingPass,
    ) -> Result<Vec<Rollout>> {
        let meter = self.stage(Stage::Evaluate, pass.most_tokens(prompts.len()), "tokens");
        let part = prompts.len().div_ceil(sampler.info().replicas.max(1)).max(1);
        let parts: Vec<&[Prompt]> = prompts.chunks(part).collect();
        let rollouts = self.rollouts(&meter, sampler, &parts, pass)?.concat();
        meter.finish(format!("{} held-out prompts", rollouts.len()));
        Ok(rollouts)
    }

    /// Makes the rollouts of some of a sampling stage's prompts, in parts that are sampled at the same
    /// time where the policy has replicas.
    ///
    /// # Errors
    /// As [`Self::sample`].
    pub fn rollouts(
        &self,
        meter: &StageMeter<'_>,
        sampler: &mut dyn Sampler,
        parts: &[&[Prompt]],
        pass: &SamplingPass,
    ) -> Result<Vec<Vec<Rollout>>> {
        self.require_running()?;
        let rollouts = stages::sample(sampler, parts, pass, &meter.host())?;
        let responses = rollouts.iter().flatten().flat_map(|rollout| &rollout.responses);
        meter.count_tokens(responses.map(|response| response.tokens.len() as u64).sum());
        meter.advance(pass.most_tokens(parts.iter().map(|prompts| prompts.len()).sum()));
        Ok(rollouts)
    }

    /// Asks the oracle about all comparisons, as the settings want it for training, one shard after the other.
    ///
    /// # Errors
    /// As [`stages::judge`], or when the observer cancels.
    pub fn judge(
        &self,
        oracle: &mut dyn Oracle,
        comparisons: &[Comparison<'_>],
    ) -> Result<Vec<JudgedComparison>> {
        let meter = self.stage(Stage::Judge, comparisons.len() as u64, "prompts");
        let mut judged = Vec::with_capacity(comparisons.len());
        for shard in comparisons.chunks(self.config.sampling.prompts_per_shard) {
            judged.extend(self.preferences(&meter, oracle, shard, 0)?);
        }
        meter.finish(format!("{} comparisons", judged.len()));
        if let Some(warning) = stages::without_signal(comparisons, &judged) {
            self.observer.event(Event::Notice(warning));
        }
        Ok(judged)
    }

    /// Makes the preferences of some of a judging stage's comparisons; labels are drawn for this iteration, 0
    /// outside of self-play.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn preferences(
        &self,
        meter: &StageMeter<'_>,
        oracle: &mut dyn Oracle,
        comparisons: &[Comparison<'_>],
        iteration: u32,
    ) -> Result<Vec<JudgedComparison>> {
        self.require_running()?;
        let settings = self.config.preference;
        let draw = LabelDraw { seed: self.config.seed, iteration };
        let judged =
            stages::judge_for_training(oracle, comparisons, &settings, draw, &meter.host())?;
        meter.advance(comparisons.len() as u64);
        Ok(judged)
    }

    /// Intervals as the settings say.
    #[must_use]
    pub fn bootstrap(&self) -> Bootstrap {
        self.config.evaluation.bootstrap(self.config.seed)
    }

    /// Lets two models' held-out responses meet, sample against sample, in both orders. Both lists hold the
    /// same prompts and as many responses to each.
    ///
    /// # Errors
    /// When the oracle fails, or the observer cancels.
    pub fn duels(
        &self,
        oracle: &mut dyn Oracle,
        challenger: &[Rollout],
        baseline: &[Rollout],
    ) -> Result<Vec<Vec<DuelVerdict>>> {
        let [ours, theirs]: [Vec<_>; 2] = [challenger, baseline]
            .map(|rollouts| rollouts.iter().map(stages::comparison).collect());
        let judged = self.judge_pairs(oracle, &ours, &theirs, "against the baseline")?;
        let verdicts = |pairs: &Vec<JudgedPair>| pairs.iter().map(|pair| pair.verdict).collect();
        Ok(judged.iter().map(verdicts).collect())
    }

    /// Judges the answers of two models to the same prompts pair by pair; see [`evaluation::judge_pairs`].
    /// `subject` says in the observer's line whose win rate it is.
    ///
    /// # Errors
    /// When the oracle fails, or the observer cancels.
    pub fn judge_pairs(
        &self,
        oracle: &mut dyn Oracle,
        challenger: &[Comparison<'_>],
        baseline: &[Comparison<'_>],
        subject: &str,
    ) -> Result<Vec<Vec<JudgedPair>>> {
        let meter = self.stage(Stage::Judge, challenger.len() as u64, "prompts");
        let settings = self.config.preference;
        let judged =
            evaluation::judge_pairs(oracle, challenger, baseline, &settings, &meter.host())?;
        let win_rates: Vec<f64> =
            judged.iter().flatten().map(|pair| pair.verdict.win_probability()).collect();
        let mean = win_rates.iter().sum::<f64>() / win_rates.len().max(1) as f64;
        meter.finish(format!("{:.1} % {subject}", 100.0 * mean));
        let differ =
            challenger.iter().zip(baseline).filter(|(ours, theirs)| !says_the_same(ours, theirs));
        let is_half = |win_rate: &f64| (win_rate - 0.5).abs() < stages::ROUNDING;
        if differ.count() > 1 && win_rates.iter().all(is_half) {
            let warning = "the oracle calls all answers of the two models equal, different as they are: the win \
                           rate says nothing";
            self.observer.event(Event::Notice(warning.into()));
        }
        Ok(judged)
    }

    /// Asks the oracle about pairs whose better answer is known. Every other pair is given with the better
    /// answer second, so that a place tells nothing.
    ///
    /// # Errors
    /// When the oracle fails, or the observer cancels.
    pub fn judge_labelled(
        &self,
        oracle: &mut dyn Oracle,
        pairs: &[LabelledPair],
    ) -> Result<Vec<LabelledVerdict>> {
        let meter = self.stage(Stage::Judge, pairs.len() as u64, "pairs");
        let mut verdicts = Vec::with_capacity(pairs.len());
        for shard in pairs.chunks(LABELLED_PAIRS_PER_CALL) {
            self.require_running()?;
            let is_first = |index: usize| (verdicts.len() + index).is_multiple_of(2);
            let places: Vec<bool> = (0..shard.len()).map(is_first).collect();
            let comparisons: Vec<_> =
                shard.iter().zip(&places).map(|(pair, &first)| pair.comparison(first)).collect();
            let settings = self.config.preference;
            let judged = stages::judge(oracle, &comparisons, &settings, &meter.host())?;
            let of_pairs = shard.iter().zip(places).zip(&judged);
            verdicts.extend(of_pairs.map(|((pair, chosen_first), judged)| {
                LabelledVerdict::new(judged, chosen_first, pair.subset.clone())
            }));
            meter.advance(shard.len() as u64);
        }
        meter.finish(format!("{} pairs", verdicts.len()));
        Ok(verdicts)
    }

    /// Mean of win rates by prompt, with its bootstrap interval over prompts.
    #[must_use]
    pub fn win_rate_interval(&self, win_rates: &[f64]) -> Interval {
        self.bootstrap().mean(win_rates)
    }

    /// Computes the reference log-probabilities of all examples under the policy as it is now.
    ///
    /// # Errors
    /// When the policy fails, or the observer cancels.
    pub fn reference_log_probs(
        &self,
        policy: &mut dyn Learner,
        examples: &mut [TrainingExample],
    ) -> Result<()> {
        self.response_log_probs(policy, examples, |response, log_prob| {
            response.reference_log_prob = Some(log_prob);
        })
    }

    /// Computes the log-probabilities of all examples' responses under the policy as it is now, and hands each to
    /// `keep`.
    ///
    /// # Errors
    /// When the policy fails, or the observer cancels.
    pub fn response_log_probs(
        &self,
        policy: &mut dyn Learner,
        examples: &mut [TrainingExample],
        keep: fn(&mut TrainingResponse, f64),
    ) -> Result<()> {
        let budget = self.config.training.micro_batch_tokens;
        let meter = self.stage(Stage::Reference, examples.len() as u64, "examples");
        let mut reach = |done: usize| meter.reach(done as u64);
        stages::response_log_probs(policy, examples, budget, keep, &mut reach)?;
        meter.finish(String::new());
        Ok(())
    }

    /// Computes the log-probabilities of given responses, token by token.
    ///
    /// # Errors
    /// When the policy fails, or the observer cancels.
    pub fn score(
        &self,
        policy: &mut dyn Learner,
        responses: &[TokenizedResponse],
    ) -> Result<Vec<ScoredResponse>> {
        let budget = self.config.training.micro_batch_tokens;
        let meter = self.stage(Stage::Reference, responses.len() as u64, "responses");
        let mut reach = |done: usize| meter.reach(done as u64);
        let scored = stages::score(policy, responses, budget, &mut reach)?;
        meter.finish(format!("{} responses", scored.len()));
        Ok(scored)
    }

    /// Training as the settings say; each iteration has its own order of examples, 0 stands alone.
    #[must_use]
    pub fn training_pass(&self, iteration: u32) -> TrainingPass<'a> {
        let seed = self.config.seed.wrapping_add(u64::from(iteration));
        TrainingPass { settings: &self.config.training, seed }
    }

    /// Prepares a policy to be trained with the optimiser of the settings, from a fresh state.
    ///
    /// # Errors
    /// When there is no memory for the optimiser's state.
    pub fn begin_training(&self, policy: &mut dyn Learner) -> Result<()> {
        let optimizer = &self.config.training.optimizer;
        Ok(policy.begin_training(optimizer)?)
    }

    /// Trains the policy from `progress` on. `after_step` is called after every optimiser step, for
    /// commits.
    ///
    /// # Errors
    /// As [`stages::train`], when `after_step` fails, or the observer cancels; `progress` then says how
    /// far training came.
    pub fn train(
        &self,
        policy: &mut dyn Learner,
        examples: &[TrainingExample],
        pass: &TrainingPass<'_>,
        progress: &mut TrainingProgress,
        after_step: &mut dyn FnMut(&mut dyn Learner, TrainingProgress) -> Result<()>,
    ) -> Result<TrainingSummary> {
        let meter = self.stage(Stage::Train, pass.settings.steps(examples.len()), "steps");
        meter.reach(progress.step)?;
        let mut summary = TrainingSummary::default();
        let mut events = |policy: &mut dyn Learner, step: &TrainingStep| {
            summary.add(step);
            self.observer.event(Event::TrainingStep(step));
            meter.reach(step.step)?;
            after_step(policy, TrainingProgress { step: step.step })
        };
        stages::train(policy, examples, pass, progress, &mut events)?;
        meter.finish(String::new());
        Ok(summary)
    }

    /// Saves the policy as a checkpoint in this directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save(&self, policy: &dyn Learner, directory: &Path) -> Result<()> {
        let meter = self.stage(Stage::Save, 1, "checkpoint");
        policy.save(directory)?;
        meter.finish(directory.display().to_string());
        Ok(())
    }

    /// Mean changes of the chosen and the rejected log-probabilities since the reference, on the first
    /// examples; `None` when there are none.
    ///
    /// # Errors
    /// When the policy fails.
    pub fn log_prob_changes(
        &self,
        policy: &mut dyn Learner,
        examples: &[TrainingExample],
    ) -> Result<Option<(f64, f64)>> {
        let measured = &examples[..examples.len().min(MEASURED_EXAMPLES)];
        if measured.is_empty() {
            return Ok(None);
        }
        stages::mean_log_prob_changes(policy, measured, &self.config.training).map(Some)
    }
}

fn says_the_same(ours: &Comparison<'_>, theirs: &Comparison<'_>) -> bool {
    let mut texts = ours.candidates.iter().zip(theirs.candidates.iter());
    texts.all(|(ours, theirs)| ours.text == theirs.text)
}
