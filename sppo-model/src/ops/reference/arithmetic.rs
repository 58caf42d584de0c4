//! The optimisers' arithmetic, as PyTorch defines it.

use sppo_plugin::Optimizer;

use super::{ReferenceParameter, UpdateRule};
use crate::ops::state_count;

/// Applies the gradient; a parameter without one is left as it is.
pub(super) fn update(parameter: &mut ReferenceParameter, rule: &UpdateRule) {
    let Some(gradient) = &parameter.gradient else { return };
    let length = parameter.values.len();
    parameter.state.resize_with(state_count(&rule.optimizer), || vec![0.0; length]);
    for index in 0..length {
        let mut state: Vec<f64> = parameter.state.iter().map(|tensor| tensor[index]).collect();
        let value = &mut parameter.values[index];
        *value = step(*value, gradient[index] * rule.gradient_scale, &mut state, rule);
        *value = f64::from(*value as f32);
        for (tensor, state) in parameter.state.iter_mut().zip(state) {
            tensor[index] = f64::from(state as f32);
        }
    }
}

fn step(weight: f64, gradient: f64, state: &mut [f64], rule: &UpdateRule) -> f64 {
    let rate = rule.learning_rate;
    match (&rule.optimizer, state) {
        (Optimizer::RmsProp { alpha, epsilon }, [square]) => {
            *square = alpha * *square + (1.0 - alpha) * gradient * gradient;
            weight - rate * gradient / (square.sqrt() + epsilon)
        }
        (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [mean, square]) => {
            *mean = beta1 * *mean + (1.0 - beta1) * gradient;
            *square = beta2 * *square + (1.0 - beta2) * gradient * gradient;
            let step = rule.step as f64;
            let corrected_mean = *mean / (1.0 - beta1.powf(step));
            let corrected_square = *square / (1.0 - beta2.powf(step));
            weight * (1.0 - rate * weight_decay)
                - rate * corrected_mean / (corrected_square.sqrt() + epsilon)
        }
        (Optimizer::Sgd { momentum }, [velocity]) => {
            *velocity = momentum * *velocity + gradient;
            weight - rate * *velocity
        }
        _ => weight - rate * gradient,
    }
}
