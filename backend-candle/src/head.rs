//! The language-model head: hidden rows to capped logits to log-probabilities, and the way back.

use std::borrow::Cow;

use sppo_kernels::log_probs::{cap_logits, log_probs, logit_gradients};
use sppo_kernels::threads::Threads;
use sppo_model::Result;
use sppo_model::ops::LogitsLimits;

use crate::parameter::Parameter;

/// Computes capped logits on these threads, as many rows at a time as the limits allow.
pub(crate) struct Head<'a> {
    pub(crate) threads: &'a Threads,
    pub(crate) limits: LogitsLimits,
    pub(crate) soft_cap: Option<f32>,
}

impl Head<'_> {
    /// `cap(hidden weight^T)` of whole rows.
    pub(crate) fn logits(
        &self,
        hidden: &[f32],
        rows: usize,
        weight: &Parameter,
    ) -> Result<Vec<f32>> {
        self.threads.run(|| {
            let mut logits = weight.linear(hidden, rows, None)?;
            if let Some(cap) = self.soft_cap {
                cap_logits(&mut logits, cap);
            }
            Ok(logits)
        })
    }

    /// The log-probability of each row's target, and the logits if they are kept.
    pub(crate) fn log_probs(
        &self,
        hidden: &[f32],
        weight: &Parameter,
        targets: &[u32],
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let (vocabulary, features) = weight.dimensions()?;
        self.limits.log_probs(
            [targets.len(), vocabulary],
            keep,
            |part| {
                let hidden = &hidden[part.start * features..part.end * features];
                self.logits(hidden, part.len(), weight)
            },
            |logits, part| Ok(self.threads.run(|| log_probs(logits, vocabulary, &targets[part])).0),
        )
    }

    /// Gradient of `hidden` for `sum_i coefficients[i] * log_prob[i]`; adds to that of the weight.
    pub(crate) fn log_probs_backward(
        &self,
        hidden: &[f32],
        weight: &mut Parameter,
        targets: &[u32],
        kept: Option<&[f32]>,
        coefficients: &[f32],
    ) -> Result<Vec<f32>> {
        let (vocabulary, features) = weight.dimensions()?;
        let mut hidden_gradient = Vec::with_capacity(hidden.len());
        for part in self.limits.chunks(targets.len(), vocabulary) {
            let rows = part.len();
            let hidden = &hidden[part.start * features..part.end * features];
            let logits = match kept {
                Some(kept) => Cow::Borrowed(&kept[part.start * vocabulary..part.end * vocabulary]),
                None => Cow::Owned(self.logits(hidden, rows, weight)?),
            };
            let (targets, coefficients) = (&targets[part.clone()], &coefficients[part]);
            let gradient = self.threads.run(|| {
                let (_, sums) = log_probs(&logits, vocabulary, targets);
                logit_gradients(&logits, &sums, targets, coefficients, self.soft_cap)
            });
            drop(logits);
            self.threads.run(|| weight.accumulate_product(&gradient, hidden, rows))?;
            let part = self.threads.run(|| weight.input_gradient(&gradient, rows))?;
            hidden_gradient.extend(part);
        }
        Ok(hidden_gradient)
    }
}
