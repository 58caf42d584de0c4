//! Parts that the fuzz targets share: the limits of one input, and files made of it.
//!
//! A panic ends a target, and so does an input that takes too much time or memory. Both are measured here
//! rather than by libFuzzer, so that a busy machine makes no input slow, and no sanitizer is needed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Memory that one input may take at a time, in bytes.
const MOST_MEMORY: usize = 1 << 30;

/// Time of all processors that one input may take. Instrumentation makes a program several times slower, and
/// the program itself may take a second.
const MOST_TIME: Duration = Duration::from_secs(4);

#[global_allocator]
static MEMORY: Counted = Counted { used: AtomicUsize::new(0), limit: AtomicUsize::new(usize::MAX) };

/// The system's allocator, which ends the program at a limit.
struct Counted {
    used: AtomicUsize,
    limit: AtomicUsize,
}

impl Counted {
    fn take(&self, bytes: usize) {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if used > self.limit.load(Ordering::Relaxed) {
            self.limit.store(usize::MAX, Ordering::Relaxed);
            eprintln!(
                "an input takes more than {MOST_MEMORY} bytes of memory, {bytes} of them at once"
            );
            std::process::abort();
        }
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator as it came; only numbers are kept beside it.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: the caller keeps the contract of this same method.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.take(size.saturating_sub(layout.size()));
        self.give_back(layout.size().saturating_sub(size));
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        self.give_back(layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Lets a target go on after panics of another crate that the program catches. One that nobody catches still
/// ends it.
pub fn panics_may_be_caught_in(name: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|place| place.file().contains(name)) {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

/// Reads one input, within the limits.
///
/// # Panics
/// When reading takes too much time. Too much memory ends the program.
pub fn within_limits(read: impl FnOnce()) {
    let used = MEMORY.used.load(Ordering::Relaxed);
    MEMORY.limit.store(used.saturating_add(MOST_MEMORY), Ordering::Relaxed);
    let start = time_used();
    read();
    let time = time_used().saturating_sub(start);
    MEMORY.limit.store(usize::MAX, Ordering::Relaxed);
    assert!(time < MOST_TIME, "an input takes {time:?}");
}

/// Processor time of this process so far.
fn time_used() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is ours, and outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// This process's own directory, in the one that `TMPDIR` names.
///
/// # Panics
/// When it cannot be made.
pub fn directory() -> &'static Path {
    static DIRECTORY: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
    DIRECTORY.path()
}

/// Writes a file that reads as this input, and returns its path.
///
/// # Panics
/// When it cannot be written.
pub fn file(name: impl AsRef<Path>, content: &[u8]) -> PathBuf {
    let path = directory().join(name);
    std::fs::write(&path, content).expect("a temporary file");
    path
}

/// The two parts of an input that holds several, with `=====` alone on a line between them.
pub fn halves(data: &[u8]) -> (&[u8], &[u8]) {
    const MARK: &[u8] = b"\n=====\n";
    match data.windows(MARK.len()).position(|window| window == MARK) {
        Some(at) => (&data[..at], &data[at + MARK.len()..]),
        None => (data, &[]),
    }
}
