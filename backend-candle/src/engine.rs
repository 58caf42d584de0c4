//! What the ops share: threads, cosine tables, and the chunks in which logits are computed.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;
use rayon::ThreadPool;
use sppo_model::Result;
use sppo_model::ops::RotaryFrequencies;
use sppo_model::serve::keep_large_buffers;

use crate::kernels::log_probs;
use crate::kernels::matrix::{Destination, Matrix, multiply};
use crate::kernels::rotary::{Direction, RotaryTable, rotary};
use crate::parameter::Parameter;
use crate::tensors::{Values, candle_error, tensor};
use crate::threads::thread_pool;

/// The ops on candle tensors in the memory of the CPU, with fused kernels, f32. Clones share their
/// threads.
#[derive(Clone)]
pub struct CandleOps {
    pub(crate) pool: Arc<ThreadPool>,
    pub(crate) keep_logits_limit: usize,
    rotary_tables: Arc<Mutex<Vec<Arc<RotaryTable>>>>,
}

/// Bytes of logits that exist at a time where they are not kept.
pub(crate) const LOGITS_CHUNK_BYTES: usize = 96 << 20;

impl CandleOps {
    /// Ops on `threads` threads (0 for one per core). Training keeps all logits of a batch for its
    /// backward pass when they take at most `keep_logits_limit` bytes, and computes them again when
    /// they take more.
    ///
    /// # Errors
    /// When threads cannot be started.
    pub fn new(threads: usize, keep_logits_limit: usize) -> Result<Self> {
        keep_large_buffers();
        let pool = thread_pool(threads)?;
        Ok(Self { pool, keep_logits_limit, rotary_tables: Arc::default() })
    }

    /// A matrix product on all threads, to be timed.
    pub(crate) fn matrix_product(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> impl FnMut() -> Result<()> + use<'_> {
        let (left, right) = (vec![0.5; rows * inner], vec![0.5; inner * columns]);
        let mut product = vec![0.0; rows * columns];
        move || {
            self.pool.install(|| {
                let left = Matrix::new(&left, rows, inner);
                let right = Matrix::new(&right, columns, inner).transposed();
                let destination = Destination::replace(&mut product, rows, columns);
                multiply(destination, left, right, self.threads());
            });
            Ok(())
        }
    }

    pub(crate) fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    fn rotary_table(&self, frequencies: &RotaryFrequencies, positions: &[u32]) -> Arc<RotaryTable> {
        let wanted = positions.iter().max().map_or(0, |&largest| largest as usize + 1);
        let mut tables = self.rotary_tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.iter().find(|table| table.is_for(frequencies))
            && table.positions() >= wanted
        {
            return Arc::clone(table);
        }
        tables.retain(|table| !table.is_for(frequencies));
        let table = Arc::new(RotaryTable::new(frequencies, wanted.next_power_of_two()));
        tables.push(Arc::clone(&table));
        table
    }

    /// Turns every head of `x` by its row's position.
    pub(crate) fn turn(
        &self,
        x: &Tensor,
        positions: &[u32],
        frequencies: &RotaryFrequencies,
        direction: Direction,
    ) -> Result<Tensor> {
        let (rows, columns) = dimensions(x)?;
        let table = self.rotary_table(frequencies, positions);
        let x = Values::of(x)?;
        let x: &[f32] = &x;
        let turned = self.pool.install(|| rotary(x, columns, positions, &table, direction));
        tensor(turned, &[rows, columns])
    }

    /// Rows whose logits are computed together: as many as fit, in parts of equal size.
    pub(crate) fn logits_rows(&self, rows: usize, vocabulary: usize) -> usize {
        let most = (LOGITS_CHUNK_BYTES / (4 * vocabulary.max(1))).clamp(32, 512);
        rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
    }

    /// `cap(hidden head^T)` of whole rows.
    pub(crate) fn capped_logits(
        &self,
        hidden: &[f32],
        rows: usize,
        head: &Parameter,
        soft_cap: Option<f32>,
    ) -> Result<Vec<f32>> {
        self.pool.install(|| {
            let mut logits = head.linear(hidden, rows, None, self.threads())?;
            if let Some(cap) = soft_cap {
                log_probs::cap_logits(&mut logits, cap);
            }
            Ok(logits)
        })
    }
}

/// `(rows, columns)` of an activation.
pub(crate) fn dimensions(tensor: &Tensor) -> Result<(usize, usize)> {
    tensor.dims2().map_err(candle_error)
}
