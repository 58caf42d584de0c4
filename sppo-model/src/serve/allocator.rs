//! Tuning of the C library's allocator for large buffers.

use std::sync::Once;

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
