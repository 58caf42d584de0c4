//! Pseudo-random data and comparison with an exact result, for several test modules.

/// Reproducible numbers between -1 and 1.
pub(crate) fn random(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

/// Asserts that values agree within `tolerance` of the larger of 1 and the exact value.
#[track_caller]
pub(crate) fn assert_close(values: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(values.len(), exact.len());
    for (index, (&value, &exact)) in values.iter().zip(exact).enumerate() {
        assert!(
            (f64::from(value) - exact).abs() <= tolerance * exact.abs().max(1.0),
            "element {index} is {value}, not {exact}"
        );
    }
}
