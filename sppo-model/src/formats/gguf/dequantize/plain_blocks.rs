//! Blocks with one scale for all values or for 16: ggml's first formats, ternary ones, and 4-bit
//! floating-point numbers.

use super::{half_at, nibble, u32_at};

/// `{ f16 scale; u8 nibbles[16] }`: low nibbles are values 0..16, high ones 16..32, offset by 8.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (index, &byte) in block[2..].iter().enumerate() {
        out[index] = scale * (f32::from(byte & 15) - 8.0);
        out[index + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

/// `{ f16 scale; f16 minimum; u8 nibbles[16] }`.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (index, &byte) in block[4..].iter().enumerate() {
        out[index] = scale * f32::from(byte & 15) + minimum;
        out[index + 16] = scale * f32::from(byte >> 4) + minimum;
    }
}

/// The 5-bit integers of `{ u32 fifth_bits; u8 nibbles[16] }`.
fn five_bits(part: &[u8]) -> [f32; 32] {
    let fifth_bits = u32_at(part, 0);
    std::array::from_fn(|index| {
        let low = nibble(part[4 + index % 16], index >= 16);
        let fifth = (fifth_bits >> index & 1) as u8;
        f32::from(low | fifth << 4)
    })
}

/// `{ f16 scale; u32 fifth_bits; u8 nibbles[16] }`, offset by 16.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    *out = five_bits(&block[2..]).map(|integer| scale * (integer - 16.0));
}

/// `{ f16 scale; f16 minimum; u32 fifth_bits; u8 nibbles[16] }`.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    *out = five_bits(&block[4..]).map(|integer| scale * integer + minimum);
}

/// `{ f16 scale; i8 values[32] }`.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte.cast_signed()) * scale;
    }
}

/// The uneven steps of `IQ4_NL` and `IQ4_XS`.
pub(super) const UNEVEN_STEPS: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0,
    89.0, 113.0,
];

/// `{ f16 scale; u8 nibbles[16] }`.
#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    *out = std::array::from_fn(|index| {
        let step = nibble(block[2 + index % 16], index >= 16);
        scale * UNEVEN_STEPS[usize::from(step)]
    });
}

/// `{ u8 five[48]; u8 four[4]; f16 scale }`: bytes that are fractions of 256, whose digits to the base
/// of 3 are the values plus 1. The first 32 bytes hold 160 values, the next 16 hold 80, the last 4 hold
/// 16; the first digits of all bytes of a part stand before their second ones.
pub(super) fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    let scale = half_at(block, 52);
    let parts = [(0, 32, 0), (32, 16, 160), (48, 4, 240)];
    for (first, length, start) in parts {
        let bytes = &block[first..][..length];
        let end = (start + 5 * length).min(256);
        for (index, value) in out[start..end].iter_mut().enumerate() {
            let shifted = bytes[index % length].wrapping_mul(POWERS[index / length]);
            let digit = (u16::from(shifted) * 3) >> 8;
            *value = scale * (f32::from(digit) - 1.0);
        }
    }
}

/// `{ u8 pairs[64]; f16 scale }`: two bits per value, which are the value plus 1.
pub(super) fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = half_at(block, 64);
    for (index, value) in out.iter_mut().enumerate() {
        let (half, offset) = (index / 128, index % 128);
        let bits = block[half * 32 + offset % 32] >> (offset / 32 * 2) & 3;
        *value = scale * (f32::from(bits) - 1.0);
    }
}

/// `{ f16 scale; u8 signs[16] }`: the scale where the bit is set, and its negative elsewhere.
pub(super) fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let scale = half_at(block, 0);
    for (index, value) in out.iter_mut().enumerate() {
        let is_positive = block[2 + index / 8] >> (index % 8) & 1 == 1;
        *value = if is_positive { scale } else { -scale };
    }
}

/// Twice the 4-bit numbers; scales are halved in turn.
const DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// `{ u8 exponent; u8 nibbles[16] }`: the scale is two to the power of the exponent less 127.
pub(super) fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    let exponent = u32::from(block[0]);
    // half the scale, which is subnormal for the two smallest exponents
    let bits = if exponent < 2 { 0x0020_0000 << exponent } else { (exponent - 1) << 23 };
    let scale = f32::from_bits(bits);
    *out = std::array::from_fn(|index| {
        scale * DOUBLED[usize::from(nibble(block[1 + index % 16], index >= 16))]
    });
}

/// `{ u8 scales[4]; u8 nibbles[32] }`: four groups of 16 values.
pub(super) fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = half_of_eight_bit_float(block[group]);
        let nibbles = &block[4 + group * 8..][..8];
        *values = std::array::from_fn(|index| {
            scale * DOUBLED[usize::from(nibble(nibbles[index % 8], index >= 8))]
        });
    }
}

/// Half of a number with four bits of exponent, offset by 7, and three of mantissa; 0 for its NaN.
fn half_of_eight_bit_float(bits: u8) -> f32 {
    let exponent = i32::from(bits >> 3 & 15);
    let mantissa = f32::from(bits & 7);
    let value = match (bits, exponent) {
        (0 | 127, _) => 0.0,
        (_, 0) => mantissa * f32::powi(2.0, -9),
        (_, exponent) => (1.0 + mantissa / 8.0) * f32::powi(2.0, exponent - 7),
    };
    value * 0.5
}
