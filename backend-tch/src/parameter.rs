//! A weight with its gradient and the optimiser's state.

use std::cell::RefCell;

use sppo_model::ModelError;
use sppo_model::ops::{Accumulation, GradientSlot, UpdateRule, ensure_state};
use tch::{Device, Kind, Tensor};

use crate::optimizer;
use crate::sharding::{Part, Shares};
use crate::tensors::{TorchError, TorchResult, download, upload};

/// A weight, its gradient and the optimiser's state, changed in place, and the weight's copy in the
/// compute dtype where that is not f32. All but the copy are f32; only a weight that is not trained may be
/// in the compute dtype itself. Of what its `Shares` divide, a rank keeps its own part, flat.
#[derive(Debug)]
pub struct Parameter {
    shape: Vec<i64>,
    shares: Shares,
    value: Tensor,
    trainable: bool,
    gradient: GradientSlot<Tensor>,
    /// This rank's part of the sum of all ranks' gradients, where they divide gradients.
    summed: GradientSlot<Tensor>,
    /// Sum of squares of the gradient, where ranks have added it up from their parts.
    square_sum: Option<f64>,
    state: Vec<Tensor>,
    /// Whether this rank has updated its part and has not yet shared it.
    is_updated: bool,
    /// Made when it is first needed and brought up to date by every update.
    in_compute_dtype: RefCell<Option<Tensor>>,
}

impl Parameter {
    /// A weight whose products, if `shares` divide its f32 values, are in `operand_dtype`.
    pub(crate) fn new(
        values: &[f32],
        shape: &[usize],
        trainable: bool,
        (dtype, operand_dtype, device): (Kind, Kind, Device),
        shares: Shares,
    ) -> TorchResult<Self> {
        let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        let mut value = upload(values, &shape, device)?.f_to_kind(dtype)?;
        let mut copy = None;
        if let Some(part) = shares.own.filter(|_| shares.divide_values) {
            copy = Some(value.f_to_kind(operand_dtype)?);
            // A narrowed tensor would keep the memory of the whole.
            let mut kept = part.zeros(&value)?;
            kept.f_copy_(&part.of(&value)?)?;
            value = kept;
        }
        Ok(Self {
            shape,
            shares,
            value,
            trainable,
            gradient: GradientSlot::Absent,
            summed: GradientSlot::Absent,
            square_sum: None,
            state: Vec::new(),
            is_updated: false,
            in_compute_dtype: RefCell::new(copy),
        })
    }

    /// The weight itself, of a weight whose values are not divided.
    pub(crate) fn value(&self) -> &Tensor {
        &self.value
    }

    /// Rows and columns of a matrix.
    pub(crate) fn dimensions(&self) -> TorchResult<(i64, i64)> {
        match self.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(ModelError::Backend(format!("{:?} is no matrix", self.shape)).into()),
        }
    }

    /// Number of values.
    pub(crate) fn count(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// The division of the weight among ranks.
    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Row-major values.
    pub(crate) fn values(&self) -> TorchResult<Vec<f32>> {
        match self.shares.divide_values {
            true => Err(ModelError::Backend("this rank holds a part of the weight".into()).into()),
            false => download(&self.value),
        }
    }

    /// The whole weight as this rank computes with it.
    pub(crate) fn replica(&self) -> Tensor {
        let copy = self.in_compute_dtype.borrow();
        let whole = copy.as_ref().filter(|_| self.shares.divide_values).unwrap_or(&self.value);
        whole.shallow_clone()
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
        let options = (Kind::Float, self.value.device());
        self.gradient.accumulate(|| Ok(Tensor::f_empty(&self.shape, options)?), add)
    }

    /// Adds a gradient that was computed elsewhere.
    pub(crate) fn accumulate_tensor(&mut self, addend: &Tensor) -> TorchResult<()> {
        self.accumulate(|gradient, accumulation| add(gradient, accumulation, addend))
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

    /// As [`Self::gradient_or_zeros`]; the weight gives the gradient's memory up.
    pub(crate) fn take_gradient(&mut self) -> TorchResult<Tensor> {
        let gradient = self.gradient_or_zeros()?;
        self.gradient = GradientSlot::Absent;
        Ok(gradient)
    }

    /// Adds this rank's part of a gradient that was summed over all ranks.
    pub(crate) fn accumulate_sum(&mut self, part: Part, whole: &Tensor) -> TorchResult<()> {
        let addend = part.of(whole)?;
        let allocate = || Ok::<_, TorchError>(addend.f_empty_like()?);
        self.summed.accumulate(allocate, |sum, accumulation| add(sum, accumulation, &addend))
    }

    /// The gradient that an update of a part uses, if there is one.
    fn gradient_of(&self, part: Part) -> TorchResult<Option<Tensor>> {
        if self.shares.divide_gradients {
            return Ok(self.summed.get().map(Tensor::shallow_clone));
        }
        self.gradient.get().map(|gradient| part.of(gradient)).transpose()
    }

    /// Sum of squares of the gradient; 0 when there is none.
    pub(crate) fn gradient_square_sum(&self) -> TorchResult<f64> {
        if let Some(sum) = self.square_sum {
            return Ok(sum);
        }
        // As ranks that divide the gradient add it up.
        let parts = self.shares.updated_parts();
        parts.map(|part| self.square_sum_of(part)).try_fold(0.0, |sum, of_part| Ok(sum + of_part?))
    }

    /// Sum of squares of a part of the gradient; 0 when there is none.
    pub(crate) fn square_sum_of(&self, part: Part) -> TorchResult<f64> {
        let gradient = self.gradient_of(part)?;
        gradient.map_or(Ok(0.0), |gradient| optimizer::square_sum(&gradient))
    }

    /// Sets what ranks have added up from the sums of squares of their parts.
    pub(crate) fn set_square_sum(&mut self, sum: f64) {
        self.square_sum = Some(sum);
    }

    /// Forgets the gradient and keeps its memory.
    pub(crate) fn clear_gradient(&mut self) {
        self.gradient.clear();
        self.summed.clear();
        self.square_sum = None;
    }

    /// Frees memory that holds no gradient, so that there is room for a cache.
    pub(crate) fn free_cleared_gradient(&mut self) {
        self.gradient.free_cleared();
        self.summed.free_cleared();
    }

    /// The optimiser's state.
    pub(crate) fn state(&self) -> &[Tensor] {
        &self.state
    }

    /// Replaces the optimiser's state by that of the whole weight.
    pub(crate) fn set_state(&mut self, state: &[Vec<f32>]) -> TorchResult<()> {
        let device = self.value.device();
        let kept = |values: &Vec<f32>| match self.shares.own {
            Some(part) => upload(part.of_values(values), &[part.length()], device),
            None => upload(values, &self.shape, device),
        };
        self.state = state.iter().map(kept).collect::<TorchResult<_>>()?;
        Ok(())
    }

    /// Applies the gradient, to this rank's part where ranks divide updates; nothing happens without one.
    pub(crate) fn update(&mut self, rule: &UpdateRule) -> TorchResult<()> {
        let has_gradient = self.gradient.get().or(self.summed.get()).is_some();
        if !self.trainable || !has_gradient {
            return Ok(());
        }
        self.is_updated = self.shares.own.is_some();
        let zeros = || {
            Ok::<_, TorchError>(match self.shares.own {
                Some(part) => part.zeros(&self.value)?,
                None => self.value.f_zeros_like()?,
            })
        };
        ensure_state(&mut self.state, &rule.optimizer, zeros)?;
        for part in self.shares.updated_parts() {
            self.update_part(rule, part)?;
        }
        Ok(())
    }

    fn update_part(&self, rule: &UpdateRule, part: Part) -> TorchResult<()> {
        let Some(gradient) = self.gradient_of(part)? else { return Ok(()) };
        let Shares { own, divide_values, .. } = self.shares;
        let value = if divide_values { self.value.shallow_clone() } else { part.of(&self.value)? };
        let state = self.state.iter().map(|state| match own {
            Some(_) => Ok(state.shallow_clone()),
            None => part.of(state),
        });
        optimizer::apply(rule, &value, &gradient, &state.collect::<TorchResult<Vec<_>>>()?)?;
        if let Some(copy) = &*self.in_compute_dtype.borrow() {
            part.of(copy)?.f_copy_(&value)?;
        }
        Ok(())
    }

    /// Whether other ranks wait for this rank's part, or this rank for theirs.
    pub(crate) fn is_updated(&self) -> bool {
        self.is_updated
    }

    /// Takes the other ranks' parts, which stand in [`Self::replica`] by now.
    pub(crate) fn finish_sharing(&mut self) -> TorchResult<()> {
        self.is_updated = false;
        if !self.shares.divide_values
            && let Some(copy) = &mut *self.in_compute_dtype.borrow_mut()
        {
            copy.f_copy_(&self.value)?;
        }
        Ok(())
    }
}

fn add(sum: &mut Tensor, accumulation: Accumulation, addend: &Tensor) -> TorchResult<()> {
    match accumulation {
        Accumulation::Overwrite => sum.f_copy_(addend)?,
        Accumulation::Add => drop(sum.f_add_(addend)?),
    }
    Ok(())
}
