//! Linear products and their gradients, in the compute dtype.

use sppo_model::ops::Accumulation;
use tch::{Device, Kind, Tensor};

use crate::device::Context;
use crate::parameter::Parameter;
use crate::tensors::{TorchResult, dimensions};

/// Most rows for which the weight stands on the left in a [`product`].
const FEW_ROWS: i64 = 64;

/// `x weight^T (+ bias)`.
pub(crate) fn linear(
    context: &Context,
    x: &Tensor,
    weight: &Parameter,
    bias: Option<&Parameter>,
) -> TorchResult<Tensor> {
    if let Some(mut products) = linears_in_panels(context, x, &[(weight, bias)])?
        && let Some(product) = products.pop()
    {
        return Ok(product);
    }
    let dtype = context.compute_dtype;
    let x = context.operand(x)?;
    let bias = bias.map(|bias| bias.operand(dtype)).transpose()?;
    let Some(blocks) = weight.in_blocks() else {
        return product(context, &x, &weight.operand(dtype)?, bias.as_ref());
    };
    let sum = blocks.linear(context, |part| product(context, &x, part, None))?;
    bias.map_or_else(|| Ok(sum.shallow_clone()), |bias| Ok(sum.f_add(&bias)?))
}

/// [`linear`] with each weight.
pub(crate) fn linears(
    context: &Context,
    x: &Tensor,
    weights: &[(&Parameter, Option<&Parameter>)],
) -> TorchResult<Vec<Tensor>> {
    match linears_in_panels(context, x, weights)? {
        Some(products) => Ok(products),
        None => weights.iter().map(|(weight, bias)| linear(context, x, weight, *bias)).collect(),
    }
}

/// [`linears`] by this project's kernels, where these are the faster ones.
fn linears_in_panels(
    context: &Context,
    x: &Tensor,
    weights: &[(&Parameter, Option<&Parameter>)],
) -> TorchResult<Option<Vec<Tensor>>> {
    let Some(kernels) = &context.kernels else { return Ok(None) };
    let dtype = context.compute_dtype;
    let with_operand = |&(weight, bias): &(_, Option<&Parameter>)| {
        Ok((weight, bias.map(|bias| bias.operand(dtype)).transpose()?))
    };
    let weights: Vec<_> = weights.iter().map(with_operand).collect::<TorchResult<_>>()?;
    kernels.linears(&context.operand(x)?, &weights)
}

/// [`linear`] with a whole weight.
fn product(
    context: &Context,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
) -> TorchResult<Tensor> {
    let (rows, _) = dimensions(x)?;
    let dtype = context.compute_dtype;
    if context.device != Device::Cpu || dtype != Kind::Float || rows > FEW_ROWS {
        return Ok(x.f_linear(weight, bias)?);
    }
    // MKL lays out the right operand before it multiplies, which for few rows takes as long as the
    // product if that operand is the weight.
    let mut product = weight.f_mm(&x.f_transpose(0, 1)?)?.f_transpose(0, 1)?.f_contiguous()?;
    if let Some(bias) = bias {
        let _ = product.f_add_(bias)?;
    }
    Ok(product)
}

/// Adds `gradient^T x` to the gradient of a linear weight.
pub(crate) fn add_weight_gradient(
    context: &Context,
    weight: &mut Parameter,
    x: &Tensor,
    gradient: &Tensor,
) -> TorchResult<()> {
    if !weight.is_trainable() {
        return Ok(());
    }
    let (x, gradient) = (context.operand(x)?, gradient.f_transpose(0, 1)?);
    if [context.compute_dtype, weight.gradient_kind()] != [Kind::Float; 2] {
        return weight.accumulate_tensor(&gradient.f_mm(&x)?);
    }
    weight.accumulate(|sum, accumulation| {
        match accumulation {
            Accumulation::Overwrite => drop(gradient.f_mm_out(sum, &x)?),
            Accumulation::Add => drop(sum.f_addmm_(&gradient, &x)?),
        }
        Ok(())
    })
}

/// `gradient weight`: the gradient of a linear op's input.
pub(crate) fn input_gradient(
    context: &Context,
    weight: &Parameter,
    gradient: &Tensor,
) -> TorchResult<Tensor> {
    match weight.in_blocks() {
        Some(blocks) => blocks.input_gradient(context, gradient),
        None => Ok(gradient.f_mm(&weight.operand(context.compute_dtype)?)?),
    }
}

/// A matrix product `[rows, inner] x [inner, columns]`, to be timed.
pub(crate) fn matrix_product(
    context: &Context,
    [rows, inner, columns]: [usize; 3],
) -> TorchResult<impl FnMut() -> TorchResult<()> + use<>> {
    let options = (context.compute_dtype, context.device);
    // Some devices multiply zeros and ones faster than other numbers.
    let left = Tensor::f_randn([rows as i64, inner as i64], options)?;
    let right = Tensor::f_randn([columns as i64, inner as i64], options)?;
    let device = context.device;
    Ok(move || {
        let product = left.f_linear::<&Tensor>(&right, None)?;
        if device != Device::Cpu {
            // Waits for the device.
            product.f_double_value(&[0, 0])?;
        }
        Ok(())
    })
}
