//! The device and the dtype that kernels compute in.

use sppo_model::ops::AttentionShape;
use tch::{Device, Kind, Tensor};

use crate::tensors::TorchResult;

/// The device, and the dtype of matrix products and of what they return.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    pub(crate) device: Device,
    pub(crate) compute_dtype: Kind,
}

impl Context {
    /// As the operand of a matrix product.
    pub(crate) fn operand(&self, tensor: &Tensor) -> TorchResult<Tensor> {
        Ok(tensor.f_to_kind(self.compute_dtype)?)
    }

    /// As the operands of attention: queries, keys and values.
    pub(crate) fn operands(
        &self,
        [queries, keys, values]: [&Tensor; 3],
    ) -> TorchResult<[Tensor; 3]> {
        Ok([self.operand(queries)?, self.operand(keys)?, self.operand(values)?])
    }

    /// Options of a new f32 tensor on the device.
    pub(crate) fn f32_options(&self) -> (Kind, Device) {
        (Kind::Float, self.device)
    }

    /// Whether the device attends over sequences of different lengths in one kernel
    /// ([`crate::attention`]): CUDA devices do, for heads of whole words and without a soft cap.
    pub(crate) fn has_varlen_kernel(&self, shape: &AttentionShape) -> bool {
        let numbers_per_word: usize = if self.compute_dtype == Kind::Float { 4 } else { 8 };
        self.device.is_cuda()
            && shape.soft_cap.is_none()
            && shape.head_size.is_multiple_of(numbers_per_word)
    }
}
