//! Pseudo-random numbers that depend on a key alone: dropout masks, which are drawn twice, and test data.

/// A number that depends on both others (the finaliser of SplitMix64).
pub(crate) fn mix(key: u64, number: u64) -> u64 {
    let mut mixed = key ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Zeroes each value with the given probability, and scales the others up to keep the mean. The
/// choice depends on the seed and the index.
pub(crate) fn drop_values(values: &mut [f32], probability: f32, seed: u64) {
    let kept = 1.0 / (1.0 - probability);
    let threshold = (f64::from(probability) * (1_u64 << 53) as f64) as u64;
    for (index, value) in (0..).zip(values) {
        let dropped = mix(seed, index) >> 11 < threshold;
        *value = if dropped { 0.0 } else { *value * kept };
    }
}

/// A stream of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Noise(pub(crate) u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in `[-1, 1)`.
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// That many uniform numbers.
    pub(crate) fn values(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.uniform()).collect()
    }

    /// That many indices below `bound`.
    pub(crate) fn indices(&mut self, count: usize, bound: usize) -> Vec<u32> {
        (0..count).map(|_| (self.next() % bound as u64) as u32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_leaves_out_the_given_share_and_keeps_the_mean() {
        let mut values = vec![1.0_f32; 100_000];
        drop_values(&mut values, 0.3, 7);
        let dropped = values.iter().filter(|value| **value == 0.0).count();
        assert!((dropped as f64 / 1e5 - 0.3).abs() < 0.005, "{dropped}");
        assert!(values.iter().all(|&value| value == 0.0 || (value - 1.0 / 0.7).abs() < 1e-6));
        let mut again = vec![1.0_f32; 100_000];
        drop_values(&mut again, 0.3, 7);
        assert_eq!(values, again);
        let mut other = vec![1.0_f32; 100_000];
        drop_values(&mut other, 0.3, 8);
        assert_ne!(values, other);
    }
}
