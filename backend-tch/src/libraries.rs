//! The libtorch that was found at run time, and its CUDA library, opened on demand.
//!
//! The backend is linked to libtorch's CPU libraries alone, so that one build serves machines with and
//! without a GPU. libtorch looks for its CUDA part when it is first used and never again; so the choice
//! is made once per process, by the first backend that is created.

use std::error::Error;
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use sppo_model::ModelError;
use sppo_plugin::{DeviceMemory, PluginError};

/// The version that this crate is built for, as its build script checked.
const VERSION: &str = env!("SPPO_LIBTORCH_VERSION");

/// Advice where libtorch is missing or of another version.
pub(crate) const MISSING_LIBTORCH_HINT: &str = concat!(
    "run `backend-tch/install` in the repository of sppo: it provides libtorch ",
    env!("SPPO_LIBTORCH_VERSION"),
    " and builds the plugin against it"
);

const CUDA_LIBRARY: &str = "libtorch_cuda.so";

static CHOICE: OnceLock<Result<(), String>> = OnceLock::new();

/// The CUDA library, where it is open. It stays open, so nothing of it is ever used after it was closed.
static CUDA: OnceLock<Library> = OnceLock::new();

/// Makes CUDA available to libtorch; says why not where that fails. `libtorch` is a directory to look
/// into first.
pub(crate) fn open_cuda(libtorch: Option<&Path>) -> Result<(), String> {
    CHOICE.get_or_init(|| find_and_open(libtorch)).clone()
}

/// Settles for the CPU, unless CUDA is open already.
pub(crate) fn settle_for_cpu() {
    let without = "this process already uses libtorch without CUDA, which cannot be added later";
    CHOICE.get_or_init(|| Err(without.into()));
}

/// Refuses a libtorch of another version than this crate was built for, for instance a Python package
/// that was updated.
pub(crate) fn check_version() -> Result<(), PluginError> {
    let directory = cpu_library_directory();
    let found = directory.as_deref().and_then(Path::parent).and_then(version_of);
    match found {
        Some(found) if found != VERSION => Err(PluginError::failed(format!(
            "it was built for libtorch {VERSION}, and {} holds {found}",
            directory.unwrap_or_default().display()
        ))
        .with_hint(MISSING_LIBTORCH_HINT)),
        _ => Ok(()),
    }
}

/// The version of a libtorch distribution or of a Python package torch, without what it was built with
/// (`2.11.0+cu130`); `None` where the directory does not say.
fn version_of(libtorch: &Path) -> Option<String> {
    let text = |file: &str| std::fs::read_to_string(libtorch.join(file)).ok();
    let of_distribution = || Some(text("build-version")?.trim().to_owned());
    let of_package = || {
        let text = text("version.py")?;
        let line = text.lines().find_map(|line| line.strip_prefix("__version__"))?;
        Some(line.trim_start_matches([' ', '=']).trim_matches(['\'', '"']).to_owned())
    };
    let version = of_distribution().or_else(of_package)?;
    Some(version.split('+').next().unwrap_or_default().to_owned())
}

fn find_and_open(libtorch: Option<&Path>) -> Result<(), String> {
    let directories = directories(libtorch);
    let mut paths = directories.iter().map(|directory| directory.join(CUDA_LIBRARY));
    let Some(path) = paths.find(|path| path.exists()) else {
        let searched: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        return Err(format!("there is no {CUDA_LIBRARY} in {}", searched.join(", ")));
    };
    // SAFETY: running the initialisers of libtorch's own library is what opening it is for.
    match unsafe { Library::new(&path) } {
        Ok(library) => {
            CUDA.get_or_init(|| library);
            tracing::debug!(path = %path.display(), "opened libtorch's CUDA library");
            Ok(())
        }
        Err(error) => {
            // The error itself says that it failed, its source says why.
            let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Err(format!("{} cannot be opened: {reason}", path.display()))
        }
    }
}

/// Functions of CUDA's runtime, which libtorch's CUDA library is linked to; 0 is success.
type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
type MemoryInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;

/// Memory of a CUDA device.
pub(crate) fn cuda_memory(device: usize) -> Result<DeviceMemory, ModelError> {
    let unknown = |reason: String| {
        ModelError::Backend(format!("CUDA does not tell the memory of device {device}: {reason}"))
    };
    let library = CUDA.get().ok_or_else(|| unknown("it is not open".into()))?;
    let missing = |error: libloading::Error| unknown(error.to_string());
    // SAFETY: CUDA's runtime documents these two functions with these types.
    let (set_device, memory_info) = unsafe {
        let set_device = library.get::<SetDevice>(b"cudaSetDevice\0").map_err(missing)?;
        (set_device, library.get::<MemoryInfo>(b"cudaMemGetInfo\0").map_err(missing)?)
    };
    let number = c_int::try_from(device).map_err(|_| unknown("it has no such number".into()))?;
    let (mut free, mut total) = (0_usize, 0_usize);
    // SAFETY: any number may be given, and both pointers are to numbers that live as long as the call.
    let failed = unsafe {
        match set_device(number) {
            0 => memory_info(&raw mut free, &raw mut total),
            failed => failed,
        }
    };
    match failed {
        0 => Ok(DeviceMemory { total: total as u64, free: free as u64 }),
        code => Err(unknown(format!("error {code}"))),
    }
}

/// Directories that may hold the library: the one given, `LIBTORCH`, the CPU library's own.
fn directories(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for directory in libtorch.map(PathBuf::from).into_iter().chain(environment()) {
        directories.push(directory.join("lib"));
        directories.push(directory);
    }
    directories.extend(cpu_library_directory());
    directories
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
        check_version().unwrap();
    }

    #[test]
    fn versions_are_read_from_both_layouts() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(version_of(directory.path()), None);
        let package = "from typing import Optional\n__version__ = '2.12.1+cu130'\ndebug = False\n";
        std::fs::write(directory.path().join("version.py"), package).unwrap();
        assert_eq!(version_of(directory.path()).as_deref(), Some("2.12.1"));
        std::fs::write(directory.path().join("build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(version_of(directory.path()).as_deref(), Some("2.11.0"));
    }
}
