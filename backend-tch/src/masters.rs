//! The f32 values of weights that are trained, in 16 bits beside the bf16 copies that products read.
//!
//! A copy is its number rounded to nearest, to even where two are equally near. What is left over, in units of
//! the number's last place, lies between -32768 and 32768:
//!
//! ```text
//! bits of the number = (bits of its copy << 16) + remainder
//! ```
//!
//! So 16 bits hold it, but for 32768: a number half-way between two, rounded down to even. It is kept as
//! -32768, and its place is noted. One number in 131,072 is of that kind where the low bits are random.

use tch::{Device, Kind, Tensor};

use crate::tensors::TorchResult;

/// Distance of two numbers in bf16 that follow each other, in last places of f32.
const STEP: i64 = 1 << 16;
/// A remainder that 16 bits do not hold.
const TIE: i64 = STEP / 2;

/// Numbers of a flat tensor that kernels take at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    number: usize,
    start: i64,
    length: i64,
}

impl Stretch {
    /// Stretches that cover a flat tensor: on the CPU short enough to stay in the cache from kernel to kernel
    /// (half a mebibyte, shared by the cores), on a CUDA device short enough for their temporary tensors to be
    /// small and long enough to keep it busy.
    pub(crate) fn all(flat: &Tensor) -> impl Iterator<Item = Self> + use<> {
        let longest: i64 = if flat.device() == Device::Cpu { 1 << 17 } else { 1 << 24 };
        let total = flat.numel() as i64;
        (0..total).step_by(longest as usize).enumerate().map(move |(number, start)| Self {
            number,
            start,
            length: longest.min(total - start),
        })
    }

    /// This stretch of a flat tensor, in the same memory.
    pub(crate) fn of(self, flat: &Tensor) -> TorchResult<Tensor> {
        Ok(flat.f_narrow(0, self.start, self.length)?)
    }
}

/// Values of a weight, flat, to be changed.
pub(crate) enum Masters<'a> {
    /// In f32.
    Whole(&'a Tensor),
    /// A copy in bf16, and what it lacks.
    Split(&'a Tensor, &'a mut Remainders),
}

impl Masters<'_> {
    /// A flat tensor of as many numbers.
    pub(crate) fn flat(&self) -> &Tensor {
        match self {
            Self::Whole(values) | Self::Split(values, _) => values,
        }
    }

    /// Changes a stretch of the values in f32.
    pub(crate) fn change(
        &mut self,
        stretch: Stretch,
        change: impl FnOnce(Tensor) -> TorchResult<()>,
    ) -> TorchResult<()> {
        match self {
            Self::Whole(values) => change(stretch.of(values)?),
            Self::Split(copy, remainders) => {
                let copy = stretch.of(copy)?;
                let values = remainders.join(stretch, &copy)?;
                change(values.shallow_clone())?;
                remainders.split(stretch, &values, copy)
            }
        }
    }
}

/// Differences of numbers in f32 from their copies in bf16.
#[derive(Debug)]
pub(crate) struct Remainders {
    /// Flat, 16-bit integers.
    low: Tensor,
    /// Places of the numbers half-way that were rounded down, for each stretch.
    ties: Vec<Tensor>,
}

impl Remainders {
    /// Rounds flat values into a flat copy, and keeps what that lacks.
    pub(crate) fn new(values: &Tensor, copy: &Tensor) -> TorchResult<Self> {
        let low = Tensor::f_empty(values.size(), (Kind::Int16, values.device()))?;
        let mut remainders = Self { low, ties: Vec::new() };
        for stretch in Stretch::all(values) {
            remainders.split(stretch, &stretch.of(values)?, stretch.of(copy)?)?;
        }
        Ok(remainders)
    }

    /// The numbers of a flat copy in f32.
    pub(crate) fn values(&self, copy: &Tensor) -> TorchResult<Tensor> {
        let values = Tensor::f_empty(copy.size(), (Kind::Float, copy.device()))?;
        for stretch in Stretch::all(copy) {
            stretch.of(&values)?.f_copy_(&self.join(stretch, &stretch.of(copy)?)?)?;
        }
        Ok(values)
    }

    fn join(&self, stretch: Stretch, copy: &Tensor) -> TorchResult<Tensor> {
        let mut bits = high_bits(copy)?;
        let _ = bits.f_add_(&stretch.of(&self.low)?)?;
        if let Some(ties) = self.ties.get(stretch.number).filter(|ties| ties.numel() > 0) {
            let steps = Tensor::f_full(ties.size(), STEP, (Kind::Int, copy.device()))?;
            let _ = bits.f_index_add_(0, ties, &steps)?;
        }
        Ok(bits.f_view_dtype(Kind::Float)?)
    }

    /// Stretches are split for the first time in their order.
    fn split(&mut self, stretch: Stretch, values: &Tensor, mut copy: Tensor) -> TorchResult<()> {
        copy.f_copy_(values)?;
        let mut remainders = values.f_view_dtype(Kind::Int)?.f_sub(&high_bits(&copy)?)?;
        let ties = remainders.f_eq(TIE)?.f_nonzero()?.f_view(-1)?;
        let _ = remainders.f_index_fill_(0, &ties, -TIE)?;
        stretch.of(&self.low)?.f_copy_(&remainders)?;
        match self.ties.get_mut(stretch.number) {
            Some(known) => *known = ties,
            None => self.ties.push(ties),
        }
        Ok(())
    }
}

/// The bits of numbers in bf16, as those of the same numbers in f32.
fn high_bits(copy: &Tensor) -> TorchResult<Tensor> {
    let mut bits = copy.f_view_dtype(Kind::Int16)?.f_to_kind(Kind::Int)?;
    let _ = bits.f_mul_scalar_(STEP)?;
    Ok(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::upload;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn numbers_of_all_sizes_join_again_to_the_bit() {
        // More than two stretches of all exponents, both signs and all kinds of low halves: each third number
        // is half-way between two of bf16.
        let value = |index: u32| {
            let mixed =
                index.wrapping_mul(0x9e37_79b9) ^ index.wrapping_mul(0x85eb_ca6b).rotate_left(13);
            let bits = if index.is_multiple_of(3) { (mixed & 0xffff_0000) | 0x8000 } else { mixed };
            let value = f32::from_bits(bits);
            if value.is_finite() { value } else { f32::from_bits(bits & 0x807f_ffff) }
        };
        let mut values: Vec<f32> = (0..300_000).map(value).collect();
        values.extend([0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1.0, -1.0]);
        values.extend([f32::from_bits(0x3f80_8000), f32::from_bits(0x3f81_8000)]);
        let count = [values.len() as i64];
        let f32s = upload(&values, &count, Device::Cpu).unwrap();
        let copy = Tensor::zeros(count, (Kind::BFloat16, Device::Cpu));
        let remainders = Remainders::new(&f32s, &copy).unwrap();
        assert!(
            copy.equal(&f32s.to_kind(Kind::BFloat16)),
            "the copy is rounded as libtorch rounds"
        );
        let joined = crate::tensors::download(&remainders.values(&copy).unwrap()).unwrap();
        assert_eq!(bits(&joined), bits(&values));
    }

    #[test]
    fn a_change_is_one_of_the_numbers_in_f32() {
        let values: Vec<f32> = (0..200_001).map(|index| (index as f32 * 0.37).sin()).collect();
        let count = [values.len() as i64];
        let whole = upload(&values, &count, Device::Cpu).unwrap();
        let copy = whole.to_kind(Kind::BFloat16);
        let mut remainders = Remainders::new(&whole, &copy).unwrap();
        for _ in 0..5 {
            for stretch in Stretch::all(&copy) {
                let add = |mut values: Tensor| {
                    let _ = values.f_add_scalar_(1e-7)?.f_mul_scalar_(0.999)?;
                    Ok(())
                };
                Masters::Whole(&whole).change(stretch, add).unwrap();
                Masters::Split(&copy, &mut remainders).change(stretch, add).unwrap();
            }
        }
        assert!(remainders.values(&copy).unwrap().equal(&whole));
        assert!(copy.equal(&whole.to_kind(Kind::BFloat16)));
    }
}
