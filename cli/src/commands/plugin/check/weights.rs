//! The tensors of a checkpoint that a policy has saved, to be compared and changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// Tensors in f32, by name, and the files that they lie in.
pub(super) struct Weights {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
    pub(super) tensors: BTreeMap<String, Vec<f32>>,
}

impl Weights {
    /// Reads all safetensors files of a directory.
    pub(super) fn read(directory: &Path) -> Result<Self, String> {
        let mut weights =
            Self { directory: directory.into(), files: BTreeMap::new(), tensors: BTreeMap::new() };
        let entries = std::fs::read_dir(directory).map_err(|error| error.to_string())?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "safetensors") {
                continue;
            }
            let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
            let tensors = SafeTensors::deserialize(&bytes).map_err(|error| error.to_string())?;
            for (name, view) in tensors.iter() {
                if view.dtype() != Dtype::F32 {
                    return Err(format!("`{name}` was saved as {:?}, not as F32", view.dtype()));
                }
                let (values, _) = view.data().as_chunks::<4>();
                let values = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
                weights.tensors.insert(name.to_owned(), values);
                weights.files.insert(name.to_owned(), path.clone());
            }
        }
        Ok(weights)
    }

    /// Writes a copy of the checkpoint with one tensor replaced.
    pub(super) fn write_with(
        &self,
        target: &Path,
        replaced: &str,
        values: &[f32],
    ) -> Result<(), String> {
        let said = |error: std::io::Error| error.to_string();
        std::fs::create_dir_all(target).map_err(said)?;
        for entry in std::fs::read_dir(&self.directory).map_err(said)?.flatten() {
            std::fs::copy(entry.path(), target.join(entry.file_name())).map_err(said)?;
        }
        let file = &self.files[replaced];
        let mut bytes = std::fs::read(file).map_err(said)?;
        let (header, metadata) =
            SafeTensors::read_metadata(&bytes).map_err(|error| error.to_string())?;
        let info = metadata.info(replaced).ok_or("the tensor is gone")?;
        let start = 8 + header + info.data_offsets.0;
        let place =
            bytes.get_mut(start..start + 4 * values.len()).ok_or("the file is too short")?;
        let (places, _) = place.as_chunks_mut::<4>();
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_le_bytes();
        }
        let name = file.file_name().ok_or("the file has no name")?;
        std::fs::write(target.join(name), bytes).map_err(said)
    }
}
