//! Ops in f32 on the CPU by the kernels of [`sppo_kernels`]: all but products of many rows.
//!
//! libtorch computes a norm, a gate or a rotation in several passes over memory, and attention in pieces that it must
//! gather first. For few rows, as in decoding, it also lays a weight out anew for each product, which takes as long as
//! a good part of the product. Values are the same up to rounding.

use sppo_kernels::attention::{Operands, write_attention};
use sppo_kernels::attention_backward::{Forward, write_attention_backward};
use sppo_kernels::cached_attention::{LayerCache, cached_attention};
use sppo_kernels::elementwise::{write_gated_activation, write_gated_activation_backward};
use sppo_kernels::log_probs::{log_probs, write_logit_gradients};
use sppo_kernels::norm::{RmsNorm, write_rms_norm, write_rms_norm_backward};
use sppo_kernels::panels::{FEW_ROWS, PanelWeight, write_linears};
use sppo_kernels::rotary::{RotaryTables, write_rotary};
use sppo_kernels::threads::Threads;
use sppo_model::ModelError;
use sppo_model::ops::{
    Activation as ActivationFunction, AttentionSegment, AttentionShape, CachedRow, Position,
    RotaryFrequencies,
};
use tch::Tensor;

use crate::new_tensor::NewTensor;
use crate::parameter::Parameter;
use crate::tensors::{TorchResult, dimensions, values};

/// The kernels' threads and tables. Clones share them.
#[derive(Clone)]
pub(crate) struct Kernels {
    threads: Threads,
    rotary: RotaryTables,
}

/// Borrows contiguous forms of tensors as slices of the same names.
macro_rules! borrow {
    ($($name:ident),+) => {
        $(
            let $name = $name.f_contiguous()?;
            let $name = values(&$name)?;
        )+
    };
}

impl Kernels {
    /// Kernels on `threads` threads.
    pub(crate) fn new(threads: usize) -> sppo_model::Result<Self> {
        Ok(Self { threads: Threads::new(threads)?, rotary: RotaryTables::default() })
    }

    /// `x weight^T (+ bias)` with each weight; none where `x` has many rows, or a weight is not
    /// [laid out](Parameter::panels) for it.
    pub(crate) fn linears(
        &self,
        x: &Tensor,
        weights: &[(&Parameter, Option<Tensor>)],
    ) -> TorchResult<Option<Vec<Tensor>>> {
        let (rows, inputs) = dimensions(x)?;
        if !(1..=FEW_ROWS as i64).contains(&rows) {
            return Ok(None);
        }
        let mut products = Vec::with_capacity(weights.len());
        for (weight, _) in weights {
            let Some(panels) = weight.panels()? else { return Ok(None) };
            let (outputs, _) = weight.dimensions()?;
            let weight = PanelWeight { panels, outputs: outputs as usize };
            products.push((weight, NewTensor::new(&[rows, outputs])?));
        }
        borrow!(x);
        let size = [rows as usize, inputs as usize];
        let outs = products.iter_mut().map(|(weight, product)| (*weight, product.memory()));
        let outs: Vec<_> = outs.collect();
        self.threads.run(|| write_linears(x, size, outs));
        let with_bias = |((_, product), (_, bias)): ((_, NewTensor), &(_, Option<Tensor>))| {
            let mut product = product.written();
            if let Some(bias) = bias {
                let _ = product.f_add_(bias)?;
            }
            Ok(product)
        };
        products.into_iter().zip(weights).map(with_bias).collect::<TorchResult<_>>().map(Some)
    }

    /// Lays an `[outputs, inputs]` weight out as panels.
    pub(crate) fn pack(&self, weight: &Tensor) -> TorchResult<Vec<f32>> {
        let (outputs, inputs) = dimensions(weight)?;
        let weight = values(weight)?;
        let pack = || sppo_kernels::panels::pack(weight, outputs as usize, inputs as usize);
        Ok(self.threads.run(pack))
    }

    /// Root-mean-square normalisation over groups of the weight's length.
    pub(crate) fn rms_norm(
        &self,
        x: &Tensor,
        weight: &Tensor,
        epsilon: f32,
        offset: f32,
    ) -> TorchResult<Tensor> {
        let mut output = NewTensor::new(&x.size())?;
        borrow!(x, weight);
        let out = output.memory();
        self.threads.run(|| write_rms_norm(RmsNorm { weight, epsilon, offset }, x, out));
        Ok(output.written())
    }

    /// Gradients of `x` and of the weight.
    pub(crate) fn rms_norm_backward(
        &self,
        x: &Tensor,
        weight: &Tensor,
        [epsilon, offset]: [f32; 2],
        gradient: &Tensor,
    ) -> TorchResult<[Tensor; 2]> {
        let mut of_x = NewTensor::new(&x.size())?;
        let shape = weight.size();
        borrow!(x, weight, gradient);
        let norm = RmsNorm { weight, epsilon, offset };
        let out = of_x.memory();
        let of_weight = self.threads.run(|| write_rms_norm_backward(norm, x, gradient, out));
        Ok([of_x.written(), NewTensor::copy_of(&of_weight, &shape)?])
    }

    /// Rotates every head of every row by its position's angles, or back if `inverse`.
    pub(crate) fn rotary(
        &self,
        x: &Tensor,
        positions: &[Position],
        frequencies: &RotaryFrequencies,
        inverse: bool,
    ) -> TorchResult<Tensor> {
        let (_, columns) = dimensions(x)?;
        let table = self.rotary.table(frequencies, positions);
        let mut output = NewTensor::new(&x.size())?;
        let (table, out) = (&*table, output.memory());
        borrow!(x);
        let turn = || write_rotary(x, columns as usize, positions, table, inverse, out);
        self.threads.run(turn);
        Ok(output.written())
    }

    /// `activation(gate) * up`.
    pub(crate) fn gated(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: ActivationFunction,
    ) -> TorchResult<Tensor> {
        let mut output = NewTensor::new(&gate.size())?;
        borrow!(gate, up);
        let out = output.memory();
        self.threads.run(|| write_gated_activation(gate, up, activation, out));
        Ok(output.written())
    }

    /// Gradients of the gate and of `up`.
    pub(crate) fn gated_backward(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: ActivationFunction,
        gradient: &Tensor,
    ) -> TorchResult<[Tensor; 2]> {
        let mut of_gate = NewTensor::new(&gate.size())?;
        let mut of_up = NewTensor::new(&gate.size())?;
        borrow!(gate, up, gradient);
        let outs = [of_gate.memory(), of_up.memory()];
        let backward = || write_gated_activation_backward(gate, up, activation, gradient, outs);
        self.threads.run(backward);
        Ok([of_gate.written(), of_up.written()])
    }

    /// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]` of attention over packed segments.
    pub(crate) fn attention(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> TorchResult<(Tensor, Tensor)> {
        let (rows, _) = dimensions(queries)?;
        let mut output = NewTensor::new(&queries.size())?;
        let mut log_sum_exp = NewTensor::new(&[rows, shape.query_heads as i64])?;
        borrow!(queries, keys, values);
        let operands = Operands { shape, segments, queries, keys, values };
        let (out, sums) = (output.zeros(), log_sum_exp.zeros());
        self.threads.run(|| write_attention(operands, out, sums)).ok_or_else(|| {
            ModelError::Backend("two attention segments have the same query rows".into())
        })?;
        Ok((output.written(), log_sum_exp.written()))
    }

    /// Gradients of queries, keys and values.
    pub(crate) fn attention_backward(
        &self,
        [queries, keys, values]: [&Tensor; 3],
        [output, log_sum_exp]: [&Tensor; 2],
        gradient: &Tensor,
        shape: &AttentionShape,
        segments: &[AttentionSegment],
    ) -> TorchResult<[Tensor; 3]> {
        let mut of_queries = NewTensor::new(&queries.size())?;
        let mut of_keys = NewTensor::new(&keys.size())?;
        let mut of_values = NewTensor::new(&values.size())?;
        borrow!(queries, keys, values, output, log_sum_exp, gradient);
        let operands = Operands { shape, segments, queries, keys, values };
        let forward = Forward { output, log_sum_exp, gradient };
        let outs = [of_queries.zeros(), of_keys.zeros(), of_values.zeros()];
        self.threads.run(|| write_attention_backward(operands, forward, outs));
        Ok([of_queries.written(), of_keys.written(), of_values.written()])
    }

    /// Attention of one query per row over a layer of the cache.
    pub(crate) fn cached_attention(
        &self,
        queries: &Tensor,
        [keys, cached_values]: [&Tensor; 2],
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> TorchResult<Tensor> {
        let size = queries.size();
        let cache = LayerCache { keys: values(keys)?, values: values(cached_values)? };
        borrow!(queries);
        let output = self.threads.run(|| cached_attention(queries, cache, shape, rows));
        NewTensor::copy_of(&output, &size)
    }

    /// The log-probability of each row's target from capped logits.
    pub(crate) fn log_probs(&self, logits: &Tensor, targets: &[u32]) -> TorchResult<Vec<f32>> {
        let (_, vocabulary) = dimensions(logits)?;
        borrow!(logits);
        Ok(self.threads.run(|| log_probs(logits, vocabulary as usize, targets)).0)
    }

    /// `coefficient * (onehot(target) - softmax(logits))`, times the slope of the cap.
    pub(crate) fn logit_gradients(
        &self,
        logits: &Tensor,
        targets: &[u32],
        coefficients: &[f32],
        soft_cap: Option<f32>,
    ) -> TorchResult<Tensor> {
        let (_, vocabulary) = dimensions(logits)?;
        let mut gradients = NewTensor::new(&logits.size())?;
        borrow!(logits);
        let out = gradients.memory();
        self.threads.run(|| {
            let (_, sums) = log_probs(logits, vocabulary as usize, targets);
            write_logit_gradients(logits, &sums, targets, coefficients, soft_cap, out);
        });
        Ok(gradients.written())
    }
}
