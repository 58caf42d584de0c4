//! Tensors in and out of burn.

use std::ops::Range;

use burn_tensor::{DType, Device, Int, Tensor, TensorData};
use sppo_model::{ModelError, Result};

/// Row-major values on a device.
pub(crate) fn upload<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Result<Tensor<D>> {
    if values.len() != shape.iter().product::<usize>() {
        let count = values.len();
        return Err(ModelError::Backend(format!("{count} values do not fill the shape {shape:?}")));
    }
    Ok(Tensor::from_data(TensorData::new(values, shape), (device, DType::F32)))
}

/// Token ids or row numbers on a device.
pub(crate) fn index(numbers: impl IntoIterator<Item = u32>, device: &Device) -> Tensor<1, Int> {
    let numbers: Vec<i32> = numbers.into_iter().map(u32::cast_signed).collect();
    let count = numbers.len();
    Tensor::from_data(TensorData::new(numbers, [count]), device)
}

/// Row-major values of a tensor.
pub(crate) fn download<const D: usize>(tensor: &Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_to_vec_as::<f32>().map_err(|error| {
        let text = error.to_string();
        ModelError::Backend(format!("burn: {}", text.lines().next().unwrap_or_default()))
    })
}

/// Some rows of a tensor.
pub(crate) fn rows(x: &Tensor<2>, rows: &Range<usize>) -> Tensor<2> {
    x.clone().narrow(0, rows.start, rows.len())
}

/// Puts new values into some rows of a tensor.
pub(crate) fn set_rows(x: &mut Tensor<2>, rows: &Range<usize>, values: Tensor<2>) {
    let columns = x.dims()[1];
    x.inplace(|x| x.slice_assign([rows.clone(), 0..columns], values));
}

/// Adds to some rows of a tensor.
pub(crate) fn add_to_rows(x: &mut Tensor<2>, range: &Range<usize>, addend: Tensor<2>) {
    let sum = rows(x, range) + addend;
    set_rows(x, range, sum);
}

/// `cap * tanh(x / cap)`, or `x` itself without a cap.
pub(crate) fn soft_cap<const D: usize>(x: Tensor<D>, cap: Option<f32>) -> Tensor<D> {
    match cap {
        Some(cap) => (x / cap).tanh() * cap,
        None => x,
    }
}

/// `gradient` times the derivative of [`soft_cap`], from its result.
pub(crate) fn soft_cap_backward<const D: usize>(
    gradient: Tensor<D>,
    capped: Tensor<D>,
    cap: Option<f32>,
) -> Tensor<D> {
    match cap {
        Some(cap) => gradient * ((capped / cap).square().neg() + 1.0),
        None => gradient,
    }
}
