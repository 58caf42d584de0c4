//! Building blocks of vectorised loops: run-time choice of the instruction set, exponentials and
//! reductions written so that the compiler turns them into vector instructions.

/// Compiles a function twice, for AVX2 with fused multiply-add and for any processor, and picks at
/// run time. In its body the constant `FUSED` tells whether [`multiply_add`] is one instruction.
/// Loops in the body must be plain: a closure handed to an iterator adaptor may be compiled on its
/// own, without the instruction set.
macro_rules! vectorised {
    ($(#[$attribute:meta])* $visibility:vis fn $name:ident($($argument:ident: $type:ty),* $(,)?)
        $(-> $result:ty)? $body:block) => {
        $(#[$attribute])*
        $visibility fn $name($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn body<const FUSED: bool>($($argument: $type),*) $(-> $result)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2($($argument: $type),*) $(-> $result)? {
                    body::<true>($($argument),*)
                }
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("fma")
                {
                    // SAFETY: the processor has the instructions that the function is compiled for.
                    return unsafe { with_avx2($($argument),*) };
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($argument),*)
        }
    };
}
pub(crate) use vectorised;

/// Independent accumulators of a reduction.
const LANES: usize = 16;

/// `a * b + c`, rounded once where the processor can do so in one instruction.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x) - 1 = scale * fraction + (scale - 1)`, with `scale` a power of two and `fraction` accurate
/// near 0. Arguments below -87.3 and above 88.3 are taken as those; NaN stays NaN.
#[inline(always)]
fn exponential_parts<const FUSED: bool>(x: f32) -> (f32, f32) {
    /// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUNDING: f32 = 12_582_912.0;
    /// ln 2 in two parts; the first has few enough bits that its multiples are exact.
    const LN_2_HIGH: f32 = 355.0 / 512.0;
    const LN_2_LOW: f32 = -2.121_944_4e-4;

    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let rounded = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUNDING);
    let exponent = rounded - ROUNDING;
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let r = multiply_add::<FUSED>(exponent, -LN_2_HIGH, x);
    let r = multiply_add::<FUSED>(exponent, -LN_2_LOW, r);
    // The Taylor series of (exp(r) - 1) / r; |r| <= ln(2) / 2 leaves a relative error below 2e-8.
    let series = multiply_add::<FUSED>(r, 1.0 / 5040.0, 1.0 / 720.0);
    let series = multiply_add::<FUSED>(r, series, 1.0 / 120.0);
    let series = multiply_add::<FUSED>(r, series, 1.0 / 24.0);
    let series = multiply_add::<FUSED>(r, series, 1.0 / 6.0);
    let series = multiply_add::<FUSED>(r, series, 0.5);
    let series = multiply_add::<FUSED>(r, series, 1.0);
    (scale, r * series)
}

/// `exp(x)`, at most 2.2e38 and at least 1.2e-38.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    let (scale, fraction) = exponential_parts::<FUSED>(x);
    multiply_add::<FUSED>(scale, fraction, scale)
}

/// `1 / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// `tanh(x)`, accurate relative to its value near 0 too.
#[inline(always)]
pub(crate) fn tanh<const FUSED: bool>(x: f32) -> f32 {
    let x = if x > 10.0 { 10.0 } else { x };
    let (scale, fraction) = exponential_parts::<FUSED>(2.0 * x);
    let exponential_less_one = multiply_add::<FUSED>(scale, fraction, scale - 1.0);
    exponential_less_one / (exponential_less_one + 2.0)
}

/// `x` times the standard normal distribution function: GELU.
#[inline(always)]
pub(crate) fn gelu<const FUSED: bool>(x: f32) -> f32 {
    // erfc(z) = (a1 t + ... + a5 t^5) exp(-z^2), t = 1 / (1 + p z), within 1.5e-7 for z >= 0
    // (Abramowitz and Stegun 7.1.26); gelu(x) = max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2.
    let magnitude = x.abs();
    let z = magnitude * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / multiply_add::<FUSED>(0.327_591_1, z, 1.0);
    let series = multiply_add::<FUSED>(t, 1.061_405_4, -1.453_152);
    let series = multiply_add::<FUSED>(t, series, 1.421_413_7);
    let series = multiply_add::<FUSED>(t, series, -0.284_496_74);
    let series = multiply_add::<FUSED>(t, series, 0.254_829_6);
    let complement = t * series * exp::<FUSED>(-z * z);
    let positive = if x > 0.0 { x } else { 0.0 };
    multiply_add::<FUSED>(-0.5 * magnitude, complement, positive)
}

/// `cap * tanh(x / cap)`, with the cap's inverse at hand.
#[inline(always)]
pub(crate) fn soft_cap<const FUSED: bool>(x: f32, cap: f32, inverse: f32) -> f32 {
    cap * tanh::<FUSED>(x * inverse)
}

#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Sum of `exp(x - shift)`.
#[inline(always)]
pub(crate) fn sum_of_exponentials<const FUSED: bool>(x: &[f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let blocks = x.chunks_exact(LANES);
    let mut rest = 0.0;
    for &x in blocks.remainder() {
        rest += exp::<FUSED>(x - shift);
    }
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += exp::<FUSED>(x - shift);
        }
    }
    fold_lanes(lanes, |a, b| a + b) + rest
}

/// Sum of the elements.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest: f32 = blocks.remainder().iter().sum();
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane += x;
        }
    }
    fold_lanes(lanes, |a, b| a + b) + rest
}

/// Sum of products.
#[inline(always)]
pub(crate) fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (a_blocks, b_blocks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 =
        a_blocks.remainder().iter().zip(b_blocks.remainder()).map(|(&a, &b)| a * b).sum();
    for (a, b) in a_blocks.zip(b_blocks) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = multiply_add::<FUSED>(a, b, *lane);
        }
    }
    fold_lanes(lanes, |a, b| a + b) + rest
}

/// The largest element; negative infinity for none.
#[inline(always)]
pub(crate) fn maximum_of(x: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let blocks = x.chunks_exact(LANES);
    let rest = blocks.remainder().iter().copied().fold(f32::NEG_INFINITY, larger);
    for block in blocks {
        for (lane, &x) in lanes.iter_mut().zip(block) {
            *lane = larger(*lane, x);
        }
    }
    larger(fold_lanes(lanes, larger), rest)
}

/// Replaces each element by `exp(x - shift)` and returns their sum.
#[inline(always)]
pub(crate) fn exponentials<const FUSED: bool>(x: &mut [f32], shift: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut blocks = x.chunks_exact_mut(LANES);
    for block in &mut blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *x = exp::<FUSED>(*x - shift);
            *lane += *x;
        }
    }
    let mut rest = 0.0;
    for x in blocks.into_remainder() {
        *x = exp::<FUSED>(*x - shift);
        rest += *x;
    }
    fold_lanes(lanes, |a, b| a + b) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorised! {
        fn map_vectorised(x: &[f32], exp_out: &mut [f32], tanh_out: &mut [f32]) {
            for ((&x, e), t) in x.iter().zip(exp_out).zip(tanh_out) {
                *e = exp::<FUSED>(x);
                *t = tanh::<FUSED>(x);
            }
        }
    }

    #[test]
    fn exponentials_and_hyperbolic_tangents_are_accurate_everywhere() {
        let x: Vec<f32> = (-400_000..=400_000)
            .map(|i| i as f32 * 2e-4)
            .chain((1..2000).flat_map(|i| [i as f32 * 1e-6, i as f32 * -1e-6]))
            .collect();
        let (mut e, mut t) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        map_vectorised(&x, &mut e, &mut t);
        for ((&x, e), t) in x.iter().zip(e).zip(t) {
            let (exact_exp, exact_tanh) = (f64::from(x).exp(), f64::from(x).tanh());
            assert!((f64::from(e) / exact_exp - 1.0).abs() < 2e-7, "exp({x}) = {e}");
            assert!(
                (f64::from(t) - exact_tanh).abs() <= 4e-7 * exact_tanh.abs(),
                "tanh({x}) = {t}, not {exact_tanh}"
            );
            // The portable form, which processors without fused multiply-add run.
            assert!((f64::from(exp::<false>(x)) / exact_exp - 1.0).abs() < 3e-7);
        }
    }

    #[test]
    fn extreme_and_invalid_arguments_stay_finite_or_show() {
        assert!(exp::<true>(f32::NAN).is_nan() && tanh::<true>(f32::NAN).is_nan());
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!(exp::<true>(1e30).is_finite());
        assert_eq!(tanh::<true>(1e30), 1.0);
        assert_eq!(tanh::<true>(-1e30), -1.0);
        assert_eq!(sigmoid::<true>(-1e30), sigmoid::<true>(-100.0));
    }
}
