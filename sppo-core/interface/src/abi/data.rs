//! Mirrors of the data. What goes from the program to a plugin borrows, what comes back is owned.

use abi_stable::StableAbi;
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString, RVec};

use crate::{
    FinishReason, GeneratedResponse, GenerationPrompt, GenerationRequest, LoraSettings,
    MemoryEstimate, MemoryUse, Optimizer, PlannedSampling, PlannedTraining, PlannedWork,
    PluginError, PluginErrorKind, PolicyInfo, SamplingParameters, Segment, SequenceBatch,
    StepReport, StepSettings,
};

pub type AbiResult<T> = RResult<T, AbiError>;

/// Mirrors a struct field by field where the fields need no conversion.
macro_rules! mirror {
    ($(#[$attribute:meta])* $mirror:ident of $original:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$attribute])*
        #[repr(C)]
        #[derive(Clone, Copy, StableAbi)]
        pub struct $mirror {
            $(pub $field: $type,)*
        }

        impl From<&$original> for $mirror {
            fn from(original: &$original) -> Self {
                Self { $($field: original.$field.into(),)* }
            }
        }

        impl From<$mirror> for $original {
            fn from(mirror: $mirror) -> Self {
                Self { $($field: mirror.$field.into(),)* }
            }
        }
    };
}

/// Mirrors an enum without data.
macro_rules! mirror_choice {
    ($mirror:ident of $original:ident { $($variant:ident),* $(,)? }) => {
        #[repr(u8)]
        #[derive(Clone, Copy, StableAbi)]
        pub enum $mirror {
            $($variant,)*
        }

        impl From<$original> for $mirror {
            fn from(original: $original) -> Self {
                match original {
                    $($original::$variant => Self::$variant,)*
                }
            }
        }

        impl From<$mirror> for $original {
            fn from(mirror: $mirror) -> Self {
                match mirror {
                    $($mirror::$variant => Self::$variant,)*
                }
            }
        }
    };
}

mirror_choice!(AbiErrorKind of PluginErrorKind {
    Configuration, Input, Unsupported, OutOfMemory, Cancelled, Failed,
});
mirror_choice!(AbiFinishReason of FinishReason { EndToken, Length });

mirror!(AbiSampling of SamplingParameters {
    temperature: f64,
    top_p: f64,
    top_k: usize,
    max_new_tokens: usize,
    min_new_tokens: usize,
});
mirror!(AbiPlannedSampling of PlannedSampling {
    prompts: usize,
    longest_prompt: usize,
    samples_per_prompt: usize,
    max_new_tokens: usize,
});
mirror!(AbiMemoryUse of MemoryUse {
    weights: u64,
    gradients: u64,
    optimizer_state: u64,
    activations: u64,
    key_value_cache: u64,
    scratch: u64,
});
mirror!(AbiStepSettings of StepSettings {
    learning_rate: f64,
    max_gradient_norm: ROption<f64>,
});
mirror!(AbiStepReport of StepReport { gradient_norm: f64 });

/// Who a plugin is, as its code says; what its file says must be the same.
#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiManifest {
    pub name: RStr<'static>,
    pub interface_version: u32,
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiError {
    pub kind: AbiErrorKind,
    pub message: RString,
    pub hint: ROption<RString>,
}

impl From<PluginError> for AbiError {
    fn from(error: PluginError) -> Self {
        Self {
            kind: error.kind.into(),
            message: error.message.into(),
            hint: error.hint.map(RString::from).into(),
        }
    }
}

impl From<AbiError> for PluginError {
    fn from(error: AbiError) -> Self {
        Self {
            kind: error.kind.into(),
            message: error.message.into(),
            hint: error.hint.map(String::from).into(),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiMetric<'a> {
    pub name: RStr<'a>,
    pub value: f64,
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiPolicyInfo {
    pub architecture: RString,
    pub parameter_count: u64,
    pub layer_matrix_parameters: u64,
    pub head_parameters: u64,
    pub vocabulary_size: usize,
    pub context_length: usize,
    pub beginning_token: ROption<u32>,
    pub end_of_sequence_token: ROption<u32>,
    pub end_tokens: RVec<u32>,
    pub device: RString,
    pub data_type: RString,
}

impl From<&PolicyInfo> for AbiPolicyInfo {
    fn from(info: &PolicyInfo) -> Self {
        Self {
            architecture: info.architecture.as_str().into(),
            parameter_count: info.parameter_count,
            layer_matrix_parameters: info.layer_matrix_parameters,
            head_parameters: info.head_parameters,
            vocabulary_size: info.vocabulary_size,
            context_length: info.context_length,
            beginning_token: info.beginning_token.into(),
            end_of_sequence_token: info.end_of_sequence_token.into(),
            end_tokens: info.end_tokens.clone().into(),
            device: info.device.as_str().into(),
            data_type: info.data_type.as_str().into(),
        }
    }
}

impl From<AbiPolicyInfo> for PolicyInfo {
    fn from(info: AbiPolicyInfo) -> Self {
        Self {
            architecture: info.architecture.into(),
            parameter_count: info.parameter_count,
            layer_matrix_parameters: info.layer_matrix_parameters,
            head_parameters: info.head_parameters,
            vocabulary_size: info.vocabulary_size,
            context_length: info.context_length,
            beginning_token: info.beginning_token.into(),
            end_of_sequence_token: info.end_of_sequence_token.into(),
            end_tokens: info.end_tokens.into(),
            device: info.device.into(),
            data_type: info.data_type.into(),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiSegment {
    pub start: usize,
    pub end: usize,
    pub prompt: ROption<usize>,
}

#[repr(C)]
#[derive(Clone, StableAbi)]
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

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiLoraSettings<'a> {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub target_modules: RVec<RStr<'a>>,
    pub rank_stabilized: bool,
    pub seed: u64,
}

impl<'a> From<&'a LoraSettings> for AbiLoraSettings<'a> {
    fn from(settings: &'a LoraSettings) -> Self {
        let target_modules = settings.target_modules.iter();
        Self {
            rank: settings.rank,
            alpha: settings.alpha,
            dropout: settings.dropout,
            target_modules: target_modules.map(|name| name.as_str().into()).collect(),
            rank_stabilized: settings.rank_stabilized,
            seed: settings.seed,
        }
    }
}

impl From<AbiLoraSettings<'_>> for LoraSettings {
    fn from(settings: AbiLoraSettings<'_>) -> Self {
        Self {
            rank: settings.rank,
            alpha: settings.alpha,
            dropout: settings.dropout,
            target_modules: settings.target_modules.iter().map(ToString::to_string).collect(),
            rank_stabilized: settings.rank_stabilized,
            seed: settings.seed,
        }
    }
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiPlannedTraining {
    pub optimizer: AbiOptimizer,
    pub tokens: usize,
    pub predicted_tokens: usize,
    pub recompute_activations: bool,
}

impl From<&PlannedTraining> for AbiPlannedTraining {
    fn from(training: &PlannedTraining) -> Self {
        Self {
            optimizer: (&training.optimizer).into(),
            tokens: training.tokens,
            predicted_tokens: training.predicted_tokens,
            recompute_activations: training.recompute_activations,
        }
    }
}

impl From<AbiPlannedTraining> for PlannedTraining {
    fn from(training: AbiPlannedTraining) -> Self {
        Self {
            optimizer: training.optimizer.into(),
            tokens: training.tokens,
            predicted_tokens: training.predicted_tokens,
            recompute_activations: training.recompute_activations,
        }
    }
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiPlannedWork<'a> {
    pub adapters: ROption<AbiLoraSettings<'a>>,
    pub sampling: RVec<AbiPlannedSampling>,
    pub training: ROption<AbiPlannedTraining>,
}

impl<'a> From<&'a PlannedWork> for AbiPlannedWork<'a> {
    fn from(work: &'a PlannedWork) -> Self {
        Self {
            adapters: work.adapters.as_ref().map(AbiLoraSettings::from).into(),
            sampling: work.sampling.iter().map(AbiPlannedSampling::from).collect(),
            training: work.training.as_ref().map(AbiPlannedTraining::from).into(),
        }
    }
}

impl From<AbiPlannedWork<'_>> for PlannedWork {
    fn from(work: AbiPlannedWork<'_>) -> Self {
        Self {
            adapters: work.adapters.map(LoraSettings::from).into(),
            sampling: work.sampling.into_iter().map(PlannedSampling::from).collect(),
            training: work.training.map(PlannedTraining::from).into(),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiMemoryEstimate {
    pub loading: AbiMemoryUse,
    pub sampling: AbiMemoryUse,
    pub training: AbiMemoryUse,
    pub saving: AbiMemoryUse,
}

impl From<MemoryEstimate> for AbiMemoryEstimate {
    fn from(estimate: MemoryEstimate) -> Self {
        Self {
            loading: (&estimate.loading).into(),
            sampling: (&estimate.sampling).into(),
            training: (&estimate.training).into(),
            saving: (&estimate.saving).into(),
        }
    }
}

impl From<AbiMemoryEstimate> for MemoryEstimate {
    fn from(estimate: AbiMemoryEstimate) -> Self {
        Self {
            loading: estimate.loading.into(),
            sampling: estimate.sampling.into(),
            training: estimate.training.into(),
            saving: estimate.saving.into(),
        }
    }
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiGenerationPrompt<'a> {
    pub id: u64,
    pub tokens: RSlice<'a, u32>,
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiGenerationRequest<'a> {
    pub prompts: RVec<AbiGenerationPrompt<'a>>,
    pub samples_per_prompt: usize,
    pub sampling: AbiSampling,
    pub seed: u64,
    pub stream: u64,
}

impl<'a> From<&'a GenerationRequest> for AbiGenerationRequest<'a> {
    fn from(request: &'a GenerationRequest) -> Self {
        let prompt = |prompt: &'a GenerationPrompt| AbiGenerationPrompt {
            id: prompt.id,
            tokens: prompt.tokens.as_slice().into(),
        };
        Self {
            prompts: request.prompts.iter().map(prompt).collect(),
            samples_per_prompt: request.samples_per_prompt,
            sampling: (&request.sampling).into(),
            seed: request.seed,
            stream: request.stream,
        }
    }
}

impl From<AbiGenerationRequest<'_>> for GenerationRequest {
    fn from(request: AbiGenerationRequest<'_>) -> Self {
        let prompt = |prompt: &AbiGenerationPrompt<'_>| GenerationPrompt {
            id: prompt.id,
            tokens: prompt.tokens.to_vec(),
        };
        Self {
            prompts: request.prompts.iter().map(prompt).collect(),
            samples_per_prompt: request.samples_per_prompt,
            sampling: request.sampling.into(),
            seed: request.seed,
            stream: request.stream,
        }
    }
}

#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiGeneratedResponse {
    pub tokens: RVec<u32>,
    pub log_probs: RVec<f32>,
    pub finish_reason: AbiFinishReason,
}

impl From<GeneratedResponse> for AbiGeneratedResponse {
    fn from(response: GeneratedResponse) -> Self {
        Self {
            tokens: response.tokens.into(),
            log_probs: response.log_probs.into(),
            finish_reason: response.finish_reason.into(),
        }
    }
}

impl From<AbiGeneratedResponse> for GeneratedResponse {
    fn from(response: AbiGeneratedResponse) -> Self {
        Self {
            tokens: response.tokens.into(),
            log_probs: response.log_probs.into(),
            finish_reason: response.finish_reason.into(),
        }
    }
}

#[repr(u8)]
#[derive(Clone, Copy, StableAbi)]
pub enum AbiOptimizer {
    RmsProp { alpha: f64, epsilon: f64 },
    AdamW { beta1: f64, beta2: f64, epsilon: f64, weight_decay: f64 },
    Sgd { momentum: f64 },
}

impl From<&Optimizer> for AbiOptimizer {
    fn from(optimizer: &Optimizer) -> Self {
        match *optimizer {
            Optimizer::RmsProp { alpha, epsilon } => Self::RmsProp { alpha, epsilon },
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                Self::AdamW { beta1, beta2, epsilon, weight_decay }
            }
            Optimizer::Sgd { momentum } => Self::Sgd { momentum },
        }
    }
}

impl From<AbiOptimizer> for Optimizer {
    fn from(optimizer: AbiOptimizer) -> Self {
        match optimizer {
            AbiOptimizer::RmsProp { alpha, epsilon } => Self::RmsProp { alpha, epsilon },
            AbiOptimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                Self::AdamW { beta1, beta2, epsilon, weight_decay }
            }
            AbiOptimizer::Sgd { momentum } => Self::Sgd { momentum },
        }
    }
}
