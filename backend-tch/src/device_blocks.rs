//! Blocks of GGUF files in a device's memory, and their dequantisation by the ops of libtorch.
//!
//! Each step is one rounded operation of f32, in the order of ggml's own functions, so values are those of
//! [`QuantizedMatrix::values`] to the bit.

use std::ops::Range;

use sppo_model::ModelError;
use sppo_model::formats::{GgufType, QuantizedMatrix};
use tch::{Device, Kind, Tensor};

use crate::tensors::{TorchResult, index};

/// A matrix in blocks on a device.
#[derive(Debug)]
pub(crate) struct DeviceBlocks {
    /// Bytes, `[rows, blocks of a row, bytes of a block]`.
    blocks: Tensor,
    dequantize: Dequantize,
    shape: [usize; 2],
}

/// Values of blocks `[rows, blocks, bytes]`, as f32 of any shape that has them in order.
type Dequantize = fn(&Tensor) -> TorchResult<Tensor>;

fn dequantize_of(format: GgufType) -> Option<Dequantize> {
    match format {
        GgufType::Q4_0 => Some(q4_0),
        GgufType::Q4_1 => Some(q4_1),
        GgufType::Q8_0 => Some(q8_0),
        GgufType::Q4_K => Some(q4_k),
        GgufType::Q5_K => Some(q5_k),
        GgufType::Q6_K => Some(q6_k),
        _ => None,
    }
}

impl DeviceBlocks {
    /// Copies a matrix to a device, its rows in order.
    ///
    /// # Errors
    /// When the device cannot dequantise the format, or memory runs out.
    pub(crate) fn new(matrix: &QuantizedMatrix, device: Device) -> TorchResult<Self> {
        let unsupported = || {
            ModelError::Unsupported(format!(
                "training.frozen_weights: on a CUDA device the backend tch keeps blocks of Q4_0, Q4_1, Q8_0, \
                 Q4_K, Q5_K and Q6_K, and this model has {}; set it to \"dense\", or take a .gguf file of \
                 one of these",
                matrix.format_name()
            ))
        };
        let (format, bytes) = matrix.gguf_blocks().ok_or_else(unsupported)?;
        let dequantize = dequantize_of(format).ok_or_else(unsupported)?;
        let shape @ [rows, columns] = matrix.dimensions();
        let size = [rows, columns / format.block_values(), format.block_bytes()];
        let blocks = Tensor::f_from_slice(&bytes)?.f_view(size.map(|length| length as i64))?;
        Ok(Self { blocks: blocks.f_to_device(device)?, dequantize, shape })
    }

    /// `[rows, columns]`.
    pub(crate) fn dimensions(&self) -> [usize; 2] {
        self.shape
    }

    /// Some rows in f32.
    pub(crate) fn rows(&self, rows: Range<usize>) -> TorchResult<Tensor> {
        self.values(&self.blocks.f_narrow(0, rows.start as i64, rows.len() as i64)?)
    }

    /// The given rows, in order, in f32.
    pub(crate) fn select_rows(&self, rows: &[u32]) -> TorchResult<Tensor> {
        self.values(&self.blocks.f_index_select(0, &index(rows, self.blocks.device())?)?)
    }

    fn values(&self, blocks: &Tensor) -> TorchResult<Tensor> {
        let size = [blocks.size()[0], self.shape[1] as i64];
        Ok((self.dequantize)(blocks)?.f_reshape(size)?)
    }
}

/// Some bytes of each block.
fn bytes(blocks: &Tensor, places: Range<i64>) -> TorchResult<Tensor> {
    Ok(blocks.f_narrow(2, places.start, places.end - places.start)?)
}

/// Bytes as numbers of another kind, in f32.
fn as_kind(bytes: &Tensor, kind: Kind) -> TorchResult<Tensor> {
    Ok(bytes.f_contiguous()?.f_view_dtype(kind)?.f_to_kind(Kind::Float)?)
}

/// The half-precision number that begins at a byte of each block.
fn half_at(blocks: &Tensor, place: i64) -> TorchResult<Tensor> {
    as_kind(&bytes(blocks, place..place + 2)?, Kind::Half)
}

fn low(bytes: &Tensor) -> TorchResult<Tensor> {
    Ok(bytes.f_bitwise_and(15)?)
}

fn high(bytes: &Tensor) -> TorchResult<Tensor> {
    Ok(bytes.f_bitwise_right_shift_tensor_scalar(4)?)
}

/// Bits that stand above others in an integer, which are zeros.
fn upper_bits(bits: &Tensor, zeros: i64) -> TorchResult<Tensor> {
    Ok(bits.f_bitwise_left_shift_tensor_scalar(zeros)?)
}

/// Low nibbles of all bytes of a block, and high ones after them, in f32.
fn nibbles(blocks: &Tensor, places: Range<i64>) -> TorchResult<Tensor> {
    let bytes = bytes(blocks, places)?;
    Ok(Tensor::f_cat(&[low(&bytes)?, high(&bytes)?], 2)?.f_to_kind(Kind::Float)?)
}

fn q4_0(blocks: &Tensor) -> TorchResult<Tensor> {
    let integers = nibbles(blocks, 2..18)?.f_sub_scalar(8)?;
    Ok(integers.f_mul(&half_at(blocks, 0)?)?)
}

fn q4_1(blocks: &Tensor) -> TorchResult<Tensor> {
    let scaled = nibbles(blocks, 4..20)?.f_mul(&half_at(blocks, 0)?)?;
    Ok(scaled.f_add(&half_at(blocks, 2)?)?)
}

fn q8_0(blocks: &Tensor) -> TorchResult<Tensor> {
    Ok(as_kind(&bytes(blocks, 2..34)?, Kind::Int8)?.f_mul(&half_at(blocks, 0)?)?)
}

/// Scale and minimum of each of eight groups, `[rows, blocks, 8, 1]`, of `{ f16; f16; u8[12] }`.
fn scales_and_minima(blocks: &Tensor) -> TorchResult<[Tensor; 2]> {
    let [first, second, third] =
        [bytes(blocks, 4..8)?, bytes(blocks, 8..12)?, bytes(blocks, 12..16)?];
    let six_bits = |bytes: &Tensor| bytes.f_bitwise_and(63);
    let two_bits = |bytes: &Tensor| upper_bits(&bytes.f_bitwise_right_shift_tensor_scalar(6)?, 4);
    let later_scales = low(&third)?.f_bitwise_or_tensor(&two_bits(&first)?)?;
    let later_minima = high(&third)?.f_bitwise_or_tensor(&two_bits(&second)?)?;
    let scales = Tensor::f_cat(&[six_bits(&first)?, later_scales], 2)?;
    let minima = Tensor::f_cat(&[six_bits(&second)?, later_minima], 2)?;
    let scaled = |integers: Tensor, place| -> TorchResult<Tensor> {
        let integers = integers.f_to_kind(Kind::Float)?;
        Ok(integers.f_mul(&half_at(blocks, place)?)?.f_unsqueeze(3)?)
    };
    Ok([scaled(scales, 0)?, scaled(minima, 2)?])
}

/// Nibbles of eight groups of 32, of which pairs share bytes: `[rows, blocks, 8, 32]`.
fn paired_nibbles(blocks: &Tensor, places: Range<i64>) -> TorchResult<Tensor> {
    let bytes = bytes(blocks, places)?.f_unflatten(2, [4, 32])?;
    Ok(Tensor::f_stack(&[low(&bytes)?, high(&bytes)?], 3)?.f_flatten(2, 3)?)
}

fn q4_k(blocks: &Tensor) -> TorchResult<Tensor> {
    let [scales, minima] = scales_and_minima(blocks)?;
    let integers = paired_nibbles(blocks, 16..144)?.f_to_kind(Kind::Float)?;
    Ok(integers.f_mul(&scales)?.f_sub(&minima)?)
}

fn q5_k(blocks: &Tensor) -> TorchResult<Tensor> {
    let [scales, minima] = scales_and_minima(blocks)?;
    let fifth = bytes(blocks, 16..48)?;
    let fifth = (0..8).map(|group| {
        upper_bits(&fifth.f_bitwise_right_shift_tensor_scalar(group)?.f_bitwise_and(1)?, 4)
    });
    let fifth = Tensor::f_stack(&fifth.collect::<TorchResult<Vec<_>>>()?, 2)?;
    let integers = paired_nibbles(blocks, 48..176)?.f_bitwise_or_tensor(&fifth)?;
    Ok(integers.f_to_kind(Kind::Float)?.f_mul(&scales)?.f_sub(&minima)?)
}

fn q6_k(blocks: &Tensor) -> TorchResult<Tensor> {
    // in each half, quarters of 32: low nibbles of both rows of bytes, then high ones
    let low_bits = bytes(blocks, 0..128)?.f_unflatten(2, [2, 2, 32])?;
    let low_bits = Tensor::f_stack(&[low(&low_bits)?, high(&low_bits)?], 3)?.f_flatten(3, 4)?;
    let high_bits = bytes(blocks, 128..192)?.f_unflatten(2, [2, 32])?;
    let high_bits = (0..4).map(|quarter| {
        let shifted = high_bits.f_bitwise_right_shift_tensor_scalar(2 * quarter)?;
        upper_bits(&shifted.f_bitwise_and(3)?, 4)
    });
    let high_bits = Tensor::f_stack(&high_bits.collect::<TorchResult<Vec<_>>>()?, 3)?;
    let integers = low_bits.f_bitwise_or_tensor(&high_bits)?.f_to_kind(Kind::Float)?;
    let integers = integers.f_sub_scalar(32)?.f_flatten(2, 4)?.f_unflatten(2, [16, 16])?;
    let scales = as_kind(&bytes(blocks, 192..208)?, Kind::Int8)?.f_mul(&half_at(blocks, 208)?)?;
    Ok(integers.f_mul(&scales.f_unsqueeze(3)?)?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tensors::download;

    /// Random blocks of a format, whose half-precision numbers are of the order of 1 / 1000.
    pub(crate) fn random_blocks(format: GgufType, [rows, columns]: [usize; 2]) -> QuantizedMatrix {
        let halves: &[usize] = match format {
            GgufType::Q6_K => &[208],
            GgufType::Q4_0 | GgufType::Q8_0 => &[0],
            _ => &[0, 2],
        };
        let count = rows * columns / format.block_values() * format.block_bytes();
        let mut state = 1_u32;
        let mut random = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let mut bytes: Vec<u8> = (0..count).map(|_| random()).collect();
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            halves.iter().for_each(|&place| block[place + 1] = 0x14 | block[place + 1] & 0x80);
        }
        QuantizedMatrix::of_blocks(format, bytes, [rows, columns]).unwrap()
    }

    #[test]
    fn a_device_dequantises_as_the_host_does_to_the_bit() {
        for format in [
            GgufType::Q4_0,
            GgufType::Q4_1,
            GgufType::Q8_0,
            GgufType::Q4_K,
            GgufType::Q5_K,
            GgufType::Q6_K,
        ] {
            let matrix = random_blocks(format, [7, 512]).reordered(|row| 6 - row);
            let blocks = DeviceBlocks::new(&matrix, Device::Cpu).unwrap();
            let values = matrix.values();
            assert!(values.iter().all(|value| value.is_finite()), "{format:?}");
            assert_eq!(download(&blocks.rows(0..7).unwrap()).unwrap(), values, "{format:?}");
            assert_eq!(download(&blocks.rows(2..5).unwrap()).unwrap(), values[2 * 512..5 * 512]);
            let selected = download(&blocks.select_rows(&[6, 1]).unwrap()).unwrap();
            assert_eq!(selected, [&values[6 * 512..], &values[512..2 * 512]].concat());
        }
    }

    #[test]
    fn a_format_that_the_device_cannot_dequantise_is_refused_by_name() {
        let format = GgufType::IQ4_NL;
        let matrix = QuantizedMatrix::of_blocks(format, vec![0; 18], [1, 32]).unwrap();
        let error = DeviceBlocks::new(&matrix, Device::Cpu).unwrap_err();
        let error = ModelError::from(error).to_string();
        assert!(error.contains("this model has IQ4_NL"), "{error}");
    }
}
