//! The op vocabulary on the CPU: each op borrows its tensors' memory and runs a kernel on it.

use candle_core::Tensor;
use sppo_kernels::attention::{Operands, attention};
use sppo_kernels::attention_backward::{Forward, attention_backward};
use sppo_kernels::cached_attention::{LayerCache, cached_attention};
use sppo_kernels::elementwise;
use sppo_kernels::matrix::{Destination, Matrix, multiply};
use sppo_kernels::norm::{RmsNorm, rms_norm, rms_norm_backward};
use sppo_kernels::rotary::{RotaryTable, RotaryTables, apply_rotary};
use sppo_kernels::threads::Threads;
use sppo_model::formats::QuantizedMatrix;
use sppo_model::ops::{
    Accumulation, Activation, AttentionOutput, AttentionSegment, AttentionShape, CachedRow,
    LogitsLimits, MixtureGradients, Ops, Position, RotaryFrequencies, Routes, UpdateRule,
};
use sppo_model::serve::MatrixRate;
use sppo_model::{ModelError, Result};

use crate::head::Head;
use crate::parameter::Parameter;
use crate::tensors::{Values, dimensions, modify, tensor, zeros};

/// The ops on candle tensors in the memory of the CPU, with fused kernels, f32. Clones share their
/// threads.
#[derive(Clone)]
pub struct CandleOps {
    pub(crate) threads: Threads,
    pub(crate) limits: LogitsLimits,
    rotary_tables: RotaryTables,
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

impl CandleOps {
    /// Ops on `threads` threads (0 for one per core). Training keeps all logits of a batch for its
    /// backward pass when they take at most `keep_logits_limit` bytes, and computes them again when
    /// they take more.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: usize, keep_logits_limit: usize) -> Result<Self> {
        let limits =
            LogitsLimits { kept_bytes: keep_logits_limit, chunk_bytes: 96 << 20, chunk_rows: 512 };
        Ok(Self { threads: Threads::new(threads)?, limits, rotary_tables: RotaryTables::default() })
    }

    fn apply_rotary(
        &self,
        x: &Tensor,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        inverse: bool,
    ) -> Result<Tensor> {
        let (rows, columns) = dimensions(x)?;
        let table = self.rotary_tables.table(frequencies, positions);
        let table: &RotaryTable = &table;
        borrow!(x);
        let rotated = self.threads.run(|| apply_rotary(x, columns, positions, table, inverse));
        tensor(rotated, &[rows, columns])
    }

    fn head(&self, soft_cap: Option<f32>) -> Head<'_> {
        Head { threads: &self.threads, limits: self.limits, soft_cap }
    }
}

impl MatrixRate for CandleOps {
    fn matrix_product(
        &self,
        [rows, inner, columns]: [usize; 3],
    ) -> Result<impl FnMut() -> Result<()>> {
        let (left, right) = (vec![0.5; rows * inner], vec![0.5; inner * columns]);
        let mut product = vec![0.0; rows * columns];
        let threads = &self.threads;
        Ok(move || {
            threads.run(|| {
                let left = Matrix::new(&left, rows, inner);
                let right = Matrix::new(&right, columns, inner).transposed();
                let destination = Destination::replace(&mut product, rows, columns);
                multiply(destination, left, right);
            });
            Ok(())
        })
    }
}

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

    fn with_values<R>(&self, tensor: &Tensor, read: impl FnOnce(&[f32]) -> R) -> Result<R> {
        Ok(read(&Values::of(tensor)?))
    }

    fn shape(&self, tensor: &Tensor) -> (usize, usize) {
        dimensions(tensor).unwrap_or_default()
    }

    fn parameter(&self, values: Vec<f32>, shape: &[usize], trainable: bool) -> Result<Parameter> {
        Parameter::new(values, shape, trainable)
    }

    fn quantized(&self, matrix: QuantizedMatrix) -> Result<Parameter> {
        Ok(Parameter::quantized(matrix))
    }

    fn parameter_values(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        self.threads.run(|| parameter.values())
    }

    fn parameter_gradient(&self, parameter: &Parameter) -> Result<Option<Vec<f32>>> {
        parameter.gradient().map(|gradient| self.values(gradient)).transpose()
    }

    fn gradient_square_sum(&self, parameter: &Parameter) -> Result<f64> {
        self.threads.run(|| parameter.gradient_square_sum())
    }

    fn clear_gradient(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.clear_gradient();
        Ok(())
    }

    fn update(&self, parameter: &mut Parameter, rule: &UpdateRule) -> Result<()> {
        self.threads.run(|| parameter.update(rule))
    }

    fn optimizer_state(&self, parameter: &Parameter) -> Result<Vec<Vec<f32>>> {
        parameter.state().iter().map(|state| self.values(state)).collect()
    }

    fn optimizer_state_count(&self, parameter: &Parameter) -> usize {
        parameter.state().len()
    }

    fn set_optimizer_state(&self, parameter: &mut Parameter, state: Vec<Vec<f32>>) -> Result<()> {
        parameter.set_state(state)
    }

    fn embedding(&self, table: &Parameter, tokens: &[u32]) -> Result<Tensor> {
        let (_, features) = table.dimensions()?;
        let rows = self.threads.run(|| table.select_rows(tokens))?;
        tensor(rows, &[tokens.len(), features])
    }

    fn linear(&self, x: &Tensor, weight: &Parameter, bias: Option<&Parameter>) -> Result<Tensor> {
        let (rows, _) = dimensions(x)?;
        let (outputs, _) = weight.dimensions()?;
        let bias = bias.map(|bias| Values::of(bias.value()?)).transpose()?;
        let bias = bias.as_deref();
        borrow!(x);
        let y = self.threads.run(|| weight.linear(x, rows, bias))?;
        tensor(y, &[rows, outputs])
    }

    fn linears(
        &self,
        x: &Tensor,
        weights: &[(&Parameter, Option<&Parameter>)],
    ) -> Result<Vec<Tensor>> {
        let (rows, _) = dimensions(x)?;
        let biases =
            weights.iter().map(|(_, bias)| bias.map(|bias| Values::of(bias.value()?)).transpose());
        let biases: Vec<_> = biases.collect::<Result<_>>()?;
        let given: Vec<_> = weights
            .iter()
            .zip(&biases)
            .map(|((weight, _), bias)| (*weight, bias.as_deref()))
            .collect();
        borrow!(x);
        let products = self.threads.run(|| Parameter::linears(x, rows, &given))?;
        let products = products.into_iter().zip(weights);
        products
            .map(|(product, (weight, _))| tensor(product, &[rows, weight.dimensions()?.0]))
            .collect()
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
        tensor(self.threads.run(|| rms_norm(norm, x)), shape)
    }

    fn rotary(
        &self,
        x: &Tensor,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
    ) -> Result<Tensor> {
        self.apply_rotary(x, positions, frequencies, false)
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
        let (output, log_sum_exp) = self.threads.run(|| attention(operands)).ok_or_else(|| {
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
        let y = self.threads.run(|| elementwise::gated_activation(gate, up, activation));
        tensor(y, shape)
    }

    fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let shape = a.dims();
        borrow!(a, b);
        tensor(self.threads.run(|| elementwise::add(a, b)), shape)
    }

    fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        let shape = x.dims();
        borrow!(x);
        tensor(self.threads.run(|| elementwise::scale(x, factor)), shape)
    }

    fn mixture(&self, parts: &[&Tensor], routes: &Routes) -> Result<Tensor> {
        let features = parts.first().map_or(Ok((0, 0)), |part| dimensions(part))?.1;
        let borrowed = parts.iter().map(|part| Values::of(part)).collect::<Result<Vec<_>>>()?;
        let values: Vec<&[f32]> = borrowed.iter().map(|values| &**values).collect();
        let sum = self.threads.run(|| elementwise::mixture(&values, features, routes));
        tensor(sum, &[routes.row_count, features])
    }

    fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let (_, features) = dimensions(x)?;
        borrow!(x);
        let selected = self.threads.run(|| elementwise::select_rows(x, features, rows));
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
        let (vocabulary, _) = head.dimensions()?;
        borrow!(hidden);
        let (log_probs, kept) = self.head(soft_cap).log_probs(hidden, head, targets, keep)?;
        let kept = kept.map(|logits| tensor(logits, &[targets.len(), vocabulary]));
        Ok((log_probs, kept.transpose()?))
    }

    fn logits(&self, hidden: &Tensor, head: &Parameter, soft_cap: Option<f32>) -> Result<Tensor> {
        let (rows, _) = dimensions(hidden)?;
        let (vocabulary, _) = head.dimensions()?;
        borrow!(hidden);
        tensor(self.head(soft_cap).logits(hidden, rows, head)?, &[rows, vocabulary])
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
            self.threads.run(|| bias.accumulate_row_sums(gradient))?;
        }
        self.threads.run(|| weight.accumulate_product(gradient, x, rows))?;
        let x_gradient = self.threads.run(|| weight.input_gradient(gradient, rows))?;
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
            self.threads.run(|| rms_norm_backward(norm, x, gradient))
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
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        gradient: &Tensor,
    ) -> Result<Tensor> {
        self.apply_rotary(gradient, positions, frequencies, true)
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
        let [queries, keys, values] = self.threads.run(|| attention_backward(operands, forward));
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
            .threads
            .run(|| elementwise::gated_activation_backward(gate, up, activation, gradient));
        Ok([tensor(gate, shape)?, tensor(up, shape)?])
    }

    fn mixture_backward(
        &self,
        parts: &[&Tensor],
        routes: &Routes,
        gradient: &Tensor,
    ) -> Result<MixtureGradients<Tensor>> {
        borrow!(gradient);
        let mut found = MixtureGradients { of_parts: Vec::new(), of_weights: Vec::new() };
        for (&part, expert) in parts.iter().zip(&routes.experts) {
            let (rows, features) = dimensions(part)?;
            borrow!(part);
            let backward = || elementwise::mixture_backward(part, features, expert, gradient);
            let (of_part, of_weights) = self.threads.run(backward);
            found.of_parts.push(tensor(of_part, &[rows, features])?);
            found.of_weights.push(of_weights);
        }
        Ok(found)
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
        borrow!(hidden);
        let kept = kept.as_ref().map(Values::of).transpose()?;
        let hidden_gradient = self.head(soft_cap).log_probs_backward(
            hidden,
            head,
            targets,
            kept.as_deref(),
            coefficients,
        )?;
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
        let output = self.threads.run(|| cached_attention(queries, cache, shape, rows));
        tensor(output, dimensions)
    }

    fn prepare_for_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        self.threads.run(|| parameter.prepare_for_decoding())
    }

    fn end_decoding(&self, parameter: &mut Parameter) -> Result<()> {
        parameter.end_decoding();
        Ok(())
    }
}
