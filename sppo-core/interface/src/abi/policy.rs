//! Policies across the boundary.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use std::path::Path;

use abi_stable::StableAbi;
use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RSlice, RStr, RString, RVec};

use super::guard::guarded;
use super::mirror::{
    AbiPath, AbiResult, AbiSequences, Crosses, lent_sequences, mirror, only, owned_sequences, path,
    received, received_each,
};
use super::module::Exported;
use super::progress::{ExportedProgress, ImportedProgress, ProgressRef};
use super::texts::AbiMessage;
use crate::calls::{PluginCall, WatchedCall};
use crate::{
    Codec, FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, Learner, Message,
    Optimizer, PluginError, Policy, PolicyInfo, Progress, Sampler, SamplingParameters, Segment,
    SequenceBatch, StepReport, StepSettings,
};

pub type PolicyBox = AbiPolicy_TO<'static, RBox<()>>;

#[sabi_trait]
pub trait AbiPolicy {
    fn info(&self) -> AbiResult<AbiPolicyInfo>;
    fn render(
        &self,
        messages: RSlice<'_, AbiMessage<'_>>,
        add_generation_prompt: bool,
    ) -> AbiResult<RString>;
    fn encode(&self, text: RStr<'_>, add_special_tokens: bool) -> AbiResult<RVec<u32>>;
    fn decode(&self, tokens: RSlice<'_, u32>) -> AbiResult<RString>;
    fn generate_each(
        &mut self,
        requests: RVec<AbiGenerationRequest>,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<RVec<AbiGeneratedResponse>>>;
    fn token_log_probs_each(
        &mut self,
        batches: RVec<AbiBatch<'_>>,
    ) -> AbiResult<RVec<RVec<RVec<f32>>>>;
    fn next_token_log_probs_each(
        &mut self,
        batches: AbiSequences<'_>,
        next_tokens: RSlice<'_, u32>,
    ) -> AbiResult<RVec<RVec<f32>>>;
    fn forward_each(&mut self, batches: RVec<AbiBatch<'_>>) -> AbiResult<RVec<RVec<f64>>>;
    fn backward_each(&mut self, coefficients: RVec<RSlice<'_, f64>>) -> AbiResult<()>;
    fn begin_training(&mut self, optimizer: Optimizer) -> AbiResult<()>;
    fn end_training(&mut self) -> AbiResult<()>;
    fn step(&mut self, settings: AbiStepSettings) -> AbiResult<StepReport>;
    fn save(&self, directory: AbiPath) -> AbiResult<()>;
    fn save_optimizer_state(&self, file: AbiPath) -> AbiResult<()>;
    #[sabi(last_prefix_field)]
    fn load_optimizer_state(&mut self, file: AbiPath) -> AbiResult<()>;
}

mirror!(AbiPolicyInfo of PolicyInfo {
    architecture: String,
    parameter_count: u64,
    layer_matrix_parameters: u64,
    head_parameters: u64,
    vocabulary_size: usize,
    context_length: usize,
    bos_token: Option<u32>,
    eos_token: Option<u32>,
    stop_tokens: Vec<u32>,
    device: String,
    dtype: String,
    replicas: usize,
});
mirror!(AbiGenerationPrompt of GenerationPrompt { id: u64, tokens: Vec<u32> });
mirror!(AbiGenerationRequest of GenerationRequest {
    prompts: Vec<GenerationPrompt>,
    samples_per_prompt: usize,
    sampling: SamplingParameters,
    seed: u64,
    stream: u64,
});
mirror!(AbiGeneratedResponse of GeneratedResponse {
    tokens: Vec<u32>,
    log_probs: Vec<f32>,
    finish_reason: FinishReason,
});
mirror!(AbiStepSettings of StepSettings {
    learning_rate: f64,
    max_gradient_norm: Option<f64>,
});

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiSegment {
    pub start: usize,
    pub end: usize,
    pub prompt: ROption<usize>,
}

/// A batch, whose tokens are borrowed.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiBatch<'a> {
    pub tokens: RSlice<'a, u32>,
    pub segments: RVec<AbiSegment>,
}

impl<'a> From<&'a SequenceBatch> for AbiBatch<'a> {
    fn from(batch: &'a SequenceBatch) -> Self {
        let segment = |segment: &Segment| AbiSegment {
            start: segment.tokens.start,
            end: segment.tokens.end,
            prompt: segment.prompt.into(),
        };
        Self {
            tokens: batch.tokens().into(),
            segments: batch.segments().iter().map(segment).collect(),
        }
    }
}

impl From<AbiBatch<'_>> for SequenceBatch {
    fn from(batch: AbiBatch<'_>) -> Self {
        let segment = |segment: &AbiSegment| Segment {
            tokens: segment.start..segment.end,
            prompt: segment.prompt.into(),
        };
        Self::from_parts(batch.tokens.to_vec(), batch.segments.iter().map(segment).collect())
    }
}

fn lent_batches(batches: &[SequenceBatch]) -> RVec<AbiBatch<'_>> {
    batches.iter().map(AbiBatch::from).collect()
}

fn received_batches(batches: RVec<AbiBatch<'_>>) -> Vec<SequenceBatch> {
    batches.into_iter().map(SequenceBatch::from).collect()
}

pub(super) fn export_policy(policy: Box<dyn Policy>) -> PolicyBox {
    AbiPolicy_TO::from_value(Exported::new(policy), TD_Opaque)
}

impl AbiPolicy for Exported<dyn Policy> {
    fn info(&self) -> AbiResult<AbiPolicyInfo> {
        guarded(|| Ok(self.0.info().clone().cross()))
    }

    fn render(
        &self,
        messages: RSlice<'_, AbiMessage<'_>>,
        add_generation_prompt: bool,
    ) -> AbiResult<RString> {
        guarded(|| {
            let messages: Vec<Message> = messages.iter().map(Message::from).collect();
            Ok(self.0.render(&messages, add_generation_prompt)?.cross())
        })
    }

    fn encode(&self, text: RStr<'_>, add_special_tokens: bool) -> AbiResult<RVec<u32>> {
        guarded(|| Ok(self.0.encode(text.as_str(), add_special_tokens)?.cross()))
    }

    fn decode(&self, tokens: RSlice<'_, u32>) -> AbiResult<RString> {
        guarded(|| Ok(self.0.decode(tokens.as_slice())?.cross()))
    }

    fn generate_each(
        &mut self,
        requests: RVec<AbiGenerationRequest>,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<RVec<AbiGeneratedResponse>>> {
        guarded(|| {
            let requests = Vec::<GenerationRequest>::receive(requests);
            Ok(self.0.generate_each(&requests, &ImportedProgress(progress))?.cross())
        })
    }

    fn token_log_probs_each(
        &mut self,
        batches: RVec<AbiBatch<'_>>,
    ) -> AbiResult<RVec<RVec<RVec<f32>>>> {
        guarded(|| Ok(self.0.token_log_probs_each(&received_batches(batches))?.cross()))
    }

    fn next_token_log_probs_each(
        &mut self,
        batches: AbiSequences<'_>,
        next_tokens: RSlice<'_, u32>,
    ) -> AbiResult<RVec<RVec<f32>>> {
        guarded(|| {
            let batches = owned_sequences(&batches);
            Ok(self.0.next_token_log_probs_each(&batches, next_tokens.as_slice())?.cross())
        })
    }

    fn forward_each(&mut self, batches: RVec<AbiBatch<'_>>) -> AbiResult<RVec<RVec<f64>>> {
        guarded(|| Ok(self.0.forward_each(&received_batches(batches))?.cross()))
    }

    fn backward_each(&mut self, coefficients: RVec<RSlice<'_, f64>>) -> AbiResult<()> {
        guarded(|| {
            let coefficients: Vec<Vec<f64>> =
                coefficients.iter().map(|of_batch| of_batch.to_vec()).collect();
            self.0.backward_each(&coefficients)
        })
    }

    fn begin_training(&mut self, optimizer: Optimizer) -> AbiResult<()> {
        guarded(|| self.0.begin_training(&optimizer))
    }

    fn end_training(&mut self) -> AbiResult<()> {
        guarded(|| self.0.end_training())
    }

    fn step(&mut self, settings: AbiStepSettings) -> AbiResult<StepReport> {
        guarded(|| self.0.step(&StepSettings::receive(settings)))
    }

    fn save(&self, directory: AbiPath) -> AbiResult<()> {
        guarded(|| self.0.save(&std::path::PathBuf::receive(directory)))
    }

    fn save_optimizer_state(&self, file: AbiPath) -> AbiResult<()> {
        guarded(|| self.0.save_optimizer_state(&std::path::PathBuf::receive(file)))
    }

    fn load_optimizer_state(&mut self, file: AbiPath) -> AbiResult<()> {
        guarded(|| self.0.load_optimizer_state(&std::path::PathBuf::receive(file)))
    }
}

/// A policy from the other side.
struct ImportedPolicy {
    plugin: &'static str,
    policy: PolicyBox,
    info: PolicyInfo,
}

/// Puts a policy of the other side behind the author's traits.
///
/// # Errors
/// When it does not describe itself.
pub(super) fn import_policy(
    plugin: &'static str,
    policy: PolicyBox,
) -> Result<Box<dyn Policy>, PluginError> {
    let info = received(plugin, policy.info())?;
    Ok(Box::new(ImportedPolicy { plugin, policy, info }))
}

impl Codec for ImportedPolicy {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn plugin(&self) -> Option<&'static str> {
        Some(self.plugin)
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError> {
        let messages: Vec<_> = messages.iter().map(AbiMessage::from).collect();
        let messages = RSlice::from(messages.as_slice());
        received(self.plugin, self.policy.render(messages, add_generation_prompt))
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, PluginError> {
        received(self.plugin, self.policy.encode(text.into(), add_special_tokens))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, PluginError> {
        received(self.plugin, self.policy.decode(tokens.into()))
    }
}

impl Sampler for ImportedPolicy {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        self.generate_each(std::slice::from_ref(request), progress)
            .and_then(|each| only(self.plugin, each))
    }

    fn generate_each(
        &mut self,
        requests: &[GenerationRequest],
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<GeneratedResponse>>, PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let crossing = requests.to_vec().cross();
        received_each(
            self.plugin,
            requests.len(),
            self.policy.generate_each(crossing, ExportedProgress(&call).lend()),
        )
    }
}

impl Learner for ImportedPolicy {
    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        self.token_log_probs_each(std::slice::from_ref(batch))
            .and_then(|each| only(self.plugin, each))
    }

    fn token_log_probs_each(
        &mut self,
        batches: &[SequenceBatch],
    ) -> Result<Vec<Vec<Vec<f32>>>, PluginError> {
        let made = self.policy.token_log_probs_each(lent_batches(batches));
        received_each(self.plugin, batches.len(), made)
    }

    fn next_token_log_probs(
        &mut self,
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
    ) -> Result<Vec<f32>, PluginError> {
        self.next_token_log_probs_each(&[sequences.to_vec()], next_tokens)
            .and_then(|each| only(self.plugin, each))
    }

    fn next_token_log_probs_each(
        &mut self,
        batches: &[Vec<Vec<u32>>],
        next_tokens: &[u32],
    ) -> Result<Vec<Vec<f32>>, PluginError> {
        let lent = batches.iter().map(|sequences| lent_sequences(sequences)).collect();
        let made = self.policy.next_token_log_probs_each(lent, next_tokens.into());
        received_each(self.plugin, batches.len(), made)
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError> {
        self.forward_each(std::slice::from_ref(batch)).and_then(|each| only(self.plugin, each))
    }

    fn forward_each(&mut self, batches: &[SequenceBatch]) -> Result<Vec<Vec<f64>>, PluginError> {
        let made = self.policy.forward_each(lent_batches(batches));
        received_each(self.plugin, batches.len(), made)
    }

    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError> {
        let coefficients = RVec::from(vec![RSlice::from(coefficients)]);
        received(self.plugin, self.policy.backward_each(coefficients))
    }

    fn backward_each(&mut self, coefficients: &[Vec<f64>]) -> Result<(), PluginError> {
        let coefficients = coefficients.iter().map(|of_batch| RSlice::from(of_batch.as_slice()));
        received(self.plugin, self.policy.backward_each(coefficients.collect()))
    }

    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError> {
        received(self.plugin, self.policy.begin_training(optimizer.clone()))
    }

    fn end_training(&mut self) -> Result<(), PluginError> {
        received(self.plugin, self.policy.end_training())
    }

    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError> {
        received(self.plugin, self.policy.step(settings.cross()))
    }

    fn save(&self, directory: &Path) -> Result<(), PluginError> {
        let _call = PluginCall::enter(self.plugin);
        received(self.plugin, self.policy.save(path(directory)))
    }

    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError> {
        received(self.plugin, self.policy.save_optimizer_state(path(file)))
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError> {
        received(self.plugin, self.policy.load_optimizer_state(path(file)))
    }
}

/// A policy of this program behind its own ABI, as `sppo bench` times it.
///
/// # Errors
/// When it does not describe itself.
pub fn policy_across(policy: Box<dyn Policy>) -> Result<Box<dyn Policy>, PluginError> {
    import_policy("backend", export_policy(policy))
}
