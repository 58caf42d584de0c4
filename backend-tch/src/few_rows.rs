//! Ops on few rows in f32 on the CPU, as in decoding, by the kernels of [`sppo_kernels`].
//!
//! libtorch lays a weight out anew for each product, which for few rows takes as long as a good part of the product,
//! and needs a dozen of its kernels for attention over the cache. Values are the same up to rounding.

use std::mem::MaybeUninit;

use sppo_kernels::Uninitialised;
use sppo_kernels::cached_attention::{LayerCache, cached_attention};
use sppo_kernels::elementwise::gated_activation;
use sppo_kernels::norm::{RmsNorm, rms_norm};
use sppo_kernels::panels::{FEW_ROWS, write_linear};
use sppo_kernels::rotary::{RotaryTables, apply_rotary};
use sppo_kernels::threads::Threads;
use sppo_model::ModelError;
use sppo_model::ops::{
    Activation as ActivationFunction, AttentionShape, CachedRow, Position, RotaryFrequencies,
};
use tch::{Device, Kind, Tensor};

use crate::parameter::Parameter;
use crate::tensors::{TorchResult, dimensions, require_plain, values};

/// The kernels' threads and tables. Clones share them.
#[derive(Clone)]
pub(crate) struct FewRows {
    threads: Threads,
    rotary: RotaryTables,
}

impl FewRows {
    /// Kernels on `threads` threads.
    pub(crate) fn new(threads: usize) -> sppo_model::Result<Self> {
        Ok(Self { threads: Threads::new(threads)?, rotary: RotaryTables::default() })
    }

    /// Whether an activation has few rows.
    pub(crate) fn takes(x: &Tensor) -> bool {
        let rows = x.size().first().copied().unwrap_or(0);
        usize::try_from(rows).is_ok_and(|rows| (1..=FEW_ROWS).contains(&rows))
    }

    /// `x weight^T (+ bias)`; none where the weight is not [laid out](Parameter::panels) for it.
    pub(crate) fn linear(
        &self,
        x: &Tensor,
        weight: &Parameter,
        bias: Option<&Tensor>,
    ) -> TorchResult<Option<Tensor>> {
        let Some(panels) = weight.panels()? else { return Ok(None) };
        let (rows, _) = dimensions(x)?;
        let (outputs, inputs) = weight.dimensions()?;
        let x = x.f_contiguous()?;
        let x = values(&x)?;
        let sizes = [inputs as usize, outputs as usize];
        let mut product = filled(&[rows, outputs], |out| {
            self.threads.run(|| write_linear(x, rows as usize, panels, sizes, out));
        })?;
        if let Some(bias) = bias {
            let _ = product.f_add_(bias)?;
        }
        Ok(Some(product))
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
        let (x, weight) = (x.f_contiguous()?, weight.f_contiguous()?);
        let norm = RmsNorm { weight: values(&weight)?, epsilon, offset };
        let rows = values(&x)?;
        copied(&self.threads.run(|| rms_norm(norm, rows)), &x.size())
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
        let x = x.f_contiguous()?;
        let (rows, table) = (values(&x)?, &*table);
        let turn = || apply_rotary(rows, columns as usize, positions, table, inverse);
        copied(&self.threads.run(turn), &x.size())
    }

    /// `activation(gate) * up`.
    pub(crate) fn gated(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: ActivationFunction,
    ) -> TorchResult<Tensor> {
        let (gate, up) = (gate.f_contiguous()?, up.f_contiguous()?);
        let (gates, ups) = (values(&gate)?, values(&up)?);
        let product = self.threads.run(|| gated_activation(gates, ups, activation));
        copied(&product, &gate.size())
    }

    /// Attention of one query per row over a layer of the cache.
    pub(crate) fn cached_attention(
        &self,
        queries: &Tensor,
        [keys, cached_values]: [&Tensor; 2],
        shape: &AttentionShape,
        rows: &[CachedRow],
    ) -> TorchResult<Tensor> {
        let queries = queries.f_contiguous()?;
        let cache = LayerCache { keys: values(keys)?, values: values(cached_values)? };
        let of_queries = values(&queries)?;
        let output = self.threads.run(|| cached_attention(of_queries, cache, shape, rows));
        copied(&output, &queries.size())
    }
}

/// A tensor of these numbers. libtorch's own way fills the memory first, on OpenMP's threads, which then wait for more
/// of that work at full speed while the kernels need their cores.
fn copied(numbers: &[f32], shape: &[i64]) -> TorchResult<Tensor> {
    if shape.iter().product::<i64>() != numbers.len() as i64 {
        let message = format!("{} numbers do not fill {shape:?}", numbers.len());
        return Err(ModelError::Backend(message).into());
    }
    filled(shape, |out| {
        for (out, &number) in out.iter_mut().zip(numbers) {
            out.write(number);
        }
    })
}

/// A new tensor on the CPU, all of whose memory `fill` writes.
fn filled(shape: &[i64], fill: impl FnOnce(&mut Uninitialised)) -> TorchResult<Tensor> {
    let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
    require_plain(&tensor)?;
    let address = tensor.data_ptr().cast::<MaybeUninit<f32>>();
    if !address.is_null() {
        // SAFETY: as above; the tensor is new, so nothing else refers to its memory.
        fill(unsafe { std::slice::from_raw_parts_mut(address, tensor.numel()) });
    }
    Ok(tensor)
}
