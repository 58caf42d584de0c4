//! Linear products of few rows, as in decoding, with the weight laid out for them once.
//!
//! ```text
//! weight [outputs, inputs]        panel p, [inputs, 16]: outputs 16 p to 16 p + 15
//!   w[0,0] w[0,1] ...              w[16p,0] w[16p+1,0] ... w[16p+15,0]
//!   w[1,0] w[1,1] ...              w[16p,1] w[16p+1,1] ... w[16p+15,1]
//!   ...                            ...                     (zeros after the last output)
//! ```

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::block::{Left, ProductSize, Right, TILE_COLUMNS, multiply_columns};
use super::vector::vectorised;
use super::{Uninitialised, produce};

/// Elements of one panel.
pub(crate) fn panel_elements(inputs: usize) -> usize {
    inputs * TILE_COLUMNS
}

/// A weight laid out as panels.
#[derive(Clone, Copy)]
pub(crate) enum Panels<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// The bits of bf16 numbers.
    Bf16(&'a [u16]),
}

impl<'a> Panels<'a> {
    /// One panel in f32, converted into `scratch` if need be.
    fn panel<'s>(self, index: usize, inputs: usize, scratch: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        let length = panel_elements(inputs);
        match self {
            Self::F32(values) => &values[index * length..][..length],
            Self::Bf16(bits) => {
                let panel = &bits[index * length..][..length];
                scratch.clear();
                scratch.extend(panel.iter().map(|&bits| bf16_to_f32(bits)));
                scratch
            }
        }
    }

    /// The memory of one panel; none after the last.
    fn bytes(self, index: usize, inputs: usize) -> &'a [u8] {
        let length = panel_elements(inputs);
        let range = index * length..(index + 1) * length;
        match self {
            Self::F32(values) => bytemuck::cast_slice(values.get(range).unwrap_or_default()),
            Self::Bf16(bits) => bytemuck::cast_slice(bits.get(range).unwrap_or_default()),
        }
    }
}

/// The number of these bits, exactly.
pub(crate) fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Lays an `[outputs, inputs]` weight out as panels of 16 outputs, each `[inputs, 16]`, so that
/// products read it from beginning to end.
pub(crate) fn pack(weight: &[f32], outputs: usize, inputs: usize) -> Vec<f32> {
    let panels = outputs.div_ceil(TILE_COLUMNS);
    produce(panels * panel_elements(inputs), |out| {
        out.par_chunks_mut(panel_elements(inputs))
            .zip(weight.par_chunks(panel_elements(inputs)))
            .for_each(|(panel, weight)| {
                if weight.len() < panel.len() {
                    panel.fill(MaybeUninit::new(0.0));
                }
                for (output, weight) in weight.chunks_exact(inputs).enumerate() {
                    let column = panel.iter_mut().skip(output).step_by(TILE_COLUMNS);
                    for (out, &value) in column.zip(weight) {
                        out.write(value);
                    }
                }
            });
    })
}

/// `x weight^T (+ bias)` of `rows` rows. Each row is computed alike, however many there are.
pub(crate) fn linear(
    x: &[f32],
    rows: usize,
    panels: Panels,
    [inputs, outputs]: [usize; 2],
    bias: Option<&[f32]>,
) -> Vec<f32> {
    let x = Left::Rows { values: &x[..rows * inputs], stride: inputs };
    let size = ProductSize { rows, depth: inputs, columns: TILE_COLUMNS };
    let mut result = produce(rows * outputs, |out| {
        let out = ColumnWriter::new(out, rows, outputs);
        (0..outputs.div_ceil(TILE_COLUMNS)).into_par_iter().for_each_init(
            Vec::new,
            |scratch, index| {
                let next = panels.bytes(index + 1, inputs);
                let panel = panels.panel(index, inputs, scratch);
                let columns = index * TILE_COLUMNS..outputs.min((index + 1) * TILE_COLUMNS);
                multiply_panel(x, panel, size, next, &out, columns);
            },
        );
    });
    if let Some(bias) = bias {
        for row in result.chunks_exact_mut(outputs) {
            super::elementwise::add_to(bias, row);
        }
    }
    result
}

vectorised! {
    /// Writes one panel's columns of a product; meanwhile fetches the next panel's bytes.
    fn multiply_panel(
        x: Left,
        panel: &[f32],
        size: ProductSize,
        next: &[u8],
        out: &ColumnWriter,
        columns: Range<usize>,
    ) {
        let right = Right { values: panel, stride: TILE_COLUMNS };
        multiply_columns::<FUSED, 2>(x, right, size, next, |row, sums| {
            // SAFETY: each panel has columns of its own, and one task computes it.
            unsafe { out.write(row, columns.start, &sums[..columns.len()]) };
        });
    }
}

/// A row-major matrix to which several tasks write at once, each to columns of its own.
struct ColumnWriter<'a> {
    pointer: *mut f32,
    rows: usize,
    columns: usize,
    borrow: PhantomData<&'a mut Uninitialised>,
}

// SAFETY: the memory is borrowed mutably as a whole, and who writes promises not to share columns.
unsafe impl Sync for ColumnWriter<'_> {}

impl<'a> ColumnWriter<'a> {
    fn new(values: &'a mut Uninitialised, rows: usize, columns: usize) -> Self {
        assert_eq!(values.len(), rows * columns, "a matrix differs from its shape");
        Self { pointer: values.as_mut_ptr().cast(), rows, columns, borrow: PhantomData }
    }

    /// Writes values into a row, from a column on.
    ///
    /// # Safety
    /// No other thread writes to these columns at the same time.
    #[inline(always)]
    unsafe fn write(&self, row: usize, column: usize, values: &[f32]) {
        assert!(row < self.rows && column + values.len() <= self.columns, "beyond the matrix");
        // SAFETY: the assertion and the constructor keep the elements within the borrowed memory, to which
        // only this thread writes here.
        unsafe {
            let target = self.pointer.add(row * self.columns + column);
            target.copy_from_nonoverlapping(values.as_ptr(), values.len());
        }
    }
}
