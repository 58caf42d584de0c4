//! The number formats of GGUF tensors, turned into f32.
//!
//! Formats and layouts are those of ggml's `block_*` structures; every function turns one block into
//! its values.

mod codebook;
mod grids;
mod k_quants;
mod plain_blocks;

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
    /// IEEE double precision, rounded to single.
    F64,
    /// 128 values: one sign each and a scale.
    Q1_0,
    /// 32 values: 4-bit integers and a scale.
    Q4_0,
    /// 32 values: 4-bit integers, a scale and a minimum.
    Q4_1,
    /// 32 values: 5-bit integers and a scale.
    Q5_0,
    /// 32 values: 5-bit integers, a scale and a minimum.
    Q5_1,
    /// 32 values: 8-bit integers and a scale.
    Q8_0,
    /// 256 values: 2-bit integers, sixteen 4-bit scales and minima.
    Q2_K,
    /// 256 values: 3-bit integers and sixteen 6-bit scales.
    Q3_K,
    /// 256 values: 4-bit integers, eight 6-bit scales and minima.
    Q4_K,
    /// 256 values: 5-bit integers, eight 6-bit scales and minima.
    Q5_K,
    /// 256 values: 6-bit integers and sixteen 8-bit scales.
    Q6_K,
    /// 256 values: 8-bit integers and a scale.
    Q8_K,
    /// 256 values: groups of eight from 256 in a codebook, signs, eight 4-bit scales.
    IQ2_XXS,
    /// 256 values: groups of eight from 512 in a codebook, signs, sixteen 4-bit scales.
    IQ2_XS,
    /// 256 values: groups of eight from 1024 in a codebook, signs, sixteen 4-bit scales.
    IQ2_S,
    /// 256 values: groups of four from 256 in a codebook, signs, eight 4-bit scales.
    IQ3_XXS,
    /// 256 values: groups of four from 512 in a codebook, signs, eight 4-bit scales.
    IQ3_S,
    /// 256 values: groups of eight from 2048 in a codebook, eight shifts and 3-bit scales.
    IQ1_S,
    /// 256 values: groups of eight from 2048 in a codebook, 32 shifts, sixteen 3-bit scales.
    IQ1_M,
    /// 32 values: 4-bit indices into uneven steps, and a scale.
    IQ4_NL,
    /// 256 values: 4-bit indices into uneven steps, and eight 6-bit scales.
    IQ4_XS,
    /// 256 values: -1, 0 or 1, five to a byte, and a scale.
    TQ1_0,
    /// 256 values: -1, 0 or 1, four to a byte, and a scale.
    TQ2_0,
    /// 32 values: 4-bit floating-point numbers and a power of two.
    MXFP4,
    /// 64 values: 4-bit floating-point numbers and four 8-bit ones as scales.
    NVFP4,
}

/// ggml's numbers of the formats that can be read.
const NUMBERS: [(u32, GgufType); 29] = [
    (0, GgufType::F32),
    (1, GgufType::F16),
    (2, GgufType::Q4_0),
    (3, GgufType::Q4_1),
    (6, GgufType::Q5_0),
    (7, GgufType::Q5_1),
    (8, GgufType::Q8_0),
    (10, GgufType::Q2_K),
    (11, GgufType::Q3_K),
    (12, GgufType::Q4_K),
    (13, GgufType::Q5_K),
    (14, GgufType::Q6_K),
    (15, GgufType::Q8_K),
    (16, GgufType::IQ2_XXS),
    (17, GgufType::IQ2_XS),
    (18, GgufType::IQ3_XXS),
    (19, GgufType::IQ1_S),
    (20, GgufType::IQ4_NL),
    (21, GgufType::IQ3_S),
    (22, GgufType::IQ2_S),
    (23, GgufType::IQ4_XS),
    (28, GgufType::F64),
    (29, GgufType::IQ1_M),
    (30, GgufType::BF16),
    (34, GgufType::TQ1_0),
    (35, GgufType::TQ2_0),
    (39, GgufType::MXFP4),
    (40, GgufType::NVFP4),
    (41, GgufType::Q1_0),
];

/// ggml's numbers of other formats, to say which one it is.
const OTHER_NUMBERS: [(u32, &str); 14] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (42, "Q2_0"),
];

impl GgufType {
    /// The format of ggml's type number, or the name of the one that is not supported.
    ///
    /// # Errors
    /// The name of a format that cannot be read.
    pub fn from_number(number: u32) -> Result<Self, String> {
        if let Some((_, known)) = NUMBERS.iter().find(|(of, _)| *of == number) {
            return Ok(*known);
        }
        let other = OTHER_NUMBERS.iter().find(|(of, _)| *of == number);
        Err(other.map_or_else(|| format!("number {number}"), |(_, name)| (*name).to_string()))
    }

    /// ggml's number of the format.
    pub(super) fn number(self) -> u32 {
        NUMBERS.iter().find(|(_, kind)| *kind == self).map_or(0, |(number, _)| *number)
    }

    /// Values and bytes of one block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::F64 => (1, 8),
            Self::Q1_0 => (128, 18),
            Self::Q4_0 | Self::IQ4_NL => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q2_K => (256, 84),
            Self::Q3_K | Self::IQ3_S => (256, 110),
            Self::Q4_K => (256, 144),
            Self::Q5_K => (256, 176),
            Self::Q6_K => (256, 210),
            Self::Q8_K => (256, 292),
            Self::IQ2_XXS | Self::TQ2_0 => (256, 66),
            Self::IQ2_XS => (256, 74),
            Self::IQ2_S => (256, 82),
            Self::IQ3_XXS => (256, 98),
            Self::IQ1_S => (256, 50),
            Self::IQ1_M => (256, 56),
            Self::IQ4_XS => (256, 136),
            Self::TQ1_0 => (256, 54),
            Self::MXFP4 => (32, 17),
            Self::NVFP4 => (64, 36),
        }
    }

    /// Values in one block.
    #[must_use]
    pub fn block_values(self) -> usize {
        self.block().0
    }

    /// Bytes of one block.
    #[must_use]
    pub fn block_bytes(self) -> usize {
        self.block().1
    }

    /// The f32 values of whole blocks, computed on all threads; bytes beyond the last whole block are left out.
    #[must_use]
    pub fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        let (block_values, block_bytes) = self.block();
        let mut values = vec![0.0; bytes.len() / block_bytes * block_values];
        let blocks = (TASK_VALUES / block_values).max(1);
        let tasks = values.par_chunks_mut(blocks * block_values);
        tasks
            .zip(bytes.par_chunks(blocks * block_bytes))
            .for_each(|(out, bytes)| self.dequantize_to(bytes, out));
        values
    }

    /// Writes the f32 values of whole blocks to `out`, on this thread; as many as there is room for, and as
    /// there are.
    pub(crate) fn dequantize_to(self, bytes: &[u8], out: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx2")]
            fn with_avx2(kind: GgufType, bytes: &[u8], out: &mut [f32]) {
                kind.dequantize_all(bytes, out);
            }
            if std::arch::is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has the instructions that the function is compiled for.
                return unsafe { with_avx2(self, bytes, out) };
            }
        }
        self.dequantize_all(bytes, out);
    }

    /// As [`Self::dequantize_to`], with the instructions of the caller. No sum is fused with a product, so these
    /// do not change a value.
    #[inline(always)]
    fn dequantize_all(self, bytes: &[u8], out: &mut [f32]) {
        match self {
            Self::F32 => plain(bytes, out, f32::from_le_bytes),
            Self::F16 => plain(bytes, out, |value| f16::from_le_bytes(value).to_f32()),
            Self::BF16 => plain(bytes, out, |value| bf16::from_le_bytes(value).to_f32()),
            Self::F64 => plain(bytes, out, |value| f64::from_le_bytes(value) as f32),
            Self::Q1_0 => blocks(bytes, out, plain_blocks::q1_0),
            Self::Q4_0 => blocks(bytes, out, plain_blocks::q4_0),
            Self::Q4_1 => blocks(bytes, out, plain_blocks::q4_1),
            Self::Q5_0 => blocks(bytes, out, plain_blocks::q5_0),
            Self::Q5_1 => blocks(bytes, out, plain_blocks::q5_1),
            Self::Q8_0 => blocks(bytes, out, plain_blocks::q8_0),
            Self::Q2_K => blocks(bytes, out, k_quants::q2_k),
            Self::Q3_K => blocks(bytes, out, k_quants::q3_k),
            Self::Q4_K => blocks(bytes, out, k_quants::q4_k),
            Self::Q5_K => blocks(bytes, out, k_quants::q5_k),
            Self::Q6_K => blocks(bytes, out, k_quants::q6_k),
            Self::Q8_K => blocks(bytes, out, k_quants::q8_k),
            Self::IQ2_XXS => blocks(bytes, out, codebook::iq2_xxs),
            Self::IQ2_XS => blocks(bytes, out, codebook::iq2_xs),
            Self::IQ2_S => blocks(bytes, out, codebook::iq2_s),
            Self::IQ3_XXS => blocks(bytes, out, codebook::iq3_xxs),
            Self::IQ3_S => blocks(bytes, out, codebook::iq3_s),
            Self::IQ1_S => blocks(bytes, out, codebook::iq1_s),
            Self::IQ1_M => blocks(bytes, out, codebook::iq1_m),
            Self::IQ4_NL => blocks(bytes, out, plain_blocks::iq4_nl),
            Self::IQ4_XS => blocks(bytes, out, k_quants::iq4_xs),
            Self::TQ1_0 => blocks(bytes, out, plain_blocks::tq1_0),
            Self::TQ2_0 => blocks(bytes, out, plain_blocks::tq2_0),
            Self::MXFP4 => blocks(bytes, out, plain_blocks::mxfp4),
            Self::NVFP4 => blocks(bytes, out, plain_blocks::nvfp4),
        }
    }
}

/// Values that one task dequantises.
const TASK_VALUES: usize = 16_384;

/// Values that stand one after the other.
#[inline(always)]
fn plain<const BYTES: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; BYTES]) -> f32) {
    blocks(bytes, out, |block, out: &mut [f32; 1]| *out = [value(*block)]);
}

/// Applies `one_block` to every block.
#[inline(always)]
fn blocks<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    out: &mut [f32],
    one_block: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<VALUES>();
    for (out, block) in values.iter_mut().zip(blocks) {
        one_block(block, out);
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

fn u16_at(block: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([block[offset], block[offset + 1]])
}

fn u32_at(block: &[u8], offset: usize) -> u32 {
    u32::from(u16_at(block, offset)) | u32::from(u16_at(block, offset + 2)) << 16
}

/// The lower or upper half of a byte.
fn nibble(byte: u8, upper: bool) -> u8 {
    if upper { byte >> 4 } else { byte & 15 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Random blocks and what the Python `gguf` package (0.19) makes of them; of F64, Q8_K and Q1_0,
    /// which it does not read, what NumPy computes by ggml's definition.
    #[test]
    fn agrees_with_the_gguf_package() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/data/gguf-blocks.json")).unwrap();
        let cases = golden.as_array().unwrap();
        let mut numbers: Vec<u32> = Vec::new();
        for case in cases {
            let number = u32::try_from(case["type"].as_u64().unwrap()).unwrap();
            let kind = GgufType::from_number(number).unwrap();
            let bytes: Vec<u8> = serde_json::from_value(case["bytes"].clone()).unwrap();
            let expected: Vec<f32> = serde_json::from_value(case["values"].clone()).unwrap();
            assert_eq!(bytes.len() % kind.block_bytes(), 0);
            assert_eq!(kind.dequantize(&bytes), expected, "{kind:?}");
            numbers.push(number);
        }
        assert!(NUMBERS.iter().all(|(number, _)| numbers.contains(number)), "{numbers:?}");
    }
}
