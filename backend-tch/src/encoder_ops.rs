//! The ops of encoders on libtorch.

use sppo_model::Result;
use sppo_model::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};
use tch::{Kind, Tensor};

use crate::attention::disentangled::{DistanceRows, RelativeTables, disentangled_attention};
use crate::norm::layer_norm;
use crate::ops::TchOps;
use crate::parameter::Parameter;
use crate::tensors::{Activation, TorchError, TorchResult};

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
            Ok(self.context.operand(&table.f_permute(order)?)?.f_contiguous()?)
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
        Ok(Activation(layer_norm(&x.0, weight.value()?, bias.value()?, epsilon)?))
    }

    fn pointwise(&self, x: &Activation, function: Pointwise) -> Result<Activation> {
        let result = match function {
            Pointwise::Gelu => x.0.f_gelu("none"),
            Pointwise::Tanh => x.0.f_tanh(),
        };
        Ok(Activation(result.map_err(TorchError::from)?))
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
        let operands = self.context.operands([&queries.0, &keys.0, &values.0])?;
        let make = || DistanceRows::new(&self.context, shape, segments);
        let distances = self.memos.distances.get_or_insert_with(segments, shape, make)?;
        let operands = operands.each_ref();
        let output = disentangled_attention(operands, tables, &distances, shape, segments)?;
        Ok(Activation(output))
    }
}
