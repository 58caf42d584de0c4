//! Weights in one or several safetensors files beside a `config.json`.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::WeightFile;
use super::files::{map_file, release};
use super::json::read_json;
use super::quantized_matrix::SharedBytes;
use super::weight_file::check_finite;
use crate::error::{ModelError, Result};

pub(crate) const SINGLE_FILE: &str = "model.safetensors";
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// Shape, format and byte range of a tensor in one of the files.
#[derive(Clone, Debug)]
struct TensorEntry {
    file: usize,
    shape: Vec<usize>,
    kind: Dtype,
    start: usize,
    end: usize,
}

/// The weight files of a model directory, mapped into memory.
#[derive(Debug, Default)]
pub(crate) struct SafetensorsFiles {
    files: Vec<(PathBuf, Arc<Mmap>)>,
    tensors: HashMap<String, TensorEntry>,
    /// Names of tensors that were left out because they share the memory of another, which is the value:
    /// `safetensors.torch.save_model` keeps one of them and says so in the metadata.
    shared: HashMap<String, String>,
}

impl SafetensorsFiles {
    /// Maps `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        let single = directory.join(SINGLE_FILE);
        let index = directory.join(INDEX_FILE);
        let mut weights = Self::default();
        if single.is_file() {
            weights.add_file(single)?;
        } else if index.is_file() {
            let shard_of = read_index(&index)?;
            let shards: BTreeSet<&str> = shard_of.values().map(String::as_str).collect();
            for shard in shards {
                let path = directory.join(shard);
                if !path.is_file() {
                    return Err(ModelError::file(
                        path,
                        format!("is missing, and {INDEX_FILE} names it"),
                    )
                    .with_hint("download the missing file"));
                }
                weights.add_file(path)?;
            }
            weights.check_index(&index, &shard_of)?;
        } else {
            let remedy = "load them with transformers and save_pretrained()";
            return Err(no_weights(directory, SINGLE_FILE, remedy));
        }
        Ok(weights)
    }

    /// Maps one file.
    pub(crate) fn open_file(path: PathBuf) -> Result<Self> {
        let mut weights = Self::default();
        weights.add_file(path)?;
        Ok(weights)
    }

    fn add_file(&mut self, path: PathBuf) -> Result<()> {
        let map = Arc::new(map_file(&path)?);
        let damaged = |cause: &dyn std::fmt::Display| {
            ModelError::file(&path, format!("is not a whole safetensors file: {cause}"))
                .with_hint("download the file again")
        };
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(&error))?;
        let header_bytes = map.get(size_of::<u64>()..size_of::<u64>() + header).unwrap_or_default();
        if let Err(error) = serde_json::from_slice::<DistinctKeys>(header_bytes) {
            return Err(damaged(&error));
        }
        let data_start = header + size_of::<u64>();
        for (name, info) in metadata.tensors() {
            let entry = TensorEntry {
                file: self.files.len(),
                shape: info.shape.clone(),
                kind: info.dtype,
                start: data_start + info.data_offsets.0,
                end: data_start + info.data_offsets.1,
            };
            if let Some(earlier) = self.tensors.insert(name.clone(), entry) {
                let other = self.files.get(earlier.file).map_or(path.as_path(), |(path, _)| path);
                return Err(damaged(&format!("tensor `{name}` stands in {} too", other.display())));
            }
        }
        for (name, stored) in metadata.metadata().iter().flatten() {
            if self.tensors.contains_key(stored) && !self.tensors.contains_key(name) {
                self.shared.insert(name.clone(), stored.clone());
            }
        }
        self.files.push((path, map));
        Ok(())
    }

    /// The bytes of a tensor of bytes; `None` where there is no such tensor.
    pub(crate) fn bytes(&self, name: &str) -> Option<SharedBytes> {
        let entry = self.tensors.get(name).filter(|entry| entry.kind == Dtype::U8)?;
        let (_, map) = self.files.get(entry.file)?;
        Some(SharedBytes::mapped(Arc::clone(map), entry.start..entry.end))
    }

    fn check_index(&self, index: &Path, shard_of: &HashMap<String, String>) -> Result<()> {
        for (name, shard) in shard_of {
            let found = self.tensors.get(name).and_then(|entry| self.files.get(entry.file));
            if !found.is_some_and(|(path, _)| path.ends_with(shard)) {
                return Err(ModelError::file(
                    index,
                    format!("says that tensor `{name}` is in {shard}, which does not hold it"),
                )
                .with_hint("download the model again"));
            }
        }
        Ok(())
    }
}

impl WeightFile for SafetensorsFiles {
    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let located = self.tensors.get(name).and_then(|entry| {
            let (path, map) = self.files.get(entry.file)?;
            Some((entry, path, map, map.get(entry.start..entry.end)?))
        });
        let Some((entry, path, map, bytes)) = located else {
            return Err(ModelError::Input(format!("the model has no tensor `{name}`")));
        };
        let values = match entry.kind {
            Dtype::F32 => convert(bytes, f32::from_le_bytes),
            Dtype::F16 => convert(bytes, |value| f16::from_le_bytes(value).to_f32()),
            Dtype::BF16 => convert(bytes, |value| bf16::from_le_bytes(value).to_f32()),
            other => {
                let message = format!(
                    "tensor `{name}` has the number format {other:?}, which is not supported"
                );
                return Err(
                    ModelError::file(path, message).with_hint("use weights in F32, F16 or BF16")
                );
            }
        };
        release(map, entry.start..entry.end);
        check_finite(path, name, &values)?;
        Ok(values)
    }

    fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        Box::new(self.tensors.keys().map(String::as_str))
    }

    fn shared_names(&self) -> Box<dyn Iterator<Item = (&str, &str)> + '_> {
        Box::new(self.shared.iter().map(|(name, stored)| (name.as_str(), stored.as_str())))
    }

    fn are_alike(&self, one: &str, other: &str) -> bool {
        let bytes = |name| {
            let entry: &TensorEntry = self.tensors.get(name)?;
            let (_, map) = self.files.get(entry.file)?;
            Some((entry.kind, map.get(entry.start..entry.end)?))
        };
        bytes(one) == bytes(other)
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|entry| entry.kind == Dtype::BF16)
    }

    fn paths(&self) -> Vec<&Path> {
        self.files.iter().map(|(path, _)| path.as_path()).collect()
    }
}

fn convert<const BYTES: usize>(bytes: &[u8], value: impl Fn([u8; BYTES]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<BYTES>().0.iter().map(|&chunk| value(chunk)).collect()
}

/// An object whose keys all differ: of equal ones, the safetensors crate silently takes the last.
struct DistinctKeys;

impl<'de> Deserialize<'de> for DistinctKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for DistinctKeys {
    type Value = Self;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
            if let Some(key) = keys.replace(key) {
                return Err(A::Error::custom(format!("tensor `{key}` stands there twice")));
            }
        }
        Ok(self)
    }
}

/// Tensor names and the shards that hold them.
fn read_index(path: &Path) -> Result<HashMap<String, String>> {
    let json = read_json(path)?;
    let map = json["weight_map"]
        .as_object()
        .filter(|map| !map.is_empty())
        .ok_or_else(|| ModelError::file(path, "has no `weight_map`"))?;
    let mut shard_of = HashMap::new();
    for (name, shard) in map {
        let inside = shard.as_str().filter(|shard| is_inside(shard)).ok_or_else(|| {
            ModelError::file(
                path,
                format!("places tensor `{name}` in {shard}, which is not a .safetensors file in this directory"),
            )
        })?;
        shard_of.insert(name.clone(), inside.to_string());
    }
    Ok(shard_of)
}

fn is_inside(shard: &str) -> bool {
    let path = Path::new(shard);
    path.extension().is_some_and(|extension| extension == "safetensors")
        && path.components().all(|component| matches!(component, Component::Normal(_)))
}

/// Pickled files that trainers leave beside the weights, which they do not hold.
const TRAINER_FILES: [&str; 5] = ["training_args", "optimizer", "scheduler", "scaler", "rng_state"];

/// Says which files there are instead of `wanted`; pickled ones are converted by what `remedy` says.
pub(super) fn no_weights(directory: &Path, wanted: &str, remedy: &str) -> ModelError {
    let entries = fs_err::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let pickled = |name: &&String| {
        [".bin", ".pt", ".pth", ".pkl", ".ckpt"].iter().any(|suffix| name.ends_with(suffix))
            && !TRAINER_FILES.iter().any(|file| name.starts_with(file))
    };
    if let Some(name) = names.iter().find(pickled) {
        return ModelError::file(
            directory,
            format!("holds pickled weights ({name}) and no {wanted}; pickle is never read, because it can run code"),
        )
        .with_hint(format!("convert the weights to safetensors: {remedy}"));
    }
    if let Some(name) = names.iter().find(|name| name.ends_with(".gguf")) {
        return ModelError::file(directory, format!("holds no {wanted}"))
            .with_hint(format!("name the GGUF file itself: {}", directory.join(name).display()));
    }
    let (missing, hint) = match wanted {
        SINGLE_FILE => (
            format!("holds neither {SINGLE_FILE} nor {INDEX_FILE}"),
            "name a Hugging Face model directory, a .gguf file or a hub id",
        ),
        other => {
            (format!("holds no {other}"), "the directory is incomplete; download or save it again")
        }
    };
    ModelError::file(directory, missing).with_hint(hint)
}
