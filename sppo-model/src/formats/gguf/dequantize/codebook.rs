//! Blocks of 256 values that are looked up in groups: ggml's `IQ` formats of one to three bits.

use half::f16;

use super::grids;
use super::{half_at, nibble, u16_at, u32_at};

/// The magnitudes behind the two bits of an entry in the grids of `IQ2`.
const IQ2_MAGNITUDES: [f32; 4] = [8.0, 25.0, 43.0, 0.0];
/// Those behind the four bits of an entry in the grid of `IQ3_XXS`, of which three are used.
const IQ3_XXS_MAGNITUDES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Those behind the four bits of an entry in the grid of `IQ3_S`.
const IQ3_S_MAGNITUDES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// The values behind the two bits of an entry in the grid of `IQ1`, before their shift.
const IQ1_VALUES: [f32; 4] = [-1.0, 0.0, 1.0, 0.0];
/// The shift of the values of `IQ1`, up or down.
const IQ1_SHIFT: f32 = 0.125;

/// Eight values of an entry of two bits each.
fn eight(entry: u16, magnitudes: &[f32; 4]) -> [f32; 8] {
    std::array::from_fn(|index| magnitudes[usize::from(entry >> (2 * index) & 3)])
}

/// Four values of an entry of four bits each.
fn four(entry: u16, magnitudes: &[f32; 8]) -> [f32; 4] {
    std::array::from_fn(|index| magnitudes[usize::from(entry >> (4 * index) & 7)])
}

/// Signs of eight values whose number of minuses is even, so that seven bits tell all.
fn even_signs(seven_bits: u32) -> u8 {
    let signs = (seven_bits & 127) as u8;
    signs | (signs.count_ones() as u8 & 1) << 7
}

/// Writes `scale * magnitude`, negative where the sign's bit is set.
fn signed(out: &mut [f32], scale: f32, magnitudes: &[f32], signs: u8) {
    for (index, (value, magnitude)) in out.iter_mut().zip(magnitudes).enumerate() {
        let product = scale * magnitude;
        *value = if signs >> index & 1 == 1 { -product } else { product };
    }
}

/// `{ f16 scale; (u8 indices[4]; u32 signs_and_scale)[8] }`: four groups of eight share seven bits of
/// signs each and a 4-bit scale.
pub(super) fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let start = 2 + group / 4 * 8;
        let shared = u32_at(block, start + 4);
        let entry = grids::IQ2_XXS[usize::from(block[start + group % 4])];
        let group_scale = scale * (0.5 + (shared >> 28) as f32) * 0.25;
        let signs = even_signs(shared >> (7 * (group % 4)));
        signed(values, group_scale, &eight(entry, &IQ2_MAGNITUDES), signs);
    }
}

/// `{ f16 scale; u16 indices_and_signs[32]; u8 scales[8] }`: nine bits of index and seven of signs.
pub(super) fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let packed = u16_at(block, 2 + group * 2);
        let entry = grids::IQ2_XS[usize::from(packed & 511)];
        let group_scale = iq2_scale(scale, block[66 + group / 4], group);
        let signs = even_signs(u32::from(packed >> 9));
        signed(values, group_scale, &eight(entry, &IQ2_MAGNITUDES), signs);
    }
}

/// The scale of a group of eight, of which two share a nibble.
fn iq2_scale(scale: f32, packed: u8, group: usize) -> f32 {
    scale * (0.5 + f32::from(nibble(packed, group / 2 % 2 == 1))) * 0.25
}

/// `{ f16 scale; u8 low[32]; u8 signs[32]; u8 high[8]; u8 scales[8] }`: two more bits of index in
/// `high`, and all eight signs.
pub(super) fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let high = u16::from(block[66 + group / 4] >> (2 * (group % 4)) & 3);
        let index = u16::from(block[2 + group]) | high << 8;
        let entry = grids::IQ2_S[usize::from(index)];
        let group_scale = iq2_scale(scale, block[74 + group / 4], group);
        signed(values, group_scale, &eight(entry, &IQ2_MAGNITUDES), block[34 + group]);
    }
}

/// `{ f16 scale; u8 indices[64]; u32 signs_and_scale[8] }`: eight groups of four share a 4-bit scale,
/// and two of them seven bits of signs.
pub(super) fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let shared = u32_at(block, 66 + group / 4 * 4);
        let group_scale = scale * (0.5 + (shared >> 28) as f32) * 0.5;
        let signs = even_signs(shared >> (7 * (group % 4)));
        for (half, values) in values.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let entry = grids::IQ3_XXS[usize::from(block[2 + group * 2 + half])];
            signed(values, group_scale, &four(entry, &IQ3_XXS_MAGNITUDES), signs >> (4 * half));
        }
    }
}

/// `{ f16 scale; u8 low[64]; u8 high[8]; u8 signs[32]; u8 scales[4] }`: one more bit of index in
/// `high`, all signs, and a 4-bit scale for 32 values.
pub(super) fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let high = u16::from(block[66 + group / 8] >> (group % 8) & 1);
        let entry = grids::IQ3_S[usize::from(u16::from(block[2 + group]) | high << 8)];
        let packed = nibble(block[106 + group / 16], group / 8 % 2 == 1);
        let group_scale = scale * (1.0 + 2.0 * f32::from(packed));
        let signs = block[74 + group / 2] >> (4 * (group % 2));
        signed(values, group_scale, &four(entry, &IQ3_S_MAGNITUDES), signs);
    }
}

/// Writes `scale * (value + shift)`.
fn shifted(out: &mut [f32; 8], scale: f32, entry: u16, down: bool) {
    let shift = if down { -IQ1_SHIFT } else { IQ1_SHIFT };
    *out = eight(entry, &IQ1_VALUES).map(|value| scale * (value + shift));
}

/// `{ f16 scale; u8 low[32]; u16 high[8] }`: three more bits of index for each of four groups of eight,
/// a 3-bit scale and the direction of the shift.
pub(super) fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let shared = u16_at(block, 34 + group / 4 * 2);
        let high = shared >> (3 * (group % 4)) & 7;
        let entry = grids::IQ1[usize::from(u16::from(block[2 + group]) | high << 8)];
        let group_scale = scale * f32::from(2 * (shared >> 12 & 7) + 1);
        shifted(values, group_scale, entry, shared >> 15 == 1);
    }
}

/// `{ u8 low[32]; u8 high[16]; u16 scales[4] }`: in the nibbles of `high`, three more bits of index and
/// the direction of the shift; in `scales`, four 3-bit scales of two groups each, and a quarter of the
/// f16 scale.
pub(super) fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let quarter = |index: usize| u16_at(block, 48 + 2 * index) >> 12 << (4 * index);
    let scale = f16::from_bits(quarter(0) | quarter(1) | quarter(2) | quarter(3)).to_f32();
    for (group, values) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let shared = nibble(block[32 + group / 2], group % 2 == 1);
        let index = u16::from(block[group]) | u16::from(shared & 7) << 8;
        let packed = u16_at(block, 48 + group / 8 * 2) >> (3 * (group / 2 % 4)) & 7;
        let group_scale = scale * f32::from(2 * packed + 1);
        shifted(values, group_scale, grids::IQ1[usize::from(index)], shared & 8 != 0);
    }
}
