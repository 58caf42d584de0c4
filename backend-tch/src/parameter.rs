//! A weight with its gradient and the optimiser's state.

use std::cell::RefCell;

use sppo_kernels::panels::Panels;
use sppo_model::ModelError;
use sppo_model::formats::QuantizedMatrix;
use sppo_model::ops::{Accumulation, GradientSlot, UpdateRule, ensure_state};
use tch::{Device, Kind, Tensor};

use crate::kernels::Kernels;
use crate::masters::{Masters, Remainders};
use crate::optimizer;
use crate::quantized_weight::QuantizedWeight;
use crate::sharding::{Part, Shares};
use crate::tensors::{self, TorchError, TorchResult, download, upload};

/// A weight, its gradient and the optimiser's state, changed in place. Of what its `Shares` divide, a rank keeps
/// its own part, flat. State is f32; values and gradient are in the formats given at creation.
#[derive(Debug)]
pub struct Parameter {
    shape: Vec<i64>,
    shares: Shares,
    values: Values,
    trainable: bool,
    gradient_kind: Kind,
    gradient: GradientSlot<Tensor>,
    /// This rank's part of the sum of all ranks' gradients, where they divide gradients.
    summed: GradientSlot<Tensor>,
    /// Sum of squares of the gradient, where ranks have added it up from their parts.
    square_sum: Option<f64>,
    state: Vec<Tensor>,
    /// A copy of a trained matrix in panels, while responses are sampled on the CPU in f32.
    packed: Option<Vec<f32>>,
    /// Whether this rank has updated its part and has not yet shared it.
    is_updated: bool,
}

/// The numbers of a weight.
#[derive(Debug)]
enum Values {
    /// All of them: in f32, with a copy in another dtype that is made when it is first needed and brought up to
    /// date by every update; or of a frozen matrix in the compute dtype, without a copy.
    Whole { values: Tensor, copy: RefCell<Option<Tensor>> },
    /// All of them rounded to bf16, as products read them, and what that lacks of the f32 values of each part
    /// that this rank updates.
    Split { copy: Tensor, remainders: Vec<Remainders> },
    /// Of a frozen matrix, in the blocks of its file.
    Quantized(QuantizedWeight),
}

/// Number formats of a weight, and the device that holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub(crate) values: Kind,
    pub(crate) gradient: Kind,
    /// Whether f32 values are kept as copies in bf16 and remainders.
    pub(crate) is_split: bool,
    pub(crate) device: Device,
}

impl Values {
    fn new(values: Tensor, format: Format, shares: &Shares) -> TorchResult<Self> {
        if !format.is_split {
            return Ok(Self::Whole { values, copy: RefCell::default() });
        }
        let copy = Tensor::f_empty(values.size(), (Kind::BFloat16, format.device))?;
        let split = |part: Part| Remainders::new(&part.of(&values)?, &part.of(&copy)?);
        let remainders = shares.updated_parts().map(split).collect::<TorchResult<_>>()?;
        copy.shallow_clone().f_copy_(&values)?;
        Ok(Self::Split { copy, remainders })
    }

    /// The tensor that holds all of them.
    fn tensor(&self) -> TorchResult<&Tensor> {
        match self {
            Self::Whole { values, .. } => Ok(values),
            Self::Split { copy, .. } => Ok(copy),
            Self::Quantized(_) => Err(in_blocks()),
        }
    }

    /// Values of a part of number `number` among those that this rank updates, f32, flat.
    fn of_part(&self, part: Part, number: usize) -> TorchResult<Tensor> {
        match self {
            Self::Whole { values, .. } => part.of(values),
            Self::Split { copy, remainders } => {
                let remainders = remainders.get(number).ok_or_else(divided)?;
                remainders.values(&part.of(copy)?)
            }
            Self::Quantized(_) => Err(in_blocks()),
        }
    }
}

fn in_blocks() -> TorchError {
    ModelError::Backend("this op takes no weight that is kept in blocks".into()).into()
}

fn divided() -> TorchError {
    ModelError::Backend("this rank holds a part of the weight".into()).into()
}

impl Parameter {
    pub(crate) fn new(
        values: &[f32],
        shape: &[usize],
        trainable: bool,
        format: Format,
        shares: Shares,
    ) -> TorchResult<Self> {
        let shape: Vec<i64> = shape.iter().map(|&length| length as i64).collect();
        let values = upload(values, &shape, format.device)?.f_to_kind(format.values)?;
        let values = Values::new(values, format, &shares)?;
        Ok(Self::of(values, shape, shares, trainable, format.gradient))
    }

    /// A matrix that is not trained and stays in its blocks.
    pub(crate) fn quantized(matrix: QuantizedMatrix, device: Device) -> TorchResult<Self> {
        let shape: Vec<i64> = matrix.dimensions().map(|length| length as i64).to_vec();
        let shares = Shares::whole(shape.iter().product());
        let values = Values::Quantized(QuantizedWeight::new(matrix, device)?);
        Ok(Self::of(values, shape, shares, false, Kind::Float))
    }

    fn of(
        values: Values,
        shape: Vec<i64>,
        shares: Shares,
        trainable: bool,
        gradient_kind: Kind,
    ) -> Self {
        Self {
            shape,
            shares,
            values,
            trainable,
            gradient_kind,
            gradient: GradientSlot::Absent,
            summed: GradientSlot::Absent,
            square_sum: None,
            state: Vec::new(),
            packed: None,
            is_updated: false,
        }
    }

    /// The weight in its blocks, if it is kept so.
    pub(crate) fn in_blocks(&self) -> Option<&QuantizedWeight> {
        match &self.values {
            Values::Quantized(quantized) => Some(quantized),
            _ => None,
        }
    }

    /// The layout that products of few rows read on the CPU in f32: of a trained matrix its copy in panels, while
    /// responses are sampled; of a frozen one, for which no gradient has left room, the matrix itself. None
    /// otherwise.
    pub(crate) fn panels(&self) -> TorchResult<Option<Panels<'_>>> {
        match (&self.packed, &self.values) {
            (Some(packed), _) => Ok(Some(Panels::F32(packed))),
            (None, Values::Whole { values, .. }) if !self.trainable => {
                Ok(Some(Panels::Rows(tensors::values(values)?)))
            }
            _ => Ok(None),
        }
    }

    /// Lays a trained matrix out for products of few rows.
    pub(crate) fn prepare_for_decoding(&mut self, kernels: &Kernels) -> TorchResult<()> {
        self.packed = match &self.values {
            Values::Whole { values, .. } if self.trainable && self.shape.len() == 2 => {
                Some(kernels.pack(values)?)
            }
            _ => None,
        };
        Ok(())
    }

    /// Frees the copy.
    pub(crate) fn end_decoding(&mut self) {
        self.packed = None;
    }

    /// The weight itself, of one that does not consist of copies and remainders: a vector, a table or a frozen
    /// matrix, or any where products are in f32.
    pub(crate) fn value(&self) -> TorchResult<&Tensor> {
        match &self.values {
            Values::Whole { values, .. } => Ok(values),
            Values::Split { .. } => {
                Err(ModelError::Backend("this op takes no weight that is kept in bf16".into())
                    .into())
            }
            Values::Quantized(_) => Err(in_blocks()),
        }
    }

    fn device(&self) -> TorchResult<Device> {
        Ok(self.values.tensor()?.device())
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
        match &self.values {
            _ if self.shares.divide_values => Err(divided()),
            // Of f32 values that are not divided, a rank holds those of all parts, whichever it updates.
            Values::Whole { values, .. } => download(values),
            Values::Quantized(quantized) => download(&quantized.values()?),
            Values::Split { .. } => {
                let mut values = Vec::with_capacity(self.count());
                for (number, part) in self.shares.updated_parts().enumerate() {
                    values.extend(download(&self.values.of_part(part, number)?)?);
                }
                Ok(values)
            }
        }
    }

    /// The f32 values of the part that this rank updates, flat, of a weight whose values are divided.
    pub(crate) fn own_values(&self) -> TorchResult<Tensor> {
        let own = self.shares.own.ok_or_else(divided)?;
        self.values.of_part(own, 0)
    }

    /// The whole weight as this rank computes with it.
    pub(crate) fn replica(&self) -> TorchResult<Tensor> {
        Ok(self.values.tensor()?.shallow_clone())
    }

    /// The whole weight as exactly as this rank holds it.
    pub(crate) fn replica_values(&self) -> TorchResult<Vec<f32>> {
        if self.shares.divide_values { download(self.values.tensor()?) } else { self.values() }
    }

    /// The weight in the compute dtype.
    pub(crate) fn operand(&self, dtype: Kind) -> TorchResult<Tensor> {
        let tensor = self.values.tensor()?;
        let Values::Whole { copy, .. } = &self.values else { return Ok(tensor.f_to_kind(dtype)?) };
        if dtype == tensor.f_kind()? {
            return Ok(tensor.shallow_clone());
        }
        let mut copy = copy.borrow_mut();
        if let Some(copy) = &*copy {
            return Ok(copy.shallow_clone());
        }
        let made = tensor.f_to_kind(dtype)?;
        *copy = Some(made.shallow_clone());
        Ok(made)
    }

    pub(crate) fn is_trainable(&self) -> bool {
        self.trainable
    }

    /// The number format that gradients are summed in.
    pub(crate) fn gradient_kind(&self) -> Kind {
        self.gradient_kind
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
        let options = (self.gradient_kind, self.device()?);
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
            None => Ok(Tensor::f_zeros(&self.shape, (self.gradient_kind, self.device()?))?),
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
        let device = self.device()?;
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
        self.end_decoding();
        self.is_updated = self.shares.own.is_some();
        let options = (Kind::Float, self.device()?);
        let zeros = || {
            Ok::<_, TorchError>(match self.shares.own {
                Some(part) => Tensor::f_zeros([part.length()], options)?,
                None => Tensor::f_zeros(&self.shape, options)?,
            })
        };
        ensure_state(&mut self.state, &rule.optimizer, zeros)?;
        for (number, part) in self.shares.updated_parts().enumerate() {
            self.update_part(rule, part, number)?;
        }
        Ok(())
    }

    /// Updates a part of number `number` among those that this rank updates.
    fn update_part(&mut self, rule: &UpdateRule, part: Part, number: usize) -> TorchResult<()> {
        let Some(gradient) = self.gradient_of(part)? else { return Ok(()) };
        let own = self.shares.own;
        let state = self.state.iter().map(|state| match own {
            Some(_) => Ok(state.shallow_clone()),
            None => part.of(state),
        });
        let state = state.collect::<TorchResult<Vec<_>>>()?;
        match &mut self.values {
            Values::Whole { values, copy } => {
                let values = part.of(values)?;
                optimizer::apply(rule, Masters::Whole(&values), &gradient, &state)?;
                if let Some(copy) = &*copy.borrow() {
                    part.of(copy)?.f_copy_(&values)?;
                }
                Ok(())
            }
            Values::Split { copy, remainders } => {
                let remainders = remainders.get_mut(number).ok_or_else(divided)?;
                let copy = part.of(copy)?;
                optimizer::apply(rule, Masters::Split(&copy, remainders), &gradient, &state)
            }
            Values::Quantized(_) => Err(in_blocks()),
        }
    }

    /// Whether other ranks wait for this rank's part, or this rank for theirs.
    pub(crate) fn is_updated(&self) -> bool {
        self.is_updated
    }

    /// Takes the other ranks' parts, which stand in [`Self::replica`] by now.
    pub(crate) fn finish_sharing(&mut self) -> TorchResult<()> {
        self.is_updated = false;
        if let Values::Whole { values, copy } = &mut self.values
            && let Some(copy) = &mut *copy.borrow_mut()
        {
            copy.f_copy_(values)?;
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

#[cfg(test)]
mod tests {
    use sppo_plugin::Optimizer;

    use super::*;

    const SHAPE: [usize; 2] = [257, 1031];

    fn format(is_split: bool, gradient: Kind) -> Format {
        Format { values: Kind::Float, gradient, is_split, device: Device::Cpu }
    }

    fn trained(format: Format, optimizer: &Optimizer) -> Parameter {
        let count = SHAPE[0] * SHAPE[1];
        let values: Vec<f32> = (0..count).map(|index| (index as f32 * 0.7).sin()).collect();
        let shares = Shares::whole(count as i64);
        let mut parameter = Parameter::new(&values, &SHAPE, true, format, shares).unwrap();
        for step in 1..=6_u64 {
            tch::manual_seed(step as i64);
            // The copy exists, as after a pass.
            let _ = parameter.operand(Kind::BFloat16).unwrap();
            for _ in 0..2 {
                let addend = Tensor::randn(&parameter.shape, (Kind::Float, Device::Cpu));
                parameter.accumulate_tensor(&addend).unwrap();
            }
            let (optimizer, gradient_scale) = (optimizer.clone(), 0.5);
            let rule = UpdateRule { optimizer, learning_rate: 1e-5, gradient_scale, step };
            parameter.update(&rule).unwrap();
            parameter.clear_gradient();
        }
        parameter
    }

    #[test]
    fn split_values_are_trained_as_those_in_f32_are_to_the_bit() {
        let adam_w = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 };
        for optimizer in [Optimizer::default(), adam_w, Optimizer::Sgd { momentum: 0.9 }] {
            let [whole, split] =
                [false, true].map(|is_split| trained(format(is_split, Kind::Float), &optimizer));
            let bits = |parameter: &Parameter| -> Vec<u32> {
                parameter.values().unwrap().iter().map(|value| value.to_bits()).collect()
            };
            assert_eq!(bits(&split), bits(&whole), "{optimizer:?}");
            let copies = [&whole, &split].map(|weight| weight.operand(Kind::BFloat16).unwrap());
            assert!(copies[0].equal(&copies[1]), "{optimizer:?}");
            assert!(whole.state()[0].equal(&split.state()[0]), "{optimizer:?}");
        }
    }

    #[test]
    fn gradients_in_bf16_move_a_weight_nearly_as_those_in_f32() {
        let optimizer = Optimizer::Sgd { momentum: 0.0 };
        let [wide, narrow] =
            [Kind::Float, Kind::BFloat16].map(|kind| trained(format(true, kind), &optimizer));
        let [wide, narrow] = [wide, narrow].map(|weight| weight.values().unwrap());
        let distance = |a: &[f32], b: &dyn Fn(usize) -> f32| -> f64 {
            let squares = a.iter().enumerate().map(|(at, a)| f64::from(a - b(at)).powi(2));
            squares.sum::<f64>().sqrt()
        };
        let moved = distance(&wide, &|at| (at as f32 * 0.7).sin());
        let off = distance(&wide, &|at| narrow[at]);
        assert!(off > 0.0 && off < 0.01 * moved, "{off} of {moved}");
    }
}
