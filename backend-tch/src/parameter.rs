//! A weight with its gradient and the optimiser's state.

use std::cell::RefCell;

use sppo_model::ModelError;
use sppo_model::ops::UpdateRule;
use tch::{Device, Kind, Tensor};

use crate::optimizer;
use crate::tensors::{TorchResult, upload};

/// A weight, its gradient and the optimiser's state, changed in place, and the weight's copy in the
/// number format of matrix products where that is another. All but the copy are f32; only a weight that
/// is not trained may be in the other format itself.
#[derive(Debug)]
pub struct Parameter {
    value: Tensor,
    trainable: bool,
    gradient: Gradient,
    state: Vec<Tensor>,
    /// Made when it is first needed and brought up to date by every update.
    narrow: RefCell<Option<Tensor>>,
}

/// Memory of a cleared gradient is kept and overwritten by the next pass.
#[derive(Debug)]
enum Gradient {
    Absent,
    Cleared(Tensor),
    Accumulated(Tensor),
}

/// How a backward pass meets the gradient's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accumulation {
    /// What is there is old and must be overwritten.
    Overwrite,
    /// What is there must be added to.
    Add,
}

impl Parameter {
    pub(crate) fn new(
        values: &[f32],
        shape: &[usize],
        trainable: bool,
        (kind, device): (Kind, Device),
    ) -> TorchResult<Self> {
        let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        Ok(Self {
            value: upload(values, &shape, device)?.f_to_kind(kind)?,
            trainable,
            gradient: Gradient::Absent,
            state: Vec::new(),
            narrow: RefCell::new(None),
        })
    }

    /// The weight itself.
    pub(crate) fn value(&self) -> &Tensor {
        &self.value
    }

    /// The weight in the number format of matrix products.
    pub(crate) fn operand(&self, kind: Kind) -> TorchResult<Tensor> {
        if kind == self.value.f_kind()? {
            return Ok(self.value.shallow_clone());
        }
        let mut narrow = self.narrow.borrow_mut();
        if let Some(narrow) = &*narrow {
            return Ok(narrow.shallow_clone());
        }
        let made = self.value.f_to_kind(kind)?;
        *narrow = Some(made.shallow_clone());
        Ok(made)
    }

    pub(crate) fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// The accumulated gradient, if any.
    pub(crate) fn gradient(&self) -> Option<&Tensor> {
        match &self.gradient {
            Gradient::Accumulated(gradient) => Some(gradient),
            Gradient::Absent | Gradient::Cleared(_) => None,
        }
    }

    /// Lets a backward pass add to the gradient, where one is wanted.
    pub(crate) fn accumulate(
        &mut self,
        add: impl FnOnce(&mut Tensor, Accumulation) -> TorchResult<()>,
    ) -> TorchResult<()> {
        if !self.trainable {
            return Ok(());
        }
        let (mut gradient, accumulation) =
            match std::mem::replace(&mut self.gradient, Gradient::Absent) {
                Gradient::Absent => (self.value.f_empty_like()?, Accumulation::Overwrite),
                Gradient::Cleared(gradient) => (gradient, Accumulation::Overwrite),
                Gradient::Accumulated(gradient) => (gradient, Accumulation::Add),
            };
        add(&mut gradient, accumulation)?;
        self.gradient = Gradient::Accumulated(gradient);
        Ok(())
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

    /// Sum of squares of the gradient; 0 when there is none.
    pub(crate) fn gradient_square_sum(&self) -> TorchResult<f64> {
        self.gradient().map_or(Ok(0.0), optimizer::square_sum)
    }

    /// Forgets the gradient, keeping its memory.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient = match std::mem::replace(&mut self.gradient, Gradient::Absent) {
            Gradient::Accumulated(memory) => Gradient::Cleared(memory),
            other => other,
        };
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
        let Gradient::Accumulated(gradient) = &self.gradient else { return Ok(()) };
        if !self.trainable {
            return Ok(());
        }
        let wanted = optimizer::state_count(&rule.optimizer);
        if self.state.is_empty() {
            for _ in 0..wanted {
                self.state.push(self.value.f_zeros_like()?);
            }
        } else if self.state.len() != wanted {
            return Err(ModelError::Backend(format!(
                "the optimiser keeps {wanted} state tensors per weight, {} were loaded",
                self.state.len()
            ))
            .into());
        }
        optimizer::apply(rule, &self.value, gradient, &self.state)?;
        if let Some(narrow) = &mut *self.narrow.borrow_mut() {
            narrow.f_copy_(&self.value)?;
        }
        Ok(())
    }
}
