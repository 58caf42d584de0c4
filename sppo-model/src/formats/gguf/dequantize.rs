//! The number formats of GGUF tensors, turned into f32.
//!
//! Formats and layouts are those of ggml's `block_*` structures; every function turns one block into
//! its values.

use half::{bf16, f16};
use rayon::prelude::*;

/// A number format of GGUF tensors that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "these are the formats' names")]
pub enum GgufType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// 32 values: 4-bit integers and a scale.
    Q4_0,
    /// 32 values: 4-bit integers, a scale and a minimum.
    Q4_1,
    /// 32 values: 8-bit integers and a scale.
    Q8_0,
    /// 256 values: 4-bit integers, eight 6-bit scales and minima.
    Q4_K,
    /// 256 values: 6-bit integers and sixteen 8-bit scales.
    Q6_K,
}

/// Names of ggml's type numbers, to say which one is not supported.
const TYPE_NAMES: [&str; 41] = [
    "F32",
    "F16",
    "Q4_0",
    "Q4_1",
    "Q4_2",
    "Q4_3",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q8_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "Q8_K",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ3_XXS",
    "IQ1_S",
    "IQ4_NL",
    "IQ3_S",
    "IQ2_S",
    "IQ4_XS",
    "I8",
    "I16",
    "I32",
    "I64",
    "F64",
    "IQ1_M",
    "BF16",
    "Q4_0_4_4",
    "Q4_0_4_8",
    "Q4_0_8_8",
    "TQ1_0",
    "TQ2_0",
    "IQ4_NL_4_4",
    "IQ4_NL_4_8",
    "IQ4_NL_8_8",
    "MXFP4",
    "NVFP4",
];

impl GgufType {
    /// The formats that can be read, for messages.
    pub const SUPPORTED: &'static str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and Q6_K";

    /// The format of ggml's type number, or the name of the one that is not supported.
    ///
    /// # Errors
    /// The name of a format that cannot be read.
    pub fn from_number(number: u32) -> Result<Self, String> {
        let name = TYPE_NAMES.get(number as usize).copied();
        Ok(match name {
            Some("F32") => Self::F32,
            Some("F16") => Self::F16,
            Some("BF16") => Self::BF16,
            Some("Q4_0") => Self::Q4_0,
            Some("Q4_1") => Self::Q4_1,
            Some("Q8_0") => Self::Q8_0,
            Some("Q4_K") => Self::Q4_K,
            Some("Q6_K") => Self::Q6_K,
            Some(other) => return Err(other.to_string()),
            None => return Err(format!("number {number}")),
        })
    }

    /// Values in one block.
    #[must_use]
    pub fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q6_K => 256,
        }
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q6_K => 210,
        }
    }

    /// The f32 values of whole blocks; bytes beyond the last whole block are left out.
    #[must_use]
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => {
                blocks(bytes, |block, out: &mut [f32; 1]| *out = [f32::from_le_bytes(*block)])
            }
            Self::F16 => blocks(bytes, |block, out: &mut [f32; 1]| {
                *out = [f16::from_le_bytes(*block).to_f32()];
            }),
            Self::BF16 => blocks(bytes, |block, out: &mut [f32; 1]| {
                *out = [bf16::from_le_bytes(*block).to_f32()];
            }),
            Self::Q4_0 => blocks(bytes, dequantize_q4_0),
            Self::Q4_1 => blocks(bytes, dequantize_q4_1),
            Self::Q8_0 => blocks(bytes, dequantize_q8_0),
            Self::Q4_K => blocks(bytes, dequantize_q4_k),
            Self::Q6_K => blocks(bytes, dequantize_q6_k),
        }
    }
}

/// Applies `one_block` to every block, on all threads.
fn blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    one_block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]) + Sync,
) -> Vec<f32> {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let mut values = vec![0.0; blocks.len() * VALUES];
    values
        .as_chunks_mut::<VALUES>()
        .0
        .par_iter_mut()
        .zip(blocks)
        .with_min_len(16_384 / VALUES)
        .for_each(|(out, block)| one_block(block, out));
    values
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// `{ f16 scale; u8 nibbles[16] }`: low nibbles are values 0..16, high ones 16..32, offset by 8.
fn dequantize_q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (index, &byte) in block[2..].iter().enumerate() {
        out[index] = scale * (f32::from(byte & 15) - 8.0);
        out[index + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

/// `{ f16 scale; f16 minimum; u8 nibbles[16] }`.
fn dequantize_q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (index, &byte) in block[4..].iter().enumerate() {
        out[index] = scale * f32::from(byte & 15) + minimum;
        out[index + 16] = scale * f32::from(byte >> 4) + minimum;
    }
}

/// `{ f16 scale; i8 values[32] }`.
fn dequantize_q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (value, &byte) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(byte.cast_signed()) * scale;
    }
}

/// `{ f16 scale; f16 minimum; u8 scales[12]; u8 nibbles[128] }`: eight groups of 32 values, each with
/// a 6-bit scale and a 6-bit minimum; pairs of groups share 32 bytes.
fn dequantize_q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    for group in 0..8 {
        let (six_bit_scale, six_bit_minimum) = if group < 4 {
            (packed[group] & 63, packed[group + 4] & 63)
        } else {
            (
                (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
                (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
            )
        };
        let group_scale = scale * f32::from(six_bit_scale);
        let group_minimum = minimum * f32::from(six_bit_minimum);
        let nibbles = &block[16 + group / 2 * 32..][..32];
        for (value, &byte) in out[group * 32..][..32].iter_mut().zip(nibbles) {
            let nibble = if group % 2 == 0 { byte & 15 } else { byte >> 4 };
            *value = group_scale * f32::from(nibble) - group_minimum;
        }
    }
}

/// `{ u8 low[128]; u8 high[64]; i8 scales[16]; f16 scale }`: 6-bit values offset by 32, low four bits
/// and high two bits apart, one scale for 16 values.
fn dequantize_q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (index, value) in out.iter_mut().enumerate() {
        let (part, offset) = (index / 128, index % 128);
        let low_byte = low[part * 64 + offset % 64];
        let low_bits = if offset < 64 { low_byte & 15 } else { low_byte >> 4 };
        let high_bits = (high[part * 32 + offset % 32] >> (offset / 32 * 2)) & 3;
        let integer = f32::from(low_bits | (high_bits << 4)) - 32.0;
        *value = scale * f32::from(scales[index / 16].cast_signed()) * integer;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks and what the Python `gguf` package (0.19) makes of them.
    #[test]
    fn agrees_with_the_gguf_package() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/data/gguf-blocks.json")).unwrap();
        let cases = golden.as_array().unwrap();
        assert_eq!(cases.len(), 8);
        for case in cases {
            let number = u32::try_from(case["type"].as_u64().unwrap()).unwrap();
            let kind = GgufType::from_number(number).unwrap();
            let bytes: Vec<u8> = serde_json::from_value(case["bytes"].clone()).unwrap();
            let expected: Vec<f32> = serde_json::from_value(case["values"].clone()).unwrap();
            assert_eq!(bytes.len() % kind.block_bytes(), 0);
            assert_eq!(kind.dequantize(&bytes), expected, "{kind:?}");
        }
    }
}
