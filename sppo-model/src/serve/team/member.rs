//! One rank: the models that it holds, and its part of every command.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use sppo_plugin::{GenerationRequest, PluginError, Progress, SequenceBatch, StepSettings};

use super::collective::Collective;
use super::protocol::{
    Adapters, Command, Failure, Handle, Outcome, PolicyPlan, Reply, ScorerPlan, decode, encode,
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
        Self { ops, limits, collective, policies, scorers, waited: Duration::ZERO }
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
            let command = decode(&self.collective.broadcast(Vec::new())?)?;
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
        let gathered = self.collective.all_gather(encode(&outcome)?)?;
        gathered.iter().map(|bytes| decode(bytes)).collect()
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
            Command::Forward(handle, batches) => {
                let nothing = SequenceBatch::new();
                let batch = batches.get(rank).unwrap_or(&nothing);
                self.policy_mut(*handle)?.forward(batch)
            }
            Command::Backward(handle, coefficients) => {
                let coefficients = coefficients.get(rank).map_or(&[][..], Vec::as_slice);
                self.policy_mut(*handle)?.model.backward(coefficients)?;
                Ok(Reply::Done)
            }
            Command::BeginTraining(handle, optimizer) => {
                let size = self.collective.size();
                let model = &mut self.policy_mut(*handle)?.model;
                model.number_passes(rank as u64, size as u64);
                model.begin_training(optimizer)?;
                Ok(Reply::Done)
            }
            Command::Step(handle, settings) => self.step(*handle, settings),
            Command::LoadOptimizerState(handle) => self.load_optimizer_state(*handle, files),
            Command::Score(handle, batches) => {
                let scorer = self.scorers.get(handle).ok_or_else(|| unknown(*handle))?;
                match batches.get(rank) {
                    Some(batch) => scorer.score(&self.ops, batch).map(Reply::Scores),
                    None => Ok(Reply::Scores(Vec::new())),
                }
            }
            Command::Leave => Ok(Reply::Done),
        }
    }

    fn load_policy(&self, plan: &PolicyPlan, files: OwnFiles<'_>) -> Result<Replica<O>> {
        let checkpoint = match files {
            OwnFiles::Checkpoint(checkpoint) => Some(checkpoint),
            _ => None,
        };
        let settings = plan.adapters.as_ref().map(Adapters::settings);
        let exchange = Exchange::new(&*self.collective);
        let model = load_model(
            self.ops.clone(),
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

    /// Every rank has the sum of all gradients before any of them takes the step, so all take the same.
    fn step(&mut self, handle: Handle, settings: &StepSettings) -> Result<Reply> {
        let collective = Rc::clone(&self.collective);
        let started = Instant::now();
        let parameters = self.policy_mut(handle)?.model.parameters_mut();
        collective.sum_gradients(parameters).map_err(ModelError::Team)?;
        self.waited += started.elapsed();
        self.policy_mut(handle)?.model.step(settings).map(Reply::Step)
    }

    fn load_optimizer_state(&mut self, handle: Handle, files: OwnFiles<'_>) -> Result<Reply> {
        let collective = Rc::clone(&self.collective);
        let exchange = Exchange::new(&*collective);
        let model = &mut self.policy_mut(handle)?.model;
        let loaded = match files {
            OwnFiles::OptimizerState(file) => model.load_optimizer_state(file),
            _ => Ok(()),
        };
        let shared =
            exchange.pass(|| loaded.and_then(|()| model.training_steps())).and_then(|steps| {
                model.share_optimizer_state(steps, &mut |state| {
                    let state =
                        exchange.pass(|| Ok(state()?.into_iter().map(Numbers).collect()))?;
                    Ok(Vec::into_iter(state).map(|Numbers(values)| values).collect())
                })
            });
        exchange.finish()?;
        shared.map(|()| Reply::Done)
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
