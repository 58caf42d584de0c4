//! The compute backend that any op set makes, and the setting of the allocator that suits its buffers.

use std::sync::Once;
use std::time::Instant;

use sppo_plugin::{
    Backend, MemoryEstimate, ModelSpec, PlannedWork, PluginError, Policy, PolicySpec, Scorer,
};

use super::memory_estimate::MemoryTraits;
use super::policy::{DecoderPolicy, estimate_policy_memory};
use super::scorer::load_scorer;
use crate::error::{ModelError, Result};
use crate::generation::GenerationLimits;
use crate::ops::encoder::EncoderOps;

/// A compute backend on an op set: decoders become policies, encoders scorers.
pub struct ModelBackend<O> {
    ops: O,
    limits: GenerationLimits,
    memory: Option<MemoryTraits>,
}

impl<O> ModelBackend<O> {
    /// A backend whose policies sample within `limits`. It estimates memory if `memory` describes the op
    /// set.
    pub fn new(ops: O, limits: GenerationLimits, memory: Option<MemoryTraits>) -> Self {
        Self { ops, limits, memory }
    }
}

/// An op set whose matrix products can be timed.
pub trait MatrixRate {
    /// A function that multiplies `[rows, inner] x [inner, columns]` once, in the compute dtype, and returns
    /// when that is done.
    ///
    /// # Errors
    /// When the operands cannot be made.
    fn matrix_product(&self, shape: [usize; 3]) -> Result<impl FnMut() -> Result<()>>;
}

impl<O: EncoderOps + MatrixRate + Clone> Backend for ModelBackend<O> {
    fn load_policy(&self, spec: &PolicySpec) -> std::result::Result<Box<dyn Policy>, PluginError> {
        Ok(Box::new(DecoderPolicy::load(self.ops.clone(), spec, self.limits)?))
    }

    fn load_scorer(&self, model: &ModelSpec) -> std::result::Result<Box<dyn Scorer>, PluginError> {
        Ok(load_scorer(self.ops.clone(), &model.path)?)
    }

    fn estimate_memory(
        &self,
        spec: &PolicySpec,
        work: &PlannedWork,
    ) -> std::result::Result<MemoryEstimate, PluginError> {
        let traits = self.memory.ok_or_else(|| {
            PluginError::unsupported(
                "this backend does not estimate its memory with these settings",
            )
        })?;
        Ok(estimate_policy_memory(spec, traits, self.limits, work)?)
    }

    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> std::result::Result<f64, PluginError> {
        Ok(rate([rows, inner, columns], &self.ops)?)
    }
}

/// Time for which products are repeated, in seconds.
const SECONDS: f64 = 1.0;

/// GFLOP/s of the median of many products. The fastest would say what the machine does when nobody else is
/// on it, which work that lasts for minutes cannot be compared with.
fn rate([rows, inner, columns]: [usize; 3], ops: &impl MatrixRate) -> Result<f64> {
    if rows == 0 || inner == 0 || columns == 0 {
        return Err(ModelError::Input("a matrix product of no elements has no rate".into()));
    }
    let flops = 2.0 * rows as f64 * inner as f64 * columns as f64;
    let mut product = ops.matrix_product([rows, inner, columns])?;
    product()?;
    let begin = Instant::now();
    let mut seconds = Vec::new();
    while begin.elapsed().as_secs_f64() < SECONDS {
        let start = Instant::now();
        product()?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let median = seconds.get(seconds.len() / 2).copied().unwrap_or(f64::NAN);
    Ok(flops / median / 1e9)
}

static KEEP_LARGE_BUFFERS: Once = Once::new();

/// Makes freed buffers stay with the process. A forward pass allocates and frees hundreds of
/// megabytes; by default glibc returns them to the system each time, and each time the kernel must
/// supply zeroed pages again, which costs about 15 % of a training step.
///
/// Does nothing where the C library is not glibc.
pub fn keep_large_buffers() {
    KEEP_LARGE_BUFFERS.call_once(configure_allocator);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn configure_allocator() {
    let settings = [
        // One arena: others return whole 64 MiB heaps as soon as they are empty.
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, i32::MAX),
        (libc::M_TOP_PAD, 64 << 20),
    ];
    for (parameter, value) in settings {
        // SAFETY: `mallopt` takes plain integers and locks the allocator itself.
        let accepted = unsafe { libc::mallopt(parameter, value) };
        if accepted == 0 {
            tracing::debug!(parameter, value, "the allocator refused a setting");
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn configure_allocator() {}
