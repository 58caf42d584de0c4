//! Estimates the memory that a decoder takes, part by part, from its configuration alone.
//!
//! Follows what the tape keeps of a forward pass ([`Tape`](crate::ops::Tape)) and what generation holds
//! ([`crate::generation`]). What an op set does beyond that, its [`MemoryTraits`] say.

use std::collections::HashMap;

use sppo_plugin::{
    GradientDtype, LoraSettings, MemoryEstimate, MemoryUse, PlannedSampling, PlannedTraining,
    PlannedWork, PolicySpec, Sharding,
};

use crate::decoder::{
    DecoderConfig, EMBEDDING, Experts, NormPlacement, QueryKeyNorm, TensorLayout, adapter_shapes,
    tensor_layout,
};
use crate::generation::{CachePlan, GenerationLimits, planned_cache};
use crate::ops::{LogitsLimits, state_count};

/// Memory of an op set beyond the values that the model asks it to keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryTraits {
    /// Bytes of a trained weight's number, and of an activation's that is no operand of a product.
    pub number_bytes: u64,
    /// Bytes of a number that enters a matrix product. Where they are fewer, matrices that are trained have a
    /// copy of such numbers.
    pub operand_bytes: u64,
    /// Whether such matrices keep of their f32 values only what the copies lack.
    pub splits_masters: bool,
    /// Whether matrices that are not trained stay in bf16 where their values are of it, and decoding
    /// reads them as they are.
    pub keeps_frozen_bf16: bool,
    /// The matrices, among the others, that decoding makes a copy of.
    pub copied_for_decoding: CopiedMatrices,
    /// Bytes that products take while they dequantise a matrix that is kept in blocks, part by part.
    pub dequantized: u64,
    /// Logits, or their gradients, that exist at a time.
    pub logits: LogitsLimits,
    /// Bytes of the program without a model.
    pub program: u64,
}

/// Matrices of which decoding makes a copy in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopiedMatrices {
    /// None.
    None,
    /// Those that are trained, in the memory that their gradients left.
    Trained,
    /// All of them.
    All,
}

impl MemoryTraits {
    /// Bytes that CUDA takes of a device for this program before there is a model: its context, kernels as they
    /// are loaded, and workspaces of its libraries. An allowance, not a measurement.
    pub const CUDA_PROGRAM_BYTES: u64 = 768 << 20;
}

/// Bytes of gradients that are summed while a backward pass goes on, where ranks divide gradients.
pub const GRADIENTS_UNDER_WAY: u64 = 64 << 20;

/// Copies of a weight's f32 values while it is sent to the ranks, beside those that were read: bytes, the
/// message, and that as a tensor.
const COPIES_ON_THE_WAY: u64 = 4;

struct Estimator<'a> {
    config: &'a DecoderConfig,
    traits: MemoryTraits,
    limits: GenerationLimits,
    spec: &'a PolicySpec,
    /// Whether matrices that are not trained take two bytes a number.
    frozen_in_bf16: bool,
    /// Bytes of the matrices that are kept in blocks, by name.
    quantized: HashMap<String, u64>,
    /// Processes that hold the model together.
    ranks: u64,
}

/// The means of a process to hold a decoder.
#[derive(Clone, Debug)]
pub(super) struct MemorySetting {
    pub(super) traits: MemoryTraits,
    pub(super) limits: GenerationLimits,
    /// Whether the decoder's file holds matrices in bf16.
    pub(super) stored_in_bf16: bool,
    /// Bytes of the matrices that are kept in the blocks of the decoder's file, by name.
    pub(super) quantized: HashMap<String, u64>,
    /// Processes that hold the decoder together.
    pub(super) ranks: usize,
}

/// The memory that planned work on a decoder takes, in the process of several that needs most: rank 0, which
/// writes the files.
#[must_use]
pub(super) fn estimate_memory(
    config: &DecoderConfig,
    setting: MemorySetting,
    spec: &PolicySpec,
    work: &PlannedWork,
) -> MemoryEstimate {
    let MemorySetting { traits, limits, stored_in_bf16, quantized, ranks } = setting;
    let frozen_in_bf16 = stored_in_bf16 && traits.keeps_frozen_bf16 && spec.adapters.is_some();
    let ranks = ranks.max(1) as u64;
    let estimator = Estimator { config, traits, limits, spec, frozen_in_bf16, quantized, ranks };
    let weights = estimator.weights();
    let held = MemoryUse { weights, scratch: traits.program, ..MemoryUse::default() };
    let mut estimate = MemoryEstimate {
        loading: MemoryUse { scratch: held.scratch + estimator.loading_scratch(), ..held },
        ..MemoryEstimate::default()
    };
    // Training has ended when responses are sampled, and its gradients and state are given up.
    let requests = work.sampling.iter().map(|sampling| MemoryUse {
        key_value_cache: estimator.cache(sampling),
        scratch: held.scratch + estimator.sampling_scratch(sampling),
        ..held
    });
    estimate.sampling = requests.max_by_key(MemoryUse::total).unwrap_or_default();
    if let Some(training) = &work.training {
        let gradients = estimator.gradients();
        let optimizer_state = estimator.optimizer_state(training);
        let (activations, scratch) = estimator.activations(training);
        let held = MemoryUse { gradients, optimizer_state, ..held };
        estimate.training = MemoryUse { activations, scratch: held.scratch + scratch, ..held };
        estimate.saving =
            MemoryUse { scratch: held.scratch + estimator.saving_scratch(training), ..held };
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

    /// Numbers of trained matrices, and of trained vectors.
    fn trained_shapes(&self) -> (u64, u64) {
        match self.adapters() {
            Some(_) => (self.adapter_numbers(), 0),
            None => self.model_numbers(),
        }
    }

    fn sharding(&self) -> Sharding {
        if self.ranks > 1 { self.spec.sharding } else { Sharding::None }
    }

    /// Numbers of what ranks divide if `divided`: matrices, and not vectors.
    fn trained_share(&self, divided: bool) -> u64 {
        let (matrices, vectors) = self.trained_shapes();
        vectors + if divided { matrices.div_ceil(self.ranks) } else { matrices }
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
        let (_, vectors) = self.model_numbers();
        if self.adapters().is_some() {
            let layout = tensor_layout(self.config);
            let frozen: u64 = layout.iter().map(|tensor| self.frozen_bytes(tensor)).sum();
            return frozen + self.bytes_of_trained(self.adapter_numbers());
        }
        let products = self.product_numbers();
        let table = self.table_numbers();
        // A table that is looked up stays whole in f32, and a tied one has a copy as well.
        let in_products = products - if self.config.tied_head { table } else { 0 };
        let tables = table * (bytes + if self.config.tied_head { self.copy_bytes() } else { 0 });
        bytes * vectors + tables + self.bytes_of_trained(in_products)
    }

    /// Bytes of a weight that is not trained.
    fn frozen_bytes(&self, tensor: &TensorLayout) -> u64 {
        let number = match tensor.shape.len() {
            2 => self.bytes_of_frozen(),
            _ => self.traits.number_bytes,
        };
        let dense = numbers(&tensor.shape) * number;
        self.quantized.get(&tensor.name).copied().unwrap_or(dense)
    }

    /// Bytes that products take beside the blocks that they dequantise.
    fn dequantized(&self) -> u64 {
        if self.quantized.is_empty() { 0 } else { self.traits.dequantized }
    }

    /// Numbers in the matrices in blocks that enter products: all of them but a table that is only looked up.
    fn quantized_product_numbers(&self) -> u64 {
        let layout = tensor_layout(self.config);
        let is_product = |tensor: &&TensorLayout| {
            let is_looked_up = !self.config.tied_head && tensor.name == EMBEDDING;
            self.quantized.contains_key(&tensor.name) && !is_looked_up
        };
        layout.iter().filter(is_product).map(|tensor| numbers(&tensor.shape)).sum()
    }

    /// Bytes of a number of a matrix that is not trained and in no blocks.
    fn bytes_of_frozen(&self) -> u64 {
        if self.frozen_in_bf16 { 2 } else { self.traits.operand_bytes }
    }

    /// Bytes of the copy of a number in the format of products.
    fn copy_bytes(&self) -> u64 {
        let MemoryTraits { number_bytes, operand_bytes, .. } = self.traits;
        if operand_bytes < number_bytes { operand_bytes } else { 0 }
    }

    /// Bytes of so many numbers of trained matrices: their f32 values or what their copies lack of them, of this
    /// rank's part, and their copies.
    fn bytes_of_trained(&self, numbers: u64) -> u64 {
        let MemoryTraits { number_bytes, splits_masters, .. } = self.traits;
        let copy = self.copy_bytes();
        let kept = if splits_masters { number_bytes - copy } else { number_bytes };
        let is_divided = copy > 0 && self.sharding() != Sharding::None;
        let values = numbers * kept;
        copy * numbers + if is_divided { values.div_ceil(self.ranks) } else { values }
    }

    /// Bytes of a number of a gradient.
    fn gradient_bytes(&self) -> u64 {
        match self.spec.gradient_dtype {
            GradientDtype::F32 => self.traits.number_bytes,
            GradientDtype::Bf16 => 2,
        }
    }

    fn table_numbers(&self) -> u64 {
        (self.config.vocabulary_size * self.config.hidden_size) as u64
    }

    /// Gradients of a pass: of all weights, or where ranks divide them this rank's part, and those that are on
    /// their way to be divided. A tied table's is complete when the pass is.
    fn gradients(&self) -> u64 {
        let bytes = self.gradient_bytes();
        if self.sharding() != Sharding::Gradients {
            return self.trained_numbers() * bytes;
        }
        let held_until_the_end = match self.adapters() {
            None if self.config.tied_head => self.table_numbers() * bytes,
            _ => 0,
        };
        let layer = self.product_numbers() / self.config.layer_count.max(1) as u64 * bytes;
        let on_their_way = held_until_the_end + layer + GRADIENTS_UNDER_WAY;
        let all = self.trained_numbers() * bytes;
        self.trained_share(true) * bytes + on_their_way.min(all)
    }

    /// Peak of writing files: a weight or a state tensor at a time, whole where ranks divide it, as numbers and
    /// as bytes.
    fn saving_scratch(&self, training: &PlannedTraining) -> u64 {
        let whole = u64::from(self.sharding() != Sharding::None);
        let states = state_count(&training.optimizer) as u64;
        (1 + states + whole) * self.largest_trained()
    }

    /// Peak of loading beyond the weights that it leaves: one after the other is read from its file in
    /// f32 and converted.
    fn loading_scratch(&self) -> u64 {
        let (mut loaded, mut most) = (0, 0);
        let on_the_way = if self.ranks > 1 { COPIES_ON_THE_WAY } else { 0 };
        for tensor in tensor_layout(self.config) {
            let numbers = numbers(&tensor.shape);
            let own = match self.adapters() {
                Some(_) => self.frozen_bytes(&tensor),
                None => numbers * self.traits.number_bytes,
            };
            // blocks are not converted
            let read = if self.quantized.contains_key(&tensor.name) { 0 } else { 4 * numbers };
            most = most.max(loaded + read * (1 + on_the_way) + own);
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
        let numbers = self.trained_share(self.sharding() != Sharding::None);
        state_count(&training.optimizer) as u64 * numbers * self.traits.number_bytes
    }

    fn planned_cache(&self, sampling: &PlannedSampling) -> CachePlan {
        let number_bytes = self.traits.operand_bytes as usize;
        planned_cache(self.config, &self.limits, number_bytes, sampling)
    }

    fn cache(&self, sampling: &PlannedSampling) -> u64 {
        let config = self.config;
        let features = config.key_value_heads * config.head_size;
        let slots = self.planned_cache(sampling).slots();
        2 * (config.layer_count * features * slots) as u64 * self.traits.operand_bytes
    }

    fn sampling_scratch(&self, sampling: &PlannedSampling) -> u64 {
        let config = self.config;
        let bytes = self.traits.number_bytes;
        let rows = self.planned_cache(sampling).rows;
        let prompts = rows.div_ceil(sampling.samples_per_prompt.max(1));
        let prefilled = (prompts * sampling.longest_prompt)
            .min(self.limits.prefill_tokens)
            .max(sampling.longest_prompt);
        // Logits as they come out of the product, as a matrix, and on their way to the sampler.
        let logits = 3 * (rows * config.vocabulary_size) as u64 * bytes;
        let prefill = self.passing(prefilled);
        let all =
            || self.product_numbers() - self.quantized_product_numbers() + self.adapter_numbers();
        let copied = match (self.traits.copied_for_decoding, self.adapters()) {
            (CopiedMatrices::None, _) => 0,
            (CopiedMatrices::Trained, Some(_)) => self.adapter_numbers(),
            (CopiedMatrices::All, _) if self.frozen_in_bf16 => self.adapter_numbers(),
            (CopiedMatrices::Trained | CopiedMatrices::All, _) => all(),
        };
        bytes * copied + logits.max(prefill) + self.dequantized()
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
        let copy_bytes = self.copy_bytes();
        let config = self.config;
        let (tokens, predicted) = (training.tokens as u64, training.predicted_tokens as u64);
        let hidden = config.hidden_size as u64;
        let layers = config.layer_count as u64;
        let layer = tokens * self.kept_bytes_per_token();
        let layers = match self.spec.recompute_activations {
            true => layers * tokens * hidden * number_bytes + layer,
            false => layers * layer,
        };
        let kept = layers + number_bytes * 2 * predicted * hidden;
        let logits = number_bytes * predicted * config.vocabulary_size as u64;
        // All logits or a part of them, and the gradients of a part; as operands too, where these are others.
        let part = logits.min(limits.chunk_bytes as u64);
        let operands = part / number_bytes * copy_bytes;
        let at_head =
            part + operands + if logits <= limits.kept_bytes as u64 { logits } else { part };
        // The gradients of the residual, of its norm, and of gate and up.
        let inner = self.inner_numbers() as u64;
        let in_layer = number_bytes * tokens * 2 * (hidden + inner);
        (kept, at_head.max(in_layer) + self.dequantized())
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

    /// Bytes that the tape keeps of one layer for each token.
    fn kept_bytes_per_token(&self) -> u64 {
        let config = self.config;
        let MemoryTraits { number_bytes, operand_bytes, .. } = self.traits;
        let (hidden, inner) = (config.hidden_size, self.inner_numbers());
        let queries = config.attention_heads * config.head_size;
        let keys = config.key_value_heads * config.head_size;
        // Each block's input; queries and keys, rotated; the sum of each head's scores.
        let numbers = 2 * hidden + queries + keys + config.attention_heads;
        // The norm of each input; values and the attention's result; gate, up and their product.
        let mut operands = 2 * hidden + queries + keys + 3 * inner;
        if config.query_key_norm != QueryKeyNorm::Absent {
            operands += queries + keys;
        }
        if config.norm_placement == NormPlacement::BeforeAndAfter {
            operands += 2 * hidden;
        }
        if let Some(settings) = self.adapters() {
            // Of each adapter its narrow middle, and its input where dropout changed that.
            let of_adapters = adapter_shapes(config, settings)
                .into_iter()
                .map(|[[rank, input], _]| rank + if settings.dropout > 0.0 { input } else { 0 });
            operands += of_adapters.sum::<usize>().div_ceil(config.layer_count.max(1));
        }
        number_bytes * numbers as u64 + operand_bytes * operands as u64
    }
}

fn numbers(shape: &[usize]) -> u64 {
    shape.iter().map(|&size| size as u64).product()
}

#[cfg(test)]
mod tests {
    use sppo_plugin::Optimizer;

    use super::*;
    use crate::synthetic::Shape;

    const GIB: u64 = 1 << 30;

    /// The backend tch on CUDA in bf16.
    const ON_CUDA: MemoryTraits = MemoryTraits {
        number_bytes: 4,
        operand_bytes: 2,
        splits_masters: true,
        keeps_frozen_bf16: false,
        copied_for_decoding: CopiedMatrices::None,
        dequantized: 0,
        logits: LogitsLimits { kept_bytes: 512 << 20, chunk_bytes: 1 << 30, chunk_rows: 4096 },
        program: MemoryTraits::CUDA_PROGRAM_BYTES,
    };

    fn estimate(
        shape: Shape,
        traits: MemoryTraits,
        spec: &PolicySpec,
        (tokens, predicted_tokens): (usize, usize),
    ) -> MemoryEstimate {
        let limits = GenerationLimits {
            max_batch_size: 512,
            prefill_tokens: 16_384,
            cache_bytes: 8 * GIB as usize,
        };
        let quantized = HashMap::new();
        let setting = MemorySetting { traits, limits, stored_in_bf16: true, quantized, ranks: 1 };
        let optimizer = Optimizer::default();
        let sampling = PlannedSampling {
            prompts: 64,
            longest_prompt: 256,
            samples_per_prompt: 5,
            max_new_tokens: 2048,
        };
        let work = PlannedWork {
            sampling: vec![sampling],
            training: Some(PlannedTraining { optimizer, tokens, predicted_tokens }),
        };
        estimate_memory(&shape.config().unwrap(), setting, spec, &work)
    }

    /// Measurements of docs/performance.md on an H200, 16 or 4 pairs of 46 and twice 205 tokens at a time, when
    /// masters were in f32.
    #[test]
    fn predictions_for_cuda_agree_with_what_was_measured() {
        let adapters = Some(LoraSettings { rank: 16, ..LoraSettings::default() });
        let lora = PolicySpec { adapters, ..PolicySpec::default() };
        let little = PolicySpec { recompute_activations: true, ..lora.clone() };
        let all_at_once = (7296, 6560);
        let f32_masters = MemoryTraits { splits_masters: false, ..ON_CUDA };
        let no_logits = LogitsLimits { kept_bytes: 0, ..ON_CUDA.logits };
        let no_logits = MemoryTraits { logits: no_logits, ..f32_masters };
        let table = [
            (Shape::Llama1B, f32_masters, PolicySpec::default(), all_at_once, 29.8),
            (Shape::Llama8B, f32_masters, lora, all_at_once, 56.2),
            (Shape::Llama8B, no_logits, little, (1024, 920), 18.5),
        ];
        for (shape, traits, spec, tokens, measured) in table {
            let training = estimate(shape, traits, &spec, tokens).training;
            let predicted = training.total() as f64 / GIB as f64;
            let off = predicted / measured - 1.0;
            println!("{}: {predicted:.1} GiB, measured {measured}, {off:+.3}", shape.model());
            assert!(off.abs() < 0.1, "{}: {predicted} GiB, measured {measured}", shape.model());
        }
        // This ran out of the 140 GiB.
        let all_weights = PolicySpec::default();
        let training = estimate(Shape::Llama8B, f32_masters, &all_weights, all_at_once).training;
        assert!(training.total() > 140 * GIB, "{training:?}");
    }

    #[test]
    fn all_weights_of_8b_fit_one_gpu_of_140_gib_and_leave_25() {
        let spec = PolicySpec { recompute_activations: true, ..PolicySpec::default() };
        let estimated = estimate(Shape::Llama8B, ON_CUDA, &spec, (16_384, 14_000));
        assert!(estimated.peak() + 25 * GIB <= 140 * GIB, "{estimated:?}");
        let bf16 = PolicySpec { gradient_dtype: GradientDtype::Bf16, ..spec };
        let narrow = estimate(Shape::Llama8B, ON_CUDA, &bf16, (16_384, 14_000));
        let saved = estimated.training.total() - narrow.training.total();
        assert_eq!(saved, estimated.training.gradients / 2);
    }
}
