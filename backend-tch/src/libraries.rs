//! libtorch's CUDA library, opened at run time.
//!
//! The backend is linked to libtorch's CPU libraries alone, so that one build serves machines with and
//! without a GPU. libtorch looks for its CUDA part when it is first used and never again; so the choice
//! is made once per process, by the first backend that is created.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

const CUDA_LIBRARY: &str = "libtorch_cuda.so";

static CHOICE: OnceLock<Result<(), String>> = OnceLock::new();

/// Makes CUDA available to libtorch; says why not where that fails. `libtorch` is a directory to look
/// into first.
pub(crate) fn open_cuda(libtorch: Option<&Path>) -> Result<(), String> {
    CHOICE.get_or_init(|| find_and_open(libtorch)).clone()
}

/// Makes do without CUDA, unless it is open already.
pub(crate) fn settle_for_cpu() {
    let without = "this process already uses libtorch without CUDA, which cannot be added later";
    CHOICE.get_or_init(|| Err(without.into()));
}

fn find_and_open(libtorch: Option<&Path>) -> Result<(), String> {
    let places = places(libtorch);
    let Some(path) = places.iter().map(|place| place.join(CUDA_LIBRARY)).find(|path| path.exists())
    else {
        let places: Vec<_> = places.iter().map(|place| place.display().to_string()).collect();
        return Err(format!("there is no {CUDA_LIBRARY} in {}", places.join(", ")));
    };
    // SAFETY: running the initialisers of libtorch's own library is what opening it is for. It stays
    // open, so nothing of it is ever used after it was closed.
    match unsafe { Library::new(&path) } {
        Ok(library) => {
            std::mem::forget(library);
            tracing::debug!(path = %path.display(), "opened libtorch's CUDA library");
            Ok(())
        }
        Err(error) => Err(format!("{} cannot be opened: {error}", path.display())),
    }
}

/// Where the library may be: in the directory given, in `LIBTORCH`, beside the CPU's library.
fn places(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let mut places = Vec::new();
    for directory in libtorch.map(PathBuf::from).into_iter().chain(environment()) {
        places.push(directory.join("lib"));
        places.push(directory);
    }
    places.extend(cpu_library_directory());
    places
}

fn environment() -> Option<PathBuf> {
    std::env::var_os("LIBTORCH").filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// The directory of the CPU library that this process has loaded, links resolved.
fn cpu_library_directory() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| Path::new(&line[start..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?;
    path.parent().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaded_library_is_found() {
        // Makes sure that the library is loaded.
        let _ = tch::get_num_threads();
        assert!(cpu_library_directory().unwrap().join("libtorch_cpu.so").exists());
    }
}
