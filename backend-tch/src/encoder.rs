//! The ops of encoders on libtorch.

use sppo_model::Result;
use sppo_model::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};
use tch::{Device, Kind, Tensor};

use crate::engine::{TchOps, kept_or_made};
use crate::parameter::Parameter;
use crate::tensors::{Activation, TorchResult, index};

/// Relative positions, scaled: as keys `[heads, head_size, rows]`, as queries `[heads, rows, head_size]`.
#[derive(Debug)]
pub struct RelativeTables {
    keys: Tensor,
    queries: Tensor,
}

/// The table row of each query and key of a batch's sequences, which all layers read.
pub(crate) struct DistanceRows {
    segments: Vec<EncoderSegment>,
    shape: DisentangledShape,
    /// `[1, queries, keys]` of each sequence.
    rows: Vec<Tensor>,
}

impl EncoderOps for TchOps {
    type RelativeTables = RelativeTables;

    fn relative_tables(
        &self,
        keys: &Activation,
        queries: &Activation,
        shape: &DisentangledShape,
    ) -> Result<RelativeTables> {
        let lay_out = |table: &Tensor, order: [i64; 3]| -> TorchResult<Tensor> {
            let table = table.f_to_kind(Kind::Float)?.f_mul_scalar(f64::from(shape.scale))?;
            let table = table.f_view([-1, shape.heads as i64, shape.head_size as i64])?;
            Ok(self.operand(&table.f_permute(order)?)?.f_contiguous()?)
        };
        Ok(RelativeTables {
            keys: lay_out(&keys.0, [1, 2, 0])?,
            queries: lay_out(&queries.0, [1, 0, 2])?,
        })
    }

    fn layer_norm(
        &self,
        x: &Activation,
        weight: &Parameter,
        bias: &Parameter,
        epsilon: f32,
    ) -> Result<Activation> {
        Ok(Activation(layer_norm(&x.0, weight.value(), bias.value(), epsilon)?))
    }

    fn pointwise(&self, x: &Activation, function: Pointwise) -> Result<Activation> {
        let result = match function {
            Pointwise::Gelu => x.0.f_gelu("none"),
            Pointwise::Tanh => x.0.f_tanh(),
        };
        Ok(Activation(result.map_err(crate::tensors::TorchError::from)?))
    }

    fn disentangled_attention(
        &self,
        queries: &Activation,
        keys: &Activation,
        values: &Activation,
        tables: &RelativeTables,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<Activation> {
        let operands = [&queries.0, &keys.0, &values.0];
        Ok(Activation(attention(self, operands, tables, shape, segments)?))
    }
}

/// In f32, whatever the operand is.
fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, epsilon: f32) -> TorchResult<Tensor> {
    let x = x.f_to_kind(Kind::Float)?;
    Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), f64::from(epsilon), false)?)
}

fn attention(
    ops: &TchOps,
    operands: [&Tensor; 3],
    tables: &RelativeTables,
    shape: &DisentangledShape,
    segments: &[EncoderSegment],
) -> TorchResult<Tensor> {
    let [queries, keys, values] = operands.map(|operand| ops.operand(operand));
    let (queries, keys, values) = (queries?, keys?, values?);
    let rows = kept_or_made(
        &ops.shared.distance_rows,
        |rows| rows.segments == segments && rows.shape == *shape,
        || DistanceRows::new(ops, shape, segments),
    )?;
    let output = queries.f_zeros_like()?;
    for (segment, rows) in segments.iter().zip(&rows.rows) {
        let of_heads = |x: &Tensor, rows: &std::ops::Range<usize>| -> TorchResult<Tensor> {
            let x = x.f_narrow(0, rows.start as i64, rows.len() as i64)?;
            let x = x.f_view([-1, shape.heads as i64, shape.head_size as i64])?;
            Ok(x.f_permute([1, 0, 2])?)
        };
        let attended = attend(
            &of_heads(&queries, &segment.queries)?,
            &of_heads(&keys, &segment.keys)?,
            &of_heads(&values, &segment.keys)?,
            tables,
            rows,
            f64::from(shape.scale),
        )?;
        of_heads(&output, &segment.queries)?.f_copy_(&attended)?;
    }
    Ok(output)
}

/// One sequence, all tensors `[heads, queries or keys, head_size]`.
fn attend(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    tables: &RelativeTables,
    rows: &Tensor,
    scale: f64,
) -> TorchResult<Tensor> {
    let rows = rows.f_expand([queries.size()[0], queries.size()[1], keys.size()[1]], false)?;
    // Each score picks two numbers by the distance of query and key; the tables hold the scale already.
    let mut relative = queries.f_matmul(&tables.keys)?.f_gather(2, &rows, false)?;
    let of_keys = tables.queries.f_matmul(&keys.f_transpose(1, 2)?)?.f_gather(1, &rows, false)?;
    let _ = relative.f_add_(&of_keys)?;
    if queries.device() == Device::Cpu {
        let batch = |x: &Tensor| x.f_unsqueeze(0);
        let (output, _) = Tensor::f_internal_scaled_dot_product_flash_attention_for_cpu(
            &batch(queries)?,
            &batch(keys)?,
            &batch(values)?,
            0.0,
            false,
            Some(batch(&relative)?),
            scale,
        )?;
        return Ok(output.f_squeeze_dim(0)?);
    }
    let mut scores = queries.f_matmul(&keys.f_transpose(1, 2)?)?.f_to_kind(Kind::Float)?;
    let _ = scores.f_mul_scalar_(scale)?;
    let _ = scores.f_add_(&relative)?;
    let weights = scores.f_softmax(2, Kind::Float)?.f_to_kind(values.f_kind()?)?;
    Ok(weights.f_matmul(values)?)
}

impl DistanceRows {
    fn new(
        ops: &TchOps,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> TorchResult<Self> {
        let rows = |segment: &EncoderSegment| -> TorchResult<Tensor> {
            let length = segment.keys.len();
            let by_distance = shape.buckets.rows(length);
            let mut rows = Vec::with_capacity(segment.positions.len() * length);
            for &position in &*segment.positions {
                let first = length.saturating_sub(1 + position as usize);
                rows.extend_from_slice(&by_distance[first..first + length]);
            }
            let shape = [1, segment.positions.len() as i64, length as i64];
            Ok(index(&rows, ops.device)?.f_view(shape)?)
        };
        Ok(Self {
            segments: segments.to_vec(),
            shape: *shape,
            rows: segments.iter().map(rows).collect::<TorchResult<_>>()?,
        })
    }
}
