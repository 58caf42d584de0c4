//! One rank: the models that it holds, and its part of every command.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sppo_plugin::{GenerationRequest, PluginError, Progress, SequenceBatch, StepSettings};

use super::collective::Collective;
use super::protocol::{
    Adapters, Command, Failure, Gathered, Handle, Outcome, PolicyPlan, Reply, ScorerPlan,
};
use super::weights::{Exchange, Numbers, SharedFile, own};
use crate::checkpoint::Checkpoint;
use crate::error::{ModelError, Result};
use crate::formats::{AdapterValues, WeightFile};
use crate::generation::GenerationLimits;
use crate::ops::encoder::EncoderOps;
use crate::serve::policy::{adapter_values, load_model, weight};
use crate::serve::scorer::LoadedScorer;
use crate::training::DecoderModel;

type Answer<T> = std::result::Result<T, PluginError>;

/// The files that a command of rank 0 is about, on rank 0.
#[derive(Clone, Copy)]
pub(super) enum OwnFiles<'a> {
    None,
    Checkpoint(&'a Checkpoint),
    Weights(&'a dyn WeightFile),
    OptimizerState(&'a Path),
}

/// A rank of a team.
pub(crate) struct Member<O: EncoderOps> {
    ops: O,
    limits: GenerationLimits,
    collective: Rc<dyn Collective<O>>,
    policies: HashMap<Handle, Replica<O>>,
    scorers: HashMap<Handle, LoadedScorer<O>>,
    /// Tensors that rank 0 asked all ranks for.
    gathered: Vec<Vec<f32>>,
    /// Time of the command under way that passed in exchanges with other ranks.
    waited: Duration,
}

/// A policy's weights, and what sampling must know beside them.
pub(super) struct Replica<O: EncoderOps> {
    pub(super) model: DecoderModel<O>,
    stop_tokens: Vec<u32>,
}

impl<O: EncoderOps + Clone> Member<O> {
    pub(crate) fn new(ops: O, limits: GenerationLimits, collective: Rc<dyn Collective<O>>) -> Self {
        let (policies, scorers) = (HashMap::new(), HashMap::new());
        let (gathered, waited) = (Vec::new(), Duration::ZERO);
        Self { ops, limits, collective, policies, scorers, gathered, waited }
    }

    pub(super) fn collective(&self) -> &dyn Collective<O> {
        &*self.collective
    }

    /// Does what rank 0 asks until it leaves.
    ///
    /// # Errors
    /// The failure that ended the work, on whichever rank it was.
    pub(crate) fn serve(&mut self, progress: &dyn Progress) -> Answer<()> {
        let mut last = Ok(());
        loop {
            let command = Command::decode(&self.collective.broadcast(Vec::new())?)?;
            if matches!(command, Command::Leave) {
                return last;
            }
            let is_drop = matches!(command, Command::Drop(_));
            let outcomes = self.answer(&command, OwnFiles::None, progress)?;
            // A model is dropped on the way out, which is no sign that all is well.
            if !is_drop {
                last = self.replies(outcomes).map(drop);
            }
        }
    }

    /// This rank's part of a command, and the outcomes of all ranks. Whatever goes wrong on a rank, every
    /// rank comes to the gathering.
    pub(super) fn answer(
        &mut self,
        command: &Command,
        files: OwnFiles<'_>,
        progress: &dyn Progress,
    ) -> Answer<Vec<Outcome>> {
        let started = Instant::now();
        self.waited = Duration::ZERO;
        let result = self.perform(command, files, progress);
        let result = result.map_err(|error| Failure::from(PluginError::from(error)));
        let computed = started.elapsed().saturating_sub(self.waited);
        let outcome = Outcome { result, seconds: computed.as_secs_f64() };
        let gathered = self.collective.all_gather(outcome.encode()?)?;
        gathered.iter().map(|bytes| Outcome::decode(bytes)).collect()
    }

    /// The replies of all ranks.
    ///
    /// # Errors
    /// The first rank's that failed, which names it unless it is this one.
    pub(super) fn replies(&self, outcomes: Vec<Outcome>) -> Answer<Vec<Reply>> {
        let own = self.collective.rank();
        let reply = |(rank, outcome): (usize, Outcome)| {
            let name = (rank != own).then(|| self.collective.name(rank));
            outcome.result.map_err(|failure| failure.into_error(name))
        };
        outcomes.into_iter().enumerate().map(reply).collect()
    }

    pub(super) fn policy(&self, handle: Handle) -> Result<&Replica<O>> {
        self.policies.get(&handle).ok_or_else(|| unknown(handle))
    }

    fn policy_mut(&mut self, handle: Handle) -> Result<&mut Replica<O>> {
        self.policies.get_mut(&handle).ok_or_else(|| unknown(handle))
    }

    fn perform(
        &mut self,
        command: &Command,
        files: OwnFiles<'_>,
        progress: &dyn Progress,
    ) -> Result<Reply> {
        let rank = self.collective.rank();
        match command {
            Command::LoadPolicy(handle, plan) => {
                let replica = self.load_policy(plan, files)?;
                self.policies.insert(*handle, replica);
                Ok(Reply::Loaded(self.ops.describe().0))
            }
            Command::LoadScorer(handle, plan) => {
                let scorer = self.load_scorer(plan, files)?;
                self.scorers.insert(*handle, scorer);
                Ok(Reply::Loaded(self.ops.describe().0))
            }
            Command::Drop(handle) => {
                self.policies.remove(handle);
                self.scorers.remove(handle);
                Ok(Reply::Done)
            }
            Command::Generate(handle, requests) => match requests.get(rank) {
                Some(request) => self.policy_mut(*handle)?.generate(request, progress),
                None => Ok(Reply::Responses(Vec::new())),
            },
            Command::TokenLogProbs(handle, batches) => match batches.get(rank) {
                Some(batch) => {
                    let model = &self.policy(*handle)?.model;
                    model.token_log_probs(batch).map(Reply::TokenLogProbs)
                }
                None => Ok(Reply::TokenLogProbs(Vec::new())),
            },
            Command::NextTokenLogProbs(handle, batches, next_tokens) => match batches.get(rank) {
                Some(batch) => {
                    let model = &self.policy(*handle)?.model;
                    model.next_token_log_probs(batch, next_tokens).map(Reply::Scores)
                }
                None => Ok(Reply::Scores(Vec::new())),
            },
            Command::Forward(handle, batches) => {
                let nothing = SequenceBatch::new();
                let batch = batches.get(rank).unwrap_or(&nothing);
                self.policy_mut(*handle)?.forward(batch)
            }
            Command::Backward(handle, coefficients) => self.backward(*handle, coefficients),
            Command::BeginTraining(handle, optimizer) => {
                let size = self.collective.size();
                let model = &mut self.policy_mut(*handle)?.model;
                model.number_passes(rank as u64, size as u64);
                model.begin_training(optimizer)?;
                Ok(Reply::Done)
            }
            Command::EndTraining(handle) => {
                self.policy_mut(*handle)?.model.end_training().map(|()| Reply::Done)
            }
            Command::Step(handle, settings) => self.step(*handle, settings),
            Command::LoadOptimizerState(handle) => self.load_optimizer_state(*handle, files),
            Command::Gather(handle, weight, what) => self.gather(*handle, *weight, *what),
            Command::Hash(handle) => self.hash(*handle).map(Reply::Hash),
            Command::Score(handle, batches) => match batches.get(rank) {
                Some(batch) => self.scorer(*handle)?.score(&self.ops, batch).map(Reply::Scores),
                None => Ok(Reply::Scores(Vec::new())),
            },
            Command::Leave => Ok(Reply::Done),
        }
    }

    fn scorer(&self, handle: Handle) -> Result<&LoadedScorer<O>> {
        self.scorers.get(&handle).ok_or_else(|| unknown(handle))
    }

    fn load_policy(&self, plan: &PolicyPlan, files: OwnFiles<'_>) -> Result<Replica<O>> {
        let checkpoint = match files {
            OwnFiles::Checkpoint(checkpoint) => Some(checkpoint),
            _ => None,
        };
        let settings = plan.adapters.as_ref().map(Adapters::settings);
        let ops = self.collective.divide(&self.ops, plan.sharding).map_err(ModelError::Team)?;
        let ops = ops.with_gradients_in(plan.gradient_dtype)?;
        let exchange = Exchange::new(&*self.collective);
        let model = load_model(
            ops,
            &plan.config,
            settings.as_ref(),
            &mut |name| exchange.tensor(|| weight(own(checkpoint)?, settings.is_some(), name)),
            &mut |module, shape| {
                let read = || Ok(adapter_values(own(checkpoint)?, module, shape)?.map(parted));
                Ok(exchange.pass(read)?.map(joined))
            },
        );
        exchange.finish()?;
        let mut model = model?.with_generation_limits(self.limits);
        model.recompute_activations(plan.recompute_activations);
        Ok(Replica { model, stop_tokens: plan.stop_tokens.clone() })
    }

    fn load_scorer(&self, plan: &ScorerPlan, files: OwnFiles<'_>) -> Result<LoadedScorer<O>> {
        let own = match files {
            OwnFiles::Weights(weights) => Some(weights),
            _ => None,
        };
        let exchange = Exchange::new(&*self.collective);
        let shared = SharedFile::new(own, &plan.shapes, &exchange);
        let scorer = plan.config.load(&self.ops, &shared);
        drop(shared);
        exchange.finish()?;
        scorer
    }

    fn backward(&mut self, handle: Handle, coefficients: &[Vec<f64>]) -> Result<Reply> {
        let collective = Rc::clone(&self.collective);
        let own = coefficients.get(collective.rank()).map_or(&[][..], Vec::as_slice);
        let model = &mut self.policy_mut(handle)?.model;
        let mut result = model.backward(own);
        if coefficients.iter().any(|of_rank| !of_rank.is_empty()) {
            let started = Instant::now();
            let (ops, parameters) = model.parts_mut();
            result = collective.end_backward(ops, parameters, result);
            self.waited += started.elapsed();
        }
        result.map(|()| Reply::Done)
    }

    /// Every rank has the sum of all gradients before any of them takes the step, so all take the same.
    fn step(&mut self, handle: Handle, settings: &StepSettings) -> Result<Reply> {
        let collective = Rc::clone(&self.collective);
        let started = Instant::now();
        let model = &mut self.policy_mut(handle)?.model;
        let (ops, parameters) = model.parts_mut();
        collective.sum_gradients(ops, parameters).map_err(ModelError::Team)?;
        let mut waited = started.elapsed();
        let taken = model.step(settings);
        let started = Instant::now();
        let (ops, parameters) = model.parts_mut();
        let report = collective.share_updates(ops, parameters, taken);
        waited += started.elapsed();
        self.waited += waited;
        report.map(Reply::Step)
    }

    fn load_optimizer_state(&mut self, handle: Handle, files: OwnFiles<'_>) -> Result<Reply> {
        let collective = Rc::clone(&self.collective);
        let exchange = Exchange::new(&*collective);
        let model = &mut self.policy_mut(handle)?.model;
        let stored = match files {
            OwnFiles::OptimizerState(file) => model.open_optimizer_state(file).map(Some),
            _ => Ok(None),
        };
        let (stored, failure) = match stored {
            Ok(stored) => (stored, None),
            Err(error) => (None, Some(error)),
        };
        let steps = exchange.pass(|| match failure {
            Some(error) => Err(error),
            None => Ok(own(stored.as_ref())?.steps()),
        });
        let shared = steps.and_then(|steps| {
            model.take_optimizer_state(steps, &mut |weight| {
                let read = || own(stored.as_ref())?.of_weight(weight);
                let state = exchange.pass(|| Ok(read()?.into_iter().map(Numbers).collect()))?;
                Ok(Vec::into_iter(state).map(|Numbers(values)| values).collect())
            })
        });
        exchange.finish()?;
        shared.map(|()| Reply::Done)
    }

    /// Brings the parts of a weight together. What rank 0 gets, [`Self::take_gathered`] hands out.
    fn gather(&mut self, handle: Handle, weight: usize, what: Gathered) -> Result<Reply> {
        let Self { collective, policies, gathered, .. } = self;
        let model = &policies.get(&handle).ok_or_else(|| unknown(handle))?.model;
        let entry = model.parameters().entries().get(weight);
        let entry = entry.ok_or_else(|| {
            ModelError::Backend(format!("the model of this rank has no weight {weight}"))
        })?;
        let tensors = match what {
            Gathered::Values => vec![collective.gather_values(model.ops(), &entry.value)?],
            Gathered::OptimizerState => collective.gather_state(model.ops(), &entry.value)?,
        };
        *gathered = if collective.rank() == 0 { tensors } else { Vec::new() };
        Ok(Reply::Done)
    }

    /// What the last [`Command::Gather`] brought to this rank.
    pub(super) fn take_gathered(&mut self) -> Vec<Vec<f32>> {
        std::mem::take(&mut self.gathered)
    }

    /// A hash of the trained weights' bits.
    fn hash(&self, handle: Handle) -> Result<u64> {
        let model = &self.policy(handle)?.model;
        let trained = model.parameters().entries().iter().filter(|entry| entry.trainable);
        trained.into_iter().try_fold(0, |hash, entry| {
            let values = self.collective.replica_values(model.ops(), &entry.value)?;
            // Each step can be undone, so that one changed number always changes the hash.
            let mix = |hash: u64, value: &f32| {
                (hash ^ u64::from(value.to_bits()))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    .rotate_left(29)
            };
            Ok(values.iter().fold(hash, mix))
        })
    }
}

impl<O: EncoderOps> Replica<O> {
    fn generate(&mut self, request: &GenerationRequest, progress: &dyn Progress) -> Result<Reply> {
        self.model.generate(request, &self.stop_tokens, progress).map(Reply::Responses)
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Reply> {
        self.model.forward(batch).map(Reply::LogProbs)
    }
}

fn unknown(handle: Handle) -> ModelError {
    ModelError::Backend(format!("this rank holds no model {handle}"))
}

fn parted(AdapterValues { a, b }: AdapterValues) -> (Numbers, Numbers) {
    (Numbers(a), Numbers(b))
}

fn joined((Numbers(a), Numbers(b)): (Numbers, Numbers)) -> AdapterValues {
    AdapterValues { a, b }
}
