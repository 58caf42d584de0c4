//! The process groups of c10d: one operation among all ranks at a time, started here and waited for.

use std::ffi::{c_char, c_int, c_void};
use std::net::IpAddr;
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use super::store::{Answer, EngineResult, Store, c_string, checked, milliseconds};

/// A group of c10d. All ranks must call the same operations in the same order.
pub(super) struct Engine {
    raw: *mut c_void,
}

/// The place of a process among those of an engine, and where it listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) address: IpAddr,
}

/// Limits of an engine on the CPU.
#[derive(Clone, Copy, Debug)]
pub(super) struct EngineLimits {
    /// Threads that work on operations.
    pub(super) threads: c_int,
    /// Time to connect all ranks.
    pub(super) connect: Duration,
    /// Time for an operation, after which it fails of itself.
    pub(super) operation: Duration,
}

impl Engine {
    /// gloo, for tensors in the memory of the CPU. All ranks must call it with the same `name`.
    pub(super) fn gloo(
        store: &Store,
        name: &str,
        place: Place,
        limits: EngineLimits,
    ) -> EngineResult<Self> {
        let (name, address) = (c_string(name)?, c_string(&place.address.to_string())?);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the strings outlive the call; the engine keeps a reference to the store of its own.
        checked(unsafe {
            sppo_gloo_new(
                &mut raw,
                store.as_ptr(),
                name.as_ptr(),
                place.rank as c_int,
                place.size as c_int,
                address.as_ptr(),
                limits.threads,
                milliseconds(limits.connect),
                milliseconds(limits.operation),
            )
        })?;
        Ok(Self { raw })
    }

    /// An engine of another library.
    ///
    /// # Safety
    /// `raw` must be a `c10d::Backend` of this libtorch, whose only reference passes to the result.
    pub(super) unsafe fn from_raw(raw: *mut c_void) -> Self {
        Self { raw }
    }

    /// The tensor becomes the sum of all ranks' tensors.
    pub(super) fn all_reduce(&self, tensor: &Tensor) -> EngineResult<Operation> {
        // SAFETY: the operation keeps references to the tensors of its own.
        Operation::start(|raw| unsafe { sppo_all_reduce(raw, self.raw, tensor.as_ptr()) })
    }

    /// `whole` becomes the `shard`s of all ranks, one after another.
    pub(super) fn all_gather(&self, whole: &Tensor, shard: &Tensor) -> EngineResult<Operation> {
        let (whole, shard) = (whole.as_ptr(), shard.as_ptr());
        // SAFETY: as above.
        Operation::start(|raw| unsafe { sppo_all_gather(raw, self.raw, whole, shard) })
    }

    /// The tensor becomes that of the rank `root`.
    pub(super) fn broadcast(&self, tensor: &Tensor, root: usize) -> EngineResult<Operation> {
        let (tensor, root) = (tensor.as_ptr(), root as c_int);
        // SAFETY: as above.
        Operation::start(|raw| unsafe { sppo_broadcast(raw, self.raw, tensor, root) })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and freed once.
        unsafe { sppo_engine_free(self.raw) };
    }
}

/// An operation under way. Dropped before it is over it goes on, with references to its tensors.
pub(super) struct Operation {
    raw: *mut c_void,
}

impl Operation {
    fn start(call: impl FnOnce(*mut *mut c_void) -> Answer) -> EngineResult<Self> {
        let mut raw = std::ptr::null_mut();
        checked(call(&mut raw))?;
        Ok(Self { raw })
    }

    /// Waits so long at most; whether it is over.
    pub(super) fn wait(&self, patience: Duration) -> EngineResult<bool> {
        let mut done = false;
        // SAFETY: the object lives as long as `self`.
        checked(unsafe { sppo_operation_wait(self.raw, milliseconds(patience), &mut done) })?;
        Ok(done)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: the object is ours, and freed once.
        unsafe { sppo_operation_free(self.raw) };
    }
}

unsafe extern "C" {
    fn sppo_gloo_new(
        result: *mut *mut c_void,
        store: *mut c_void,
        name: *const c_char,
        rank: c_int,
        size: c_int,
        address: *const c_char,
        threads: c_int,
        connect_ms: i64,
        timeout_ms: i64,
    ) -> Answer;
    fn sppo_engine_free(engine: *mut c_void);
    fn sppo_all_reduce(
        result: *mut *mut c_void,
        engine: *mut c_void,
        tensor: *const C_tensor,
    ) -> Answer;
    fn sppo_all_gather(
        result: *mut *mut c_void,
        engine: *mut c_void,
        whole: *const C_tensor,
        shard: *const C_tensor,
    ) -> Answer;
    fn sppo_broadcast(
        result: *mut *mut c_void,
        engine: *mut c_void,
        tensor: *const C_tensor,
        root: c_int,
    ) -> Answer;
    fn sppo_operation_wait(operation: *mut c_void, patience_ms: i64, done: *mut bool) -> Answer;
    fn sppo_operation_free(operation: *mut c_void);
}
