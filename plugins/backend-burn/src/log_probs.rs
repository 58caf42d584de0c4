//! Log-probabilities of given tokens under the language-model head, and the way back.

use burn_tensor::{IndexingUpdateOp, Tensor};
use sppo_model::Result;

use crate::engine::BurnOps;
use crate::parameter::Parameter;
use crate::tensors::{download, index, rows, soft_cap, soft_cap_backward, upload};

impl BurnOps {
    /// `cap(hidden head^T)`.
    pub(crate) fn capped_logits(
        &self,
        hidden: Tensor<2>,
        head: &Parameter,
        cap: Option<f32>,
    ) -> Tensor<2> {
        soft_cap(hidden.matmul(head.value().transpose()), cap)
    }

    /// One log-probability per target, and the logits where they are few enough to keep.
    pub(crate) fn log_probs(
        &self,
        hidden: &Tensor<2>,
        head: &Parameter,
        targets: &[u32],
        cap: Option<f32>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Tensor<2>>)> {
        let (count, vocabulary) = (targets.len(), head.value().dims()[0]);
        let keep = keep && count * vocabulary * size_of::<f32>() <= self.keep_logits_limit;
        let chunk = if keep { count.max(1) } else { self.logits_rows(count, vocabulary) };
        let mut log_probs = Vec::with_capacity(count);
        for (number, targets) in targets.chunks(chunk).enumerate() {
            let part = number * chunk..number * chunk + targets.len();
            let logits = self.capped_logits(rows(hidden, &part), head, cap);
            let targets = index(targets.iter().copied(), &self.device).unsqueeze_dim(1);
            let chosen = log_softmax(logits.clone()).gather(1, targets);
            log_probs.extend(download(&chosen)?);
            if keep {
                return Ok((log_probs, Some(logits)));
            }
        }
        Ok((log_probs, None))
    }

    /// Gradient of `hidden`; adds to that of the head.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &Tensor<2>,
        head: &mut Parameter,
        targets: &[u32],
        cap: Option<f32>,
        kept: Option<&Tensor<2>>,
        coefficients: &[f32],
    ) -> Result<Tensor<2>> {
        let chunk = self.logits_rows(targets.len(), head.value().dims()[0]);
        let mut of_hidden = Vec::new();
        for (number, targets) in targets.chunks(chunk).enumerate() {
            let part = number * chunk..number * chunk + targets.len();
            let hidden = rows(hidden, &part);
            let logits = match kept {
                Some(kept) => rows(kept, &part),
                None => self.capped_logits(hidden.clone(), head, cap),
            };
            let coefficients = coefficients.get(part).unwrap_or_default();
            let gradient = self.logit_gradient(logits, targets, coefficients, cap)?;
            head.accumulate(|| gradient.clone().transpose().matmul(hidden));
            of_hidden.push(gradient.matmul(head.value()));
        }
        Ok(match of_hidden.is_empty() {
            true => hidden.zeros_like(),
            false => Tensor::cat(of_hidden, 0),
        })
    }

    /// `coefficient * (one at the target - probabilities)`, through the cap.
    fn logit_gradient(
        &self,
        logits: Tensor<2>,
        targets: &[u32],
        coefficients: &[f32],
        cap: Option<f32>,
    ) -> Result<Tensor<2>> {
        let coefficients = upload(coefficients.to_vec(), [targets.len(), 1], &self.device)?;
        let targets = index(targets.iter().copied(), &self.device).unsqueeze_dim(1);
        let probabilities = log_softmax(logits.clone()).exp();
        let gradient = (probabilities * coefficients.clone().neg()).scatter(
            1,
            targets,
            coefficients,
            IndexingUpdateOp::Add,
        );
        Ok(soft_cap_backward(gradient, logits, cap))
    }
}

/// Columns that are reduced at once. On wgpu (burn 0.22 on Mesa's software driver) sums leave out what
/// comes after the first 65 536, and vocabularies are larger.
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
