//! The language-model head: hidden rows to capped logits to log-probabilities, and the way back.

use burn_tensor::{Device, IndexingUpdateOp, Tensor};
use sppo_model::Result;
use sppo_model::ops::LogitsLimits;

use crate::parameter::Parameter;
use crate::tensors::{download, index, rows, soft_cap, soft_cap_backward, upload};

/// Computes capped logits on this device, as many rows at a time as the limits allow.
pub(crate) struct Head<'a> {
    pub(crate) device: &'a Device,
    pub(crate) limits: LogitsLimits,
    pub(crate) soft_cap: Option<f32>,
}

impl Head<'_> {
    /// `cap(hidden weight^T)`.
    pub(crate) fn logits(&self, hidden: Tensor<2>, weight: &Parameter) -> Tensor<2> {
        soft_cap(hidden.matmul(weight.value().transpose()), self.soft_cap)
    }

    /// The log-probability of each row's target, and the logits if they are kept.
    pub(crate) fn log_probs(
        &self,
        hidden: &Tensor<2>,
        weight: &Parameter,
        targets: &[u32],
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Tensor<2>>)> {
        self.limits.log_probs(
            [targets.len(), weight.value().dims()[0]],
            keep,
            |part| Ok(self.logits(rows(hidden, &part), weight)),
            |logits, part| {
                let targets = targets.get(part).unwrap_or_default();
                let targets = index(targets.iter().copied(), self.device).unsqueeze_dim(1);
                download(&log_softmax(logits.clone()).gather(1, targets))
            },
        )
    }

    /// Gradient of `hidden` for `sum_i coefficients[i] * log_prob[i]`; adds to that of the weight.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &Tensor<2>,
        weight: &mut Parameter,
        targets: &[u32],
        kept: Option<&Tensor<2>>,
        coefficients: &[f32],
    ) -> Result<Tensor<2>> {
        let mut of_hidden = Vec::new();
        for part in self.limits.chunks(targets.len(), weight.value().dims()[0]) {
            let hidden = rows(hidden, &part);
            let logits = match kept {
                Some(kept) => rows(kept, &part),
                None => self.logits(hidden.clone(), weight),
            };
            let targets = targets.get(part.clone()).unwrap_or_default();
            let coefficients = coefficients.get(part).unwrap_or_default();
            let gradient = self.logit_gradient(logits, targets, coefficients)?;
            weight.accumulate(|| gradient.clone().transpose().matmul(hidden));
            of_hidden.push(gradient.matmul(weight.value()));
        }
        Ok(match of_hidden.is_empty() {
            true => hidden.zeros_like(),
            false => Tensor::cat(of_hidden, 0),
        })
    }

    /// `coefficient * (onehot(target) - softmax(logits))`, times the slope of the cap.
    fn logit_gradient(
        &self,
        logits: Tensor<2>,
        targets: &[u32],
        coefficients: &[f32],
    ) -> Result<Tensor<2>> {
        let coefficients = upload(coefficients.to_vec(), [targets.len(), 1], self.device)?;
        let targets = index(targets.iter().copied(), self.device).unsqueeze_dim(1);
        let probabilities = log_softmax(logits.clone()).exp();
        let gradient = (probabilities * coefficients.clone().neg()).scatter(
            1,
            targets,
            coefficients,
            IndexingUpdateOp::Add,
        );
        Ok(soft_cap_backward(gradient, logits, self.soft_cap))
    }
}

/// Columns that are reduced at once. On wgpu (burn 0.22 on Mesa's software driver) sums ignore all columns
/// after the first 65 536, and vocabularies are larger.
const REDUCED_COLUMNS: usize = 1 << 15;

fn log_softmax(logits: Tensor<2>) -> Tensor<2> {
    let shifted = logits.clone() - by_parts(logits, |part| part.max_dim(1));
    let log_sum_exp = by_parts(shifted.clone().exp(), |part| part.sum_dim(1)).log();
    shifted - log_sum_exp
}

/// Reduces columns to one, in parts first.
fn by_parts(x: Tensor<2>, reduce: impl Fn(Tensor<2>) -> Tensor<2>) -> Tensor<2> {
    let parts = x.split(REDUCED_COLUMNS, 1).into_iter().map(&reduce).collect();
    reduce(Tensor::cat(parts, 1))
}
