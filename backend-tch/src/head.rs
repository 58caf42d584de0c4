//! The language-model head: hidden rows to capped logits to log-probabilities, and the way back.

use sppo_model::ops::LogitsLimits;
use tch::{Kind, Tensor};

use crate::device::Context;
use crate::linear::{add_weight_gradient, input_gradient, linear};
use crate::parameter::Parameter;
use crate::tensors::{TorchResult, dimensions, download, index, upload};

/// Computes capped logits, as many rows at a time as the limits allow.
pub(crate) struct Head<'a> {
    pub(crate) context: &'a Context,
    pub(crate) limits: LogitsLimits,
    pub(crate) soft_cap: Option<f32>,
}

impl Head<'_> {
    /// `cap(hidden weight^T)` in f32.
    pub(crate) fn logits(&self, hidden: &Tensor, weight: &Parameter) -> TorchResult<Tensor> {
        let mut logits = linear(self.context, hidden, weight, None)?.f_to_kind(Kind::Float)?;
        if let Some(cap) = self.soft_cap {
            let _ = logits.f_mul_scalar_(1.0 / f64::from(cap))?;
            let _ = logits.f_tanh_()?;
            let _ = logits.f_mul_scalar_(f64::from(cap))?;
        }
        Ok(logits)
    }

    /// The log-probability of each row's target, and the logits if they are kept.
    pub(crate) fn log_probs(
        &self,
        hidden: &Tensor,
        weight: &Parameter,
        targets: &[u32],
        keep: bool,
    ) -> TorchResult<(Vec<f32>, Option<Tensor>)> {
        let (vocabulary, _) = weight.dimensions()?;
        self.limits.log_probs(
            [targets.len(), vocabulary as usize],
            keep,
            |part| self.logits(&hidden.f_narrow(0, part.start as i64, part.len() as i64)?, weight),
            |logits, part| self.chosen(logits, targets.get(part).unwrap_or_default()),
        )
    }

    /// Log-probabilities of targets. Takes as much memory as a chunk of logits, so logits that are kept
    /// go through it in chunks too.
    fn chosen(&self, logits: &Tensor, targets: &[u32]) -> TorchResult<Vec<f32>> {
        let (_, vocabulary) = dimensions(logits)?;
        let mut log_probs = Vec::with_capacity(targets.len());
        for part in self.limits.chunks(targets.len(), vocabulary as usize) {
            let logits = logits.f_narrow(0, part.start as i64, part.len() as i64)?;
            let targets = targets.get(part).unwrap_or_default();
            if let Some(kernels) = &self.context.kernels {
                log_probs.extend(kernels.log_probs(&logits, targets)?);
                continue;
            }
            let targets = index(targets, self.context.device)?.f_unsqueeze(1)?;
            let of_targets = logits.f_gather(1, &targets, false)?.f_squeeze_dim(1)?;
            let chosen = of_targets.f_sub(&logits.f_logsumexp([1], false)?)?;
            log_probs.extend(download(&chosen)?);
        }
        Ok(log_probs)
    }

    /// Gradient of `hidden` for `sum_i coefficients[i] * log_prob[i]`; adds to that of the weight.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &Tensor,
        weight: &mut Parameter,
        targets: &[u32],
        kept: Option<&Tensor>,
        coefficients: &[f32],
    ) -> TorchResult<Tensor> {
        let (vocabulary, _) = weight.dimensions()?;
        let mut of_hidden = Vec::new();
        for part in self.limits.chunks(targets.len(), vocabulary as usize) {
            let of_part = |x: &Tensor| x.f_narrow(0, part.start as i64, part.len() as i64);
            let hidden = of_part(hidden)?;
            let logits = match kept {
                Some(kept) => of_part(kept)?,
                None => self.logits(&hidden, weight)?,
            };
            let targets = targets.get(part.clone()).unwrap_or_default();
            let coefficients = coefficients.get(part).unwrap_or_default();
            let gradient = self.logit_gradient(&logits, targets, coefficients)?;
            add_weight_gradient(self.context, weight, &hidden, &gradient)?;
            of_hidden.push(input_gradient(self.context, weight, &gradient)?);
        }
        match &of_hidden[..] {
            [] => Ok(hidden.f_zeros_like()?),
            [of_all] => Ok(of_all.shallow_clone()),
            parts => Ok(Tensor::f_cat(parts, 0)?),
        }
    }

    /// `coefficient * (onehot(target) - softmax(logits))`, times the slope of the cap, as the operand of
    /// a matrix product.
    fn logit_gradient(
        &self,
        logits: &Tensor,
        targets: &[u32],
        coefficients: &[f32],
    ) -> TorchResult<Tensor> {
        if let Some(kernels) = &self.context.kernels {
            return kernels.logit_gradients(logits, targets, coefficients, self.soft_cap);
        }
        let device = self.context.device;
        let coefficients = upload(coefficients, &[targets.len() as i64, 1], device)?;
        let targets = index(targets, device)?.f_unsqueeze(1)?;
        let mut gradient = logits.f_softmax(1, Kind::Float)?;
        let _ = gradient.f_mul_(&coefficients.f_neg()?)?;
        let _ = gradient.f_scatter_add_(1, &targets, &coefficients)?;
        if let Some(cap) = self.soft_cap {
            let mut slope = logits.f_square()?;
            let _ = slope.f_mul_scalar_(-1.0 / f64::from(cap).powi(2))?;
            let _ = slope.f_add_scalar_(1.0)?;
            let _ = gradient.f_mul_(&slope)?;
        }
        self.context.operand(&gradient)
    }
}
