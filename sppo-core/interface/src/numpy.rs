//! The two NumPy 1.26 operations whose last bit the released scripts' numbers depend on.

use std::ops::Add;

/// `numpy.sum` over a contiguous row: in order below 8 values, else eight running sums that are
/// combined as a tree, and halves of longer rows.
pub(crate) fn sum<T: Copy + Default + Add<Output = T>>(values: &[T]) -> T {
    const LANES: usize = 8;
    const BLOCK: usize = 128;
    let in_order = |start, rest: &[T]| rest.iter().fold(start, |total, &value| total + value);
    if values.len() > BLOCK {
        let half = values.len() / 2;
        let (left, right) = values.split_at(half - half % LANES);
        return sum(left) + sum(right);
    }
    let (rows, rest) = values.as_chunks::<LANES>();
    let Some((first, rows)) = rows.split_first() else {
        return in_order(T::default(), rest);
    };
    let mut lane = *first;
    for row in rows {
        lane.iter_mut().zip(row).for_each(|(total, &value)| *total = *total + value);
    }
    let [a, b, c, d, e, f, g, h] = lane;
    in_order(((a + b) + (c + d)) + ((e + f) + (g + h)), rest)
}

/// `numpy.exp` of a float32, bit for bit as NumPy computes it on x86-64 with AVX2 or AVX-512.
///
/// NumPy does not call the C library here, and its result is the correctly rounded one only about
/// 60 % of the time. It reduces `x = k ln 2 + r` with a two-part `ln 2` (Cody and Waite) and
/// evaluates `exp(r)` as a ratio of two minimax polynomials of degrees 5 and 2, every step a fused
/// multiply-add.
pub(crate) fn exp_f32(x: f32) -> f32 {
    const LARGEST: f32 = 88.722_84;
    const SMALLEST: f32 = -103.972_084;
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    const NUMERATOR: [f32; 6] =
        [1.0, 0.725_766_5, 0.247_361_54, 0.051_145_12, 6.757_897e-3, 5.082_763e-4];
    const DENOMINATOR: [f32; 3] = [1.0, -0.274_233_55, 0.021_595_094];

    if x > LARGEST {
        return f32::INFINITY;
    }
    if x < SMALLEST {
        return 0.0;
    }
    let power = (x * std::f32::consts::LOG2_E).round_ties_even();
    let remainder = power.mul_add(-LN_2_LOW, power.mul_add(-LN_2_HIGH, x));
    let polynomial = |coefficients: &[f32]| {
        coefficients.iter().rev().fold(0.0_f32, |value, &c| value.mul_add(remainder, c))
    };
    let mantissa = polynomial(&NUMERATOR) / polynomial(&DENOMINATOR);
    // Exact in f64, so that a subnormal result is rounded once.
    (f64::from(mantissa) * 2.0_f64.powi(power as i32)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit patterns printed by NumPy 1.26.4 on x86-64.
    #[test]
    fn exp_agrees_with_numpy_bit_for_bit() {
        for (x, bits) in [
            (-103.97208_f32, 0x1),
            (-103.0, 0x1),
            (-87.5, 0x006c_b2bc),
            (-20.25, 0x30dc_9ef2),
            (-1.0, 0x3ebc_5ab1),
            (-0.3, 0x3f3d_a643),
            (0.0, 0x3f80_0000),
            (0.1, 0x3f8d_763e),
            (1.0, 0x402d_f855),
            (3.3, 0x41d8_e6af),
            (20.25, 0x4e14_86bc),
            (88.7, 0x7f7a_37fd),
            (88.8, 0x7f80_0000),
        ] {
            assert_eq!(exp_f32(x).to_bits(), bits, "exp({x})");
        }
    }

    /// A polynomial hash over the bits of 13120 results from -110 to 95, against NumPy 1.26.4's.
    #[test]
    fn exp_agrees_with_numpy_over_the_whole_range() {
        let hash = (-110 * 64..95 * 64).fold(0_u64, |hash, step| {
            let x = step as f32 / 64.0 * 1.000_976_6;
            hash.wrapping_mul(1_099_511_628_211).wrapping_add(u64::from(exp_f32(x).to_bits()))
        });
        assert_eq!(hash, 8_176_024_865_361_229_208);
    }

    #[test]
    fn sum_is_in_order_for_few_values_and_a_tree_for_many() {
        // Adding 1 to 2^24 is lost in f32, so the order shows.
        let big = 16_777_216.0_f32;
        assert_eq!(sum(&[big, 1.0, 1.0, 1.0, 1.0]), big);
        assert_eq!(sum(&[1.0, 1.0, 1.0, 1.0, big]), big + 4.0);
        assert_eq!(sum(&[big, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]), big + 6.0);
        assert_eq!(sum(&[1.0_f64; 1000]), 1000.0);
        assert_eq!(sum::<f32>(&[]), 0.0);
    }
}
