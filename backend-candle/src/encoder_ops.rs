//! The ops of encoders on the CPU.

use candle_core::Tensor;
use sppo_kernels::disentangled_attention::{Operands, disentangled_attention};
use sppo_kernels::elementwise::pointwise;
use sppo_kernels::norm::{LayerNorm, layer_norm};
use sppo_kernels::panels;
use sppo_model::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};
use sppo_model::{ModelError, Result};

use crate::ops::CandleOps;
use crate::parameter::Parameter;
use crate::tensors::{Values, dimensions, tensor};

/// Relative positions as keys and as queries, in panels of 16 rows each.
#[derive(Debug)]
pub struct RelativeTables {
    keys: Vec<f32>,
    queries: Vec<f32>,
}

impl EncoderOps for CandleOps {
    type RelativeTables = RelativeTables;

    fn relative_tables(
        &self,
        keys: &Tensor,
        queries: &Tensor,
        _shape: &DisentangledShape,
    ) -> Result<RelativeTables> {
        let pack = |table: &Tensor| {
            let (rows, features) = dimensions(table)?;
            let values = Values::of(table)?;
            let values: &[f32] = &values;
            Ok(self.threads.run(|| panels::pack(values, rows, features)))
        };
        Ok(RelativeTables { keys: pack(keys)?, queries: pack(queries)? })
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        weight: &Parameter,
        bias: &Parameter,
        epsilon: f32,
    ) -> Result<Tensor> {
        let shape = x.dims();
        let (x, weight) = (Values::of(x)?, Values::of(weight.value()?)?);
        let bias = Values::of(bias.value()?)?;
        let norm = LayerNorm { weight: &weight, bias: &bias, epsilon };
        let x: &[f32] = &x;
        tensor(self.threads.run(|| layer_norm(norm, x)), shape)
    }

    fn pointwise(&self, x: &Tensor, function: Pointwise) -> Result<Tensor> {
        let shape = x.dims();
        let x = Values::of(x)?;
        let x: &[f32] = &x;
        tensor(self.threads.run(|| pointwise(x, function)), shape)
    }

    fn disentangled_attention(
        &self,
        queries: &Tensor,
        keys: &Tensor,
        values: &Tensor,
        tables: &RelativeTables,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<Tensor> {
        let (rows, features) = dimensions(queries)?;
        let (queries, keys, values) =
            (Values::of(queries)?, Values::of(keys)?, Values::of(values)?);
        let operands = Operands {
            shape,
            segments,
            queries: &queries,
            keys: &keys,
            values: &values,
            relative_keys: &tables.keys,
            relative_queries: &tables.queries,
        };
        let output = self.threads.run(|| disentangled_attention(operands)).ok_or_else(|| {
            ModelError::Backend("two encoder segments have the same query rows".into())
        })?;
        tensor(output, &[rows, features])
    }
}
