//! What the ops share: the device, number formats, and tables that several layers read.

use std::cell::RefCell;
use std::rc::Rc;

use sppo_model::ops::{AttentionSegment, AttentionShape, CachedRow, RotaryFrequencies};
use sppo_model::serve::keep_large_buffers;
use sppo_model::{ModelError, Result};
use tch::{Device, Kind, Tensor};

use crate::cached_attention::DecodingPlan;
use crate::encoder::DistanceRows;
use crate::packed_attention::PackedPlan;
use crate::parameter::Parameter;
use crate::ragged_attention;
use crate::ragged_decoding::RaggedDecodingPlan;
use crate::tensors::{TorchResult, dimensions, index, upload};

/// How to compute.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TchOptions {
    /// Where.
    pub device: Device,
    /// The number format of matrix products and of what they return: `Float` or `BFloat16`. Weights,
    /// their gradients, sums over layers, norms, log-probabilities and the optimiser are f32 always.
    pub matrix_kind: Kind,
    /// CPU threads; 0 for one per core.
    pub threads: usize,
    /// Training keeps all logits of a batch for its backward pass when they take at most so many
    /// bytes, and computes them again when they take more.
    pub keep_logits_limit: usize,
}

/// The ops on libtorch. Clones share their tables.
#[derive(Clone)]
pub struct TchOps {
    pub(crate) device: Device,
    pub(crate) matrix_kind: Kind,
    pub(crate) keep_logits_limit: usize,
    pub(crate) shared: Rc<Shared>,
}

/// What was computed for one layer and serves the next.
#[derive(Default)]
pub(crate) struct Shared {
    rotary: RefCell<Vec<RotaryTable>>,
    pub(crate) decoding: RefCell<Option<Rc<DecodingPlan>>>,
    packed: RefCell<Option<Rc<PackedPlan>>>,
    ragged_decoding: RefCell<Option<Rc<RaggedDecodingPlan>>>,
    slots: RefCell<Option<Rc<Slots>>>,
    pub(crate) distance_rows: RefCell<Option<Rc<DistanceRows>>>,
}

/// The slots of the cache that a step writes, on the device.
struct Slots {
    numbers: Vec<u32>,
    index: Tensor,
}

/// Cosines and sines of a batch's positions, each `[rows, 1, head_size]`; the sines of the first half
/// of a head are negated.
struct RotaryTable {
    frequencies: RotaryFrequencies,
    positions: Vec<u32>,
    cosines: Tensor,
    sines: Tensor,
}

/// Bytes of logits that exist at a time where they are not kept: on the CPU few, on CUDA devices enough to
/// keep them busy.
pub(crate) const LOGITS_CHUNK_BYTES: usize = 96 << 20;
const CUDA_LOGITS_CHUNK_BYTES: usize = 1 << 30;

/// Rows that are few, see [`TchOps::product`].
const FEW_ROWS: i64 = 64;

/// Batches whose rotary tables are kept: a model may have two sets of frequencies.
const ROTARY_TABLES: usize = 2;

/// Turn forward, or back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

impl TchOps {
    /// Ops on a device that [`choose_device`](crate::choose_device) returned.
    ///
    /// # Errors
    /// When there are more threads than libtorch can count.
    pub fn new(options: &TchOptions) -> Result<Self> {
        keep_large_buffers();
        let threads = match options.threads {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let threads = i32::try_from(threads)
            .map_err(|_| ModelError::Backend(format!("{threads} threads are too many")))?;
        if tch::get_num_threads() != threads {
            tch::set_num_threads(threads);
        }
        Ok(Self {
            device: options.device,
            matrix_kind: options.matrix_kind,
            keep_logits_limit: options.keep_logits_limit,
            shared: Rc::default(),
        })
    }

    /// As the operand of a matrix product.
    pub(crate) fn operand(&self, tensor: &Tensor) -> TorchResult<Tensor> {
        Ok(tensor.f_to_kind(self.matrix_kind)?)
    }

    /// An empty f32 tensor's options.
    pub(crate) fn wide(&self) -> (Kind, Device) {
        (Kind::Float, self.device)
    }

    /// Turns every head of `x` by its row's position.
    pub(crate) fn turn(
        &self,
        x: &Tensor,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        direction: Direction,
    ) -> TorchResult<Tensor> {
        let (rows, columns) = dimensions(x)?;
        let half = frequencies.frequencies.len() as i64;
        let (cosines, sines) = self.rotary_table(positions, frequencies)?;
        let heads = x.f_view([rows, columns / (2 * half), 2 * half])?;
        let result = heads.f_mul(&cosines)?;
        // Each half gets the other half, times the sine that stands where it comes from: for turning
        // back these are the other half's, whose sign is the opposite.
        for (to, from) in [(0, half), (half, 0)] {
            let sine_at = if direction == Direction::Forward { to } else { from };
            let sine = sines.f_narrow(2, sine_at, half)?;
            let other = heads.f_narrow(2, from, half)?;
            let _ = result.f_narrow(2, to, half)?.f_addcmul_(&other, &sine)?;
        }
        Ok(result.f_view([rows, columns])?)
    }

    fn rotary_table(
        &self,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
    ) -> TorchResult<(Tensor, Tensor)> {
        let mut tables = self.shared.rotary.borrow_mut();
        let found = tables
            .iter()
            .find(|table| table.positions == positions && table.frequencies == *frequencies);
        if let Some(table) = found {
            return Ok((table.cosines.shallow_clone(), table.sines.shallow_clone()));
        }
        let table = RotaryTable::new(positions, frequencies, self.device)?;
        let result = (table.cosines.shallow_clone(), table.sines.shallow_clone());
        tables.truncate(ROTARY_TABLES - 1);
        tables.insert(0, table);
        Ok(result)
    }

    /// How a CUDA device attends over these segments in few kernels; `None` where it has none for this
    /// shape.
    pub(crate) fn packed_plan(
        &self,
        segments: &[AttentionSegment],
        shape: &AttentionShape,
    ) -> TorchResult<Option<Rc<PackedPlan>>> {
        let is_for = |plan: &PackedPlan| plan.is_for(segments, shape.window);
        let make = || PackedPlan::new(segments, shape.window, self.device);
        let plan = || kept_or_made(&self.shared.packed, is_for, make);
        self.attends_in_few_kernels(shape).then(plan).transpose()
    }

    /// How a CUDA device attends over these rows of the cache in few kernels; `None` where it has none
    /// for this shape.
    pub(crate) fn ragged_decoding_plan(
        &self,
        rows: &[CachedRow],
        shape: &AttentionShape,
    ) -> TorchResult<Option<Rc<RaggedDecodingPlan>>> {
        let is_for = |plan: &RaggedDecodingPlan| plan.is_for(rows, shape.window);
        let make = || RaggedDecodingPlan::new(rows, shape, self.device);
        let plan = || kept_or_made(&self.shared.ragged_decoding, is_for, make);
        self.attends_in_few_kernels(shape).then(plan).transpose()
    }

    /// Slots of the cache as an index, the same for all layers.
    pub(crate) fn slots(&self, slots: &[u32]) -> TorchResult<Tensor> {
        let make = || Ok(Slots { numbers: slots.into(), index: index(slots, self.device)? });
        let kept = kept_or_made(&self.shared.slots, |kept| kept.numbers == slots, make)?;
        Ok(kept.index.shallow_clone())
    }

    fn attends_in_few_kernels(&self, shape: &AttentionShape) -> bool {
        self.device.is_cuda()
            && shape.soft_cap.is_none()
            && ragged_attention::takes(shape.head_size, self.matrix_kind)
    }

    /// Rows whose logits are computed together: as many as fit, in parts of equal size.
    pub(crate) fn logits_rows(&self, rows: usize, vocabulary: usize) -> usize {
        let bytes = match self.device.is_cuda() {
            true => CUDA_LOGITS_CHUNK_BYTES,
            false => LOGITS_CHUNK_BYTES,
        };
        let most = (bytes / (4 * vocabulary.max(1))).clamp(32, 4096);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// `x weight^T (+ bias)` in the number format of matrix products.
    pub(crate) fn product(
        &self,
        x: &Tensor,
        weight: &Parameter,
        bias: Option<&Parameter>,
    ) -> TorchResult<Tensor> {
        let (x, weight) = (self.operand(x)?, weight.operand(self.matrix_kind)?);
        let bias = bias.map(|bias| bias.operand(self.matrix_kind)).transpose()?;
        let (rows, _) = dimensions(&x)?;
        if self.device != Device::Cpu || self.matrix_kind != Kind::Float || rows > FEW_ROWS {
            return Ok(x.f_linear(&weight, bias.as_ref())?);
        }
        // MKL lays out the right operand before it multiplies, which for few rows takes as long as the
        // product if that operand is the weight.
        let mut product = weight.f_mm(&x.f_transpose(0, 1)?)?.f_transpose(0, 1)?.f_contiguous()?;
        if let Some(bias) = bias {
            let _ = product.f_add_(&bias)?;
        }
        Ok(product)
    }

    /// `cap(hidden head^T)` in f32.
    pub(crate) fn capped_logits(
        &self,
        hidden: &Tensor,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> TorchResult<Tensor> {
        let mut logits = self.product(hidden, head, None)?.f_to_kind(Kind::Float)?;
        if let Some(cap) = soft_cap {
            let _ = logits.f_mul_scalar_(1.0 / f64::from(cap))?;
            let _ = logits.f_tanh_()?;
            let _ = logits.f_mul_scalar_(f64::from(cap))?;
        }
        Ok(logits)
    }

    /// A matrix product in the number format of matrix products, to be timed.
    pub(crate) fn matrix_product(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> TorchResult<impl FnMut() -> TorchResult<()> + use<>> {
        let options = (self.matrix_kind, self.device);
        // Some devices multiply zeros and ones faster than other numbers.
        let left = Tensor::f_randn([rows as i64, inner as i64], options)?;
        let right = Tensor::f_randn([columns as i64, inner as i64], options)?;
        let device = self.device;
        Ok(move || {
            let product = left.f_linear::<&Tensor>(&right, None)?;
            if device != Device::Cpu {
                // Waits for the device.
                product.f_double_value(&[0, 0])?;
            }
            Ok(())
        })
    }
}

/// What is kept if it fits, or else what `make` makes, which is kept then.
pub(crate) fn kept_or_made<T>(
    kept: &RefCell<Option<Rc<T>>>,
    fits: impl Fn(&T) -> bool,
    make: impl FnOnce() -> TorchResult<T>,
) -> TorchResult<Rc<T>> {
    let mut kept = kept.borrow_mut();
    if let Some(found) = kept.as_ref().filter(|kept| fits(kept)) {
        return Ok(Rc::clone(found));
    }
    let made = Rc::new(make()?);
    *kept = Some(Rc::clone(&made));
    Ok(made)
}

impl RotaryTable {
    fn new(
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        device: Device,
    ) -> TorchResult<Self> {
        let size = 2 * frequencies.frequencies.len();
        let mut cosines = Vec::with_capacity(positions.len() * size);
        let mut sines = Vec::with_capacity(positions.len() * size);
        for &position in positions {
            for sign in [-1.0, 1.0] {
                cosines.extend(frequencies.angles(position).map(|angle| angle.cos() as f32));
                sines.extend(frequencies.angles(position).map(|angle| (sign * angle.sin()) as f32));
            }
        }
        let shape = [positions.len() as i64, 1, size as i64];
        Ok(Self {
            frequencies: frequencies.clone(),
            positions: positions.to_vec(),
            cosines: upload(&cosines, &shape, device)?,
            sines: upload(&sines, &shape, device)?,
        })
    }
}
