//! Entry points of the fuzz targets, which see what no other crate does.

use std::path::Path;

use crate::formats::WeightFile;
pub use crate::formats::peft::read_adapter_config;
use crate::formats::safetensors::SafetensorsFiles;

/// Reads all weights of a directory.
pub fn read_safetensors(directory: &Path) {
    let Ok(files) = SafetensorsFiles::open(directory) else { return };
    for name in files.names() {
        let _ = (files.shape(name), files.values(name), files.are_alike(name, "a"));
    }
    let _ = files.shared_names().count();
}
