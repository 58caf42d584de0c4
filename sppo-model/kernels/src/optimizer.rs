//! Optimiser steps, each one pass over memory, with the arithmetic of `torch.optim`.

use rayon::prelude::*;

use super::TASK_ELEMENTS;
use super::vector::vectorised;

vectorised! {
    fn rms_prop_slice(
        values: &mut [f32],
        gradients: &[f32],
        averages: &mut [f32],
        constants: RmsProp,
    ) {
        let RmsProp { learning_rate, gradient_scale, alpha, complement, epsilon } = constants;
        for ((value, &gradient), average) in values.iter_mut().zip(gradients).zip(averages) {
            let gradient = gradient * gradient_scale;
            *average = alpha * *average + complement * gradient * gradient;
            *value -= learning_rate * gradient / (average.sqrt() + epsilon);
        }
    }
}

vectorised! {
    fn adam_w_slice(
        values: &mut [f32],
        gradients: &[f32],
        first_moments: &mut [f32],
        second_moments: &mut [f32],
        constants: AdamW,
    ) {
        let moments = first_moments.iter_mut().zip(second_moments);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradients).zip(moments) {
            let gradient = gradient * constants.gradient_scale;
            *first += constants.complement1 * (gradient - *first);
            *second = constants.beta2 * *second + constants.complement2 * gradient * gradient;
            let denominator = second.sqrt() / constants.second_correction_root + constants.epsilon;
            *value = *value * constants.decay - constants.step_size * *first / denominator;
        }
    }
}

vectorised! {
    fn sgd_slice(values: &mut [f32], gradients: &[f32], learning_rate: f32, gradient_scale: f32) {
        for (value, &gradient) in values.iter_mut().zip(gradients) {
            *value -= learning_rate * (gradient * gradient_scale);
        }
    }
}

vectorised! {
    fn momentum_slice(
        values: &mut [f32],
        gradients: &[f32],
        velocities: &mut [f32],
        constants: Momentum,
    ) {
        for ((value, &gradient), velocity) in values.iter_mut().zip(gradients).zip(velocities) {
            *velocity = constants.momentum * *velocity + gradient * constants.gradient_scale;
            *value -= constants.learning_rate * *velocity;
        }
    }
}

/// Constants of an RMSProp step; `complement` is `1 - alpha`, rounded once from f64.
#[derive(Clone, Copy)]
pub struct RmsProp {
    pub learning_rate: f32,
    pub gradient_scale: f32,
    pub alpha: f32,
    pub complement: f32,
    pub epsilon: f32,
}

impl RmsProp {
    /// `v <- alpha v + (1 - alpha) g^2; w <- w - lr g / (sqrt(v) + epsilon)`.
    pub fn apply(self, values: &mut [f32], gradients: &[f32], averages: &mut [f32]) {
        values
            .par_chunks_mut(TASK_ELEMENTS)
            .zip(gradients.par_chunks(TASK_ELEMENTS))
            .zip(averages.par_chunks_mut(TASK_ELEMENTS))
            .for_each(|((values, gradients), averages)| {
                rms_prop_slice(values, gradients, averages, self);
            });
    }
}

/// Constants of an AdamW step.
#[derive(Clone, Copy)]
pub struct AdamW {
    gradient_scale: f32,
    complement1: f32,
    beta2: f32,
    complement2: f32,
    epsilon: f32,
    decay: f32,
    step_size: f32,
    second_correction_root: f32,
}

impl AdamW {
    /// Constants of step number `step` (from 1).
    pub fn new(
        [beta1, beta2, epsilon, weight_decay]: [f64; 4],
        learning_rate: f64,
        gradient_scale: f64,
        step: u64,
    ) -> Self {
        let exponent = step as f64;
        Self {
            gradient_scale: gradient_scale as f32,
            complement1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            complement2: (1.0 - beta2) as f32,
            epsilon: epsilon as f32,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            step_size: (learning_rate / (1.0 - beta1.powf(exponent))) as f32,
            second_correction_root: (1.0 - beta2.powf(exponent)).sqrt() as f32,
        }
    }

    /// Decoupled weight decay and bias correction (arXiv 1711.05101).
    pub fn apply(
        self,
        values: &mut [f32],
        gradients: &[f32],
        first_moments: &mut [f32],
        second_moments: &mut [f32],
    ) {
        values
            .par_chunks_mut(TASK_ELEMENTS)
            .zip(gradients.par_chunks(TASK_ELEMENTS))
            .zip(first_moments.par_chunks_mut(TASK_ELEMENTS))
            .zip(second_moments.par_chunks_mut(TASK_ELEMENTS))
            .for_each(|(((values, gradients), first), second)| {
                adam_w_slice(values, gradients, first, second, self);
            });
    }
}

/// `w <- w - lr g`.
pub fn sgd(values: &mut [f32], gradients: &[f32], learning_rate: f32, gradient_scale: f32) {
    values.par_chunks_mut(TASK_ELEMENTS).zip(gradients.par_chunks(TASK_ELEMENTS)).for_each(
        |(values, gradients)| sgd_slice(values, gradients, learning_rate, gradient_scale),
    );
}

/// Constants of a step of gradient descent with momentum.
#[derive(Clone, Copy)]
pub struct Momentum {
    pub learning_rate: f32,
    pub gradient_scale: f32,
    pub momentum: f32,
}

impl Momentum {
    /// `b <- momentum b + g; w <- w - lr b`.
    pub fn apply(self, values: &mut [f32], gradients: &[f32], velocities: &mut [f32]) {
        values
            .par_chunks_mut(TASK_ELEMENTS)
            .zip(gradients.par_chunks(TASK_ELEMENTS))
            .zip(velocities.par_chunks_mut(TASK_ELEMENTS))
            .for_each(|((values, gradients), velocities)| {
                momentum_slice(values, gradients, velocities, self);
            });
    }
}

vectorised! {
    fn square_sum_slice(x: &[f32]) -> f64 {
        const LANES: usize = 8;
        let mut lanes = [0.0; LANES];
        let blocks = x.chunks_exact(LANES);
        let rest: f64 = blocks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        for block in blocks {
            for (lane, &x) in lanes.iter_mut().zip(block) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        lanes.iter().sum::<f64>() + rest
    }
}

/// Sum of squares, added in a fixed order.
pub fn square_sum(x: &[f32]) -> f64 {
    let partial_sums: Vec<f64> = x.par_chunks(TASK_ELEMENTS).map(square_sum_slice).collect();
    partial_sums.iter().sum()
}
