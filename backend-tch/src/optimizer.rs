//! The optimisers' steps and the gradient's norm, in place.
//!
//! A step is half a dozen elementwise kernels. On the CPU they run over one stretch of the weight after
//! the other, short enough to stay in the cache from kernel to kernel; so a weight goes through memory
//! once per step. A CUDA device takes a weight as a whole.

use sppo_model::ModelError;
use sppo_model::ops::UpdateRule;
use sppo_plugin::Optimizer;
use tch::{Device, Tensor};

use crate::tensors::TorchResult;

/// Numbers that a kernel takes at a time on the CPU: half a mebibyte, shared by the cores.
const STRETCH: i64 = 1 << 17;

/// Applies a gradient to a weight.
pub(crate) fn apply(
    rule: &UpdateRule,
    value: &Tensor,
    gradient: &Tensor,
    state: &[Tensor],
) -> TorchResult<()> {
    let value = value.f_view(-1)?;
    let gradient = gradient.f_view(-1)?;
    let state: Vec<Tensor> =
        state.iter().map(|state| Ok(state.f_view(-1)?)).collect::<TorchResult<_>>()?;
    for (start, length) in stretches(&value) {
        let part = |tensor: &Tensor| tensor.f_narrow(0, start, length);
        let state = state.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        step(rule, part(&value)?, &part(&gradient)?, state)?;
    }
    Ok(())
}

/// Sum of squares in f64.
pub(crate) fn square_sum(gradient: &Tensor) -> TorchResult<f64> {
    let gradient = gradient.f_view(-1)?;
    let mut sum = 0.0;
    for (start, length) in stretches(&gradient) {
        let part = gradient.f_narrow(0, start, length)?;
        sum += part.f_dot(&part)?.f_double_value(&[])?;
    }
    Ok(sum)
}

/// Starts and lengths of the parts that kernels take at a time.
fn stretches(flat: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let total = flat.numel() as i64;
    let stretch = if flat.device() == Device::Cpu { STRETCH } else { total.max(1) };
    (0..total).step_by(stretch as usize).map(move |start| (start, stretch.min(total - start)))
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
