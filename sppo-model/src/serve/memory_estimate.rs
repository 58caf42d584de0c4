//! Estimates the memory that a decoder takes, part by part, from its configuration alone.
//!
//! Follows what the tape keeps of a forward pass ([`Tape`](crate::ops::Tape)) and what generation holds
//! ([`crate::generation`]). What an op set does beyond that, its [`MemoryTraits`] say.

use sppo_plugin::{
    LoraSettings, MemoryEstimate, MemoryUse, PlannedSampling, PlannedTraining, PlannedWork,
    PolicySpec,
};

use crate::decoder::{
    DecoderConfig, Experts, NormPlacement, QueryKeyNorm, adapter_shapes, tensor_layout,
};
use crate::generation::{GenerationLimits, planned_cache};
use crate::ops::{LogitsLimits, state_count};

/// Memory of an op set beyond the values that the model asks it to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryTraits {
    /// Bytes of an activation's number, and of a trained weight's.
    pub number_bytes: u64,
    /// Whether matrices that are not trained stay in bf16 where their values are of it, and decoding
    /// reads them as they are.
    pub keeps_frozen_bf16: bool,
    /// Whether decoding makes a copy of all other matrices.
    pub copies_matrices_for_decoding: bool,
    /// Logits, or their gradients, that exist at a time.
    pub logits: LogitsLimits,
    /// Bytes of the program without a model.
    pub program: u64,
}

struct Estimator<'a> {
    config: &'a DecoderConfig,
    traits: MemoryTraits,
    limits: GenerationLimits,
    spec: &'a PolicySpec,
    /// Whether matrices that are not trained take two bytes a number.
    frozen_in_bf16: bool,
}

/// The memory that planned work on a decoder takes; `stored_in_bf16` says whether its file holds
/// matrices in bf16.
#[must_use]
pub(super) fn estimate_memory(
    config: &DecoderConfig,
    traits: MemoryTraits,
    limits: GenerationLimits,
    stored_in_bf16: bool,
    spec: &PolicySpec,
    work: &PlannedWork,
) -> MemoryEstimate {
    let frozen_in_bf16 = stored_in_bf16 && traits.keeps_frozen_bf16 && spec.adapters.is_some();
    let estimator = Estimator { config, traits, limits, spec, frozen_in_bf16 };
    let weights = estimator.weights();
    let held = MemoryUse { weights, scratch: traits.program, ..MemoryUse::default() };
    let mut estimate = MemoryEstimate {
        loading: MemoryUse { scratch: held.scratch + estimator.loading_scratch(), ..held },
        ..MemoryEstimate::default()
    };
    // The optimiser's state stays while the next iteration's responses are sampled.
    let trained = work.training.as_ref().map(|training| estimator.optimizer_state(training));
    let optimizer_state = trained.unwrap_or(0);
    let requests = work.sampling.iter().map(|sampling| MemoryUse {
        optimizer_state,
        key_value_cache: estimator.cache(sampling),
        scratch: held.scratch + estimator.sampling_scratch(sampling),
        ..held
    });
    estimate.sampling = requests.max_by_key(MemoryUse::total).unwrap_or_default();
    if let Some(training) = &work.training {
        let gradients = estimator.trained_numbers() * traits.number_bytes;
        let (activations, scratch) = estimator.activations(training);
        let held = MemoryUse { gradients, optimizer_state, ..held };
        estimate.training = MemoryUse { activations, scratch: held.scratch + scratch, ..held };
        estimate.saving = MemoryUse {
            scratch: held.scratch + optimizer_state.max(estimator.largest_trained()),
            ..held
        };
    }
    estimate
}

impl Estimator<'_> {
    fn adapters(&self) -> Option<&LoraSettings> {
        self.spec.adapters.as_ref()
    }

    /// Numbers in all matrices, and in everything else.
    fn model_numbers(&self) -> (u64, u64) {
        tensor_layout(self.config).iter().fold((0, 0), |(matrices, vectors), tensor| {
            let numbers = numbers(&tensor.shape);
            match tensor.shape.len() {
                2 => (matrices + numbers, vectors),
                _ => (matrices, vectors + numbers),
            }
        })
    }

    /// Numbers in the matrices that enter products.
    fn product_numbers(&self) -> u64 {
        let table = match self.config.tied_head {
            true => 0,
            false => self.config.vocabulary_size * self.config.hidden_size,
        };
        self.model_numbers().0 - table as u64
    }

    fn adapter_numbers(&self) -> u64 {
        let shapes = self.adapters().map(|settings| adapter_shapes(self.config, settings));
        shapes.iter().flatten().flatten().map(|shape| numbers(shape)).sum()
    }

    fn trained_numbers(&self) -> u64 {
        let (matrices, vectors) = self.model_numbers();
        match self.adapters() {
            Some(_) => self.adapter_numbers(),
            None => matrices + vectors,
        }
    }

    fn weights(&self) -> u64 {
        let bytes = self.traits.number_bytes;
        let (matrices, vectors) = self.model_numbers();
        let of_matrices = if self.frozen_in_bf16 { 2 } else { bytes };
        of_matrices * matrices + bytes * (vectors + self.adapter_numbers())
    }

    /// Peak of loading beyond the weights that it leaves: one after the other is read from its file in
    /// f32 and converted.
    fn loading_scratch(&self) -> u64 {
        let (mut loaded, mut most) = (0, 0);
        for tensor in tensor_layout(self.config) {
            let numbers = numbers(&tensor.shape);
            let is_half = self.frozen_in_bf16 && tensor.shape.len() == 2;
            let own = numbers * if is_half { 2 } else { self.traits.number_bytes };
            most = most.max(loaded + 4 * numbers + own);
            loaded += own;
        }
        most.saturating_sub(self.weights())
    }

    fn largest_trained(&self) -> u64 {
        match self.adapters() {
            Some(_) => 4 * self.adapter_numbers(),
            None => self.largest_tensor(),
        }
    }

    /// The largest weight in f32, as it is read and written.
    fn largest_tensor(&self) -> u64 {
        let layout = tensor_layout(self.config);
        4 * layout.iter().map(|tensor| numbers(&tensor.shape)).max().unwrap_or(0)
    }

    fn optimizer_state(&self, training: &PlannedTraining) -> u64 {
        state_count(&training.optimizer) as u64 * self.trained_numbers() * self.traits.number_bytes
    }

    fn cache(&self, sampling: &PlannedSampling) -> u64 {
        let config = self.config;
        let features = config.key_value_heads * config.head_size;
        let slots = planned_cache(config, &self.limits, sampling).slots();
        2 * (config.layer_count * features * slots) as u64 * self.traits.number_bytes
    }

    fn sampling_scratch(&self, sampling: &PlannedSampling) -> u64 {
        let config = self.config;
        let bytes = self.traits.number_bytes;
        let rows = planned_cache(config, &self.limits, sampling).rows;
        let prompts = rows.div_ceil(sampling.samples_per_prompt.max(1));
        let prefilled = (prompts * sampling.longest_prompt)
            .min(self.limits.prefill_tokens)
            .max(sampling.longest_prompt);
        // Logits as they come out of the product, as a matrix, and on their way to the sampler.
        let logits = 3 * (rows * config.vocabulary_size) as u64 * bytes;
        let prefill = self.passing(prefilled);
        let copied = match (self.traits.copies_matrices_for_decoding, self.frozen_in_bf16) {
            (false, _) => 0,
            (true, true) => self.adapter_numbers(),
            (true, false) => self.product_numbers() + self.adapter_numbers(),
        };
        bytes * copied + logits.max(prefill)
    }

    /// Activations that a layer's feed-forward block holds at a time: the residual and its norm, gate, up
    /// and their product.
    fn passing(&self, tokens: usize) -> u64 {
        let config = self.config;
        let features = 2 * config.hidden_size + 3 * self.inner_numbers();
        (tokens * features) as u64 * self.traits.number_bytes
    }

    /// Bytes that a training pass keeps, and those of its temporary tensors.
    fn activations(&self, training: &PlannedTraining) -> (u64, u64) {
        let MemoryTraits { number_bytes, logits: limits, .. } = self.traits;
        let config = self.config;
        let (tokens, predicted) = (training.tokens as u64, training.predicted_tokens as u64);
        let hidden = config.hidden_size as u64;
        let layers = config.layer_count as u64;
        let layer = tokens * self.kept_per_token();
        let layers = match self.spec.recompute_activations {
            true => layers * tokens * hidden + layer,
            false => layers * layer,
        };
        let kept = number_bytes * (layers + 2 * predicted * hidden);
        let logits = number_bytes * predicted * config.vocabulary_size as u64;
        // All logits or a part of them, and the gradients of a part.
        let part = logits.min(limits.chunk_bytes as u64);
        let at_head = part + if logits <= limits.kept_bytes as u64 { logits } else { part };
        // The gradients of the residual, of its norm, and of gate and up.
        let inner = self.inner_numbers() as u64;
        let in_layer = number_bytes * tokens * 2 * (hidden + inner);
        (kept, at_head.max(in_layer))
    }

    /// Features inside the feed-forward blocks that a token goes through, and those of their inputs and
    /// outputs which experts have beside: of the layers' mean, a third, because gate, up and their product
    /// are counted.
    fn inner_numbers(&self) -> usize {
        let config = self.config;
        let of_layer = |layer: usize| match config.experts_of(layer) {
            None => 3 * config.intermediate_size,
            Some(Experts { routing, intermediate_size, .. }) => {
                routing.chosen * (3 * intermediate_size + 2 * config.hidden_size)
                    + routing.expert_count
            }
        };
        let all: usize = (0..config.layer_count).map(of_layer).sum();
        all.div_ceil(3 * config.layer_count.max(1))
    }

    /// Numbers that the tape keeps of one layer for each token.
    fn kept_per_token(&self) -> u64 {
        let config = self.config;
        let (hidden, inner) = (config.hidden_size, self.inner_numbers());
        let queries = config.attention_heads * config.head_size;
        let keys = config.key_value_heads * config.head_size;
        // Each block's input and its norm; queries, keys, values and the attention's result; gate, up
        // and their product.
        let mut kept = 4 * hidden + 2 * (queries + keys) + config.attention_heads + 3 * inner;
        if config.query_key_norm != QueryKeyNorm::Absent {
            kept += queries + keys;
        }
        if config.norm_placement == NormPlacement::BeforeAndAfter {
            kept += 2 * hidden;
        }
        if let Some(settings) = self.adapters() {
            // Of each adapter its narrow middle, and its input where dropout changed that.
            let of_adapters = adapter_shapes(config, settings)
                .into_iter()
                .map(|[[rank, input], _]| rank + if settings.dropout > 0.0 { input } else { 0 });
            kept += of_adapters.sum::<usize>().div_ceil(config.layer_count.max(1));
        }
        kept as u64
    }
}

fn numbers(shape: &[usize]) -> u64 {
    shape.iter().map(|&size| size as u64).product()
}
