//! The op vocabulary on libtorch.

use std::rc::Rc;

use sppo_model::formats::QuantizedMatrix;
use sppo_model::ops::Activation as ActivationFunction;
use sppo_model::ops::encoder::{DisentangledShape, EncoderSegment};
use sppo_model::ops::{
    Accumulation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, DeviceSampling,
    LogitsLimits, Memo, MixtureGradients, Ops, ParameterId, ParameterStore, Position,
    RotaryFrequencies, Routes, SampledToken, UpdateRule,
};
use sppo_model::serve::MatrixRate;
use sppo_model::{ModelError, Result};
use sppo_plugin::{DeviceMemory, GradientDtype};
use tch::{Device, Kind, Tensor};

use crate::attention::cached::{DecodingPlan, DecodingVarlen, KeyValueCache};
use crate::attention::disentangled::DistanceRows;
use crate::attention::packed::{PackedVarlen, attention, attention_backward};
use crate::device::Context;
use crate::draw::draw;
use crate::elementwise::{
    RotaryTable, add_to_rows, add_to_table, apply_rotary, column_sums, gated, gated_backward,
    mixture, mixture_backward, select_rows,
};
use crate::head::Head;
use crate::kernels::Kernels;
use crate::libraries::cuda_memory;
use crate::linear::{add_weight_gradient, input_gradient, linear, linears, matrix_product};
use crate::norm::{Norm, fused_norm};
use crate::parameter::{Format, Parameter};
use crate::sharding::Division;
use crate::tensors::{
    Activation, TorchError, TorchResult, dimensions, download, index, is_plain, upload, values,
};

/// Settings of computation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TchOptions {
    /// The device.
    pub device: Device,
    /// The dtype of matrix products and of what they return: `Float` or `BFloat16`. Weights, their
    /// gradients, sums over layers, norms, log-probabilities and the optimiser are f32 always.
    pub compute_dtype: Kind,
    /// CPU threads; 0 for one per core.
    pub threads: usize,
    /// Training keeps all logits of a batch for its backward pass when they take at most so many
    /// bytes, and computes them again when they take more.
    pub keep_logits_limit: usize,
}

/// The ops on libtorch. Clones share their tables.
#[derive(Clone)]
pub struct TchOps {
    pub(crate) context: Context,
    pub(crate) limits: LogitsLimits,
    pub(crate) memos: Rc<Memos>,
    /// The dtype that gradients of weights are summed in.
    pub(crate) gradient_kind: Kind,
    /// Of a policy that several processes train.
    pub(crate) division: Option<Rc<Division>>,
}

/// Tables and plans that one layer computes and the next needs again.
#[derive(Default)]
pub(crate) struct Memos {
    rotary: Memo<Position, RotaryFrequencies, RotaryTable>,
    /// By segments and window.
    packed: Memo<AttentionSegment, Option<usize>, Option<PackedVarlen>>,
    /// By rows, window and slots of the cache.
    decoding: Memo<CachedRow, (Option<usize>, usize), DecodingPlan>,
    /// By rows, window and query heads per key-value head.
    decoding_varlen: Memo<CachedRow, (Option<usize>, usize), Option<DecodingVarlen>>,
    /// Slots of the cache that a step writes, as an index on the device.
    slots: Memo<u32, (), Tensor>,
    pub(crate) distances: Memo<EncoderSegment, DisentangledShape, DistanceRows>,
}

impl TchOps {
    /// Ops on a device that [`choose_device`](crate::choose_device) returned.
    ///
    /// # Errors
    /// When there are more threads than libtorch can count.
    pub fn new(options: &TchOptions) -> Result<Self> {
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let threads = i32::try_from(threads)
            .map_err(|_| ModelError::Backend(format!("{threads} threads are too many")))?;
        if tch::get_num_threads() != threads {
            tch::set_num_threads(threads);
        }
        let TchOptions { device, compute_dtype, keep_logits_limit, .. } = *options;
        let limits = LogitsLimits {
            kept_bytes: keep_logits_limit,
            // On the CPU few, on CUDA devices enough to keep them busy.
            chunk_bytes: if device.is_cuda() { 1 << 30 } else { 96 << 20 },
            chunk_rows: 4096,
        };
        let kernels = match (device, compute_dtype) {
            (Device::Cpu, Kind::Float) => Some(Kernels::new(threads as usize)?),
            _ => None,
        };
        let context = Context { device, compute_dtype, kernels };
        let gradient_kind = Kind::Float;
        Ok(Self { context, limits, memos: Rc::default(), gradient_kind, division: None })
    }

    /// The same ops by libtorch's kernels alone, so that these can be checked in f32 on the CPU, too.
    #[must_use]
    pub fn by_libtorch_alone(mut self) -> Self {
        self.context.kernels = None;
        self
    }

    fn new_parameter(
        &self,
        values: &[f32],
        shape: &[usize],
        trainable: bool,
        is_table: bool,
    ) -> TorchResult<Parameter> {
        let Context { device, compute_dtype, .. } = self.context;
        // What is trained is f32, and so are norms. A frozen matrix is only ever multiplied with.
        let is_matrix = shape.len() == 2;
        let is_operand = !trainable && is_matrix;
        let format = Format {
            values: if is_operand { compute_dtype } else { Kind::Float },
            gradient: self.gradient_kind,
            // The rows of a table are read in f32.
            is_split: trainable && is_matrix && !is_table && compute_dtype == Kind::BFloat16,
            device,
        };
        let shares = self.shares(shape, trainable, is_table);
        Parameter::new(values, shape, trainable, format, shares)
    }

    fn apply_rotary(
        &self,
        x: &Activation,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        inverse: bool,
    ) -> TorchResult<Activation> {
        if let Some(kernels) = &self.context.kernels {
            return Ok(Activation(kernels.rotary(&x.0, positions, frequencies, inverse)?));
        }
        let make = || RotaryTable::new(positions, frequencies, self.context.device);
        let table = self.memos.rotary.get_or_insert_with(positions, frequencies, make)?;
        Ok(Activation(apply_rotary(&x.0, &table, inverse)?))
    }

    fn head(&self, soft_cap: Option<f32>) -> Head<'_> {
        Head { context: &self.context, limits: self.limits, soft_cap }
    }

    /// The batch as calls of the varlen kernel; none where that kernel does not cover it.
    fn packed_varlen(
        &self,
        segments: &[AttentionSegment],
        shape: &AttentionShape,
    ) -> TorchResult<Rc<Option<PackedVarlen>>> {
        if !self.context.has_varlen_kernel(shape) {
            return Ok(Rc::default());
        }
        let make = || PackedVarlen::new(segments, shape.window, self.context.device);
        self.memos.packed.get_or_insert_with(segments, &shape.window, make)
    }

    /// The step as calls of the varlen kernel; none where that kernel does not cover it.
    fn decoding_varlen(
        &self,
        rows: &[CachedRow],
        shape: &AttentionShape,
    ) -> TorchResult<Rc<Option<DecodingVarlen>>> {
        if !self.context.has_varlen_kernel(shape) {
            return Ok(Rc::default());
        }
        let groups = shape.query_heads / shape.key_value_heads.max(1);
        let make = || DecodingVarlen::new(rows, shape.window, groups, self.context.device);
        self.memos.decoding_varlen.get_or_insert_with(rows, &(shape.window, groups), make)
    }
}

impl MatrixRate for TchOps {
    fn matrix_product(&self, shape: [usize; 3]) -> Result<impl FnMut() -> Result<()>> {
        let mut product = matrix_product(&self.context, shape)?;
        Ok(move || Ok(product()?))
    }
}

impl Ops for TchOps {
    type Tensor = Activation;
    type Parameter = Parameter;
    type Cache = KeyValueCache;

    fn with_gradients_in(mut self, dtype: GradientDtype) -> Result<Self> {
        self.gradient_kind = match dtype {
            GradientDtype::F32 => Kind::Float,
            GradientDtype::Bf16 => Kind::BFloat16,
        };
        Ok(self)
    }

    fn device_memory(&self) -> Result<Option<DeviceMemory>> {
        let Device::Cuda(number) = self.context.device else { return Ok(None) };
        cuda_memory(number).map(Some)
    }

    fn describe(&self) -> (String, String) {
        let device = match self.context.device {
            Device::Cuda(number) => format!("cuda:{number}"),
            _ => "cpu".into(),
        };
        (device, if self.context.compute_dtype == Kind::Float { "f32" } else { "bf16" }.into())
    }

    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Activation> {
        Ok(Activation(upload(&values, &[rows as i64, columns as i64], self.context.device)?))
    }

    fn values(&self, tensor: &Activation) -> Result<Vec<f32>> {
        Ok(download(&tensor.0)?)
    }

    fn with_values<R>(&self, tensor: &Activation, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        match is_plain(&tensor.0)? {
            true => Ok(read(values(&tensor.0)?)),
            false => Ok(read(&download(&tensor.0)?)),
        }
    }

    fn shape(&self, tensor: &Activation) -> (usize, usize) {
        dimensions(&tensor.0).map_or((0, 0), |(rows, columns)| (rows as usize, columns as usize))
    }

    fn parameter(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        Ok(self.new_parameter(&values, shape, trainable, false)?)
    }

    fn table(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        Ok(self.new_parameter(&values, shape, trainable, true)?)
    }

    fn quantized(&self, matrix: QuantizedMatrix) -> Result<Parameter> {
        Ok(Parameter::quantized(matrix, self.context.device)?)
    }

    fn parameter_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        Ok(parameter.values()?)
    }

    fn parameter_gradient(&self, parameter: &Parameter) -> Result<Option<Vec<f32>>> {
        Ok(parameter.gradient().map(download).transpose()?)
    }

    fn gradient_square_sum(&self, parameter: &Parameter) -> Result<f64> {
        Ok(parameter.gradient_square_sum()?)
    }

    fn clear_gradient(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.clear_gradient();
        Ok(())
    }

    fn update(&self, parameter: &mut Parameter, rule: &UpdateRule) -> Result<()> {
        Ok(parameter.update(rule)?)
    }

    fn optimizer_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        Ok(parameter.state().iter().map(download).collect::<TorchResult<_>>()?)
    }

    fn optimizer_state_count(&self, parameter: &Parameter) -> usize {
        parameter.state().len()
    }

    fn set_optimizer_state(&self, parameter: &mut Parameter, state: Vec<Vec<f32>>) -> Result<()> {
        Ok(parameter.set_state(&state)?)
    }

    fn embedding(&self, table: &Parameter, tokens: &[u32]) -> Result<Activation> {
        if let Some(blocks) = table.in_blocks() {
            return Ok(Activation(blocks.select_rows(tokens, self.context.device)?));
        }
        let rows = select_rows(table.value()?, tokens)?.f_to_kind(Kind::Float);
        Ok(Activation(rows.map_err(TorchError::from)?))
    }

    fn linear(
        &self,
        x: &Activation,
        weight: &Parameter,
        bias: Option<&Parameter>,
    ) -> Result<Activation> {
        Ok(Activation(linear(&self.context, &x.0, weight, bias)?))
    }

    fn linears(
        &self,
        x: &Activation,
        weights: &[(&Parameter, Option<&Parameter>)],
    ) -> Result<Vec<Activation>> {
        let products = linears(&self.context, &x.0, weights)?;
        Ok(products.into_iter().map(Activation).collect())
    }

    fn rms_norm(
        &self,
        x: &Activation,
        weight: &Parameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<Activation> {
        if let Some(kernels) = &self.context.kernels {
            return Ok(Activation(kernels.rms_norm(&x.0, weight.value()?, epsilon, offset)?));
        }
        let output = match self.context.device.is_cuda() {
            true => fused_norm(&x.0, weight, epsilon, offset)?,
            false => Norm::of(&x.0, weight, epsilon, offset)?.output()?,
        };
        Ok(Activation(self.context.operand(&output)?))
    }

    fn rotary(
        &self,
        x: &Activation,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
    ) -> Result<Activation> {
        Ok(self.apply_rotary(x, positions, frequencies, false)?)
    }

    fn attention(
        &self,
        queries: &Activation,
        keys: &Activation,
        values: &Activation,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Activation>> {
        let operands = self.context.operands([&queries.0, &keys.0, &values.0])?;
        let operands = operands.each_ref();
        let varlen = self.packed_varlen(segments, shape)?;
        let (output, log_sum_exp) = match (&self.context.kernels, &*varlen) {
            (Some(kernels), _) => kernels.attention(operands, shape, segments)?,
            (None, Some(varlen)) => varlen.forward(operands, shape)?,
            (None, None) => attention(&self.context, operands, shape, segments)?,
        };
        Ok(AttentionOutput { output: Activation(output), log_sum_exp: Activation(log_sum_exp) })
    }

    fn gated_activation(
        &self,
        gate: &Activation,
        up: &Activation,
        activation: ActivationFunction,
    ) -> Result<Activation> {
        Ok(Activation(match &self.context.kernels {
            Some(kernels) => kernels.gated(&gate.0, &up.0, activation)?,
            None => gated(&gate.0, &up.0, activation)?,
        }))
    }

    fn add(&self, a: &Activation, b: &Activation) -> Result<Activation> {
        Ok(Activation(a.0.f_add(&b.0).map_err(TorchError::from)?))
    }

    fn scale(&self, x: &Activation, factor: f32) -> Result<Activation> {
        let scaled = x.0.f_mul_scalar(f64::from(factor));
        Ok(Activation(scaled.map_err(TorchError::from)?))
    }

    fn mixture(&self, parts: &[&Activation], routes: &Routes) -> Result<Activation> {
        let parts: Vec<&Tensor> = parts.iter().map(|part| &part.0).collect();
        Ok(Activation(mixture(&parts, routes)?))
    }

    fn select_rows(&self, x: &Activation, rows: &[u32]) -> Result<Activation> {
        Ok(Activation(select_rows(&x.0, rows)?))
    }

    fn token_log_probs(
        &self,
        hidden: &Activation,
        head: &Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Activation>)> {
        let (log_probs, kept) = self.head(soft_cap).log_probs(&hidden.0, head, targets, keep)?;
        Ok((log_probs, kept.map(Activation)))
    }

    fn logits(
        &self,
        hidden: &Activation,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Activation> {
        Ok(Activation(self.head(soft_cap).logits(&hidden.0, head)?))
    }

    fn samples_on_device(&self) -> bool {
        self.context.device.is_cuda()
    }

    fn sample(&self, logits: &Activation, plan: &DeviceSampling) -> Result<Vec<SampledToken>> {
        Ok(draw(&logits.0, plan)?)
    }

    fn embedding_backward(
        &self,
        table: &mut Parameter,
        tokens: &[u32],
        gradient: &Activation,
    ) -> Result<()> {
        Ok(table.accumulate(|sum, accumulation| {
            if accumulation == Accumulation::Overwrite {
                let _ = sum.f_zero_()?;
            }
            add_to_table(sum, &index(tokens, sum.device())?, &gradient.0)
        })?)
    }

    fn linear_backward(
        &self,
        x: &Activation,
        weight: &mut Parameter,
        bias: Option<&mut Parameter>,
        gradient: &Activation,
    ) -> Result<Activation> {
        let gradient = self.context.operand(&gradient.0)?;
        if let Some(bias) = bias.filter(|bias| bias.is_trainable()) {
            bias.accumulate_tensor(&column_sums(&gradient)?)?;
        }
        add_weight_gradient(&self.context, weight, &x.0, &gradient)?;
        Ok(Activation(input_gradient(&self.context, weight, &gradient)?))
    }

    fn rms_norm_backward(
        &self,
        x: &Activation,
        weight: &mut Parameter,
        epsilon: f32,
        offset: f32,
        gradient: &Activation,
    ) -> Result<Activation> {
        let [of_x, of_weight] = match &self.context.kernels {
            Some(kernels) => {
                let constants = [epsilon, offset];
                kernels.rms_norm_backward(&x.0, weight.value()?, constants, &gradient.0)?
            }
            None => Norm::of(&x.0, weight, epsilon, offset)?.backward(&gradient.0)?,
        };
        weight.accumulate_tensor(&of_weight)?;
        Ok(Activation(of_x))
    }

    fn rotary_backward(
        &self,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        gradient: &Activation,
    ) -> Result<Activation> {
        Ok(self.apply_rotary(gradient, positions, frequencies, true)?)
    }

    fn attention_backward(
        &self,
        queries: &Activation,
        keys: &Activation,
        values: &Activation,
        forward: &AttentionOutput<Activation>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &Activation,
    ) -> Result<[Activation; 3]> {
        let operands = self.context.operands([&queries.0, &keys.0, &values.0])?;
        let operands = operands.each_ref();
        let forward = [&forward.output.0, &forward.log_sum_exp.0];
        let gradient = self.context.operand(&gradient.0)?;
        let varlen = self.packed_varlen(segments, shape)?;
        let gradients = match (&self.context.kernels, &*varlen) {
            (Some(kernels), _) => {
                kernels.attention_backward(operands, forward, &gradient, shape, segments)?
            }
            (None, Some(varlen)) => varlen.backward(operands, forward, &gradient, shape)?,
            (None, None) => {
                let context = &self.context;
                attention_backward(context, operands, forward, &gradient, shape, segments)?
            }
        };
        Ok(gradients.map(Activation))
    }

    fn gated_activation_backward(
        &self,
        gate: &Activation,
        up: &Activation,
        activation: ActivationFunction,
        gradient: &Activation,
    ) -> Result<[Activation; 2]> {
        let gradient = self.context.operand(&gradient.0)?;
        let gradients = match &self.context.kernels {
            Some(kernels) => kernels.gated_backward(&gate.0, &up.0, activation, &gradient)?,
            None => gated_backward(&gate.0, &up.0, activation, &gradient)?,
        };
        Ok(gradients.map(Activation))
    }

    fn mixture_backward(
        &self,
        parts: &[&Activation],
        routes: &Routes,
        gradient: &Activation,
    ) -> Result<MixtureGradients<Activation>> {
        let mut found = MixtureGradients { of_parts: Vec::new(), of_weights: Vec::new() };
        for (part, expert) in parts.iter().zip(&routes.experts) {
            let (of_part, of_weights) = mixture_backward(&part.0, expert, &gradient.0)?;
            found.of_parts.push(Activation(of_part));
            found.of_weights.push(of_weights);
        }
        Ok(found)
    }

    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &Activation,
    ) -> Result<Activation> {
        Ok(Activation(add_to_rows(rows, row_count, &gradient.0)?))
    }

    fn token_log_probs_backward(
        &self,
        hidden: &Activation,
        weight: &mut Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Activation>,
        coefficients: &[f32],
    ) -> Result<Activation> {
        let head = self.head(soft_cap);
        let kept = kept.as_ref().map(|kept| &kept.0);
        Ok(Activation(head.log_probs_backward(&hidden.0, weight, targets, kept, coefficients)?))
    }

    fn gradient_is_complete(
        &self,
        parameters: &mut ParameterStore<Self>,
        weight: ParameterId,
    ) -> Result<()> {
        self.begin_to_sum(parameters, weight)
    }

    fn prepare_for_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.free_cleared_gradient();
        if let Some(kernels) = &self.context.kernels {
            parameter.prepare_for_decoding(kernels)?;
        }
        Ok(())
    }

    fn end_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.end_decoding();
        Ok(())
    }

    fn cache_number_bytes(&self) -> usize {
        self.context.compute_dtype.elt_size_in_bytes()
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        key_value_features: usize,
    ) -> Result<KeyValueCache> {
        let options = (self.context.compute_dtype, self.context.device);
        Ok(KeyValueCache::new(layers, slots, key_value_features, options)?)
    }

    fn cache_write(
        &self,
        cache: &mut KeyValueCache,
        layer: usize,
        keys: &Activation,
        values: &Activation,
        slots: &[u32],
    ) -> Result<()> {
        let make = || index(slots, self.context.device);
        let slots = self.memos.slots.get_or_insert_with(slots, &(), make)?;
        Ok(cache.write(layer, [&keys.0, &values.0], &slots)?)
    }

    fn cached_attention(
        &self,
        queries: &Activation,
        cache: &KeyValueCache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Activation> {
        let queries = self.context.operand(&queries.0)?;
        let layer = cache.layer(layer)?;
        if let Some(kernels) = &self.context.kernels {
            return Ok(Activation(kernels.cached_attention(&queries, layer, shape, rows)?));
        }
        if let Some(varlen) = &*self.decoding_varlen(rows, shape)? {
            return Ok(Activation(varlen.attend(&queries, layer, shape)?));
        }
        let (window, device) = (shape.window, self.context.device);
        let slots = layer[0].size()[0] as usize;
        let make = || DecodingPlan::new(rows, window, slots, device);
        let plan = self.memos.decoding.get_or_insert_with(rows, &(window, slots), make)?;
        Ok(Activation(plan.attend(&self.context, &queries, layer, shape)?))
    }
}
