//! Blocks of 256 values whose groups have scales of their own.

use super::plain_blocks::UNEVEN_STEPS;
use super::{half_at, nibble, u16_at};

/// `{ u8 scales[16]; u8 pairs[64]; f16 scale; f16 minimum }`: sixteen groups of 16 values, each with a
/// 4-bit scale (low) and a 4-bit minimum (high).
pub(super) fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (scales, pairs) = (&block[..16], &block[16..80]);
    let (scale, minimum) = (half_at(block, 80), half_at(block, 82));
    for (index, value) in out.iter_mut().enumerate() {
        let packed = scales[index / 16];
        let integer = f32::from(two_bits(pairs, index));
        let (group_scale, group_minimum) =
            (scale * f32::from(packed & 15), minimum * f32::from(packed >> 4));
        *value = group_scale * integer - group_minimum;
    }
}

/// Bits `2 * part` of byte `index % 32` in each half, where a part is 32 values of the 128.
fn two_bits(pairs: &[u8], index: usize) -> u8 {
    let (half, offset) = (index / 128, index % 128);
    pairs[half * 32 + offset % 32] >> (offset / 32 * 2) & 3
}

/// `{ u8 third_bits[32]; u8 pairs[64]; u8 scales[12]; f16 scale }`: sixteen groups of 16 values, each
/// with a 6-bit scale offset by 32. Where the third bit is not set, 4 is taken away.
pub(super) fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let (third_bits, pairs, packed) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    let scales: [f32; 16] = std::array::from_fn(|group| {
        let low = nibble(packed[group % 8], group >= 8);
        let high = packed[8 + group % 4] >> (group / 4 * 2) & 3;
        scale * (f32::from(low | high << 4) - 32.0)
    });
    for (index, value) in out.iter_mut().enumerate() {
        let third = third_bits[index % 32] >> (index / 32) & 1;
        let integer = f32::from(two_bits(pairs, index)) - if third == 0 { 4.0 } else { 0.0 };
        *value = scales[index / 16] * integer;
    }
}

/// The 6-bit scale and the 6-bit minimum of a group of 32 values, of eight in 12 bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
            (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// `{ f16 scale; f16 minimum; u8 scales[12]; u8 nibbles[128] }`: eight groups of 32 values, each with
/// a 6-bit scale and a 6-bit minimum; pairs of groups share 32 bytes.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for group in 0..8 {
        let (six_bit_scale, six_bit_minimum) = scale_and_minimum(&block[4..16], group);
        let (group_scale, group_minimum) = (scale * six_bit_scale, minimum * six_bit_minimum);
        let nibbles = &block[16 + group / 2 * 32..][..32];
        for (value, &byte) in out[group * 32..][..32].iter_mut().zip(nibbles) {
            let integer = f32::from(nibble(byte, group % 2 == 1));
            *value = group_scale * integer - group_minimum;
        }
    }
}

/// `{ f16 scale; f16 minimum; u8 scales[12]; u8 fifth_bits[32]; u8 nibbles[128] }`: as [`q4_k`], with
/// the fifth bits of group `g` in bit `g` of 32 bytes.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let fifth_bits = &block[16..48];
    for group in 0..8 {
        let (six_bit_scale, six_bit_minimum) = scale_and_minimum(&block[4..16], group);
        let (group_scale, group_minimum) = (scale * six_bit_scale, minimum * six_bit_minimum);
        let nibbles = &block[48 + group / 2 * 32..][..32];
        let values = out[group * 32..][..32].iter_mut();
        for ((value, &byte), &fifth) in values.zip(nibbles).zip(fifth_bits) {
            let integer = nibble(byte, group % 2 == 1) | (fifth >> group & 1) << 4;
            *value = group_scale * f32::from(integer) - group_minimum;
        }
    }
}

/// `{ u8 low[128]; u8 high[64]; i8 scales[16]; f16 scale }`: 6-bit values offset by 32, low four bits
/// and high two bits apart, one scale for 16 values.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (group, values) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // eight groups a half, of which two share the bits of a quarter
        let (half, quarter, first) = (group / 8, group % 8 / 2, group % 2 * 16);
        let low = &low[half * 64 + quarter % 2 * 32 + first..][..16];
        let high = &high[half * 32 + first..][..16];
        let group_scale = scale * f32::from(scales[group].cast_signed());
        for ((value, &low), &high) in values.iter_mut().zip(low).zip(high) {
            let bits = nibble(low, quarter >= 2) | (high >> (2 * quarter) & 3) << 4;
            *value = group_scale * (f32::from(bits) - 32.0);
        }
    }
}

/// `{ f32 scale; i8 values[256]; i16 sums[16] }`.
pub(super) fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    for (value, &byte) in out.iter_mut().zip(&block[4..260]) {
        *value = scale * f32::from(byte.cast_signed());
    }
}

/// `{ f16 scale; u16 high; u8 low[4]; u8 nibbles[128] }`: eight groups of 32 values with a 6-bit scale
/// offset by 32, low four bits and high two bits apart, and uneven steps.
pub(super) fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let (scale, high) = (half_at(block, 0), u16_at(block, 2));
    for group in 0..8 {
        let low_bits = nibble(block[4 + group / 2], group % 2 == 1);
        let high_bits = (high >> (2 * group) & 3) as u8;
        let group_scale = scale * (f32::from(low_bits | high_bits << 4) - 32.0);
        let nibbles = &block[8 + group * 16..][..16];
        for (index, value) in out[group * 32..][..32].iter_mut().enumerate() {
            let step = nibble(nibbles[index % 16], index >= 16);
            *value = group_scale * UNEVEN_STEPS[usize::from(step)];
        }
    }
}
