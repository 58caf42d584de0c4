//! Blocks of 32 values with one scale.

use half::f16;

/// `{ f16 scale; i8 values[32] }`: the largest magnitude becomes 127.
pub(super) fn q8_0(values: &[f32; 32]) -> [u8; 34] {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut block = [0; 34];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (byte, value) in block[2..].iter_mut().zip(values) {
        *byte = ((value * inverse).round() as i8).cast_unsigned();
    }
    block
}

/// `{ f16 scale; u8 nibbles[16] }`: the value of the largest magnitude becomes -8, whatever its sign.
pub(super) fn q4_0(values: &[f32; 32]) -> [u8; 18] {
    let farther = |largest: f32, &value: &f32| match value.abs() > largest.abs() {
        true => value,
        false => largest,
    };
    let scale = values.iter().fold(0.0, farther) / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let nibble = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    let mut block = [0; 18];
    block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (index, byte) in block[2..].iter_mut().enumerate() {
        *byte = nibble(values[index]) | nibble(values[index + 16]) << 4;
    }
    block
}
