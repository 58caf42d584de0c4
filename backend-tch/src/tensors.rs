//! Tensors in and out of libtorch, and its errors in this project's words.

use sppo_model::ModelError;
use tch::{Device, Kind, TchError, Tensor};

/// An activation, `[rows, features]`: f32, or the compute dtype where it is the operand or the result of a
/// matrix product.
#[derive(Debug)]
pub struct Activation(pub(crate) Tensor);

impl Clone for Activation {
    fn clone(&self) -> Self {
        Self(self.0.shallow_clone())
    }
}

/// An error of libtorch or of this crate, on its way to become a [`ModelError`].
#[derive(Debug)]
pub(crate) struct TorchError(ModelError);

/// Result of functions that call libtorch.
pub(crate) type TorchResult<T> = std::result::Result<T, TorchError>;

impl From<TchError> for TorchError {
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        let message = format!("libtorch: {}", without_backtrace(&text));
        let out_of_memory =
            ["out of memory", "can't allocate memory"].iter().any(|words| text.contains(words));
        Self(match out_of_memory {
            true => ModelError::OutOfMemory(message),
            false => ModelError::Backend(message),
        })
    }
}

impl From<ModelError> for TorchError {
    fn from(error: ModelError) -> Self {
        Self(error)
    }
}

impl From<TorchError> for ModelError {
    fn from(error: TorchError) -> Self {
        error.0
    }
}

/// libtorch's message in one line, without the C++ call stack that follows it.
fn without_backtrace(text: &str) -> String {
    let message = text.split("Exception raised from").next().unwrap_or_default();
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A tensor of this shape on a device.
pub(crate) fn upload(values: &[f32], shape: &[i64], device: Device) -> TorchResult<Tensor> {
    Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_device(device)?)
}

/// Token ids or row numbers as an index on a device.
pub(crate) fn index(numbers: &[u32], device: Device) -> TorchResult<Tensor> {
    let numbers: Vec<i64> = numbers.iter().map(|&number| i64::from(number)).collect();
    Ok(Tensor::f_from_slice(&numbers)?.f_to_device(device)?)
}

/// Row-major values of a tensor.
pub(crate) fn download(tensor: &Tensor) -> TorchResult<Vec<f32>> {
    if is_plain(tensor)? {
        return Ok(values(tensor)?.to_vec());
    }
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Float)?.f_contiguous()?;
    let mut values = vec![0.0; tensor.numel()];
    let length = values.len();
    tensor.f_copy_data(&mut values, length)?;
    Ok(values)
}

/// The numbers of a contiguous f32 tensor on the CPU, in place.
pub(crate) fn values(tensor: &Tensor) -> TorchResult<&[f32]> {
    require_plain(tensor)?;
    let address = tensor.data_ptr().cast::<f32>();
    // SAFETY: the tensor, borrowed for as long as the slice, keeps its memory, which `require_plain` found to be `numel`
    // numbers of this type in a row. This crate changes tensors in place in functions of its own alone, on the
    // thread that calls them, and none of them is called while a slice is borrowed.
    Ok(if address.is_null() {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(address, tensor.numel()) }
    })
}

/// Refuses a tensor whose memory is not a row of f32 numbers here.
pub(crate) fn require_plain(tensor: &Tensor) -> TorchResult<()> {
    match is_plain(tensor)? {
        true => Ok(()),
        false => {
            Err(ModelError::Backend("a tensor is not in f32 in one piece on the CPU".into()).into())
        }
    }
}

/// Whether a tensor's memory is a row of f32 numbers here.
pub(crate) fn is_plain(tensor: &Tensor) -> TorchResult<bool> {
    Ok(tensor.device() == Device::Cpu && tensor.f_kind()? == Kind::Float && tensor.is_contiguous())
}

/// `[rows, columns]` of a tensor of rank 2.
pub(crate) fn dimensions(tensor: &Tensor) -> TorchResult<(i64, i64)> {
    Ok(tensor.size2()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_libtorch_become_one_line() {
        let a = Tensor::f_zeros([2, 3], (Kind::Float, Device::Cpu)).unwrap();
        let ModelError::Backend(text) = TorchError::from(a.f_mm(&a).unwrap_err()).into() else {
            panic!("another kind of error");
        };
        assert!(text.starts_with("libtorch: mat1 and mat2 shapes cannot be multiplied"), "{text}");
        assert!(!text.contains('\n') && !text.contains("frame #"), "{text}");
    }

    #[test]
    fn a_failed_allocation_is_an_out_of_memory_error() {
        let error = Tensor::f_empty([1 << 46], (Kind::Float, Device::Cpu)).unwrap_err();
        let error = ModelError::from(TorchError::from(error));
        assert!(matches!(error, ModelError::OutOfMemory(_)), "{error}");
    }
}
