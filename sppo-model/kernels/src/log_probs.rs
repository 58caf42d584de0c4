//! Log-probabilities of target tokens from logits, and their gradient.

use rayon::prelude::*;

use super::vector::{exp, maximum_of, soft_cap, sum_of_exponentials, vectorised};
use super::{TASK_ELEMENTS, Uninitialised, produce};

/// Terms added in f32 before they join the f64 sum over the vocabulary.
const SUM_BLOCK: usize = 4096;

vectorised! {
    /// `cap * tanh(x / cap)` in place.
    pub(crate) fn cap_slice(x: &mut [f32], cap: f32) {
        let inverse = 1.0 / cap;
        for x in x {
            *x = soft_cap::<FUSED>(*x, cap, inverse);
        }
    }
}

vectorised! {
    fn log_sum_exp(logits: &[f32]) -> f64 {
        let maximum = maximum_of(logits);
        let mut sum = 0.0;
        for block in logits.chunks(SUM_BLOCK) {
            sum += f64::from(sum_of_exponentials::<FUSED>(block, maximum));
        }
        f64::from(maximum) + sum.ln()
    }
}

vectorised! {
    /// Turns (capped) logits into `-coefficient * probability * slope of the cap`.
    fn negated_probabilities(
        logits: &[f32],
        out: &mut Uninitialised,
        log_sum_exp: f32,
        coefficient: f32,
        cap: Option<f32>,
    ) {
        let inverse = cap.map_or(0.0, |cap| 1.0 / cap);
        for (out, &logit) in out.iter_mut().zip(logits) {
            let ratio = logit * inverse;
            let slope = 1.0 - ratio * ratio;
            out.write(-coefficient * slope * exp::<FUSED>(logit - log_sum_exp));
        }
    }
}

/// Applies the cap to all logits, in place.
pub fn cap_logits(logits: &mut [f32], cap: f32) {
    logits.par_chunks_mut(TASK_ELEMENTS).for_each(|logits| cap_slice(logits, cap));
}

/// Log-probability of each row's target, and the log-sum-exp of each row, from capped logits.
pub fn log_probs(logits: &[f32], vocabulary: usize, targets: &[u32]) -> (Vec<f32>, Vec<f32>) {
    logits
        .par_chunks(vocabulary)
        .zip(targets)
        .map(|(logits, &target)| {
            let log_sum_exp = log_sum_exp(logits);
            let log_prob = f64::from(logits[target as usize]) - log_sum_exp;
            (log_prob as f32, log_sum_exp as f32)
        })
        .unzip()
}

/// Gradient with respect to the logits before the cap: `coefficient * (onehot - probability)`.
pub fn logit_gradients(
    logits: &[f32],
    log_sum_exps: &[f32],
    targets: &[u32],
    coefficients: &[f32],
    cap: Option<f32>,
) -> Vec<f32> {
    produce(logits.len(), |gradients| {
        write_logit_gradients(logits, log_sum_exps, targets, coefficients, cap, gradients);
    })
}

/// [`logit_gradients`] to memory as long as `logits`, all of which it writes.
pub fn write_logit_gradients(
    logits: &[f32],
    log_sum_exps: &[f32],
    targets: &[u32],
    coefficients: &[f32],
    cap: Option<f32>,
    gradients: &mut Uninitialised,
) {
    let rows = targets.len();
    assert_eq!([rows; 2], [log_sum_exps.len(), coefficients.len()], "operands differ in rows");
    let vocabulary = (logits.len() / rows.max(1)).max(1);
    let lengths = [rows * vocabulary, gradients.len()];
    assert_eq!([logits.len(); 2], lengths, "logits are not whole rows");
    gradients
        .par_chunks_mut(vocabulary)
        .zip(logits.par_chunks(vocabulary))
        .zip(log_sum_exps.par_iter().zip(coefficients))
        .zip(targets)
        .for_each(|(((out, logits), (&log_sum_exp, &coefficient)), &target)| {
            negated_probabilities(logits, out, log_sum_exp, coefficient, cap);
            let logit = logits[target as usize];
            let ratio = cap.map_or(0.0, |cap| logit / cap);
            // 1 - p, without cancellation when p is close to 1.
            let complement = -(logit - log_sum_exp).exp_m1();
            out[target as usize].write(coefficient * (1.0 - ratio * ratio) * complement);
        });
}
