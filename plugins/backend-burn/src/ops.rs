//! The op vocabulary on burn.

use std::rc::Rc;

use burn_tensor::{Device, IndexingUpdateOp, Int, Tensor};
use sppo_model::Result;
use sppo_model::ops::encoder::{DisentangledShape, EncoderSegment};
use sppo_model::ops::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, ExpertRows,
    LogitsLimits, Memo, MixtureGradients, Ops, Position, RotaryFrequencies, Routes, UpdateRule,
};
use sppo_model::serve::MatrixRate;

use crate::attention::{attention, attention_backward, masks};
use crate::cached_attention::{DecodingPlan, KeyValueCache};
use crate::elementwise::{RotaryTable, apply_rotary, gated, gated_backward};
use crate::head::Head;
use crate::parameter::Parameter;
use crate::tensors::{download, index, upload};

/// The ops on burn tensors, f32. Clones share their tables.
#[derive(Clone)]
pub struct BurnOps {
    pub(crate) device: Device,
    pub(crate) limits: LogitsLimits,
    pub(crate) memos: Rc<Memos>,
}

/// Tables and plans that one layer computes and the next needs again.
#[derive(Default)]
pub(crate) struct Memos {
    rotary: Memo<Position, RotaryFrequencies, RotaryTable>,
    /// By segments and window; one mask per segment.
    masks: Memo<AttentionSegment, Option<usize>, Vec<Tensor<4>>>,
    /// By rows and window.
    decoding: Memo<CachedRow, Option<usize>, DecodingPlan>,
    /// The table rows of each sequence's queries and keys.
    pub(crate) distances: Memo<EncoderSegment, DisentangledShape, Vec<Tensor<3, Int>>>,
}

impl BurnOps {
    /// Ops on a device. Training keeps all logits of a batch for its backward pass when they take at
    /// most `keep_logits_limit` bytes, and computes them again when they take more.
    #[must_use]
    pub fn new(device: Device, keep_logits_limit: usize) -> Self {
        let limits =
            LogitsLimits { kept_bytes: keep_logits_limit, chunk_bytes: 96 << 20, chunk_rows: 512 };
        Self { device, limits, memos: Rc::default() }
    }

    /// The weights of an expert's rows as a column.
    fn row_weights(&self, expert: &ExpertRows) -> Result<Tensor<2>> {
        upload(expert.weights.clone(), [expert.weights.len(), 1], &self.device)
    }

    fn apply_rotary(
        &self,
        x: &Tensor<2>,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        inverse: bool,
    ) -> Result<Tensor<2>> {
        let make = || RotaryTable::new(positions, frequencies, &self.device);
        let table = self.memos.rotary.get_or_insert_with(positions, frequencies, make)?;
        Ok(apply_rotary(x, &table, inverse))
    }

    fn masks(
        &self,
        segments: &[AttentionSegment],
        window: Option<usize>,
    ) -> Result<Rc<Vec<Tensor<4>>>> {
        let make = || masks(segments, window, &self.device);
        self.memos.masks.get_or_insert_with(segments, &window, make)
    }

    fn head(&self, soft_cap: Option<f32>) -> Head<'_> {
        Head { device: &self.device, limits: self.limits, soft_cap }
    }
}

impl MatrixRate for BurnOps {
    fn matrix_product(
        &self,
        [rows, inner, columns]: [usize; 3],
    ) -> Result<impl FnMut() -> Result<()>> {
        let left = Tensor::<2>::ones([rows, inner], &self.device);
        let right = Tensor::<2>::ones([columns, inner], &self.device);
        Ok(move || {
            let product = left.clone().matmul(right.clone().transpose());
            // Waits for the device.
            download(&product.narrow(0, 0, 1).narrow(1, 0, 1)).map(|_| ())
        })
    }
}

impl Ops for BurnOps {
    type Tensor = Tensor<2>;
    type Parameter = Parameter;
    type Cache = KeyValueCache;

    fn describe(&self) -> (String, String) {
        let device = if self.device == Device::flex() { "cpu" } else { "wgpu" };
        (device.into(), "f32".into())
    }

    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor<2>> {
        upload(values, [rows, columns], &self.device)
    }

    fn values(&self, tensor: &Tensor<2>) -> Result<Vec<f32>> {
        download(tensor)
    }

    fn shape(&self, tensor: &Tensor<2>) -> (usize, usize) {
        tensor.dims().into()
    }

    fn parameter(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        Parameter::new(values, shape, trainable, &self.device)
    }

    fn parameter_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        download(&parameter.value())
    }

    fn parameter_gradient(&self, parameter: &Parameter) -> Result<Option<Vec<f32>>> {
        parameter.gradient().map(download).transpose()
    }

    fn gradient_square_sum(&self, parameter: &Parameter) -> Result<f64> {
        parameter.gradient_square_sum()
    }

    fn clear_gradient(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.clear_gradient();
        Ok(())
    }

    fn update(&self, parameter: &mut Parameter, rule: &UpdateRule) -> Result<()> {
        parameter.update(rule)
    }

    fn optimizer_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        parameter.state().iter().map(download).collect()
    }

    fn optimizer_state_count(&self, parameter: &Parameter) -> usize {
        parameter.state().len()
    }

    fn set_optimizer_state(&self, parameter: &mut Parameter, state: Vec<Vec<f32>>) -> Result<()> {
        parameter.set_state(state)
    }

    fn embedding(&self, table: &Parameter, tokens: &[u32]) -> Result<Tensor<2>> {
        self.select_rows(&table.value(), tokens)
    }

    fn linear(
        &self,
        x: &Tensor<2>,
        weight: &Parameter,
        bias: Option<&Parameter>,
    ) -> Result<Tensor<2>> {
        let product = x.clone().matmul(weight.value().transpose());
        Ok(match bias {
            Some(bias) => product + bias.value(),
            None => product,
        })
    }

    fn rms_norm(
        &self,
        x: &Tensor<2>,
        weight: &Parameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<Tensor<2>> {
        let Norm { normed, weight, .. } = Norm::of(x, weight, epsilon, offset);
        Ok((normed * weight).reshape(x.dims()))
    }

    fn rotary(
        &self,
        x: &Tensor<2>,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
    ) -> Result<Tensor<2>> {
        self.apply_rotary(x, positions, frequencies, false)
    }

    fn attention(
        &self,
        queries: &Tensor<2>,
        keys: &Tensor<2>,
        values: &Tensor<2>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Tensor<2>>> {
        let masks = self.masks(segments, shape.window)?;
        let operands = [queries, keys, values];
        let (output, log_sum_exp) = attention(operands, shape, segments, &masks);
        Ok(AttentionOutput { output, log_sum_exp })
    }

    fn gated_activation(
        &self,
        gate: &Tensor<2>,
        up: &Tensor<2>,
        activation: Activation,
    ) -> Result<Tensor<2>> {
        Ok(gated(gate, up, activation))
    }

    fn add(&self, a: &Tensor<2>, b: &Tensor<2>) -> Result<Tensor<2>> {
        Ok(a.clone() + b.clone())
    }

    fn scale(&self, x: &Tensor<2>, factor: f32) -> Result<Tensor<2>> {
        Ok(x.clone() * factor)
    }

    fn mixture(&self, parts: &[&Tensor<2>], routes: &Routes) -> Result<Tensor<2>> {
        let columns = parts.first().map_or(0, |part| part.dims()[1]);
        let mut sum = Tensor::zeros([routes.row_count, columns], &self.device);
        for (part, expert) in parts.iter().zip(&routes.experts) {
            let weighted = (*part).clone() * self.row_weights(expert)?;
            let rows = index(expert.rows.iter().copied(), &self.device);
            sum = sum.select_assign(0, rows, weighted, IndexingUpdateOp::Add);
        }
        Ok(sum)
    }

    fn select_rows(&self, x: &Tensor<2>, rows: &[u32]) -> Result<Tensor<2>> {
        Ok(x.clone().select(0, index(rows.iter().copied(), &self.device)))
    }

    fn token_log_probs(
        &self,
        hidden: &Tensor<2>,
        head: &Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Tensor<2>>)> {
        self.head(soft_cap).log_probs(hidden, head, targets, keep)
    }

    fn logits(
        &self,
        hidden: &Tensor<2>,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Tensor<2>> {
        Ok(self.head(soft_cap).logits(hidden.clone(), head))
    }

    fn embedding_backward(
        &self,
        table: &mut Parameter,
        tokens: &[u32],
        gradient: &Tensor<2>,
    ) -> Result<()> {
        table.accumulate_rows(index(tokens.iter().copied(), &self.device), gradient.clone());
        Ok(())
    }

    fn linear_backward(
        &self,
        x: &Tensor<2>,
        weight: &mut Parameter,
        bias: Option<&mut Parameter>,
        gradient: &Tensor<2>,
    ) -> Result<Tensor<2>> {
        if let Some(bias) = bias {
            bias.accumulate(|| gradient.clone().sum_dim(0));
        }
        weight.accumulate(|| gradient.clone().transpose().matmul(x.clone()));
        Ok(gradient.clone().matmul(weight.value()))
    }

    fn rms_norm_backward(
        &self,
        x: &Tensor<2>,
        weight: &mut Parameter,
        epsilon: f32,
        offset: f32,
        gradient: &Tensor<2>,
    ) -> Result<Tensor<2>> {
        let norm = Norm::of(x, weight, epsilon, offset);
        let gradient = gradient.clone().reshape(norm.normed.dims());
        weight.accumulate(|| (gradient.clone() * norm.normed.clone()).sum_dim(0));
        let of_normed = gradient * norm.weight;
        let mean = (of_normed.clone() * norm.normed.clone()).mean_dim(1);
        Ok(((of_normed - norm.normed * mean) * norm.inverse).reshape(x.dims()))
    }

    fn rotary_backward(
        &self,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        gradient: &Tensor<2>,
    ) -> Result<Tensor<2>> {
        self.apply_rotary(gradient, positions, frequencies, true)
    }

    fn attention_backward(
        &self,
        queries: &Tensor<2>,
        keys: &Tensor<2>,
        values: &Tensor<2>,
        forward: &AttentionOutput<Tensor<2>>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &Tensor<2>,
    ) -> Result<[Tensor<2>; 3]> {
        let masks = self.masks(segments, shape.window)?;
        let operands = [queries, keys, values];
        Ok(attention_backward(operands, forward, gradient, shape, segments, &masks))
    }

    fn gated_activation_backward(
        &self,
        gate: &Tensor<2>,
        up: &Tensor<2>,
        activation: Activation,
        gradient: &Tensor<2>,
    ) -> Result<[Tensor<2>; 2]> {
        Ok(gated_backward(gate, up, activation, gradient))
    }

    fn mixture_backward(
        &self,
        parts: &[&Tensor<2>],
        routes: &Routes,
        gradient: &Tensor<2>,
    ) -> Result<MixtureGradients<Tensor<2>>> {
        let mut found = MixtureGradients { of_parts: Vec::new(), of_weights: Vec::new() };
        for (part, expert) in parts.iter().zip(&routes.experts) {
            let rows = index(expert.rows.iter().copied(), &self.device);
            let of_rows = gradient.clone().select(0, rows);
            let of_weights = (of_rows.clone() * (*part).clone()).sum_dim(1);
            found.of_weights.push(download(&of_weights)?);
            found.of_parts.push(of_rows * self.row_weights(expert)?);
        }
        Ok(found)
    }

    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &Tensor<2>,
    ) -> Result<Tensor<2>> {
        let [_, columns] = gradient.dims();
        let rows = index(rows.iter().copied(), &self.device);
        let sum = Tensor::zeros([row_count, columns], &self.device);
        Ok(sum.select_assign(0, rows, gradient.clone(), IndexingUpdateOp::Add))
    }

    fn token_log_probs_backward(
        &self,
        hidden: &Tensor<2>,
        head: &mut Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Tensor<2>>,
        coefficients: &[f32],
    ) -> Result<Tensor<2>> {
        let kept = kept.as_ref();
        self.head(soft_cap).log_probs_backward(hidden, head, targets, kept, coefficients)
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        key_value_features: usize,
    ) -> Result<KeyValueCache> {
        Ok(KeyValueCache::new(layers, slots, key_value_features, &self.device))
    }

    fn cache_write(
        &self,
        cache: &mut KeyValueCache,
        layer: usize,
        keys: &Tensor<2>,
        values: &Tensor<2>,
        slots: &[u32],
    ) -> Result<()> {
        cache.write(layer, [keys, values], &index(slots.iter().copied(), &self.device))
    }

    fn cached_attention(
        &self,
        queries: &Tensor<2>,
        cache: &KeyValueCache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Tensor<2>> {
        let make = || DecodingPlan::new(rows, shape.window, &self.device);
        let plan = self.memos.decoding.get_or_insert_with(rows, &shape.window, make)?;
        Ok(plan.attend(queries, cache.layer(layer)?, shape))
    }
}

/// Root-mean-square normalisation over groups of the weight's length.
struct Norm {
    /// `x / sqrt(mean(x^2) + epsilon)`, `[groups, size]`.
    normed: Tensor<2>,
    /// `1 / sqrt(mean(x^2) + epsilon)`, `[groups, 1]`.
    inverse: Tensor<2>,
    /// The weight, its offset added, `[1, size]`.
    weight: Tensor<2>,
}

impl Norm {
    fn of(x: &Tensor<2>, weight: &Parameter, epsilon: f32, offset: f32) -> Self {
        let weight = weight.value() + offset;
        let ([rows, columns], [_, size]) = (x.dims(), weight.dims());
        let groups = x.clone().reshape([rows * columns / size, size]);
        let inverse = (groups.clone().square().mean_dim(1) + epsilon).sqrt().recip();
        Self { normed: groups * inverse.clone(), inverse, weight }
    }
}
