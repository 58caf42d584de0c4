//! Reading and changing candle tensors on the CPU as plain slices.

use std::cell::RefCell;
use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Storage, StorageRef, Tensor};
use sppo_model::{ModelError, Result};

/// Turns candle's error into this project's, without the backtrace that candle may append.
#[expect(clippy::needless_pass_by_value, reason = "the form that `map_err` wants")]
pub(crate) fn candle_error(error: candle_core::Error) -> ModelError {
    let text = error.to_string();
    ModelError::Backend(format!("candle: {}", text.lines().next().unwrap_or_default()))
}

/// A tensor on the CPU, without a copy.
pub(crate) fn tensor(values: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu).map_err(candle_error)
}

/// `(rows, columns)` of an activation.
pub(crate) fn dimensions(tensor: &Tensor) -> Result<(usize, usize)> {
    tensor.dims2().map_err(candle_error)
}

/// Zeros that will live long; an error if there is not enough memory.
pub(crate) fn zeros(length: usize) -> Result<Vec<f32>> {
    let mut values = Vec::new();
    values.try_reserve_exact(length).map_err(|_| {
        ModelError::OutOfMemory(format!("{} MiB could not be allocated", length >> 18))
    })?;
    values.resize(length, 0.0);
    Ok(values)
}

/// Values of a contiguous f32 tensor on the CPU, borrowed.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    /// Borrows the values of a tensor.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let range = contiguous(layout).map_err(candle_error)?;
        let values = Self { storage, range };
        if values.len() == values.range.len() {
            Ok(values)
        } else {
            Err(ModelError::Backend("a tensor is not f32 on the CPU".into()))
        }
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => {
                values.get(self.range.clone()).unwrap_or_default()
            }
            _ => &[],
        }
    }
}

fn contiguous(layout: &Layout) -> candle_core::Result<Range<usize>> {
    let (start, end) = layout
        .contiguous_offsets()
        .ok_or_else(|| candle_core::Error::Msg("a tensor is not contiguous".into()))?;
    Ok(start..end)
}

/// Changes the values of a contiguous f32 tensor on the CPU in place. Every clone of the tensor
/// changes with it.
pub(crate) fn modify<R>(tensor: &Tensor, change: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let op = Modification { change: RefCell::new(Some(change)), result: RefCell::new(None) };
    tensor.inplace_op1(&op).map_err(candle_error)?;
    op.result.into_inner().ok_or_else(|| ModelError::Backend("a tensor was not changed".into()))
}

struct Modification<F, R> {
    change: RefCell<Option<F>>,
    result: RefCell<Option<R>>,
}

impl<F: FnOnce(&mut [f32]) -> R, R> InplaceOp1 for Modification<F, R> {
    fn name(&self) -> &'static str {
        "modify"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let range = contiguous(layout)?;
        let CpuStorage::F32(values) = storage else {
            return Err(candle_core::Error::Msg("a tensor is not f32".into()));
        };
        if let (Some(change), Some(values)) = (self.change.take(), values.get_mut(range)) {
            self.result.replace(Some(change(values)));
        }
        Ok(())
    }
}
