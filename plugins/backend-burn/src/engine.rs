//! What the ops share: the device, and tables that several layers read.

use std::rc::Rc;

use burn_tensor::{Device, Int, Tensor};
use sppo_model::Result;
use sppo_model::ops::encoder::{DisentangledShape, EncoderSegment};
use sppo_model::ops::{AttentionSegment, CachedRow, RotaryFrequencies};
use sppo_model::serve::keep_large_buffers;

use crate::cached_attention::DecodingPlan;
use crate::recent::Recent;
use crate::tensors::{download, upload};

/// The ops on burn tensors, f32. Clones share their tables.
#[derive(Clone)]
pub struct BurnOps {
    pub(crate) device: Device,
    pub(crate) keep_logits_limit: usize,
    pub(crate) shared: Rc<Shared>,
}

/// What was computed for one layer and serves the next.
#[derive(Default)]
pub(crate) struct Shared {
    rotary: Recent<u32, RotaryFrequencies, RotaryTable>,
    /// By segments and window; one mask per segment.
    pub(crate) masks: Recent<AttentionSegment, Option<usize>, Rc<[Tensor<4>]>>,
    /// By rows and window.
    pub(crate) decoding: Recent<CachedRow, Option<usize>, DecodingPlan>,
    /// By sequences; the table rows of each.
    pub(crate) distances: Recent<EncoderSegment, DisentangledShape, Rc<[Tensor<3, Int>]>>,
}

/// Cosines and sines of a batch's positions, each `[rows, 1, head_size / 2]`.
#[derive(Clone)]
struct RotaryTable {
    cosines: Tensor<3>,
    sines: Tensor<3>,
}

/// Bytes of logits that exist at a time where they are not kept.
const LOGITS_CHUNK_BYTES: usize = 96 << 20;

/// Turn forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

impl BurnOps {
    /// Ops on a device. Training keeps all logits of a batch for its backward pass when they take at
    /// most `keep_logits_limit` bytes, and computes them again when they take more.
    #[must_use]
    pub fn new(device: Device, keep_logits_limit: usize) -> Self {
        keep_large_buffers();
        Self { device, keep_logits_limit, shared: Rc::default() }
    }

    /// Turns every head of `x` by its row's position.
    pub(crate) fn turn(
        &self,
        x: &Tensor<2>,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        direction: Direction,
    ) -> Result<Tensor<2>> {
        let [rows, columns] = x.dims();
        let half = frequencies.frequencies.len();
        let RotaryTable { cosines, sines } = self.rotary_table(positions, frequencies)?;
        let sines = if direction == Direction::Forward { sines } else { sines.neg() };
        let heads = x.clone().reshape([rows, columns / (2 * half), 2 * half]);
        let first = heads.clone().narrow(2, 0, half);
        let second = heads.narrow(2, half, half);
        let turned = vec![
            first.clone() * cosines.clone() - second.clone() * sines.clone(),
            second * cosines + first * sines,
        ];
        Ok(Tensor::cat(turned, 2).reshape([rows, columns]))
    }

    fn rotary_table(
        &self,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
    ) -> Result<RotaryTable> {
        self.shared.rotary.find_or_make(positions, frequencies, || {
            let shape = [positions.len(), 1, frequencies.frequencies.len()];
            let table = |function: fn(f64) -> f64| {
                let of_position = |&position: &u32| {
                    frequencies.angles(position).map(move |angle| function(angle) as f32)
                };
                let values = positions.iter().flat_map(of_position).collect();
                upload(values, shape, &self.device)
            };
            Ok(RotaryTable { cosines: table(f64::cos)?, sines: table(f64::sin)? })
        })
    }

    /// Rows whose logits are computed together: as many as fit, in parts of equal size.
    pub(crate) fn logits_rows(&self, rows: usize, vocabulary: usize) -> usize {
        let most = (LOGITS_CHUNK_BYTES / (size_of::<f32>() * vocabulary.max(1))).clamp(32, 512);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// A matrix product, to be timed.
    pub(crate) fn matrix_product(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> impl FnMut() -> Result<()> + use<> {
        let left = Tensor::<2>::ones([rows, inner], &self.device);
        let right = Tensor::<2>::ones([columns, inner], &self.device);
        move || {
            let product = left.clone().matmul(right.clone().transpose());
            // Waits for the device.
            download(&product.narrow(0, 0, 1).narrow(1, 0, 1)).map(|_| ())
        }
    }
}
