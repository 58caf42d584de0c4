//! Sums of gradients over all ranks.

use sppo_model::Result;
use sppo_model::ops::ParameterStore;
use tch::Tensor;

use super::group::ProcessGroup;
use crate::ops::TchOps;
use crate::parameter::Parameter;
use crate::tensors::{TorchError, download};

impl TchOps {
    /// Makes the gradient of every trained weight the sum of all ranks' gradients. A rank without one, since
    /// it had no part of the batch, adds zeros; where no rank has one, none has one afterwards. All ranks
    /// must call it with the same model.
    ///
    /// # Errors
    /// When the group fails or memory runs out.
    pub fn sum_gradients(
        &self,
        group: &ProcessGroup,
        parameters: &mut ParameterStore<Self>,
    ) -> Result<()> {
        let trained = parameters.entries_mut().iter_mut().filter(|entry| entry.trainable);
        let mut trained: Vec<_> = trained.map(|entry| &mut entry.value).collect();
        group.agree(&layout(&trained))?;
        let present =
            trained.iter().map(|parameter| f32::from(u8::from(parameter.gradient().is_some())));
        let present: Vec<f32> = present.collect();
        let mut present = Tensor::f_from_slice(&present)
            .and_then(|present| present.f_to_device(self.context.device))
            .map_err(TorchError::from)?;
        let mut gradients = Vec::with_capacity(trained.len());
        for parameter in &mut trained {
            gradients.push(parameter.gradient_or_zeros()?);
        }
        // All are begun before the first is waited for: the engine works on several at once.
        let mut pending = vec![group.all_reduce(&mut present)?];
        for gradient in &mut gradients {
            pending.push(group.all_reduce(gradient)?);
        }
        for pending in pending {
            pending.wait()?;
        }
        for (parameter, count) in trained.iter_mut().zip(download(&present)?) {
            if count == 0.0 {
                parameter.clear_gradient();
            }
        }
        Ok(())
    }
}

/// The shapes of gradients in a few words. Ranks with other shapes must not sum: the engine would end the
/// process.
fn layout(parameters: &[&mut Parameter]) -> String {
    let lengths = parameters.iter().map(|parameter| parameter.value().numel());
    // FNV-1a, which is the same in every build.
    let mix = |hash: u64, length: usize| (hash ^ length as u64).wrapping_mul(0x0100_0000_01b3);
    let hash = lengths.clone().fold(0xcbf2_9ce4_8422_2325, mix);
    let (count, sum) = (parameters.len(), lengths.sum::<usize>());
    format!("gradients of {count} weights with {sum} numbers (layout {hash:016x})")
}
