//! A weight with its gradient and the optimiser's state.

use std::cell::RefCell;

use sppo_model::ops::{Accumulation, GradientSlot, UpdateRule, ensure_state};
use tch::{Device, Kind, Tensor};

use crate::optimizer;
use crate::tensors::{TorchError, TorchResult, upload};

/// A weight, its gradient and the optimiser's state, changed in place, and the weight's copy in the
/// compute dtype where that is not f32. All but the copy are f32; only a weight that is not trained may be
/// in the compute dtype itself.
#[derive(Debug)]
pub struct Parameter {
    value: Tensor,
    trainable: bool,
    gradient: GradientSlot<Tensor>,
    state: Vec<Tensor>,
    /// Made when it is first needed and brought up to date by every update.
    in_compute_dtype: RefCell<Option<Tensor>>,
}

impl Parameter {
    pub(crate) fn new(
        values: &[f32],
        shape: &[usize],
        trainable: bool,
        (dtype, device): (Kind, Device),
    ) -> TorchResult<Self> {
        let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        Ok(Self {
            value: upload(values, &shape, device)?.f_to_kind(dtype)?,
            trainable,
            gradient: GradientSlot::Absent,
            state: Vec::new(),
            in_compute_dtype: RefCell::new(None),
        })
    }

    /// The weight itself.
    pub(crate) fn value(&self) -> &Tensor {
        &self.value
    }

    /// The weight in the compute dtype.
    pub(crate) fn operand(&self, dtype: Kind) -> TorchResult<Tensor> {
        if dtype == self.value.f_kind()? {
            return Ok(self.value.shallow_clone());
        }
        let mut copy = self.in_compute_dtype.borrow_mut();
        if let Some(copy) = &*copy {
            return Ok(copy.shallow_clone());
        }
        let made = self.value.f_to_kind(dtype)?;
        *copy = Some(made.shallow_clone());
        Ok(made)
    }

    pub(crate) fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// The accumulated gradient, if any.
    pub(crate) fn gradient(&self) -> Option<&Tensor> {
        self.gradient.get()
    }

    /// Lets a backward pass add to the gradient of a trained weight.
    pub(crate) fn accumulate(
        &mut self,
        add: impl FnOnce(&mut Tensor, Accumulation) -> TorchResult<()>,
    ) -> TorchResult<()> {
        if !self.trainable {
            return Ok(());
        }
        self.gradient.accumulate(|| Ok(self.value.f_empty_like()?), add)
    }

    /// Adds a gradient that was computed elsewhere.
    pub(crate) fn accumulate_tensor(&mut self, addend: &Tensor) -> TorchResult<()> {
        self.accumulate(|gradient, accumulation| {
            match accumulation {
                Accumulation::Overwrite => gradient.f_copy_(addend)?,
                Accumulation::Add => drop(gradient.f_add_(addend)?),
            }
            Ok(())
        })
    }

    /// The gradient of a trained weight, zeros where there was none; it shares the memory of the gradient.
    pub(crate) fn gradient_or_zeros(&mut self) -> TorchResult<Tensor> {
        let mut shared = None;
        self.accumulate(|gradient, accumulation| {
            if accumulation == Accumulation::Overwrite {
                let _ = gradient.f_zero_()?;
            }
            shared = Some(gradient.shallow_clone());
            Ok(())
        })?;
        match shared {
            Some(shared) => Ok(shared),
            None => Ok(self.value.f_zeros_like()?),
        }
    }

    /// Sum of squares of the gradient; 0 when there is none.
    pub(crate) fn gradient_square_sum(&self) -> TorchResult<f64> {
        self.gradient().map_or(Ok(0.0), optimizer::square_sum)
    }

    /// Forgets the gradient and keeps its memory.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient.clear();
    }

    /// The optimiser's state.
    pub(crate) fn state(&self) -> &[Tensor] {
        &self.state
    }

    /// Replaces the optimiser's state.
    pub(crate) fn set_state(&mut self, state: &[Vec<f32>]) -> TorchResult<()> {
        let (shape, device) = (self.value.size(), self.value.device());
        self.state = state
            .iter()
            .map(|values| upload(values, &shape, device))
            .collect::<TorchResult<_>>()?;
        Ok(())
    }

    /// Applies the gradient; nothing happens without one.
    pub(crate) fn update(&mut self, rule: &UpdateRule) -> TorchResult<()> {
        let Some(gradient) = self.gradient.get().filter(|_| self.trainable) else {
            return Ok(());
        };
        let zeros = || Ok::<_, TorchError>(self.value.f_zeros_like()?);
        ensure_state(&mut self.state, &rule.optimizer, zeros)?;
        optimizer::apply(rule, &self.value, gradient, &self.state)?;
        if let Some(copy) = &mut *self.in_compute_dtype.borrow_mut() {
            copy.f_copy_(&self.value)?;
        }
        Ok(())
    }
}
