//! Confidence intervals.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// A mean with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean of the sample.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The mean of `values` with its percentile bootstrap interval: means of `resamples` samples drawn
/// from the values with replacement, cut to the middle `confidence` share. The same seed gives the same
/// interval. A single value gives an interval of zero width, no values give NaN.
#[must_use]
pub fn bootstrap_mean_interval(
    values: &[f64],
    resamples: usize,
    confidence: f64,
    seed: u64,
) -> Interval {
    let count = values.len();
    let mean = values.iter().sum::<f64>() / count as f64;
    if count < 2 || resamples == 0 {
        return Interval { mean, low: mean, high: mean };
    }
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    let mut means: Vec<f64> = (0..resamples)
        .map(|_| {
            let draw = |_| values[(generator.next_u64() % count as u64) as usize];
            (0..count).map(draw).sum::<f64>() / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let tail = (1.0 - confidence) / 2.0;
    let at = |quantile: f64| means[((resamples - 1) as f64 * quantile).round() as usize];
    Interval { mean, low: at(tail), high: at(1.0 - tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_normal_interval_of_a_large_sample() {
        let values: Vec<f64> = (0..400).map(|index| f64::from(u8::from(index % 4 != 0))).collect();
        let interval = bootstrap_mean_interval(&values, 4000, 0.95, 3);
        let half_width = 1.96 * (0.75f64 * 0.25 / 400.0).sqrt();
        assert_eq!(interval.mean, 0.75);
        assert!((interval.low - (0.75 - half_width)).abs() < 0.005, "{interval:?}");
        assert!((interval.high - (0.75 + half_width)).abs() < 0.005, "{interval:?}");
        assert_eq!(interval, bootstrap_mean_interval(&values, 4000, 0.95, 3));
    }

    #[test]
    fn one_value_has_no_width() {
        let interval = bootstrap_mean_interval(&[0.25], 100, 0.95, 0);
        assert_eq!(interval, Interval { mean: 0.25, low: 0.25, high: 0.25 });
    }
}
