//! Root-mean-square normalisation (arXiv 1910.07467) and layer normalisation (arXiv 1607.06450), in f32.

use tch::{Kind, Tensor};

use crate::elementwise::column_sums;
use crate::parameter::Parameter;
use crate::tensors::TorchResult;

/// [`Norm::output`] in one kernel, which CUDA devices have.
pub(crate) fn fused_norm(
    x: &Tensor,
    weight: &Parameter,
    epsilon: f32,
    offset: f32,
) -> TorchResult<Tensor> {
    let weight = norm_weight(weight, offset)?;
    let groups = x.f_to_kind(Kind::Float)?.f_view([-1, weight.numel() as i64])?;
    let output = groups.f_rms_norm(weight.size(), Some(&weight), f64::from(epsilon))?;
    Ok(output.f_view(x.size().as_slice())?)
}

fn norm_weight(weight: &Parameter, offset: f32) -> TorchResult<Tensor> {
    Ok(match offset {
        0.0 => weight.value()?.shallow_clone(),
        offset => weight.value()?.f_add_scalar(f64::from(offset))?,
    })
}

/// Root-mean-square normalisation, in f32, over groups of the weight's length.
pub(crate) struct Norm {
    /// `[groups, size]`.
    x: Tensor,
    /// `1 / sqrt(mean(x^2) + epsilon)`, `[groups, 1]`.
    inverse: Tensor,
    /// The weight, its offset added.
    weight: Tensor,
    shape: Vec<i64>,
    kind: Kind,
}

impl Norm {
    pub(crate) fn of(
        x: &Tensor,
        weight: &Parameter,
        epsilon: f32,
        offset: f32,
    ) -> TorchResult<Self> {
        let weight = norm_weight(weight, offset)?;
        let (shape, kind, size) = (x.size(), x.f_kind()?, weight.numel() as i64);
        let x = x.f_to_kind(Kind::Float)?.f_view([-1, size])?;
        let norm = x.f_norm_scalaropt_dim(2.0, [1].as_slice(), true)?;
        let mut inverse = norm.f_square()?;
        let _ = inverse.f_mul_scalar_(1.0 / size as f64)?;
        let _ = inverse.f_add_scalar_(f64::from(epsilon))?;
        let _ = inverse.f_rsqrt_()?;
        Ok(Self { x, inverse, weight, shape, kind })
    }

    pub(crate) fn output(&self) -> TorchResult<Tensor> {
        let mut output = self.x.f_mul(&self.inverse)?;
        let _ = output.f_mul_(&self.weight)?;
        Ok(output.f_view(self.shape.as_slice())?)
    }

    /// Gradients of `x`, in its dtype, and of the weight. With `n = x * inverse` and `h = gradient * weight`:
    /// `x_gradient = (h - n mean(h n)) * inverse`, `weight_gradient = sum(gradient * n)`.
    pub(crate) fn backward(&self, gradient: &Tensor) -> TorchResult<[Tensor; 2]> {
        let gradient = gradient.f_to_kind(Kind::Float)?.f_view([-1, self.weight.numel() as i64])?;
        let normed = self.x.f_mul(&self.inverse)?;
        let of_weight = column_sums(&gradient.f_mul(&normed)?)?;
        let mut of_x = gradient.f_mul(&self.weight)?;
        let mean = of_x.f_mul(&normed)?.f_mean_dim([1].as_slice(), true, Kind::Float)?;
        let _ = of_x.f_addcmul_(&normed, &mean.f_neg()?)?;
        let _ = of_x.f_mul_(&self.inverse)?;
        Ok([of_x.f_view(self.shape.as_slice())?.f_to_kind(self.kind)?, of_weight])
    }
}

/// Layer normalisation of whole rows, in f32 whatever the dtype of `x`.
pub(crate) fn layer_norm(
    x: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    epsilon: f32,
) -> TorchResult<Tensor> {
    let x = x.f_to_kind(Kind::Float)?;
    Ok(x.f_layer_norm(weight.size(), Some(weight), Some(bias), f64::from(epsilon), false)?)
}
