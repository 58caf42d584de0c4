//! The optimisers' steps and the gradient's norm, in place.
//!
//! A step is half a dozen elementwise kernels. They run over one [`Stretch`] of the weight after the other: on
//! the CPU a weight so goes through memory once per step, on a CUDA device temporary tensors stay small.

use sppo_model::ModelError;
use sppo_model::ops::UpdateRule;
use sppo_plugin::Optimizer;
use tch::{Kind, Tensor};

use crate::masters::{Masters, Stretch};
use crate::tensors::TorchResult;

/// Applies a gradient to the values of a weight; gradient and state are flat.
pub(crate) fn apply(
    rule: &UpdateRule,
    mut values: Masters<'_>,
    gradient: &Tensor,
    state: &[Tensor],
) -> TorchResult<()> {
    for stretch in Stretch::all(values.flat()) {
        let state = state.iter().map(|state| stretch.of(state)).collect::<TorchResult<_>>()?;
        let gradient = stretch.of(gradient)?.f_to_kind(Kind::Float)?;
        values.change(stretch, |values| step(rule, values, &gradient, state))?;
    }
    Ok(())
}

/// Sum of squares in f64.
pub(crate) fn square_sum(gradient: &Tensor) -> TorchResult<f64> {
    let gradient = gradient.f_view(-1)?;
    let mut sum = 0.0;
    for stretch in Stretch::all(&gradient) {
        let part = stretch.of(&gradient)?.f_to_kind(Kind::Float)?;
        sum += part.f_dot(&part)?.f_double_value(&[])?;
    }
    Ok(sum)
}

fn step(
    rule: &UpdateRule,
    mut value: Tensor,
    gradient: &Tensor,
    mut state: Vec<Tensor>,
) -> TorchResult<()> {
    let (rate, scale) = (rule.learning_rate, rule.gradient_scale);
    let scaled = (scale != 1.0).then(|| gradient.f_mul_scalar(scale)).transpose()?;
    let gradient = scaled.as_ref().unwrap_or(gradient);
    match (&rule.optimizer, &mut state[..]) {
        (Optimizer::RmsProp { alpha, epsilon }, [averages]) => {
            let _ = averages.f_lerp_(&gradient.f_square()?, 1.0 - alpha)?;
            let mut divisor = averages.f_sqrt()?;
            let _ = divisor.f_add_scalar_(*epsilon)?;
            let mut change = gradient.f_div(&divisor)?;
            let _ = change.f_mul_scalar_(-rate)?;
            let _ = value.f_add_(&change)?;
        }
        (Optimizer::AdamW { beta1, beta2, epsilon, weight_decay }, [first, second]) => {
            let steps = rule.step.min(i32::MAX as u64) as i32;
            let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
            let _ = value.f_mul_scalar_(1.0 - rate * weight_decay)?;
            let _ = first.f_lerp_(gradient, 1.0 - beta1)?;
            let _ = second.f_lerp_(&gradient.f_square()?, 1.0 - beta2)?;
            let mut divisor = second.f_sqrt()?;
            let _ = divisor.f_mul_scalar_(1.0 / correction2.sqrt())?;
            let _ = divisor.f_add_scalar_(*epsilon)?;
            let mut change = first.f_div(&divisor)?;
            let _ = change.f_mul_scalar_(-rate / correction1)?;
            let _ = value.f_add_(&change)?;
        }
        (Optimizer::Sgd { momentum }, [velocities]) => {
            let _ = velocities.f_mul_scalar_(*momentum)?;
            let _ = velocities.f_add_(gradient)?;
            let _ = value.f_add_(&velocities.f_mul_scalar(-rate)?)?;
        }
        (Optimizer::Sgd { .. }, []) => {
            let _ = value.f_add_(&gradient.f_mul_scalar(-rate)?)?;
        }
        (optimizer, state) => {
            let count = state.len();
            return Err(ModelError::Backend(format!(
                "{count} state tensors do not fit the optimiser {optimizer:?}"
            ))
            .into());
        }
    }
    Ok(())
}
