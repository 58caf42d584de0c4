//! The exponential function as numpy computes it in single precision.
//!
//! The released code takes `np.exp` of float32 scores, and numpy's own kernel differs from a correctly
//! rounded exponential in the last bit now and then. Probabilities that are to be the same to the last
//! bit need the same kernel: reduction by multiples of `ln 2` in two parts, and a rational function of
//! degree 5 over 2 (the constants of numpy's `loops_exponent_log` dispatch, which it uses wherever the
//! processor has fused multiplication and addition).

const NUMERATOR: [f32; 6] =
    [5.082_762_5e-4, 6.757_897e-3, 5.114_512e-2, 0.247_361_54, 0.725_766_46, 1.0];
const DENOMINATOR: [f32; 3] = [2.159_509_4e-2, -0.274_233_54, 1.0];
const LN_2_HIGH: f32 = 6.931_457_5e-1;
const LN_2_LOW: f32 = 1.428_606_8e-6;
/// Adding and subtracting it rounds to the nearest integer, ties to even.
const ROUNDING: f32 = 12_582_912.0;
/// Beyond these the result is infinite or zero.
const LARGEST: f32 = 88.722_84;
const SMALLEST: f32 = -103.972_08;

/// `exp(x)`, bit for bit as `numpy.exp(numpy.float32(x))`.
pub(crate) fn numpy_exp(x: f32) -> f32 {
    if x > LARGEST {
        return f32::INFINITY;
    }
    if x < SMALLEST {
        return 0.0;
    }
    let quotient = (x * std::f32::consts::LOG2_E + ROUNDING) - ROUNDING;
    let remainder = quotient.mul_add(-LN_2_LOW, quotient.mul_add(-LN_2_HIGH, x));
    let polynomial = |coefficients: &[f32]| {
        coefficients.iter().copied().reduce(|sum, next| sum.mul_add(remainder, next)).unwrap_or(0.0)
    };
    let mantissa = polynomial(&NUMERATOR) / polynomial(&DENOMINATOR);
    (f64::from(mantissa) * f64::from(quotient).exp2()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_numpys_to_the_last_bit() {
        // x, numpy.exp(numpy.float32(x)) as bits, numpy 1.26.4 and 2.4.6.
        let golden: [(f32, u32); 10] = [
            (0.0, 0x3f800000),
            (-4.6, 0x3c24b076),
            (1.0, 0x402df855),
            (-88.5, 0x0027fce2),
            (0.7092975, 0x40021583),
            (-11.2901125, 0x3751a558),
            (17.305721, 0x4bfa308e),
            (-11.8083105, 0x36f9ba27),
            (-100.0, 0x0000001b),
            (88.7, 0x7f7a37fd),
        ];
        for (x, bits) in golden {
            assert_eq!(numpy_exp(x).to_bits(), bits, "exp({x})");
        }
    }
}
