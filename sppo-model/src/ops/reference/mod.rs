//! The reference op set: every op as plain loops over f64, written to be read and to be compared with.
//!
//! Its backward ops are themselves checked by finite differences. Weights and optimiser state are
//! rounded to f32 by an update, as [`Ops::update`] asks for, so that they can be saved exactly.

mod arithmetic;
mod attention;
mod encoder;

use super::{
    Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow, MixtureGradients,
    Ops, Position, RotaryFrequencies, Routes, UpdateRule,
};
use crate::error::{ModelError, Result};
use crate::formats::QuantizedMatrix;

/// The op set of plain loops.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceOps;

/// An activation: row-major f64.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceTensor {
    /// `rows * columns` values.
    pub values: Vec<f64>,
    /// Number of rows.
    pub rows: usize,
    /// Features of a row.
    pub columns: usize,
}

impl ReferenceTensor {
    /// A tensor of zeros.
    #[must_use]
    pub fn zeros(rows: usize, columns: usize) -> Self {
        Self { values: vec![0.0; rows * columns], rows, columns }
    }

    /// One row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns..][..self.columns]
    }

    fn row_mut(&mut self, row: usize) -> &mut [f64] {
        &mut self.values[row * self.columns..][..self.columns]
    }

    fn map(&self, function: impl Fn(f64) -> f64) -> Self {
        let values = self.values.iter().map(|&value| function(value)).collect();
        Self { values, ..*self }
    }

    fn zip(&self, other: &Self, function: impl Fn(f64, f64) -> f64) -> Self {
        let values = self.values.iter().zip(&other.values).map(|(&a, &b)| function(a, b)).collect();
        Self { values, ..*self }
    }
}

/// A weight with its gradient and optimiser state.
#[derive(Clone, Debug)]
pub struct ReferenceParameter {
    /// Row-major values.
    pub values: Vec<f64>,
    /// Rank 1 or 2.
    pub shape: Vec<usize>,
    /// Whether gradients are kept.
    pub trainable: bool,
    /// The accumulated gradient.
    pub gradient: Option<Vec<f64>>,
    /// State tensors of the optimiser.
    pub state: Vec<Vec<f64>>,
}

impl ReferenceParameter {
    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.columns()..][..self.columns()]
    }

    fn gradient_mut(&mut self) -> &mut [f64] {
        let length = self.values.len();
        self.gradient.get_or_insert_with(|| vec![0.0; length])
    }
}

/// Keys and values by layer: `slots` rows each.
#[derive(Clone, Debug)]
pub struct ReferenceCache {
    layers: Vec<[ReferenceTensor; 2]>,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_scaled(into: &mut [f64], factor: f64, values: &[f64]) {
    for (into, value) in into.iter_mut().zip(values) {
        *into += factor * value;
    }
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

/// `cap * tanh(value / cap)`, or the value itself without a cap.
fn soft_cap(value: f64, cap: Option<f32>) -> f64 {
    cap.map_or(value, |cap| f64::from(cap) * (value / f64::from(cap)).tanh())
}

/// The derivative of [`soft_cap`], from its result.
fn soft_cap_slope(capped: f64, cap: Option<f32>) -> f64 {
    cap.map_or(1.0, |cap| 1.0 - (capped / f64::from(cap)).powi(2))
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let maximum = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    maximum + values.iter().map(|value| (value - maximum).exp()).sum::<f64>().ln()
}

fn linear(x: &ReferenceTensor, weight: &ReferenceParameter) -> ReferenceTensor {
    let outputs = weight.shape[0];
    let mut result = ReferenceTensor::zeros(x.rows, outputs);
    for row in 0..x.rows {
        for output in 0..outputs {
            result.row_mut(row)[output] = dot(x.row(row), weight.row(output));
        }
    }
    result
}

/// Turns by `direction` (1 forward, -1 back) times each position's angles.
fn rotate(
    x: &ReferenceTensor,
    positions: &[Position],
    frequencies: &RotaryFrequencies,
    direction: f64,
) -> ReferenceTensor {
    let half = frequencies.frequencies.len();
    let mut result = x.clone();
    for (row, &position) in positions.iter().enumerate() {
        for head in result.row_mut(row).chunks_exact_mut(frequencies.head_size) {
            for (pair, (cosine, sine)) in frequencies.turns(position).enumerate() {
                let (cosine, sine) = (f64::from(cosine), direction * f64::from(sine));
                let (first, second) = (head[pair], head[pair + half]);
                head[pair] = first * cosine - second * sine;
                head[pair + half] = second * cosine + first * sine;
            }
        }
    }
    result
}

/// The activation's value and slope.
fn activate(x: f64, activation: Activation) -> (f64, f64) {
    match activation {
        Activation::Silu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let tanh = (root * (x + 0.044_715 * x.powi(3))).tanh();
            let inner_slope = root * (1.0 + 3.0 * 0.044_715 * x * x);
            (
                0.5 * x * (1.0 + tanh),
                0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope,
            )
        }
    }
}

impl Ops for ReferenceOps {
    type Tensor = ReferenceTensor;
    type Parameter = ReferenceParameter;
    type Cache = ReferenceCache;

    fn describe(&self) -> (String, String) {
        ("cpu".into(), "f64".into())
    }

    fn tensor(&self, values: Vec<f32>, rows: usize, columns: usize) -> Result<ReferenceTensor> {
        Ok(ReferenceTensor { values: widen(&values), rows, columns })
    }

    fn values(&self, tensor: &ReferenceTensor) -> Result<Vec<f32>> {
        Ok(narrow(&tensor.values))
    }

    fn shape(&self, tensor: &ReferenceTensor) -> (usize, usize) {
        (tensor.rows, tensor.columns)
    }

    fn parameter(
        &self,
        values: Vec<f32>,
        shape: &[usize],
        trainable: bool,
    ) -> Result<ReferenceParameter> {
        let (values, shape) = (widen(&values), shape.to_vec());
        Ok(ReferenceParameter { values, shape, trainable, gradient: None, state: Vec::new() })
    }

    fn quantized(&self, matrix: QuantizedMatrix) -> Result<ReferenceParameter> {
        self.parameter(matrix.values(), &matrix.dimensions(), false)
    }

    fn parameter_values(&self, parameter: &ReferenceParameter) -> Result<Vec<f32>> {
        Ok(narrow(&parameter.values))
    }

    fn parameter_gradient(&self, parameter: &ReferenceParameter) -> Result<Option<Vec<f32>>> {
        Ok(parameter.gradient.as_deref().map(narrow))
    }

    fn gradient_square_sum(&self, parameter: &ReferenceParameter) -> Result<f64> {
        Ok(parameter.gradient.as_deref().map_or(0.0, |gradient| dot(gradient, gradient)))
    }

    fn clear_gradient(&self, parameter: &mut ReferenceParameter) -> Result<()> {
        parameter.gradient = None;
        Ok(())
    }

    fn update(&self, parameter: &mut ReferenceParameter, rule: &UpdateRule) -> Result<()> {
        arithmetic::update(parameter, rule);
        Ok(())
    }

    fn optimizer_state(&self, parameter: &ReferenceParameter) -> Result<Vec<Vec<f32>>> {
        Ok(parameter.state.iter().map(|state| narrow(state)).collect())
    }

    fn optimizer_state_count(&self, parameter: &ReferenceParameter) -> usize {
        parameter.state.len()
    }

    fn set_optimizer_state(
        &self,
        parameter: &mut ReferenceParameter,
        state: Vec<Vec<f32>>,
    ) -> Result<()> {
        if state.iter().any(|tensor| tensor.len() != parameter.values.len()) {
            return Err(ModelError::Input(
                "optimiser state does not have the parameter's size".into(),
            ));
        }
        parameter.state = state.iter().map(|tensor| widen(tensor)).collect();
        Ok(())
    }

    fn embedding(&self, table: &ReferenceParameter, tokens: &[u32]) -> Result<ReferenceTensor> {
        let values = tokens.iter().flat_map(|&token| table.row(token as usize)).copied().collect();
        Ok(ReferenceTensor { values, rows: tokens.len(), columns: table.columns() })
    }

    fn linear(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceParameter,
        bias: Option<&ReferenceParameter>,
    ) -> Result<ReferenceTensor> {
        let mut result = linear(x, weight);
        if let Some(bias) = bias {
            for row in 0..result.rows {
                add_scaled(result.row_mut(row), 1.0, &bias.values);
            }
        }
        Ok(result)
    }

    fn rms_norm(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceParameter,
        epsilon: f32,
        offset: f32,
    ) -> Result<ReferenceTensor> {
        let mut result = x.clone();
        for group in result.values.chunks_exact_mut(weight.values.len()) {
            let mean_square = dot(group, group) / group.len() as f64;
            let inverse_root = 1.0 / (mean_square + f64::from(epsilon)).sqrt();
            for (value, weight) in group.iter_mut().zip(&weight.values) {
                *value *= inverse_root * (weight + f64::from(offset));
            }
        }
        Ok(result)
    }

    fn rotary(
        &self,
        x: &ReferenceTensor,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
    ) -> Result<ReferenceTensor> {
        Ok(rotate(x, positions, frequencies, 1.0))
    }

    fn attention(
        &self,
        queries: &ReferenceTensor,
        keys: &ReferenceTensor,
        values: &ReferenceTensor,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> Result<AttentionOutput<ReferenceTensor>> {
        Ok(attention::forward(queries, keys, values, shape, segments))
    }

    fn gated_activation(
        &self,
        gate: &ReferenceTensor,
        up: &ReferenceTensor,
        activation: Activation,
    ) -> Result<ReferenceTensor> {
        Ok(gate.zip(up, |gate, up| activate(gate, activation).0 * up))
    }

    fn add(&self, a: &ReferenceTensor, b: &ReferenceTensor) -> Result<ReferenceTensor> {
        Ok(a.zip(b, |a, b| a + b))
    }

    fn scale(&self, x: &ReferenceTensor, factor: f32) -> Result<ReferenceTensor> {
        Ok(x.map(|value| value * f64::from(factor)))
    }

    fn mixture(&self, parts: &[&ReferenceTensor], routes: &Routes) -> Result<ReferenceTensor> {
        let columns = parts.first().map_or(0, |part| part.columns);
        let mut result = ReferenceTensor::zeros(routes.row_count, columns);
        for (part, expert) in parts.iter().zip(&routes.experts) {
            for (place, (&row, &weight)) in expert.rows.iter().zip(&expert.weights).enumerate() {
                add_scaled(result.row_mut(row as usize), f64::from(weight), part.row(place));
            }
        }
        Ok(result)
    }

    fn select_rows(&self, x: &ReferenceTensor, rows: &[u32]) -> Result<ReferenceTensor> {
        let values = rows.iter().flat_map(|&row| x.row(row as usize)).copied().collect();
        Ok(ReferenceTensor { values, rows: rows.len(), columns: x.columns })
    }

    fn token_log_probs(
        &self,
        hidden: &ReferenceTensor,
        head: &ReferenceParameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<ReferenceTensor>)> {
        let logits = self.logits(hidden, head, soft_cap)?;
        let log_prob = |(row, &target): (usize, &u32)| {
            (logits.row(row)[target as usize] - log_sum_exp(logits.row(row))) as f32
        };
        let log_probs = targets.iter().enumerate().map(log_prob).collect();
        Ok((log_probs, keep.then_some(logits)))
    }

    fn logits(
        &self,
        hidden: &ReferenceTensor,
        head: &ReferenceParameter,
        cap: Option<f32>,
    ) -> Result<ReferenceTensor> {
        Ok(linear(hidden, head).map(|logit| soft_cap(logit, cap)))
    }

    fn embedding_backward(
        &self,
        table: &mut ReferenceParameter,
        tokens: &[u32],
        gradient: &ReferenceTensor,
    ) -> Result<()> {
        let columns = table.columns();
        if table.trainable {
            for (row, &token) in tokens.iter().enumerate() {
                let into = &mut table.gradient_mut()[token as usize * columns..][..columns];
                add_scaled(into, 1.0, gradient.row(row));
            }
        }
        Ok(())
    }

    fn linear_backward(
        &self,
        x: &ReferenceTensor,
        weight: &mut ReferenceParameter,
        bias: Option<&mut ReferenceParameter>,
        gradient: &ReferenceTensor,
    ) -> Result<ReferenceTensor> {
        if let Some(bias) = bias.filter(|bias| bias.trainable) {
            for row in 0..gradient.rows {
                add_scaled(bias.gradient_mut(), 1.0, gradient.row(row));
            }
        }
        Ok(linear_backward(x, weight, gradient))
    }

    fn rms_norm_backward(
        &self,
        x: &ReferenceTensor,
        weight: &mut ReferenceParameter,
        epsilon: f32,
        offset: f32,
        gradient: &ReferenceTensor,
    ) -> Result<ReferenceTensor> {
        let size = weight.values.len();
        let mut result = ReferenceTensor::zeros(x.rows, x.columns);
        let groups = x.values.chunks_exact(size).zip(gradient.values.chunks_exact(size));
        for ((x, gradient), into) in groups.zip(result.values.chunks_exact_mut(size)) {
            let inverse_root = 1.0 / (dot(x, x) / size as f64 + f64::from(epsilon)).sqrt();
            let scaled: Vec<f64> = (gradient.iter().zip(&weight.values))
                .map(|(gradient, weight)| gradient * (weight + f64::from(offset)))
                .collect();
            let projection = dot(&scaled, x) * inverse_root.powi(3) / size as f64;
            add_scaled(into, inverse_root, &scaled);
            add_scaled(into, -projection, x);
            if weight.trainable {
                let terms = x.iter().zip(gradient).map(|(x, gradient)| x * inverse_root * gradient);
                for (into, term) in weight.gradient_mut().iter_mut().zip(terms) {
                    *into += term;
                }
            }
        }
        Ok(result)
    }

    fn rotary_backward(
        &self,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        gradient: &ReferenceTensor,
    ) -> Result<ReferenceTensor> {
        Ok(rotate(gradient, positions, frequencies, -1.0))
    }

    fn attention_backward(
        &self,
        queries: &ReferenceTensor,
        keys: &ReferenceTensor,
        values: &ReferenceTensor,
        forward: &AttentionOutput<ReferenceTensor>,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
        gradient: &ReferenceTensor,
    ) -> Result<[ReferenceTensor; 3]> {
        Ok(attention::backward(queries, [keys, values], forward, shape, segments, gradient))
    }

    fn gated_activation_backward(
        &self,
        gate: &ReferenceTensor,
        up: &ReferenceTensor,
        activation: Activation,
        gradient: &ReferenceTensor,
    ) -> Result<[ReferenceTensor; 2]> {
        let slopes = gate.map(|gate| activate(gate, activation).1);
        let of_gate = slopes.zip(up, |slope, up| slope * up).zip(gradient, |a, b| a * b);
        let of_up = gate.zip(gradient, |gate, gradient| activate(gate, activation).0 * gradient);
        Ok([of_gate, of_up])
    }

    fn mixture_backward(
        &self,
        parts: &[&ReferenceTensor],
        routes: &Routes,
        gradient: &ReferenceTensor,
    ) -> Result<MixtureGradients<ReferenceTensor>> {
        let (mut of_parts, mut of_weights) = (Vec::new(), Vec::new());
        for (part, expert) in parts.iter().zip(&routes.experts) {
            let mut of_part = ReferenceTensor::zeros(part.rows, part.columns);
            let mut of_rows = Vec::new();
            for (place, (&row, &weight)) in expert.rows.iter().zip(&expert.weights).enumerate() {
                let gradient = gradient.row(row as usize);
                add_scaled(of_part.row_mut(place), f64::from(weight), gradient);
                of_rows.push(dot(part.row(place), gradient) as f32);
            }
            of_parts.push(of_part);
            of_weights.push(of_rows);
        }
        Ok(MixtureGradients { of_parts, of_weights })
    }

    fn select_rows_backward(
        &self,
        rows: &[u32],
        row_count: usize,
        gradient: &ReferenceTensor,
    ) -> Result<ReferenceTensor> {
        let mut result = ReferenceTensor::zeros(row_count, gradient.columns);
        for (from, &row) in rows.iter().enumerate() {
            add_scaled(result.row_mut(row as usize), 1.0, gradient.row(from));
        }
        Ok(result)
    }

    fn token_log_probs_backward(
        &self,
        hidden: &ReferenceTensor,
        head: &mut ReferenceParameter,
        targets: &[u32],
        soft_cap: Option<f32>,
        kept: Option<ReferenceTensor>,
        coefficients: &[f32],
    ) -> Result<ReferenceTensor> {
        let logits = match kept {
            Some(logits) => logits,
            None => self.logits(hidden, head, soft_cap)?,
        };
        let mut gradient = ReferenceTensor::zeros(logits.rows, logits.columns);
        for (row, (&target, &coefficient)) in targets.iter().zip(coefficients).enumerate() {
            let normaliser = log_sum_exp(logits.row(row));
            for (token, &logit) in logits.row(row).iter().enumerate() {
                let indicator = if token == target as usize { 1.0 } else { 0.0 };
                gradient.row_mut(row)[token] = f64::from(coefficient)
                    * (indicator - (logit - normaliser).exp())
                    * soft_cap_slope(logit, soft_cap);
            }
        }
        Ok(linear_backward(hidden, head, &gradient))
    }

    fn cache(
        &self,
        layers: usize,
        slots: usize,
        key_value_features: usize,
    ) -> Result<ReferenceCache> {
        let empty = ReferenceTensor::zeros(slots, key_value_features);
        Ok(ReferenceCache { layers: vec![[empty.clone(), empty]; layers] })
    }

    fn cache_write(
        &self,
        cache: &mut ReferenceCache,
        layer: usize,
        keys: &ReferenceTensor,
        values: &ReferenceTensor,
        slots: &[u32],
    ) -> Result<()> {
        for (into, from) in cache.layers[layer].iter_mut().zip([keys, values]) {
            for (row, &slot) in slots.iter().enumerate() {
                into.row_mut(slot as usize).copy_from_slice(from.row(row));
            }
        }
        Ok(())
    }

    fn cached_attention(
        &self,
        queries: &ReferenceTensor,
        cache: &ReferenceCache,
        layer: usize,
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> Result<ReferenceTensor> {
        let [keys, values] = &cache.layers[layer];
        Ok(attention::cached(queries, keys, values, shape, rows))
    }
}

fn linear_backward(
    x: &ReferenceTensor,
    weight: &mut ReferenceParameter,
    gradient: &ReferenceTensor,
) -> ReferenceTensor {
    let columns = weight.columns();
    let mut result = ReferenceTensor::zeros(x.rows, columns);
    for row in 0..x.rows {
        for (output, &factor) in gradient.row(row).iter().enumerate() {
            add_scaled(result.row_mut(row), factor, weight.row(output));
            if weight.trainable {
                let into = &mut weight.gradient_mut()[output * columns..][..columns];
                add_scaled(into, factor, x.row(row));
            }
        }
    }
    result
}

#[cfg(test)]
mod tests;
