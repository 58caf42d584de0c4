//! Tensors on the CPU whose memory this crate writes itself.

use std::mem::MaybeUninit;

use sppo_kernels::Uninitialised;
use sppo_model::ModelError;
use tch::{Device, Kind, Tensor};

use crate::tensors::{TorchResult, require_plain};

/// A new tensor in f32 on the CPU. Nothing else refers to its memory.
///
/// libtorch's own way to fill a tensor takes OpenMP's threads, which then wait for more of that work at full speed
/// while the kernels need their cores.
pub(crate) struct NewTensor(Tensor);

impl NewTensor {
    /// A tensor whose memory is to be written.
    pub(crate) fn new(shape: &[i64]) -> TorchResult<Self> {
        let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        require_plain(&tensor)?;
        Ok(Self(tensor))
    }

    /// A tensor of these numbers, as many as the shape has.
    pub(crate) fn copy_of(numbers: &[f32], shape: &[i64]) -> TorchResult<Tensor> {
        let mut copy = Self::new(shape)?;
        let memory = copy.memory();
        if memory.len() != numbers.len() {
            let message = format!("{} numbers do not fill {shape:?}", numbers.len());
            return Err(ModelError::Backend(message).into());
        }
        for (out, &number) in memory.iter_mut().zip(numbers) {
            out.write(number);
        }
        Ok(copy.written())
    }

    /// Its memory, for a kernel that writes all of it.
    pub(crate) fn memory(&mut self) -> &mut Uninitialised {
        let address = self.0.data_ptr().cast::<MaybeUninit<f32>>();
        if address.is_null() {
            return &mut [];
        }
        // SAFETY: `new` found the memory to be `numel` numbers of this type in a row; nothing else refers to it, and the
        // tensor, which keeps it, is borrowed for as long as the slice.
        unsafe { std::slice::from_raw_parts_mut(address, self.0.numel()) }
    }

    /// Its memory, filled with zeros.
    pub(crate) fn zeros(&mut self) -> &mut [f32] {
        let memory = self.memory();
        memory.fill(MaybeUninit::new(0.0));
        // SAFETY: every number was just written.
        unsafe { &mut *(std::ptr::from_mut(memory) as *mut [f32]) }
    }

    /// The tensor, all of whose memory was written.
    pub(crate) fn written(self) -> Tensor {
        self.0
    }
}
