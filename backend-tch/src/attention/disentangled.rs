//! Disentangled attention of encoders (arXiv 2006.03654).
//!
//! ```text
//! score(query, key) = scale (q k + q K[d] + Q[d] k)        d = distance bucket of query and key
//! ```
//!
//! `K` and `Q` are the tables of relative positions as keys and as queries. The products with all their
//! rows are matrix products, from which each score gathers its two numbers.

use std::ops::Range;

use sppo_model::ops::encoder::{DisentangledShape, EncoderSegment};
use tch::{Device, Kind, Tensor};

use crate::device::Context;
use crate::tensors::{TorchResult, index};

/// Relative positions, scaled: as keys `[heads, head_size, rows]`, as queries `[heads, rows, head_size]`.
#[derive(Debug)]
pub struct RelativeTables {
    pub(crate) keys: Tensor,
    pub(crate) queries: Tensor,
}

/// The table row of each query and key of a batch's sequences, `[1, queries, keys]` each.
pub(crate) struct DistanceRows(Vec<Tensor>);

/// Output `[query rows, heads * size]`; operands are in the compute dtype.
pub(crate) fn disentangled_attention(
    [queries, keys, values]: [&Tensor; 3],
    tables: &RelativeTables,
    distances: &DistanceRows,
    shape: &DisentangledShape,
    segments: &[EncoderSegment],
) -> TorchResult<Tensor> {
    let output = queries.f_zeros_like()?;
    for (segment, rows) in segments.iter().zip(&distances.0) {
        let of_heads = |x: &Tensor, rows: &Range<usize>| -> TorchResult<Tensor> {
            let x = x.f_narrow(0, rows.start as i64, rows.len() as i64)?;
            let x = x.f_view([-1, shape.heads as i64, shape.head_size as i64])?;
            Ok(x.f_permute([1, 0, 2])?)
        };
        let attended = attend(
            &of_heads(queries, &segment.queries)?,
            &of_heads(keys, &segment.keys)?,
            &of_heads(values, &segment.keys)?,
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
    pub(crate) fn new(
        context: &Context,
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
            Ok(index(&rows, context.device)?.f_view(shape)?)
        };
        Ok(Self(segments.iter().map(rows).collect::<TorchResult<_>>()?))
    }
}
