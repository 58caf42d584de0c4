//! The op vocabulary on the CPU: each op borrows its tensors' memory and runs a kernel on it.

use std::borrow::Cow;

use candle_core::Tensor;
use sppo_model::ops::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, Ops,
    RotaryFrequencies, UpdateRule,
};
use sppo_model::{ModelError, Result};

use crate::engine::{CandleOps, dimensions};
use crate::kernels::attention::{Operands, attention};
use crate::kernels::attention_backward::{Forward, attention_backward};
use crate::kernels::cached_attention::{LayerCache, cached_attention};
use crate::kernels::matrix::{Destination, Matrix, multiply};
use crate::kernels::norm::{RmsNorm, rms_norm, rms_norm_backward};
use crate::kernels::rotary::Direction;
use crate::kernels::{elementwise, log_probs};
use crate::parameter::{Accumulation, Parameter};
use crate::tensors::{Values, modify, tensor, zeros};

/// Keys and values of past tokens, one pair of `[slots, features]` tensors per layer.
#[derive(Debug)]
pub struct KeyValueCache {
    layers: Vec<(Tensor, Tensor)>,
    features: usize,
}

impl KeyValueCache {
    fn layer(&self, layer: usize) -> Result<&(Tensor, Tensor)> {
        self.layers
            .get(layer)
            .ok_or_else(|| ModelError::Backend(format!("the cache has no layer {layer}")))
    }
}

/// Borrows the memory of tensors as slices of the same names.
macro_rules! borrow {
    ($($name:ident),+) => {
        $(
            let $name = Values::of($name)?;
            let $name: &[f32] = &$name;
        )+
    };
}

impl Ops for CandleOps {
    type Tensor = Tensor;
    type Parameter = Parameter;
    type Cache = KeyValueCache;

    fn describe(&self) -> (String, String) {
        ("cpu".into(), "f32".into())
    }

    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<Tensor> {
        tensor(values, &[rows, columns])
    }

    fn values(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        Ok(Values::of(tensor)?.to_vec())
    }

    fn shape(&self, tensor: &Tensor) -> (usize, usize) {
        dimensions(tensor).unwrap_or_default()
    }

    fn parameter(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        Parameter::new(values, shape, trainable)
    }

    fn parameter_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        self.pool.install(|| parameter.values())
    }

    fn parameter_gradient(&self, parameter: &Parameter) -> Result<Option<Vec<f32>>> {
        parameter.gradient().map(|gradient| self.values(gradient)).transpose()
    }

    fn gradient_square_sum(&self, parameter: &Parameter) -> Result<f64> {
        self.pool.install(|| parameter.gradient_square_sum())
    }

    fn clear_gradient(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.clear_gradient();
        Ok(())
    }

    fn update(&self, parameter: &mut Parameter, rule: &UpdateRule) -> Result<()> {
        self.pool.install(|| parameter.update(rule))
    }

    fn optimizer_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        parameter.state().iter().map(|state| self.values(state)).collect()
    }

    fn set_optimizer_state(&self, parameter: &mut Parameter, state: Vec<Vec<f32>>) -> Result<()> {
        parameter.set_state(state)
    }

    fn embedding(&self, table: &Parameter, tokens: &[u32]) -> Result<Tensor> {
        let (_, features) = table.dimensions()?;
        let rows = self.pool.install(|| table.select_rows(tokens))?;
        tensor(rows, &[tokens.len(), features])
    }

    fn linear(&self, x: &Tensor, weight: &Parameter, bias: Option<&Parameter>) -> Result<Tensor> {
        let (rows, _) = dimensions(x)?;
        let (outputs, _) = weight.dimensions()?;
        let bias = bias.map(|bias| Values::of(bias.value()?)).transpose()?;
        let bias = bias.as_deref();
        borrow!(x);
        let y = self.pool.install(|| weight.linear(x, rows, bias, self.threads()))?;
        tensor(y, &[rows, outputs])
    }

    fn rms_norm(
        &self,
        x: &Tensor,
        weight: &Parameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<Tensor> {
        let shape = x.dims();
        let weight = weight.value()?;
        borrow!(x, weight);
        let norm = RmsNorm { weight, epsilon, offset };
        tensor(self.pool.install(|| rms_norm(norm, x)), shape)
    }

    fn rotary(
        &self,
        x: &Tensor,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
    ) -> Result<Tensor> {
        self.turn(x, positions, frequencies, Direction::Forward)
    }

    fn attention(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<Tensor>> {
        let (rows, columns) = dimensions(queries)?;
        borrow!(queries, keys, values);
        let operands = Operands { shape, segments, queries, keys, values };
        let (output, log_sum_exp) = self.pool.install(|| attention(operands)).ok_or_else(|| {
            ModelError::Backend("two attention segments have the same query rows".into())
        })?;
        Ok(AttentionOutput {
            output: tensor(output, &[rows, columns])?,
            log_sum_exp: tensor(log_sum_exp, &[rows, shape.query_heads])?,
        })
    }

    fn gated_activation(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
    ) -> Result<Tensor> {
        let shape = gate.dims();
        borrow!(gate, up);
        let y = self.pool.install(|| elementwise::gated_activation(gate, up, activation));
        tensor(y, shape)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = a.dims();
        borrow!(a, b);
        tensor(self.pool.install(|| elementwise::add(a, b)), shape)
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        let shape = x.dims();
        borrow!(x);
        tensor(self.pool.install(|| elementwise::scale(x, factor)), shape)
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let (_, features) = dimensions(x)?;
        borrow!(x);
        let selected = self.pool.install(|| elementwise::select_rows(x, features, rows));
        tensor(selected, &[rows.len(), features])
    }

    fn token_log_probs(
        &self,
        hidden: &Tensor,
        head: &Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Tensor>)> {
        let (rows, features) = dimensions(hidden)?;
        let (vocabulary, _) = head.dimensions()?;
        borrow!(hidden);
        let keep = keep && rows * vocabulary * size_of::<f32>() <= self.keep_logits_limit;
        let chunk = if keep { rows.max(1) } else { self.logits_rows(rows, vocabulary) };
        let mut result = Vec::with_capacity(rows);
        for (hidden, targets) in hidden.chunks(chunk * features).zip(targets.chunks(chunk)) {
            let logits = self.capped_logits(hidden, targets.len(), head, soft_cap)?;
            let (log_probs, _) =
                self.pool.install(|| log_probs::log_probs(&logits, vocabulary, targets));
            result.extend(log_probs);
            if keep {
                return Ok((result, Some(tensor(logits, &[rows, vocabulary])?)));
            }
        }
        Ok((result, None))
    }

    fn logits(&self, hidden: &Tensor, head: &Parameter, soft_cap: Option<f32>) -> Result<Tensor> {
        let (rows, _) = dimensions(hidden)?;
        let (vocabulary, _) = head.dimensions()?;
        borrow!(hidden);
        tensor(self.capped_logits(hidden, rows, head, soft_cap)?, &[rows, vocabulary])
    }

    fn embedding_backward(
        &self,
        table: &mut Parameter,
        tokens: &[u32],
        gradient: &Tensor,
    ) -> Result<()> {
        let (_, features) = dimensions(gradient)?;
        borrow!(gradient);
        table.accumulate(|sum, accumulation| {
            if accumulation == Accumulation::Overwrite {
                sum.fill(0.0);
            }
            elementwise::add_to_rows(gradient, features, tokens, sum);
        })
    }

    fn linear_backward(
        &self,
        x: &Tensor,
        weight: &mut Parameter,
        bias: Option<&mut Parameter>,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        let (rows, inputs) = dimensions(x)?;
        borrow!(x, gradient);
        if let Some(bias) = bias {
            self.pool.install(|| add_bias_gradient(bias, gradient))?;
        }
        self.pool.install(|| self.add_weight_gradient(weight, x, rows, gradient))?;
        let x_gradient = self.input_gradient(weight, rows, gradient)?;
        tensor(x_gradient, &[rows, inputs])
    }

    fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &mut Parameter,
        epsilon: f32,
        offset: f32,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        let shape = x.dims();
        borrow!(x, gradient);
        let (x_gradient, weight_gradient) = {
            let weight = weight.value()?;
            borrow!(weight);
            let norm = RmsNorm { weight, epsilon, offset };
            self.pool.install(|| rms_norm_backward(norm, x, gradient))
        };
        weight.accumulate(|sum, accumulation| {
            if accumulation == Accumulation::Overwrite {
                sum.copy_from_slice(&weight_gradient);
            } else {
                elementwise::add_to(&weight_gradient, sum);
            }
        })?;
        tensor(x_gradient, shape)
    }

    fn rotary_backward(
        &self,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        self.turn(gradient, positions, frequencies, Direction::Backward)
    }

    fn attention_backward(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        forward: &AttentionOutput<Tensor>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &Tensor,
    ) -> Result<[Tensor; 3]> {
        let (rows, columns) = dimensions(queries)?;
        let (key_rows, key_columns) = dimensions(keys)?;
        let (output, log_sum_exp) = (&forward.output, &forward.log_sum_exp);
        borrow!(queries, keys, values, output, log_sum_exp, gradient);
        let operands = Operands { shape, segments, queries, keys, values };
        let forward = Forward { output, log_sum_exp, gradient };
        let [queries, keys, values] = self.pool.install(|| attention_backward(operands, forward));
        Ok([
            tensor(queries, &[rows, columns])?,
            tensor(keys, &[key_rows, key_columns])?,
            tensor(values, &[key_rows, key_columns])?,
        ])
    }

    fn gated_activation_backward(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
        gradient: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let shape = gate.dims();
        borrow!(gate, up, gradient);
        let [gate, up] = self
            .pool
            .install(|| elementwise::gated_activation_backward(gate, up, activation, gradient));
        Ok([tensor(gate, shape)?, tensor(up, shape)?])
    }

    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        let (_, features) = dimensions(gradient)?;
        borrow!(gradient);
        let mut sum = vec![0.0; row_count * features];
        elementwise::add_to_rows(gradient, features, rows, &mut sum);
        tensor(sum, &[row_count, features])
    }

    fn token_log_probs_backward(
        &self,
        hidden: &Tensor,
        head: &mut Parameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<Tensor>,
        coefficients: &[f32],
    ) -> Result<Tensor> {
        let (rows, features) = dimensions(hidden)?;
        let (vocabulary, _) = head.dimensions()?;
        borrow!(hidden);
        let kept = kept.as_ref().map(Values::of).transpose()?;
        let chunk = self.logits_rows(rows, vocabulary);
        let mut hidden_gradient = Vec::with_capacity(rows * features);
        for start in (0..rows).step_by(chunk) {
            let part = start..(start + chunk).min(rows);
            let hidden = &hidden[part.start * features..part.end * features];
            let (targets, coefficients) = (&targets[part.clone()], &coefficients[part.clone()]);
            let logits = match kept.as_deref() {
                Some(kept) => Cow::Borrowed(&kept[part.start * vocabulary..part.end * vocabulary]),
                None => Cow::Owned(self.capped_logits(hidden, part.len(), head, soft_cap)?),
            };
            let gradient = self.pool.install(|| {
                let (_, sums) = log_probs::log_probs(&logits, vocabulary, targets);
                log_probs::logit_gradients(&logits, &sums, targets, coefficients, soft_cap)
            });
            drop(logits);
            self.pool.install(|| self.add_weight_gradient(head, hidden, part.len(), &gradient))?;
            hidden_gradient.extend(self.input_gradient(head, part.len(), &gradient)?);
        }
        tensor(hidden_gradient, &[rows, features])
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        key_value_features: usize,
    ) -> Result<KeyValueCache> {
        let empty = || tensor(zeros(slots * key_value_features)?, &[slots, key_value_features]);
        let layers = (0..layers).map(|_| Ok((empty()?, empty()?))).collect::<Result<_>>()?;
        Ok(KeyValueCache { layers, features: key_value_features })
    }

    fn cache_write(
        &self,
        cache: &mut KeyValueCache,
        layer: usize,
        keys: &Tensor,
        values: &Tensor,
        slots: &[u32],
    ) -> Result<()> {
        let features = cache.features;
        let (cached_keys, cached_values) = cache.layer(layer)?;
        for (source, target) in [(keys, cached_keys), (values, cached_values)] {
            borrow!(source);
            modify(target, |target| elementwise::write_rows(source, features, slots, target))?;
        }
        Ok(())
    }

    fn cached_attention(
        &self,
        queries: &Tensor,
        cache: &KeyValueCache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<Tensor> {
        let dimensions = queries.dims();
        let (keys, values) = cache.layer(layer)?;
        borrow!(queries, keys, values);
        let cache = LayerCache { keys, values };
        let output = self.pool.install(|| cached_attention(queries, cache, shape, rows));
        tensor(output, dimensions)
    }

    fn prepare_for_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        self.pool.install(|| parameter.prepare_for_decoding())
    }

    fn end_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.end_decoding();
        Ok(())
    }
}

impl CandleOps {
    /// Adds `gradient^T x` to the gradient of a linear weight.
    fn add_weight_gradient(
        &self,
        weight: &mut Parameter,
        x: &[f32],
        rows: usize,
        gradient: &[f32],
    ) -> Result<()> {
        let (outputs, inputs) = weight.dimensions()?;
        let gradient = Matrix::new(gradient, rows, outputs);
        let x = Matrix::new(x, rows, inputs);
        weight.accumulate(|sum, accumulation| {
            let destination = match accumulation {
                Accumulation::Overwrite => Destination::replace(sum, outputs, inputs),
                Accumulation::Add => Destination::add(sum, outputs, inputs),
            };
            multiply(destination, gradient.transposed(), x, self.threads());
        })
    }

    /// `gradient weight`: the gradient of a linear op's input.
    fn input_gradient(
        &self,
        weight: &Parameter,
        rows: usize,
        gradient: &[f32],
    ) -> Result<Vec<f32>> {
        self.pool.install(|| weight.input_gradient(gradient, rows, self.threads()))
    }
}

fn add_bias_gradient(bias: &mut Parameter, gradient: &[f32]) -> Result<()> {
    bias.accumulate(|sum, accumulation| {
        if accumulation == Accumulation::Overwrite {
            sum.fill(0.0);
        }
        elementwise::add_row_sums(gradient, sum);
    })
}
