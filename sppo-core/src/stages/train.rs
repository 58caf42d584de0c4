//! Stage 4: the regression. Reference log-probabilities, micro-batches, and optimiser steps.

mod choices;
mod micro_batches;
mod settings;
mod terms;

use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};
use crate::objective::{self, ExampleTerms, ResponseTerm};
use crate::observer::TrainingStep;
use crate::plugin::{Learner, PluginError, SequenceBatch, StepSettings};
use crate::records::{TrainingExample, TrainingResponse};

pub use choices::{CommitInterval, Recomputation};
pub(super) use micro_batches::group_lengths;
use micro_batches::{micro_batches_mut, pack, rounds};
pub use settings::{ReferenceLogProbs, ShardingChoice, TrainingSettings};
#[cfg(test)]
pub(crate) use terms::anchor_log_prob;
use terms::{example_terms, require_terms};

/// Training settings, and the seed that orders the examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainingPass<'a> {
    /// The settings.
    pub settings: &'a TrainingSettings,
    /// Seed of the order of the examples.
    pub seed: u64,
}

/// Position of training: needed to resume, beside weights and optimiser state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct TrainingProgress {
    /// Optimiser steps taken.
    pub step: u64,
}

/// Computes the log-probability of each response: one pass without gradients under the policy as it is now.
/// Hands each to `keep`, and calls `done` with the examples finished so far.
///
/// # Errors
/// When the policy fails, or `done` does.
pub fn response_log_probs(
    policy: &mut dyn Learner,
    examples: &mut [TrainingExample],
    micro_batch_tokens: usize,
    keep: fn(&mut TrainingResponse, f64),
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut finished = 0;
    let replicas = policy.info().replicas.max(1);
    let mut micro_batches = micro_batches_mut(examples, micro_batch_tokens, replicas);
    for together in micro_batches.chunks_mut(replicas) {
        let packed: Vec<SequenceBatch> = together.iter().map(|part| pack(part)).collect();
        for (micro_batch, log_probs) in together.iter_mut().zip(log_probs(policy, &packed)?) {
            let responses = micro_batch.iter_mut().flat_map(|example| &mut example.responses);
            for (response, log_prob) in responses.zip(log_probs) {
                keep(response, log_prob);
            }
            finished += micro_batch.len();
        }
        done(finished)?;
    }
    Ok(())
}

/// Trains the policy on the examples, from `progress.step` on: its log-probabilities are regressed onto
/// the win rates (Algorithm 1, line 6; equation 4.7). The policy must have been told to begin training.
/// `events` is called after each optimiser step, for reports, commits and cancellation.
///
/// # Errors
/// When a reference log-probability is missing, the objective does not fit the examples, the
/// policy fails, or `events` does.
pub fn train(
    policy: &mut dyn Learner,
    examples: &[TrainingExample],
    pass: &TrainingPass<'_>,
    progress: &mut TrainingProgress,
    events: &mut dyn FnMut(&mut dyn Learner, &TrainingStep) -> Result<()>,
) -> Result<()> {
    let TrainingPass { settings, seed } = *pass;
    require_terms(examples, settings)?;
    let steps = settings.steps(examples.len());
    let steps_per_epoch = settings.steps_per_epoch(examples.len());
    let has_team = policy.info().replicas > 1;
    while progress.step < steps {
        let started = Instant::now();
        let order = shuffled(examples.len(), seed, progress.step / steps_per_epoch);
        let position = (progress.step % steps_per_epoch) as usize * settings.global_batch_size;
        let batch: Vec<&TrainingExample> = order
            .iter()
            .skip(position)
            .take(settings.global_batch_size)
            .map(|&index| &examples[index])
            .collect();

        let gradient = accumulate_gradient(policy, &batch, settings)?;
        let learning_rate = settings.learning_rate_at(progress.step, examples.len());
        let report = policy
            .step(&StepSettings { learning_rate, max_gradient_norm: settings.max_gradient_norm })?;
        progress.step += 1;

        let step = TrainingStep {
            step: progress.step,
            steps,
            loss: gradient.loss,
            gradient_norm: report.gradient_norm,
            learning_rate,
            log_prob_chosen: gradient.means.log_prob_chosen,
            log_prob_rejected: gradient.means.log_prob_rejected,
            reward_chosen: gradient.means.reward_chosen,
            reward_rejected: gradient.means.reward_rejected,
            reward_accuracy: gradient.means.reward_accuracy,
            tokens: gradient.tokens,
            seconds: started.elapsed().as_secs_f64(),
            communication_seconds: has_team.then_some(report.communication_seconds),
            slowest_rank: has_team.then_some(report.slowest_rank),
        };
        events(policy, &step)?;
    }
    Ok(())
}

/// Refuses a policy that has diverged, before it is kept: what is kept is what a run goes on with.
///
/// # Errors
/// When a log-probability of the first examples is not finite, or the policy fails.
pub fn require_finite(policy: &mut dyn Learner, examples: &[TrainingExample]) -> Result<()> {
    const ENOUGH: usize = 16;
    for example in examples.iter().take(ENOUGH) {
        log_probs(policy, &[pack(std::slice::from_ref(example))])?;
    }
    Ok(())
}

/// Mean change of the chosen and of the rejected log-probabilities since the reference.
///
/// # Errors
/// When a reference log-probability is missing or the policy fails.
pub fn mean_log_prob_changes(
    policy: &mut dyn Learner,
    examples: &[TrainingExample],
    settings: &TrainingSettings,
) -> Result<(f64, f64)> {
    let (mut chosen, mut rejected) = (0.0, 0.0);
    for together in rounds(examples, settings.micro_batch_tokens, policy.info().replicas) {
        for terms in terms_without_gradient(policy, &together, settings)? {
            chosen += terms.responses.first().map_or(0.0, log_ratio);
            rejected += terms.responses.last().map_or(0.0, log_ratio);
        }
    }
    let count = examples.len().max(1) as f64;
    Ok((chosen / count, rejected / count))
}

fn log_ratio(term: &ResponseTerm) -> f64 {
    term.log_prob - term.reference_log_prob
}

struct AccumulatedGradient {
    loss: f64,
    tokens: u64,
    means: BatchMeans,
}

#[derive(Default)]
struct BatchMeans {
    log_prob_chosen: f64,
    log_prob_rejected: f64,
    reward_chosen: f64,
    reward_rejected: f64,
    reward_accuracy: f64,
}

/// Forward and backward over the global batch, one micro-batch at a time. The result does not depend
/// on how the batch is divided: an objective whose examples depend on each other is evaluated on the
/// whole batch first, at the price of one more forward pass when there are several micro-batches.
fn accumulate_gradient(
    policy: &mut dyn Learner,
    batch: &[&TrainingExample],
    settings: &TrainingSettings,
) -> Result<AccumulatedGradient> {
    let rounds = rounds(batch, settings.micro_batch_tokens, policy.info().replicas);
    let loss_settings = settings.loss();
    let parts: usize = rounds.iter().map(Vec::len).sum();
    let coupled = settings.objective.requires().whole_batch && parts > 1;
    let mut terms = Vec::with_capacity(batch.len());
    let mut loss = 0.0;
    let mut tokens = 0;

    let mut whole_batch_coefficients = Vec::new();
    if coupled {
        for together in &rounds {
            terms.extend(terms_without_gradient(policy, together, settings)?);
        }
        let evaluated = objective::evaluate(&loss_settings, &terms).map_err(loss_error)?;
        loss = evaluated.mean;
        whole_batch_coefficients = evaluated.coefficients;
    }

    let mut done = 0;
    for together in &rounds {
        let packed: Vec<SequenceBatch> = together.iter().map(|part| pack(part)).collect();
        let log_probs = checked_each(policy.forward_each(&packed)?, &packed, policy.plugin())?;
        let mut coefficients = Vec::with_capacity(together.len());
        for (part, log_probs) in together.iter().zip(log_probs) {
            coefficients.push(if coupled {
                whole_batch_coefficients[done..done + part.len()].concat()
            } else {
                let part_terms = example_terms(part, &log_probs, settings)?;
                let evaluated =
                    objective::evaluate(&loss_settings, &part_terms).map_err(loss_error)?;
                let share = part.len() as f64 / batch.len() as f64;
                loss += evaluated.mean * share;
                terms.extend(part_terms);
                evaluated.coefficients.concat().iter().map(|value| value * share).collect()
            });
            done += part.len();
        }
        policy.backward_each(&coefficients)?;
        tokens += packed.iter().map(|batch| batch.tokens().len() as u64).sum::<u64>();
    }
    Ok(AccumulatedGradient { loss, tokens, means: means(&terms, settings.eta) })
}

fn loss_error(error: objective::ObjectiveError) -> Error {
    Error::configuration("training.objective", error.to_string())
}

fn means(terms: &[ExampleTerms], eta: f64) -> BatchMeans {
    let share = 1.0 / terms.len().max(1) as f64;
    let mut means = BatchMeans::default();
    for example in terms {
        let (Some(chosen), Some(rejected)) = (example.responses.first(), example.responses.last())
        else {
            continue;
        };
        let (reward_chosen, reward_rejected) = (log_ratio(chosen) / eta, log_ratio(rejected) / eta);
        means.log_prob_chosen += share * chosen.log_prob;
        means.log_prob_rejected += share * rejected.log_prob;
        means.reward_chosen += share * reward_chosen;
        means.reward_rejected += share * reward_rejected;
        means.reward_accuracy += share * f64::from(u8::from(reward_chosen > reward_rejected));
    }
    means
}

/// Terms of the examples of some micro-batches that replicas compute at the same time.
fn terms_without_gradient(
    policy: &mut dyn Learner,
    together: &[Vec<&TrainingExample>],
    settings: &TrainingSettings,
) -> Result<Vec<ExampleTerms>> {
    let packed: Vec<SequenceBatch> = together.iter().map(|part| pack(part)).collect();
    let log_probs = log_probs(policy, &packed)?;
    let terms =
        together.iter().zip(&log_probs).map(|(part, own)| example_terms(part, own, settings));
    Ok(terms.collect::<Result<Vec<_>>>()?.concat())
}

/// Summed log-probability of every response of each batch, without gradients.
fn log_probs(policy: &mut dyn Learner, packed: &[SequenceBatch]) -> Result<Vec<Vec<f64>>> {
    let sum = |tokens: &Vec<f32>| tokens.iter().map(|value| f64::from(*value)).sum();
    let each = policy.token_log_probs_each(packed)?;
    let sums = each.iter().map(|responses| responses.iter().map(sum).collect()).collect();
    checked_each(sums, packed, policy.plugin())
}

/// As [`checked_log_probs`], for each batch.
fn checked_each(
    log_probs: Vec<Vec<f64>>,
    packed: &[SequenceBatch],
    plugin: Option<&'static str>,
) -> Result<Vec<Vec<f64>>> {
    let (asked, returned) = (packed.len(), log_probs.len());
    if asked != returned {
        let message = format!("asked for {asked} batches, it returned {returned}");
        return Err(PluginError::failed(message).of_plugin(plugin).into());
    }
    let pairs = log_probs.into_iter().zip(packed);
    pairs.map(|(log_probs, packed)| checked_log_probs(log_probs, packed, plugin)).collect()
}

/// Log-probabilities as the backend of this label returned them, if they can be used.
fn checked_log_probs(
    log_probs: Vec<f64>,
    packed: &SequenceBatch,
    plugin: Option<&'static str>,
) -> Result<Vec<f64>> {
    let expected = packed.response_count();
    if log_probs.len() != expected {
        let got = log_probs.len();
        return Err(PluginError::failed(format!(
            "asked for {expected} log-probabilities, it returned {got}"
        ))
        .of_plugin(plugin)
        .into());
    }
    match log_probs.iter().find(|value| !value.is_finite()) {
        Some(value) => {
            Err(PluginError::failed(format!("it returned a log-probability of {value}"))
                .with_hint(
                    "training may have diverged: go on from the last commit with a smaller \
                     `training.learning_rate` (--allow training.learning_rate)",
                )
                .of_plugin(plugin)
                .into())
        }
        None => Ok(log_probs),
    }
}

/// The order of the examples in an epoch: a Fisher-Yates shuffle keyed by seed and epoch.
fn shuffled(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(epoch);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = generator.next_u64() % (last as u64 + 1);
        order.swap(last, other as usize);
    }
    order
}
