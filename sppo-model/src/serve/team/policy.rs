//! A policy that a team holds, as rank 0 sees it.

use std::path::Path;
use std::rc::Rc;

use sppo_plugin::{
    Codec, FrozenWeights, GeneratedResponse, GenerationRequest, Learner, LoraSettings, Message,
    Optimizer, PluginError, PolicyInfo, PolicySpec, Progress, Sampler, SequenceBatch, Sharding,
    SilentHost, StepReport, StepSettings,
};

use super::controller::Controller;
use super::member::OwnFiles;
use super::protocol::{Adapters, Command, Gathered, Handle, PolicyPlan, Reply};
use crate::error::{ModelError, Result as ModelResult};
use crate::ops::encoder::EncoderOps;
use crate::serve::policy::{NamedTensor, Placement, PolicyCard, open_checkpoint};

type Answer<T> = Result<T, PluginError>;

/// A policy of which every rank holds a replica.
pub(crate) struct TeamPolicy<O: EncoderOps + Clone> {
    team: Rc<Controller<O>>,
    handle: Handle,
    card: PolicyCard,
    adapters: Option<LoraSettings>,
    sharding: Sharding,
}

impl<O: EncoderOps + Clone> TeamPolicy<O> {
    /// Opens the model on rank 0 and sends its weights to all.
    pub(crate) fn load(team: Rc<Controller<O>>, spec: &PolicySpec) -> Answer<Self> {
        if spec.frozen_weights == FrozenWeights::Quantized {
            return Err(ModelError::Unsupported(
                "training.frozen_weights: several processes keep no quantized weights; set it to \"dense\", or \
                 train in one process"
                    .into(),
            )
            .into());
        }
        let checkpoint = open_checkpoint(spec)?;
        let plan = PolicyPlan {
            config: checkpoint.config().clone(),
            adapters: spec.adapters.as_ref().map(Adapters::of),
            recompute_activations: spec.recompute_activations,
            sharding: spec.sharding,
            gradient_dtype: spec.gradient_dtype,
            stop_tokens: checkpoint.text().special_tokens().stop_tokens.clone(),
        };
        let handle = team.new_handle();
        let command = Command::LoadPolicy(handle, Box::new(plan));
        let loaded = team.ask_about(&command, OwnFiles::Checkpoint(&checkpoint), &SilentHost);
        // Ranks that could load it must not keep it.
        let loaded = loaded.inspect_err(|_| team.give_up(handle))?;
        let (parameters, dtype) = team.with_member(|member| {
            let model = &member.policy(handle)?.model;
            Ok::<_, PluginError>((model.parameters().element_count(), model.ops().describe().1))
        })?;
        let placement = Placement { device: devices(&loaded), dtype, replicas: team.size() };
        let card = PolicyCard::new(checkpoint, parameters, placement);
        Ok(Self { team, handle, card, adapters: spec.adapters.clone(), sharding: spec.sharding })
    }

    /// Row-major tensors of a whole weight.
    fn gather(&self, weight: usize, what: Gathered) -> ModelResult<Vec<Vec<f32>>> {
        if self.sharding != Sharding::None {
            let asked = self.team.ask(&Command::Gather(self.handle, weight, what));
            return asked.map(|_| self.team.take_gathered()).map_err(ModelError::Team);
        }
        self.team.with_member(|member| {
            let model = &member.policy(self.handle)?.model;
            let parameter = &model.parameters().entries()[weight].value;
            match what {
                Gathered::Values => Ok(vec![model.ops().parameter_values(parameter)?]),
                Gathered::OptimizerState => model.ops().optimizer_state(parameter),
            }
        })
    }

    /// Name, shape and row-major values of every trained weight, one at a time.
    fn tensors(&self) -> Answer<impl Iterator<Item = ModelResult<NamedTensor>>> {
        let trained: Vec<_> = self.team.with_member(|member| {
            let entries = member.policy(self.handle)?.model.parameters().entries();
            let trained = entries.iter().enumerate().filter(|(_, entry)| entry.trainable);
            let trained =
                trained.map(|(weight, entry)| (weight, entry.name.clone(), entry.shape.clone()));
            Ok::<_, PluginError>(trained.collect())
        })?;
        Ok(trained.into_iter().map(|(weight, name, shape)| {
            let values = self.gather(weight, Gathered::Values)?.into_iter().next();
            Ok((name, shape, values.unwrap_or_default()))
        }))
    }

    /// Refuses ranks whose weights are not those of the others: what they compute from now on is worthless.
    fn require_same_weights(&self) -> Answer<()> {
        let replies = self.team.ask(&Command::Hash(self.handle))?;
        let hashes = parts(replies, self.team.size(), |reply| match reply {
            Reply::Hash(hash) => Some(hash),
            _ => None,
        })?;
        let Some(rank) = odd_one_out(&hashes) else { return Ok(()) };
        let [odd, other] = [rank, usize::from(rank == 0)].map(|rank| self.team.name(rank));
        let message = format!(
            "{odd} holds other weights than {other}, although all ranks have taken the same steps"
        );
        Err(PluginError::failed(message).with_hint(
            "go on from the last commit with --resume; where it happens again, that host computes or \
             remembers wrongly: leave it out",
        ))
    }
}

/// The first rank whose hash is not that of most ranks; of two equal halves, rank 0's is right.
fn odd_one_out(hashes: &[u64]) -> Option<usize> {
    let votes = |hash: &u64| hashes.iter().filter(|other| *other == hash).count();
    let most = hashes.iter().map(votes).max()?;
    let right = hashes.iter().find(|hash| votes(hash) == most)?;
    hashes.iter().position(|hash| hash != right)
}

/// The devices of all ranks, for instance `cpu on 2 ranks` or `cuda:0, cuda:1`.
fn devices(loaded: &[Reply]) -> String {
    let devices: Vec<&str> = loaded
        .iter()
        .filter_map(|reply| match reply {
            Reply::Loaded(device) => Some(device.as_str()),
            _ => None,
        })
        .collect();
    match devices.first() {
        Some(first) if devices.iter().all(|device| device == first) => {
            format!("{first} on {} ranks", devices.len())
        }
        _ => devices.join(", "),
    }
}

/// The parts of as many ranks as there were batches, each taken out of its reply.
pub(super) fn parts<T>(
    replies: Vec<Reply>,
    batches: usize,
    part: impl Fn(Reply) -> Option<T>,
) -> Answer<Vec<T>> {
    let parts: Option<Vec<T>> = replies.into_iter().take(batches).map(part).collect();
    parts
        .filter(|parts| parts.len() == batches)
        .ok_or_else(|| PluginError::failed("a rank of the team answered something else"))
}

/// The one result of one batch.
pub(super) fn only<T>(each: Vec<T>) -> Answer<T> {
    let nothing = || PluginError::failed("the team gave no result");
    each.into_iter().next().ok_or_else(nothing)
}

impl<O: EncoderOps + Clone> Drop for TeamPolicy<O> {
    fn drop(&mut self) {
        self.team.give_up(self.handle);
    }
}

impl<O: EncoderOps + Clone> Codec for TeamPolicy<O> {
    fn info(&self) -> &PolicyInfo {
        &self.card.info
    }

    fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Answer<String> {
        self.card.render(messages, add_generation_prompt)
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Answer<Vec<u32>> {
        self.card.encode(text, add_special_tokens)
    }

    fn decode(&self, tokens: &[u32]) -> Answer<String> {
        self.card.decode(tokens)
    }
}

/// A watcher of rank 0's part, which stands for as many parts as there are.
struct ForAll<'a> {
    progress: &'a dyn Progress,
    parts: u64,
}

impl Progress for ForAll<'_> {
    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    fn progress(&self, completed: u64, total: u64) {
        self.progress.progress(completed * self.parts, total * self.parts);
    }
}

impl<O: EncoderOps + Clone> Sampler for TeamPolicy<O> {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Answer<Vec<GeneratedResponse>> {
        only(self.generate_each(std::slice::from_ref(request), progress)?)
    }

    fn generate_each(
        &mut self,
        requests: &[GenerationRequest],
        progress: &dyn Progress,
    ) -> Answer<Vec<Vec<GeneratedResponse>>> {
        let mut responses = Vec::with_capacity(requests.len());
        for together in requests.chunks(self.team.size()) {
            let watcher = ForAll { progress, parts: together.len() as u64 };
            let command = Command::Generate(self.handle, together.to_vec());
            let replies = self.team.ask_about(&command, OwnFiles::None, &watcher)?;
            responses.extend(parts(replies, together.len(), |reply| match reply {
                Reply::Responses(responses) => Some(responses),
                _ => None,
            })?);
        }
        Ok(responses)
    }
}

impl<O: EncoderOps + Clone> Learner for TeamPolicy<O> {
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Answer<Vec<Vec<f32>>> {
        only(self.token_log_probs_each(std::slice::from_ref(batch))?)
    }

    fn token_log_probs_each(&mut self, batches: &[SequenceBatch]) -> Answer<Vec<Vec<Vec<f32>>>> {
        let mut log_probs = Vec::with_capacity(batches.len());
        for together in batches.chunks(self.team.size()) {
            let replies = self.team.ask(&Command::TokenLogProbs(self.handle, together.to_vec()))?;
            log_probs.extend(parts(replies, together.len(), |reply| match reply {
                Reply::TokenLogProbs(log_probs) => Some(log_probs),
                _ => None,
            })?);
        }
        Ok(log_probs)
    }

    fn next_token_log_probs(
        &mut self,
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
    ) -> Answer<Vec<f32>> {
        only(self.next_token_log_probs_each(&[sequences.to_vec()], next_tokens)?)
    }

    fn next_token_log_probs_each(
        &mut self,
        batches: &[Vec<Vec<u32>>],
        next_tokens: &[u32],
    ) -> Answer<Vec<Vec<f32>>> {
        let mut log_probs = Vec::with_capacity(batches.len());
        for together in batches.chunks(self.team.size()) {
            let (batches, tokens) = (together.to_vec(), next_tokens.to_vec());
            let replies =
                self.team.ask(&Command::NextTokenLogProbs(self.handle, batches, tokens))?;
            log_probs.extend(parts(replies, together.len(), |reply| match reply {
                Reply::Scores(log_probs) => Some(log_probs),
                _ => None,
            })?);
        }
        Ok(log_probs)
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Answer<Vec<f64>> {
        only(self.forward_each(std::slice::from_ref(batch))?)
    }

    fn forward_each(&mut self, batches: &[SequenceBatch]) -> Answer<Vec<Vec<f64>>> {
        let (asked, size) = (batches.len(), self.team.size());
        if asked > size {
            let message = format!("{asked} batches at once for {size} ranks");
            return Err(PluginError::failed(message));
        }
        let replies = self.team.ask(&Command::Forward(self.handle, batches.to_vec()))?;
        parts(replies, asked, |reply| match reply {
            Reply::LogProbs(log_probs) => Some(log_probs),
            _ => None,
        })
    }

    fn backward(&mut self, coefficients: &[f64]) -> Answer<()> {
        self.backward_each(&[coefficients.to_vec()])
    }

    fn backward_each(&mut self, coefficients: &[Vec<f64>]) -> Answer<()> {
        self.team.ask(&Command::Backward(self.handle, coefficients.to_vec())).map(drop)
    }

    fn begin_training(&mut self, optimizer: &Optimizer) -> Answer<()> {
        let begun = self.team.ask(&Command::BeginTraining(self.handle, optimizer.clone()));
        self.team.take_times();
        begun.map(drop)
    }

    fn end_training(&mut self) -> Answer<()> {
        self.team.ask(&Command::EndTraining(self.handle)).map(drop)
    }

    fn step(&mut self, settings: &StepSettings) -> Answer<StepReport> {
        let replies = self.team.ask(&Command::Step(self.handle, *settings))?;
        let report = only(parts(replies, self.team.size(), |reply| match reply {
            Reply::Step(report) => Some(report),
            _ => None,
        })?)?;
        let (communication_seconds, slowest_rank) = self.team.take_times();
        Ok(StepReport { communication_seconds, slowest_rank, ..report })
    }

    fn save(&self, directory: &Path) -> Answer<()> {
        self.require_same_weights()?;
        self.card.save(self.adapters.as_ref(), self.tensors()?, directory)
    }

    fn save_optimizer_state(&self, file: &Path) -> Answer<()> {
        let writer = self
            .team
            .with_member(|member| member.policy(self.handle)?.model.optimizer_state_writer())?;
        Ok(writer.write(&mut |weight| self.gather(weight, Gathered::OptimizerState), file)?)
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Answer<()> {
        let command = Command::LoadOptimizerState(self.handle);
        self.team.ask_about(&command, OwnFiles::OptimizerState(file), &SilentHost).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::odd_one_out;

    #[test]
    fn most_ranks_are_right_and_of_two_rank_0() {
        assert_eq!(odd_one_out(&[5, 5, 5]), None);
        assert_eq!(odd_one_out(&[5, 7]), Some(1));
        assert_eq!(odd_one_out(&[7, 5, 5]), Some(0));
        assert_eq!(odd_one_out(&[5, 5, 7, 5]), Some(2));
    }
}
