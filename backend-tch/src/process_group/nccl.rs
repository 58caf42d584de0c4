//! NCCL, for tensors of CUDA devices: an engine in a library of its own.

use std::error::Error;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;
use std::time::Duration;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::engine::Engine;
use super::store::{Answer, EngineResult, Store, checked, milliseconds};

/// File that `backend-tch/build-nccl` makes.
const LIBRARY: &str = "libsppo_nccl.so";
/// Its only function, with a version of its signature.
const SYMBOL: &[u8] = b"sppo_nccl_new\0";

type New = unsafe extern "C" fn(
    result: *mut *mut c_void,
    store: *mut c_void,
    rank: c_int,
    size: c_int,
    device: c_int,
    timeout_ms: i64,
) -> Answer;

/// The place of a process among all, and its CUDA device.
#[derive(Clone, Copy, Debug)]
pub(super) struct NcclPlace {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) device: usize,
}

/// Opens the library and connects all ranks through it.
pub(super) fn open(
    store: &Store,
    place: NcclPlace,
    timeout: Duration,
    directories: &[PathBuf],
) -> EngineResult<Engine> {
    let directories: Vec<PathBuf> =
        own_directory().into_iter().chain(directories.iter().cloned()).collect();
    let found =
        directories.iter().map(|directory| directory.join(LIBRARY)).find(|path| path.exists());
    let path = found.ok_or_else(|| {
        let searched: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        format!("there is no {LIBRARY} in {}", searched.join(", "))
    })?;
    let cannot = |error: libloading::Error| {
        // The error itself says that it failed, its source says why.
        let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        format!("{} cannot be opened: {reason}", path.display())
    };
    // All symbols are looked for now: one that is missing later would end the process. SAFETY: it is the
    // plugin's own library, whose initialisers do nothing else than libtorch's. It stays open, so its
    // function may be called as long as the process lives.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }.map_err(cannot)?;
    let library = Box::leak(Box::new(library));
    // SAFETY: the function has this signature in every version of the library.
    let new = unsafe { library.get::<New>(SYMBOL) }.map_err(cannot)?;
    let mut raw = std::ptr::null_mut();
    // SAFETY: the store lives as long as the call, and the engine keeps a reference to it.
    checked(unsafe {
        new(
            &mut raw,
            store.as_ptr(),
            place.rank as c_int,
            place.size as c_int,
            place.device as c_int,
            milliseconds(timeout),
        )
    })?;
    // SAFETY: a new object whose only reference is this one.
    Ok(unsafe { Engine::from_raw(raw) })
}

/// The directory of the library that this code is in.
fn own_directory() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let here = own_directory as *const () as usize;
    let line = maps.lines().find(|line| {
        let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
        let bound = |text: &str| usize::from_str_radix(text, 16).ok();
        bounds
            .and_then(|(start, end)| Some((bound(start)?, bound(end)?)))
            .is_some_and(|(start, end)| (start..end).contains(&here))
    })?;
    PathBuf::from(&line[line.find('/')?..]).parent().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_this_program_is_found() {
        let program = std::env::current_exe().unwrap();
        assert_eq!(own_directory().as_deref(), program.parent());
    }
}
