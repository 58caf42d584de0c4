//! Learning-rate schedules, as `transformers.get_scheduler` computes them.

use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// Linear decay to 0.
    #[default]
    Linear,
    /// Half a cosine, down to 0.
    Cosine,
    /// Constant.
    Constant,
}

/// A linear warm-up from 0, then a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Shape after the warm-up.
    pub shape: ScheduleShape,
    /// Share of all steps in the warm-up, rounded up.
    pub warmup_ratio: f64,
}

impl Schedule {
    /// Factor of the peak learning rate at optimiser step `step` (from 0) of `steps`.
    ///
    /// With a warm-up, step 0 has a rate of 0. For a schedule longer than the training, as in the
    /// paper (18 epochs, of which 1 is trained), `steps` counts the steps of the whole schedule.
    #[must_use]
    pub fn multiplier(&self, step: u64, steps: u64) -> f64 {
        let warmup = (self.warmup_ratio * steps as f64).ceil() as u64;
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let (after, decaying) =
            ((step - warmup) as f64, steps.saturating_sub(warmup).max(1) as f64);
        match self.shape {
            ScheduleShape::Linear => (steps.saturating_sub(step) as f64 / decaying).max(0.0),
            ScheduleShape::Cosine => (0.5 * (1.0 + (PI * after / decaying).cos())).max(0.0),
            ScheduleShape::Constant => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAR: Schedule = Schedule { shape: ScheduleShape::Linear, warmup_ratio: 0.1 };
    const PEAK: f64 = 5e-7;
    const STEPS_PER_EPOCH: u64 = 313;

    /// Learning rates of one epoch of 20000 rows at batch 64, with `planned` epochs planned.
    fn one_epoch(planned: u64) -> Vec<f64> {
        let rate = |step| PEAK * LINEAR.multiplier(step, planned * STEPS_PER_EPOCH);
        (0..STEPS_PER_EPOCH).map(rate).collect()
    }

    #[test]
    fn the_three_documented_schedules_have_their_documented_rates() {
        let documented = [(18, 2.77e-7, 1.38e-7), (6, 4.63e-7, 3.4e-7), (1, 0.0, 2.5e-7)];
        for (planned, last, mean) in documented {
            let rates = one_epoch(planned);
            let found_mean = rates.iter().sum::<f64>() / rates.len() as f64;
            assert!(
                (found_mean - mean).abs() < 0.02e-7 + 0.01 * mean,
                "{planned}: mean {found_mean}"
            );
            let found = rates[rates.len() - 1];
            assert!((found - last).abs() < 0.03e-7, "{planned}: last {found}");
        }
    }

    #[test]
    fn the_first_step_of_a_warm_up_does_not_move() {
        assert_eq!(LINEAR.multiplier(0, 313), 0.0);
        assert_eq!(LINEAR.multiplier(32, 313), 1.0);
        assert_eq!(LINEAR.multiplier(16, 313), 0.5);
    }

    #[test]
    fn shapes_end_where_they_should() {
        let at_end = |shape| Schedule { shape, warmup_ratio: 0.0 }.multiplier(100, 100);
        assert_eq!(at_end(ScheduleShape::Linear), 0.0);
        assert!(at_end(ScheduleShape::Cosine).abs() < 1e-15);
        assert_eq!(at_end(ScheduleShape::Constant), 1.0);
        let halfway =
            Schedule { shape: ScheduleShape::Cosine, warmup_ratio: 0.0 }.multiplier(50, 100);
        assert!((halfway - 0.5).abs() < 1e-15);
    }
}
