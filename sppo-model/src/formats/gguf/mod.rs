//! GGUF files, versions 2 and 3: metadata and quantised tensors in one file, or in the several that
//! `llama-gguf-split` makes of it; and writing them.
//!
//! Everything in the header is untrusted: counts, offsets and sizes are checked against the file
//! before they are used.

mod dequantize;
mod entries;
mod keys;
mod metadata;
mod quantize;
mod reader;
mod split;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

pub use dequantize::GgufType;
pub use entries::{ArchitectureEntries, GgufEntries};
pub use keys::GgufKeys;
pub use metadata::{GgufMetadata, GgufValue};
pub use quantize::GgufFormat;
pub use writer::{GgufTensor, GgufWriter};

use self::metadata::EntryPlaces;
use self::reader::ByteReader;
use self::split::Split;
use super::WeightFile;
use super::files::map_file;
use super::quantized_matrix::{QuantizedMatrix, SharedBytes};
use super::weight_file::check_finite;
use crate::error::{ModelError, Result};

const MAGIC: [u8; 4] = *b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MOST_DIMENSIONS: u32 = 4;

/// Shape, format and byte range of a tensor in one of the files.
#[derive(Clone, Debug)]
struct TensorEntry {
    /// The part of the model, from 0.
    part: usize,
    /// Outermost dimension first.
    shape: Vec<usize>,
    kind: GgufType,
    start: usize,
    end: usize,
}

/// A GGUF model, mapped into memory.
#[derive(Debug)]
pub struct GgufFile {
    /// One file, or the parts of a model that was split, in order.
    parts: Vec<(PathBuf, Arc<Mmap>)>,
    metadata: GgufMetadata,
    entries: EntryPlaces,
    tensors: HashMap<String, TensorEntry>,
}

/// The parts of a header.
struct Header {
    metadata: GgufMetadata,
    entries: EntryPlaces,
    tensors: HashMap<String, TensorEntry>,
}

impl GgufFile {
    /// Maps the file and reads its header. Of a model that was split, this is the first part, and the
    /// others lie beside it.
    ///
    /// # Errors
    /// When a file is not GGUF, is damaged, or holds a number format that cannot be read, or when a part
    /// is missing or belongs to another model.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Arc::new(map_file(path)?);
        let Header { metadata, entries, tensors } = read_header(&map, path)?;
        let parts = vec![(path.to_path_buf(), map)];
        let mut model = Self { parts, metadata, entries, tensors };
        if let Some(split) = Split::of(&model.metadata)? {
            for other in split.other_parts(path)? {
                model.add_part(other, &split)?;
            }
            split.check_tensor_count(model.tensors.len(), path)?;
        }
        Ok(model)
    }

    fn add_part(&mut self, path: PathBuf, split: &Split) -> Result<()> {
        let map = map_file(&path)?;
        let Header { metadata, tensors, .. } = read_header(&map, &path)?;
        split.check_part(self.parts.len(), &metadata)?;
        for (name, entry) in tensors {
            let entry = TensorEntry { part: self.parts.len(), ..entry };
            if let Some(earlier) = self.tensors.insert(name.clone(), entry) {
                let other = self.parts.get(earlier.part).map_or(&path, |(path, _)| path);
                return Err(ModelError::file(
                    &path,
                    format!("holds tensor `{name}`, which {} holds too", other.display()),
                )
                .with_hint("the parts are not of one model; download them again"));
            }
        }
        self.parts.push((path, Arc::new(map)));
        Ok(())
    }

    /// The metadata, which stand in the first part.
    #[must_use]
    pub fn metadata(&self) -> &GgufMetadata {
        &self.metadata
    }

    /// Frees the metadata of the tokenizer, which are larger than all others, once they have been read.
    pub(crate) fn release_vocabulary(&mut self) {
        self.metadata.release("tokenizer.ggml.");
    }

    /// The metadata as they stand in the first part, to be written to another file. What tells of the parts
    /// is left out.
    #[must_use]
    pub fn entries(&self) -> GgufEntries {
        let bytes = self.parts.first().map_or(&[][..], |(_, map)| map);
        let value = |place: &Range<usize>| bytes.get(place.clone()).unwrap_or_default();
        let all = self.entries.iter().map(|(key, place)| (key.as_str(), value(place)));
        GgufEntries::of_file(all.filter(|(key, _)| !key.starts_with("split.")))
    }
}

impl GgufFile {
    /// A tensor, and the file that holds it.
    fn located(&self, name: &str) -> Result<(&TensorEntry, &Path, &Arc<Mmap>)> {
        let located = self.tensors.get(name).and_then(|entry| {
            let (path, map) = self.parts.get(entry.part)?;
            Some((entry, path.as_path(), map))
        });
        located.ok_or_else(|| {
            ModelError::file(self.metadata.path(), format!("has no tensor `{name}`"))
        })
    }
}

impl WeightFile for GgufFile {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let (entry, path, map) = self.located(name)?;
        let values = entry.kind.dequantize(map.get(entry.start..entry.end).unwrap_or_default());
        check_finite(path, name, &values)?;
        Ok(values)
    }

    fn quantized(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        let (entry, _, map) = self.located(name)?;
        let Some((&columns, outer)) = entry.shape.split_last() else { return Ok(None) };
        if entry.kind.block_values() == 1 || outer.is_empty() {
            return Ok(None);
        }
        let bytes = SharedBytes::mapped(Arc::clone(map), entry.start..entry.end);
        let shape = [outer.iter().product(), columns];
        let matrix = QuantizedMatrix::of_blocks(entry.kind, bytes, shape)?;
        if !matrix.is_finite() {
            // says where
            self.values(name)?;
        }
        Ok(Some(matrix))
    }

    fn quantized_bytes(&self, name: &str) -> Option<u64> {
        let entry = self.tensors.get(name)?;
        let is_quantized = entry.kind.block_values() > 1 && entry.shape.len() > 1;
        is_quantized.then_some((entry.end - entry.start) as u64)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    /// Never: backends keep no weight of a GGUF file in bf16.
    fn is_bf16(&self, _: &str) -> bool {
        false
    }

    fn paths(&self) -> Vec<&Path> {
        self.parts.iter().map(|(path, _)| path.as_path()).collect()
    }
}

fn read_header(bytes: &[u8], path: &Path) -> Result<Header> {
    let mut reader = ByteReader::new(bytes, path);
    if bytes.first_chunk() != Some(&MAGIC) {
        return Err(ModelError::file(path, "is not a GGUF file: it does not begin with `GGUF`"));
    }
    reader.u32()?;
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        let what = if (2..=3).contains(&version.swap_bytes()) {
            "is a big-endian GGUF file".to_string()
        } else {
            format!("is GGUF version {version}")
        };
        return Err(ModelError::file(
            path,
            format!("{what}; little-endian versions 2 and 3 are supported"),
        )
        .with_hint("convert the model again with a current convert_hf_to_gguf.py of llama.cpp"));
    }
    let tensor_count = reader.u64()?;
    let entry_count = reader.u64()?;
    let (values, entries) = metadata::read_entries(&mut reader, entry_count)?;
    let metadata = GgufMetadata::new(path, values);
    let alignment = metadata.integer("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(reader.error(format!("general.alignment is {alignment}, not a power of two")));
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(read_tensor_info(&mut reader)?);
    }
    let data_start = (reader.position() as u64).next_multiple_of(alignment);
    let mut tensors = HashMap::new();
    for info in infos {
        let name = info.name.clone();
        let entry = locate(info, data_start, alignment, bytes.len(), &reader)?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(reader.error(format!("tensor `{name}` stands there twice")));
        }
    }
    Ok(Header { metadata, entries, tensors })
}

/// One tensor as the header describes it.
struct TensorInfo {
    name: String,
    /// Innermost dimension first, as in the file.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

fn read_tensor_info(reader: &mut ByteReader<'_>) -> Result<TensorInfo> {
    let name = reader.text()?.to_string();
    let dimension_count = reader.u32()?;
    if dimension_count == 0 || dimension_count > MOST_DIMENSIONS {
        return Err(reader.error(format!("tensor `{name}` has {dimension_count} dimensions")));
    }
    let dimensions = (0..dimension_count).map(|_| reader.u64()).collect::<Result<Vec<u64>>>()?;
    Ok(TensorInfo { name, dimensions, kind: reader.u32()?, offset: reader.u64()? })
}

/// Checks a tensor's description and finds its bytes.
fn locate(
    info: TensorInfo,
    data_start: u64,
    alignment: u64,
    file_size: usize,
    reader: &ByteReader<'_>,
) -> Result<TensorEntry> {
    let TensorInfo { name, dimensions, kind, offset } = info;
    let kind = GgufType::from_number(kind).map_err(|unsupported| {
        ModelError::file(
            reader.path(),
            format!("tensor `{name}` has the number format {unsupported}, which is not supported"),
        )
        .with_hint("take another file of the same model: Q8_0 is small and nearly exact, F16 exact")
    })?;
    let row = dimensions.first().copied().unwrap_or_default();
    if row % kind.block_values() as u64 != 0 {
        return Err(reader.error(format!(
            "tensor `{name}` has rows of {row} values, not a multiple of {kind:?}'s {}",
            kind.block_values()
        )));
    }
    let extent = dimensions
        .iter()
        .try_fold(1u64, |product, &dimension| product.checked_mul(dimension))
        .map(|values| values / kind.block_values() as u64)
        .and_then(|blocks| blocks.checked_mul(kind.block_bytes() as u64))
        .and_then(|size| {
            let start = data_start.checked_add(offset)?;
            let end = start.checked_add(size)?;
            (end <= file_size as u64).then_some((start, end))
        });
    match extent {
        Some((start, end)) if offset % alignment == 0 => Ok(TensorEntry {
            part: 0,
            shape: dimensions.iter().rev().map(|&dimension| dimension as usize).collect(),
            kind,
            start: start as usize,
            end: end as usize,
        }),
        Some(_) => Err(reader.error(format!("tensor `{name}` is not aligned"))),
        None => Err(reader.error(format!(
            "tensor `{name}` goes on beyond the end of the file ({file_size} bytes); \
             it is truncated or damaged"
        ))),
    }
}
