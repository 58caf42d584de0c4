//! The ops of encoders. Disentangled attention (arXiv 2006.03654):
//!
//! ```text
//! score(query, key) = scale (q k + q K[d] + Q[d] k)        d = distance bucket of query and key
//! ```
//!
//! `K` and `Q` are the tables of relative positions as keys and as queries.

use std::ops::Range;

use burn_tensor::activation::gelu;
use burn_tensor::{Device, Int, Tensor};
use sppo_model::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};
use sppo_model::{ModelError, Result};

use crate::attention::softmax;
use crate::ops::BurnOps;
use crate::parameter::Parameter;
use crate::tensors::{index, rows, set_rows};

/// Relative positions as keys and as queries, each `[heads, buckets, head_size]`.
#[derive(Clone)]
pub struct RelativeTables {
    keys: Tensor<3>,
    queries: Tensor<3>,
}

impl EncoderOps for BurnOps {
    type RelativeTables = RelativeTables;

    fn relative_tables(
        &self,
        keys: &Tensor<2>,
        queries: &Tensor<2>,
        shape: &DisentangledShape,
    ) -> Result<RelativeTables> {
        let of_heads = |table: &Tensor<2>| heads_first(table.clone(), shape);
        Ok(RelativeTables { keys: of_heads(keys), queries: of_heads(queries) })
    }

    fn layer_norm(
        &self,
        x: &Tensor<2>,
        weight: &Parameter,
        bias: &Parameter,
        epsilon: f32,
    ) -> Result<Tensor<2>> {
        let centred = x.clone() - x.clone().mean_dim(1);
        let variance = centred.clone().square().mean_dim(1);
        let normed = centred * (variance + epsilon).sqrt().recip();
        Ok(normed * weight.value() + bias.value())
    }

    fn pointwise(&self, x: &Tensor<2>, function: Pointwise) -> Result<Tensor<2>> {
        Ok(match function {
            Pointwise::Gelu => gelu(x.clone()),
            Pointwise::Tanh => x.clone().tanh(),
        })
    }

    fn disentangled_attention(
        &self,
        queries: &Tensor<2>,
        keys: &Tensor<2>,
        values: &Tensor<2>,
        tables: &RelativeTables,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<Tensor<2>> {
        let distances = self.memos.distances.get_or_insert_with(segments, shape, || {
            let of_segment = |segment| distance_rows(shape, segment, &self.device);
            Ok::<_, ModelError>(segments.iter().map(of_segment).collect())
        })?;
        let mut output = queries.zeros_like();
        for (segment, distances) in segments.iter().zip(distances.iter()) {
            let of_rows = |x, range: &Range<usize>| heads_first(rows(x, range), shape);
            let attended = attend(
                [
                    of_rows(queries, &segment.queries),
                    of_rows(keys, &segment.keys),
                    of_rows(values, &segment.keys),
                ],
                tables,
                distances,
                shape.scale,
            );
            let [_, columns] = queries.dims();
            let of_segment = attended.swap_dims(0, 1).reshape([segment.queries.len(), columns]);
            set_rows(&mut output, &segment.queries, of_segment);
        }
        Ok(output)
    }
}

/// `[rows, heads * head_size]` as `[heads, rows, head_size]`.
fn heads_first(x: Tensor<2>, shape: &DisentangledShape) -> Tensor<3> {
    let [rows, _] = x.dims();
    x.reshape([rows, shape.heads, shape.head_size]).swap_dims(0, 1)
}

/// The table row of each query and key of a sequence, `[1, queries, keys]`.
fn distance_rows(
    shape: &DisentangledShape,
    segment: &EncoderSegment,
    device: &Device,
) -> Tensor<3, Int> {
    let length = segment.keys.len();
    let by_distance = shape.buckets.rows(length);
    let of_query = |&position: &u32| {
        let first = length.saturating_sub(1 + position as usize);
        by_distance[first..first + length].iter().copied()
    };
    let rows = segment.positions.iter().flat_map(of_query);
    index(rows, device).reshape([1, segment.positions.len(), length])
}

/// One sequence's queries, keys and values, `[heads, queries or keys, head_size]`.
fn attend(
    [queries, keys, values]: [Tensor<3>; 3],
    tables: &RelativeTables,
    distances: &Tensor<3, Int>,
    scale: f32,
) -> Tensor<3> {
    let scores = queries.clone().matmul(keys.clone().swap_dims(1, 2));
    let distances = distances.clone().expand(scores.dims());
    // Each score picks two numbers by the distance of query and key.
    let relative_keys = tables.keys.clone().swap_dims(1, 2);
    let of_queries = queries.matmul(relative_keys).gather(2, distances.clone());
    let of_keys = tables.queries.clone().matmul(keys.swap_dims(1, 2)).gather(1, distances);
    let (weights, _) = softmax((scores + of_queries + of_keys) * scale);
    weights.matmul(values)
}
