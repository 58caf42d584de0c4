//! The op vocabulary on burn.

use std::f64::consts::PI;

use burn_tensor::activation::{sigmoid, silu};
use burn_tensor::{Device, IndexingUpdateOp, Tensor};
use sppo_model::Result;
use sppo_model::ops::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, Ops,
    RotaryFrequencies, UpdateRule,
};

use crate::cached_attention::KeyValueCache;
use crate::engine::{BurnOps, Direction};
use crate::parameter::Parameter;
use crate::tensors::{download, index, upload};

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
        positions: &[u32],
        frequencies: &RotaryFrequencies,
    ) -> Result<Tensor<2>> {
        self.turn(x, positions, frequencies, Direction::Forward)
    }

    fn attention(
        &self,
        queries: &Tensor<2>,
        keys: &Tensor<2>,
        values: &Tensor<2>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Tensor<2>>> {
        let (output, log_sum_exp) = self.attend([queries, keys, values], shape, segments)?;
        Ok(AttentionOutput { output, log_sum_exp })
    }

    fn gated_activation(
        &self,
        gate: &Tensor<2>,
        up: &Tensor<2>,
        activation: Activation,
    ) -> Result<Tensor<2>> {
        let activated = match activation {
            Activation::Silu => silu(gate.clone()),
            Activation::GeluTanh => gate.clone() * gelu_factor(gate.clone()),
        };
        Ok(activated * up.clone())
    }

    fn add(&self, a: &Tensor<2>, b: &Tensor<2>) -> Result<Tensor<2>> {
        Ok(a.clone() + b.clone())
    }

    fn scale(&self, x: &Tensor<2>, factor: f32) -> Result<Tensor<2>> {
        Ok(x.clone() * factor)
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
        self.log_probs(hidden, head, targets, soft_cap, keep)
    }

    fn logits(
        &self,
        hidden: &Tensor<2>,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Tensor<2>> {
        Ok(self.capped_logits(hidden.clone(), head, soft_cap))
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
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        gradient: &Tensor<2>,
    ) -> Result<Tensor<2>> {
        self.turn(gradient, positions, frequencies, Direction::Backward)
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
        let forward = [&forward.output, &forward.log_sum_exp];
        self.attend_backward([queries, keys, values], forward, gradient, shape, segments)
    }

    fn gated_activation_backward(
        &self,
        gate: &Tensor<2>,
        up: &Tensor<2>,
        activation: Activation,
        gradient: &Tensor<2>,
    ) -> Result<[Tensor<2>; 2]> {
        let gate = gate.clone();
        let (factor, slope) = match activation {
            Activation::Silu => {
                let factor = sigmoid(gate.clone());
                let slope = factor.clone() * (gate.clone() * (factor.clone().neg() + 1.0) + 1.0);
                (factor, slope)
            }
            Activation::GeluTanh => {
                let factor = gelu_factor(gate.clone());
                // The factor is (1 + tanh) / 2, so 4 factor (1 - factor) is the slope of tanh.
                let of_tanh = factor.clone() * (factor.clone().neg() + 1.0) * 4.0;
                let inner = gate.clone().square() * (3.0 * GELU_CUBIC) + 1.0;
                let slope = gate.clone() * of_tanh * inner * (0.5 * gelu_root()) + factor.clone();
                (factor, slope)
            }
        };
        let of_up = gate * factor * gradient.clone();
        Ok([slope * up.clone() * gradient.clone(), of_up])
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
        self.log_probs_backward(hidden, head, targets, soft_cap, kept.as_ref(), coefficients)
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
        self.attend_to_cache(queries, cache, layer, shape, rows)
    }
}

/// Root-mean-square normalisation over groups of the weight's length.
struct Norm {
    /// `x / sqrt(mean(x^2) + epsilon)`, `[groups, size]`.
    normed: Tensor<2>,
    /// What `x` was multiplied by, `[groups, 1]`.
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

const GELU_CUBIC: f64 = 0.044_715;

fn gelu_root() -> f64 {
    (2.0 / PI).sqrt()
}

/// What the tanh approximation of GELU multiplies its input by.
fn gelu_factor(x: Tensor<2>) -> Tensor<2> {
    let inner = x.clone() * (x.square() * GELU_CUBIC + 1.0) * gelu_root();
    (inner.tanh() + 1.0) * 0.5
}
