//! Confidence intervals by the percentile bootstrap: a statistic is computed again on samples drawn from
//! the sample with replacement.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// An estimate with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate, in most cases the mean of a sample.
    pub mean: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

/// The way intervals are made. The same settings and sample give the same interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bootstrap {
    /// Number of resamples; without any, intervals have no width.
    pub resamples: usize,
    /// Share of the resampled statistics that lies in the interval, between 0 and 1.
    pub confidence: f64,
    /// Seed of the draws.
    pub seed: u64,
}

impl Bootstrap {
    /// The mean of `values` with its interval. A single value gives an interval of zero width, no values
    /// give NaN.
    #[must_use]
    pub fn mean(&self, values: &[f64]) -> Interval {
        self.interval([values.len()], |[drawn]| {
            drawn.iter().map(|&index| values[index]).sum::<f64>() / drawn.len() as f64
        })
    }

    /// A statistic of observations, which is given the indices of those to use. Observations may be crossed,
    /// for instance seeds with prompts: then each factor is drawn on its own (Owen, *The pigeonhole
    /// bootstrap*, 2007), and the statistic is given the indices to use of each factor.
    #[must_use]
    pub fn interval<const FACTORS: usize>(
        &self,
        counts: [usize; FACTORS],
        statistic: impl FnMut([Vec<usize>; FACTORS]) -> f64,
    ) -> Interval {
        let (estimate, resampled) = self.resampled(counts, statistic);
        self.cut(estimate, resampled)
    }

    /// Several statistics of the same resamples, otherwise as [`Self::interval`]. The function returns
    /// equally many each time.
    #[must_use]
    pub fn intervals<const FACTORS: usize>(
        &self,
        counts: [usize; FACTORS],
        statistics: impl FnMut([Vec<usize>; FACTORS]) -> Vec<f64>,
    ) -> Vec<Interval> {
        let (estimates, resampled) = self.resampled(counts, statistics);
        let of_statistic = |(index, &estimate): (usize, &f64)| {
            self.cut(estimate, resampled.iter().map(|statistics| statistics[index]).collect())
        };
        estimates.iter().enumerate().map(of_statistic).collect()
    }

    /// The statistic of the whole sample, and of each resample.
    fn resampled<const FACTORS: usize, T>(
        &self,
        counts: [usize; FACTORS],
        mut statistic: impl FnMut([Vec<usize>; FACTORS]) -> T,
    ) -> (T, Vec<T>) {
        let estimate = statistic(counts.map(|count| (0..count).collect()));
        if counts.contains(&0) || counts.iter().all(|&count| count == 1) {
            return (estimate, Vec::new());
        }
        let mut generator = ChaCha8Rng::seed_from_u64(self.seed);
        let mut draw = |count: usize| match count {
            1 => vec![0],
            _ => (0..count).map(|_| (generator.next_u64() % count as u64) as usize).collect(),
        };
        let resampled = (0..self.resamples).map(|_| statistic(counts.map(&mut draw))).collect();
        (estimate, resampled)
    }

    /// The middle share of the resampled statistics.
    fn cut(&self, estimate: f64, mut resampled: Vec<f64>) -> Interval {
        resampled.sort_by(f64::total_cmp);
        let tail = (1.0 - self.confidence) / 2.0;
        let last = resampled.len().saturating_sub(1) as f64;
        let at = |quantile: f64| {
            resampled.get((last * quantile).round() as usize).copied().unwrap_or(estimate)
        };
        Interval { mean: estimate, low: at(tail), high: at(1.0 - tail) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 4000, confidence: 0.95, seed: 3 };

    #[test]
    fn it_agrees_with_the_normal_interval_of_a_large_sample() {
        let values: Vec<f64> = (0..400).map(|index| f64::from(u8::from(index % 4 != 0))).collect();
        let interval = BOOTSTRAP.mean(&values);
        let half_width = 1.96 * (0.75f64 * 0.25 / 400.0).sqrt();
        assert_eq!(interval.mean, 0.75);
        assert!((interval.low - (0.75 - half_width)).abs() < 0.005, "{interval:?}");
        assert!((interval.high - (0.75 + half_width)).abs() < 0.005, "{interval:?}");
        assert_eq!(interval, BOOTSTRAP.mean(&values));
    }

    #[test]
    fn one_value_has_no_width() {
        let interval = BOOTSTRAP.mean(&[0.25]);
        assert_eq!(interval, Interval { mean: 0.25, low: 0.25, high: 0.25 });
        assert!(BOOTSTRAP.mean(&[]).mean.is_nan());
    }

    #[test]
    fn what_seeds_have_in_common_does_not_vanish_in_the_number_of_prompts() {
        // Seeds differ by 0.2, prompts not at all.
        let of = |[seeds, prompts]: [Vec<usize>; 2]| {
            let sum: f64 = seeds.iter().map(|&seed| 0.2 * seed as f64 * prompts.len() as f64).sum();
            sum / (seeds.len() * prompts.len()) as f64
        };
        let several = BOOTSTRAP.interval([2, 100], of);
        assert_eq!([several.low, several.mean, several.high], [0.0, 0.1, 0.2]);
        let one = BOOTSTRAP.interval([1, 100], of);
        assert_eq!([one.low, one.high], [0.0, 0.0]);
    }
}
