//! Sums of gradients over all ranks.

use std::collections::{HashSet, VecDeque};

use sppo_model::Result;
use sppo_model::ops::{ParameterId, ParameterStore};
use tch::Tensor;

use super::Division;
use crate::ops::TchOps;
use crate::parameter::Parameter;
use crate::process_group::UnderWay;
use crate::tensors::{TorchError, download};

/// Bytes of gradients that are summed at the same time, in a backward pass that goes on meanwhile; one
/// gradient may be larger. `sppo_model`'s estimate of memory counts them.
const MOST_UNDER_WAY: usize = sppo_model::serve::GRADIENTS_UNDER_WAY as usize;

/// Sums of gradients in a backward pass. All ranks begin them in the same order, from the last weight to the
/// first, whatever the order in which gradients are complete.
#[derive(Default)]
pub(super) struct Reductions {
    /// Whether the ranks' models are known to have the same weights.
    is_agreed: bool,
    is_begun: bool,
    /// Weights whose sum has not begun; the next is the last.
    waiting: Vec<usize>,
    complete: HashSet<usize>,
    under_way: VecDeque<(usize, UnderWay)>,
    bytes: usize,
}

impl Division {
    /// Begins a pass, unless it has begun.
    fn begin(
        &self,
        reductions: &mut Reductions,
        parameters: &mut ParameterStore<TchOps>,
    ) -> Result<()> {
        if std::mem::replace(&mut reductions.is_begun, true) {
            return Ok(());
        }
        let entries = parameters.entries().iter().enumerate();
        let divided = entries.filter(|(_, entry)| entry.value.shares().divide_gradients);
        reductions.waiting = divided.map(|(weight, _)| weight).collect();
        if !std::mem::replace(&mut reductions.is_agreed, true) {
            let weights =
                reductions.waiting.iter().map(|&weight| &parameters.entries()[weight].value);
            self.group.agree(&layout(weights))?;
        }
        Ok(())
    }

    /// Begins the sums whose turn it is; all that are left if `all`.
    fn advance(
        &self,
        reductions: &mut Reductions,
        parameters: &mut ParameterStore<TchOps>,
        all: bool,
    ) -> Result<()> {
        while let Some(weight) =
            reductions.waiting.pop_if(|weight| all || reductions.complete.contains(weight))
        {
            let gradient = parameters.entries_mut()[weight].value.take_gradient()?;
            reductions.bytes += bytes(&gradient);
            reductions.under_way.push_back((weight, self.group.begin_sum(gradient)?));
            while reductions.bytes > MOST_UNDER_WAY && reductions.under_way.len() > 1 {
                self.finish_oldest(reductions, parameters)?;
            }
        }
        Ok(())
    }

    /// Keeps this rank's part of the sum that was begun first.
    fn finish_oldest(
        &self,
        reductions: &mut Reductions,
        parameters: &mut ParameterStore<TchOps>,
    ) -> Result<()> {
        let Some((weight, under_way)) = reductions.under_way.pop_front() else { return Ok(()) };
        let sum = self.group.finish(under_way)?;
        reductions.bytes -= bytes(&sum);
        let parameter = &mut parameters.entries_mut()[weight].value;
        if let Some(part) = parameter.shares().own {
            parameter.accumulate_sum(part, &sum)?;
        }
        Ok(())
    }
}

impl TchOps {
    /// Begins to sum a gradient to which this rank's backward pass adds no more, where ranks divide gradients.
    pub(crate) fn begin_to_sum(
        &self,
        parameters: &mut ParameterStore<Self>,
        weight: ParameterId,
    ) -> Result<()> {
        let Some(division) = &self.division else { return Ok(()) };
        if !parameters.get(weight).shares().divide_gradients {
            return Ok(());
        }
        let mut reductions = division.reductions.borrow_mut();
        division.begin(&mut reductions, parameters)?;
        reductions.complete.insert(weight.index());
        division.advance(&mut reductions, parameters, false)
    }

    /// Ends a backward pass in which any rank had a part, on all of them: sums what is not summed yet, where
    /// ranks divide gradients. `own` is how this rank's part ended; the others are told if it is an error,
    /// since they wait for its gradients.
    ///
    /// # Errors
    /// That of `own`, or when the group fails or memory runs out.
    pub fn end_backward(
        &self,
        parameters: &mut ParameterStore<Self>,
        own: Result<()>,
    ) -> Result<()> {
        let Some(division) = self.division.as_ref().filter(|division| division.divides_gradients())
        else {
            return own;
        };
        let mut reductions = division.reductions.borrow_mut();
        let end = || {
            own?;
            division.begin(&mut reductions, parameters)?;
            division.advance(&mut reductions, parameters, true)?;
            while !reductions.under_way.is_empty() {
                division.finish_oldest(&mut reductions, parameters)?;
            }
            reductions.is_begun = false;
            reductions.complete.clear();
            Ok(())
        };
        end().inspect_err(|error| division.give_up(error))
    }

    /// Makes the gradient of every trained weight the sum of all ranks' gradients, but for those that are
    /// summed in the backward pass. A rank without one, since it had no part of the batch, adds zeros; where
    /// no rank has one, none has one afterwards. All ranks must call it with the same model.
    ///
    /// # Errors
    /// When the group fails or memory runs out.
    pub fn sum_gradients(&self, parameters: &mut ParameterStore<Self>) -> Result<()> {
        let Some(division) = &self.division else { return Ok(()) };
        let group = &division.group;
        let trained = parameters.entries_mut().iter_mut().filter(|entry| entry.trainable);
        let mut trained: Vec<_> = trained.map(|entry| &mut entry.value).collect();
        let mut whole: Vec<&mut Parameter> = trained
            .iter_mut()
            .map(|parameter| &mut **parameter)
            .filter(|parameter| !parameter.shares().divide_gradients)
            .collect();
        group.agree(&layout(whole.iter().map(|parameter| &**parameter)))?;
        let present =
            whole.iter().map(|parameter| f32::from(u8::from(parameter.gradient().is_some())));
        let present: Vec<f32> = present.collect();
        let present = Tensor::f_from_slice(&present)
            .and_then(|present| present.f_to_device(self.context.device))
            .map_err(TorchError::from)?;
        // All are begun before the first is waited for: the engine works on several at once.
        let counted = group.begin_sum(present)?;
        let mut under_way = Vec::with_capacity(whole.len());
        for parameter in &mut whole {
            under_way.push(group.begin_sum(parameter.gradient_or_zeros()?)?);
        }
        let present = group.finish(counted)?;
        for sum in under_way {
            // The sum stands in the gradient's own memory.
            let _ = group.finish(sum)?;
        }
        for (parameter, count) in whole.iter_mut().zip(download(&present)?) {
            if count == 0.0 {
                parameter.clear_gradient();
            }
        }
        division.add_square_sums(&mut trained)
    }
}

impl Division {
    fn divides_gradients(&self) -> bool {
        self.sharding == sppo_plugin::Sharding::Gradients
    }

    /// Adds the sums of squares of all ranks' parts up, so that each knows the norm before any update.
    fn add_square_sums(&self, trained: &mut [&mut Parameter]) -> Result<()> {
        let divided = trained.iter_mut().filter(|parameter| parameter.shares().own.is_some());
        let mut divided: Vec<_> = divided.collect();
        if divided.is_empty() {
            return Ok(());
        }
        let mut own = Vec::with_capacity(divided.len() * size_of::<f64>());
        for parameter in &divided {
            let part = parameter.shares().own;
            let sum = part.map_or(Ok(0.0), |part| parameter.square_sum_of(part))?;
            own.extend(sum.to_le_bytes());
        }
        let all = self.group.all_gather_bytes(&own)?;
        for (weight, parameter) in divided.iter_mut().enumerate() {
            let of_rank = |bytes: &Vec<u8>| bytes.as_chunks().0.get(weight).copied();
            let sums = all.iter().map(|bytes| of_rank(bytes).map_or(f64::NAN, f64::from_le_bytes));
            parameter.set_square_sum(sums.fold(0.0, |sum, of_part| sum + of_part));
        }
        Ok(())
    }
}

fn bytes(gradient: &Tensor) -> usize {
    gradient.numel() * gradient.kind().elt_size_in_bytes()
}

/// The sizes of gradients in a few words. Ranks with others must not sum: the engine would end the process.
fn layout<'a>(parameters: impl Iterator<Item = &'a Parameter> + Clone) -> String {
    let lengths = parameters.clone().map(Parameter::count);
    // FNV-1a, which is the same in every build.
    let mix = |hash: u64, length: usize| (hash ^ length as u64).wrapping_mul(0x0100_0000_01b3);
    let hash = lengths.clone().fold(0xcbf2_9ce4_8422_2325, mix);
    let (count, sum) = (parameters.count(), lengths.sum::<usize>());
    format!("gradients of {count} weights with {sum} numbers (layout {hash:016x})")
}
