//! Matrices in NF4, the 4-bit format of QLoRA (arXiv 2305.14314), in the layout of bitsandbytes.
//!
//! Each value is one of 16, times the scale of its block of the row-major matrix. Scales are f32, or bytes that are
//! looked up in 256 values, times the scale of their own block, plus an offset.

use std::sync::Arc;

use half::{bf16, f16};

use super::SharedBytes;

/// A matrix in NF4. Clones share their bytes.
#[derive(Clone, Debug)]
pub(crate) struct Nf4Blocks {
    /// Two values a byte, the first one in the upper half.
    pub(crate) values: SharedBytes,
    pub(crate) code: Arc<[f32]>,
    /// Values of a block; even.
    pub(crate) block_values: usize,
    pub(crate) scales: Scales,
    /// The number format that values are rounded to.
    pub(crate) dtype: Nf4Dtype,
}

/// Scales of blocks.
#[derive(Clone, Debug)]
pub(crate) enum Scales {
    Plain(Arc<[f32]>),
    /// Double quantisation.
    Nested {
        bytes: SharedBytes,
        code: Arc<[f32]>,
        /// Of each block of bytes.
        scales: Arc<[f32]>,
        block_bytes: usize,
        offset: f32,
    },
}

/// Number formats that a matrix in NF4 was made from, and is dequantised to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nf4Dtype {
    F32,
    F16,
    Bf16,
}

impl Nf4Dtype {
    fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::Bf16 => bf16::from_f32(value).to_f32(),
        }
    }
}

impl Scales {
    /// The number of scales.
    pub(crate) fn count(&self) -> usize {
        match self {
            Self::Plain(scales) => scales.len(),
            Self::Nested { bytes, .. } => bytes.as_slice().len(),
        }
    }

    fn of_block(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Nested { bytes, code, scales, block_bytes, offset } => {
                let value = code[usize::from(bytes.as_slice()[block])];
                value * scales[block / block_bytes] + offset
            }
        }
    }

    fn byte_size(&self) -> usize {
        match self {
            Self::Plain(scales) => size_of_val(&**scales),
            Self::Nested { bytes, scales, .. } => bytes.as_slice().len() + size_of_val(&**scales),
        }
    }
}

impl Nf4Blocks {
    /// Whether these are blocks of so many values.
    pub(crate) fn are_whole(&self, count: usize) -> bool {
        let is_block = self.block_values > 0 && self.block_values.is_multiple_of(2);
        let blocks = if is_block { count.div_ceil(self.block_values) } else { return false };
        let are_nested_whole = match &self.scales {
            Scales::Plain(_) => true,
            Scales::Nested { code, scales, block_bytes, .. } => {
                *block_bytes > 0
                    && code.len() == 256
                    && scales.len() == blocks.div_ceil(*block_bytes)
            }
        };
        self.values.as_slice().len() == count.div_ceil(2)
            && self.code.len() == 16
            && self.scales.count() == blocks
            && are_nested_whole
    }

    /// Bytes of values and scales.
    pub(crate) fn byte_size(&self) -> usize {
        self.values.as_slice().len() + self.scales.byte_size()
    }

    /// Fills `out` with the values from `first` on.
    pub(crate) fn read(&self, first: usize, out: &mut [f32]) {
        let mut place = first;
        let mut rest = out;
        while !rest.is_empty() {
            let block = place / self.block_values;
            let in_block = self.block_values - place % self.block_values;
            let (part, others) = rest.split_at_mut(in_block.min(rest.len()));
            self.read_within(place, self.scales.of_block(block), part);
            place += part.len();
            rest = others;
        }
    }

    /// Fills `out` with values of one block.
    fn read_within(&self, first: usize, scale: f32, out: &mut [f32]) {
        let mut scaled = [0.0; 16];
        let values = scaled.iter_mut().zip(&*self.code);
        values.for_each(|(scaled, value)| *scaled = self.dtype.round(value * scale));
        let scaled = |index: u8| scaled[usize::from(index)];
        let bytes = self.values.as_slice().get(first / 2..).unwrap_or_default();
        let (odd, pairs) = out.split_at_mut(first % 2);
        odd.iter_mut().zip(bytes).for_each(|(out, byte)| *out = scaled(byte & 15));
        for (out, &byte) in pairs.chunks_mut(2).zip(&bytes[odd.len()..]) {
            out[0] = scaled(byte >> 4);
            if let [_, second] = out {
                *second = scaled(byte & 15);
            }
        }
    }
}
