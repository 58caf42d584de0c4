//! The threads of OpenMP, on which libtorch computes.

use std::env;

/// Their conduct between two computations, a variable that OpenMP reads when it is loaded, with a backend.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Lets the threads sleep while they have nothing to do, unless the user wants otherwise. By default they wait at full
/// speed for some milliseconds, on the cores that the kernels of the backend `tch` are to use meanwhile.
///
/// To be called before there are other threads.
pub(crate) fn let_idle_threads_sleep() {
    if env::var_os(WAIT_POLICY).is_none() {
        // SAFETY: `main` calls this first, when no other thread can be reading the environment.
        unsafe { env::set_var(WAIT_POLICY, "passive") };
    }
}
