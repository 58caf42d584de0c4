//! The number formats in which GGUF tensors are written, from f32, by ggml's reference methods.

mod k_quants;
mod plain_blocks;

use std::fmt;

use half::{bf16, f16};
use rayon::prelude::*;

use super::GgufType;

/// A number format of tensors that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "these are the formats' names")]
pub enum GgufFormat {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// 32 values: 8-bit integers and a scale.
    Q8_0,
    /// 32 values: 4-bit integers and a scale.
    Q4_0,
    /// 256 values: 4-bit integers, eight 6-bit scales and minima.
    Q4_K,
}

impl GgufFormat {
    /// The same format, as one that can be read.
    fn kind(self) -> GgufType {
        match self {
            Self::F32 => GgufType::F32,
            Self::F16 => GgufType::F16,
            Self::Bf16 => GgufType::BF16,
            Self::Q8_0 => GgufType::Q8_0,
            Self::Q4_0 => GgufType::Q4_0,
            Self::Q4_K => GgufType::Q4_K,
        }
    }

    /// ggml's number of the format.
    pub(super) fn number(self) -> u32 {
        self.kind().number()
    }

    /// The number that llama.cpp gives to files whose matrices have this format.
    #[must_use]
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 7,
            Self::Q4_K => 14,
            Self::Bf16 => 32,
        }
    }

    /// The values of one block, which divide a row.
    #[must_use]
    pub fn block_values(self) -> usize {
        self.kind().block_values()
    }

    /// The bytes of so many values.
    pub(super) fn byte_size(self, values: usize) -> u64 {
        (values / self.block_values()) as u64 * self.kind().block_bytes() as u64
    }

    /// The bytes of values, which fill whole blocks.
    ///
    /// # Errors
    /// The first value that is beyond the format's largest.
    pub(super) fn quantize(self, values: &[f32]) -> Result<Vec<u8>, f32> {
        match self {
            Self::F32 => Ok(blocks(values, |value: &[f32; 1]| value[0].to_le_bytes())),
            Self::Bf16 => finite(values, |value| bf16::from_f32(value).to_f32()).map(|()| {
                blocks(values, |value: &[f32; 1]| bf16::from_f32(value[0]).to_le_bytes())
            }),
            Self::F16 => finite(values, |value| f16::from_f32(value).to_f32())
                .map(|()| blocks(values, |value: &[f32; 1]| f16::from_f32(value[0]).to_le_bytes())),
            Self::Q8_0 => scaled(values, plain_blocks::q8_0),
            Self::Q4_0 => scaled(values, plain_blocks::q4_0),
            Self::Q4_K => scaled(values, k_quants::q4_k),
        }
    }
}

impl fmt::Display for GgufFormat {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4_K => "q4_k",
        })
    }
}

/// Blocks whose scales are in half precision, which must hold the values' size.
fn scaled<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    one_block: impl Fn(&[f32; VALUES]) -> [u8; BYTES] + Sync,
) -> Result<Vec<u8>, f32> {
    finite(values, |value| f16::from_f32(value).to_f32())?;
    Ok(blocks(values, one_block))
}

/// Refuses a value that a rounding makes infinite.
fn finite(values: &[f32], round: impl Fn(f32) -> f32 + Sync) -> Result<(), f32> {
    match values.par_iter().find_first(|&&value| !round(value).is_finite()) {
        Some(&value) => Err(value),
        None => Ok(()),
    }
}

/// Applies `one_block` to every block, on all threads.
fn blocks<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    one_block: impl Fn(&[f32; VALUES]) -> [u8; BYTES] + Sync,
) -> Vec<u8> {
    let (blocks, _) = values.as_chunks::<VALUES>();
    let mut bytes = vec![0; blocks.len() * BYTES];
    bytes
        .as_chunks_mut::<BYTES>()
        .0
        .par_iter_mut()
        .zip(blocks)
        .with_min_len(16_384 / VALUES)
        .for_each(|(out, block)| *out = one_block(block));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that ggml itself quantised, and those of the Python `gguf` package.
    #[test]
    fn agrees_with_ggml() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../../tests/data/gguf-quantized.json"))
                .unwrap();
        let values: Vec<f32> = serde_json::from_value(golden["values"].clone()).unwrap();
        for format in [
            GgufFormat::Bf16,
            GgufFormat::F16,
            GgufFormat::Q8_0,
            GgufFormat::Q4_0,
            GgufFormat::Q4_K,
        ] {
            let expected: Vec<u8> =
                serde_json::from_value(golden["bytes"][format.to_string()].clone()).unwrap();
            assert_eq!(format.quantize(&values).unwrap(), expected, "{format}");
        }
    }

    #[test]
    fn values_beyond_a_format_are_refused() {
        let mut values = vec![0.5; 256];
        values[77] = 1e6;
        for format in [GgufFormat::F16, GgufFormat::Q8_0, GgufFormat::Q4_0, GgufFormat::Q4_K] {
            assert_eq!(format.quantize(&values), Err(1e6), "{format}");
        }
        for format in [GgufFormat::F32, GgufFormat::Bf16] {
            assert!(format.quantize(&values).is_ok(), "{format}");
        }
    }
}
