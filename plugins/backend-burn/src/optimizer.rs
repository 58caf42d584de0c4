//! The optimisers' steps.

use burn_tensor::Tensor;
use sppo_model::ops::UpdateRule;
use sppo_plugin::Optimizer;

/// Applies a gradient to a weight; `state` has as many tensors as the optimiser keeps.
pub(crate) fn apply(
    rule: &UpdateRule,
    value: &mut Tensor<2>,
    gradient: Tensor<2>,
    state: &mut [Tensor<2>],
) {
    let rate = rule.learning_rate;
    let gradient = gradient * rule.gradient_scale;
    match (&rule.optimizer, state) {
        (Optimizer::RmsProp { alpha, epsilon }, [averages]) => {
            let squares = gradient.clone().square() * (1.0 - alpha);
            averages.inplace(|averages| averages * *alpha + squares);
            let divisors = averages.clone().sqrt() + *epsilon;
            value.inplace(|value| value - gradient / divisors * rate);
        }
        (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
            let steps = rule.step.min(i32::MAX as u64) as i32;
            let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
            let squares = gradient.clone().square() * (1.0 - beta2);
            first.inplace(|first| first * *beta1 + gradient * (1.0 - beta1));
            second.inplace(|second| second * *beta2 + squares);
            let divisors = second.clone().sqrt() / correction2.sqrt() + *epsilon;
            let change = first.clone() / divisors * (rate / correction1);
            value.inplace(|value| value * (1.0 - rate * weight_decay) - change);
        }
        (Optimizer::Sgd { momentum }, [velocities]) => {
            velocities.inplace(|velocities| velocities * *momentum + gradient);
            value.inplace(|value| value - velocities.clone() * rate);
        }
        _ => value.inplace(|value| value - gradient * rate),
    }
}
