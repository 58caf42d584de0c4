//! Writing GGUF files, version 3: the header first, because it fixes the place of every tensor, then the
//! tensors in any order.

use std::collections::HashMap;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::entries::{GgufEntries, push_text};
use super::quantize::GgufFormat;
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::error::{ModelError, Result};
use crate::formats::files::unwritable;

const VERSION: u32 = 3;

/// A tensor of a file to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name in the file.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Its number format, whose blocks divide a row.
    pub format: GgufFormat,
}

impl GgufTensor {
    fn byte_size(&self) -> u64 {
        self.format.byte_size(self.shape.iter().product())
    }
}

/// A GGUF file under way, which gets its name when it is whole.
#[derive(Debug)]
pub struct GgufWriter {
    path: PathBuf,
    file: fs_err::File,
    /// Tensors, the byte at which each begins, and the number of its values that are missing.
    places: HashMap<String, (GgufTensor, u64, usize)>,
}

impl GgufWriter {
    /// Begins a file with these entries and tensors.
    ///
    /// # Errors
    /// When the file exists already or cannot be written.
    pub fn create(path: &Path, entries: &GgufEntries, tensors: Vec<GgufTensor>) -> Result<Self> {
        if path.exists() {
            return Err(ModelError::file(path, "is there already")
                .with_hint("choose another name with --output, or remove the file"));
        }
        let (header, places, size) = layout(entries, tensors);
        let partial = partial(path);
        let file = fs_err::File::create(&partial).map_err(|error| unwritable(&partial, &error))?;
        let mut writer = Self { path: path.to_path_buf(), file, places };
        writer
            .file
            .write_all(&header)
            .and_then(|()| writer.file.set_len(size))
            .map_err(|error| unwritable(path, &error))?;
        Ok(writer)
    }

    /// The file as it is until it is whole. It can be opened: tensors that are missing read as zeros.
    #[must_use]
    pub fn partial_path(&self) -> PathBuf {
        partial(&self.path)
    }

    /// Writes values of a tensor, from its value number `first` on; whole rows, each once.
    ///
    /// # Errors
    /// When there is no such tensor, it has fewer values, a value has no place in its format, or the file
    /// cannot be written.
    pub fn write(&mut self, name: &str, first: usize, values: &[f32]) -> Result<()> {
        let (tensor, start, missing) = self
            .places
            .get_mut(name)
            .ok_or_else(|| ModelError::Input(format!("there is no tensor `{name}` to write")))?;
        let size: usize = tensor.shape.iter().product();
        *missing = match missing.checked_sub(values.len()) {
            Some(left) if first + values.len() <= size => left,
            _ => return Err(ModelError::Input(format!("the tensor `{name}` has {size} values"))),
        };
        let bytes = tensor.format.quantize(values).map_err(|value| {
            ModelError::file(
                &self.path,
                format!(
                    "the tensor `{name}` holds {value}, which is too large for {}",
                    tensor.format
                ),
            )
            .with_hint("choose --type bf16 or f32")
        })?;
        let offset = *start + tensor.format.byte_size(first);
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| self.file.write_all(&bytes))
            .map_err(|error| unwritable(&self.path, &error))
    }

    /// Names the file, which is whole.
    ///
    /// # Errors
    /// When values are missing, or the file cannot be written.
    pub fn finish(self) -> Result<()> {
        if let Some((name, _)) = self.places.iter().find(|(_, (_, _, missing))| *missing > 0) {
            return Err(ModelError::Input(format!("the tensor `{name}` is not whole")));
        }
        self.file
            .sync_all()
            .and_then(|()| fs_err::rename(partial(&self.path), &self.path))
            .map_err(|error| unwritable(&self.path, &error))
    }
}

impl Drop for GgufWriter {
    fn drop(&mut self) {
        // There is one only where something failed, which has been reported.
        let _ = fs_err::remove_file(partial(&self.path));
    }
}

fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".partial-{name}"))
}

type Places = HashMap<String, (GgufTensor, u64, usize)>;

/// The header, the place of every tensor, and the size of the file.
fn layout(entries: &GgufEntries, tensors: Vec<GgufTensor>) -> (Vec<u8>, Places, u64) {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((entries.count() as u64).to_le_bytes());
    header.extend(entries.bytes());
    let mut offset = 0_u64;
    let mut offsets = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        push_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        let innermost_first = tensor.shape.iter().rev();
        header.extend(innermost_first.flat_map(|&size| (size as u64).to_le_bytes()));
        header.extend(tensor.format.number().to_le_bytes());
        header.extend(offset.to_le_bytes());
        offsets.push(offset);
        offset = (offset + tensor.byte_size()).next_multiple_of(DEFAULT_ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(DEFAULT_ALIGNMENT as usize), 0);
    let data_start = header.len() as u64;
    let place = |(tensor, offset): (GgufTensor, u64)| {
        let values = tensor.shape.iter().product();
        (tensor.name.clone(), (tensor, data_start + offset, values))
    };
    let places = tensors.into_iter().zip(offsets).map(place).collect();
    (header, places, data_start + offset)
}
