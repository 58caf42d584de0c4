//! Writing a model as a Hugging Face directory.

use std::collections::{BTreeMap, HashMap};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use half::bf16;
use serde_json::{Value, json};

use crate::decoder::{DecoderConfig, StoredTensor, StoredWeight, TensorLayout, stored_tensors};
use crate::error::{ModelError, Result};
use crate::formats::files::{prepare_directory, unwritable};
use crate::formats::json::write_json;
use crate::formats::safetensors::{INDEX_FILE, SINGLE_FILE};
use crate::text::TextCodec;

/// Form of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightFiles {
    /// The number format.
    pub format: WeightFormat,
    /// Weights of more bytes go to several files with an index.
    pub shard_bytes: u64,
}

impl Default for WeightFiles {
    fn default() -> Self {
        // transformers writes shards of this size.
        Self { format: WeightFormat::F32, shard_bytes: 5_000_000_000 }
    }
}

/// The number format of written weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// As they are computed with.
    F32,
    /// Rounded to 8 bits of precision.
    Bf16,
}

impl WeightFormat {
    fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// Its name in safetensors.
    fn safetensors_name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    /// Its name in PyTorch.
    fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// Writes `config.json`, the tokenizer files and the weights, so that transformers and
/// [`Checkpoint::open`](super::Checkpoint::open) read them back, in f32 bit for bit.
///
/// `tensors` yields name, shape and row-major values of every weight of
/// [`tensor_layout`](crate::decoder::tensor_layout), in any order; one is held at a time.
/// Settings of `original_config` beyond those of `config` are kept.
///
/// # Errors
/// When the directory already holds weights or cannot be written, or a weight is unknown, missing,
/// given twice, or of the wrong shape.
pub fn write_checkpoint(
    directory: &Path,
    config: &DecoderConfig,
    text: &TextCodec,
    original_config: Option<&Value>,
    tensors: impl IntoIterator<Item = Result<(String, Vec<usize>, Vec<f32>)>>,
    files: WeightFiles,
) -> Result<()> {
    prepare_directory(directory, &[SINGLE_FILE, INDEX_FILE])?;
    let json = config.to_hugging_face(original_config, text, files.format.torch_name());
    write_json(&directory.join("config.json"), &json)?;
    text.save(directory)?;
    let mut writer = ShardWriter::create(directory, stored_tensors(config), files)?;
    for tensor in tensors {
        let (name, shape, values) = tensor?;
        writer.write(&name, &shape, &values)?;
    }
    writer.finish()
}

/// The shard and the byte at which the values of a weight begin.
struct Place {
    layout: TensorLayout,
    shard: usize,
    offset: u64,
}

struct Shard {
    file_name: String,
    file: fs_err::File,
}

/// Files whose headers are written first, because the configuration fixes every name and shape.
struct ShardWriter {
    directory: PathBuf,
    format: WeightFormat,
    /// They get their names when they are whole: until then their headers promise more than there is.
    shards: Vec<Shard>,
    places: HashMap<String, Place>,
    index: Option<Value>,
}

impl ShardWriter {
    fn create(directory: &Path, tensors: Vec<StoredTensor>, files: WeightFiles) -> Result<Self> {
        let groups = into_shards(tensors, files);
        let count = groups.len();
        let mut writer = Self {
            directory: directory.to_path_buf(),
            format: files.format,
            shards: Vec::new(),
            places: HashMap::new(),
            index: None,
        };
        let mut weight_map = BTreeMap::new();
        let mut total = 0;
        for (shard, group) in groups.into_iter().enumerate() {
            let file_name = match count {
                1 => SINGLE_FILE.to_string(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            for StoredTensor { layout, .. } in &group {
                weight_map.insert(layout.name.clone(), file_name.clone());
                total += byte_size(layout, files.format);
            }
            writer.start_shard(shard, file_name, group)?;
        }
        if count > 1 {
            writer.index =
                Some(json!({"metadata": {"total_size": total}, "weight_map": weight_map}));
        }
        Ok(writer)
    }

    fn start_shard(
        &mut self,
        shard: usize,
        file_name: String,
        group: Vec<StoredTensor>,
    ) -> Result<()> {
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut end = 0;
        for StoredTensor { layout, .. } in &group {
            let start = end;
            end += byte_size(layout, self.format);
            let info = json!({
                "dtype": self.format.safetensors_name(),
                "shape": layout.shape,
                "data_offsets": [start, end],
            });
            header.insert(layout.name.clone(), info);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let data_start = (size_of::<u64>() + header.len()) as u64;

        let path = self.partial(&file_name);
        let mut file = fs_err::File::create(&path).map_err(|error| unwritable(&path, &error))?;
        file.write_all(&(header.len() as u64).to_le_bytes())
            .and_then(|()| file.write_all(&header))
            .and_then(|()| file.set_len(data_start + end))
            .map_err(|error| unwritable(&path, &error))?;
        self.shards.push(Shard { file_name, file });

        let mut offset = data_start;
        for StoredTensor { layout: stored, weights } in group {
            let row = byte_size(&stored, self.format) / stored.shape[0].max(1) as u64;
            for StoredWeight { layout, rows } in weights {
                let offset = offset + rows.start as u64 * row;
                self.places.insert(layout.name.clone(), Place { layout, shard, offset });
            }
            offset += byte_size(&stored, self.format);
        }
        Ok(())
    }

    fn write(&mut self, name: &str, shape: &[usize], values: &[f32]) -> Result<()> {
        let place = self.places.remove(name).ok_or_else(|| {
            ModelError::Input(format!("the weight `{name}` is unknown or was given twice"))
        })?;
        if shape != place.layout.shape || values.len() != shape.iter().product::<usize>() {
            return Err(ModelError::Input(format!(
                "the weight `{name}` has the shape {shape:?} and {} values; {:?} was expected",
                values.len(),
                place.layout.shape
            )));
        }
        let Some(Shard { file, .. }) = self.shards.get_mut(place.shard) else {
            return Err(ModelError::Input(format!("the weight `{name}` has no file")));
        };
        file.seek(SeekFrom::Start(place.offset))
            .and_then(|_| write_values(file, values, self.format))
            .map_err(|error| unwritable(file.path(), &error))
    }

    fn partial(&self, file_name: &str) -> PathBuf {
        self.directory.join(format!(".partial-{file_name}"))
    }

    fn finish(mut self) -> Result<()> {
        if let Some(name) = self.places.keys().min() {
            return Err(ModelError::Input(format!("the weight `{name}` was not given")));
        }
        for Shard { file_name, file } in &self.shards {
            let path = self.directory.join(file_name);
            file.sync_all()
                .and_then(|()| fs_err::rename(file.path(), &path))
                .map_err(|error| unwritable(&path, &error))?;
        }
        match self.index.take() {
            Some(index) => write_json(&self.directory.join(INDEX_FILE), &index),
            None => Ok(()),
        }
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        for shard in &self.shards {
            // There is one only where something failed, which has been reported.
            let _ = fs_err::remove_file(self.partial(&shard.file_name));
        }
    }
}

fn byte_size(tensor: &TensorLayout, format: WeightFormat) -> u64 {
    tensor.shape.iter().map(|&size| size as u64).product::<u64>() * format.bytes()
}

/// Fills shards in order; a weight larger than a shard gets one of its own.
fn into_shards(tensors: Vec<StoredTensor>, files: WeightFiles) -> Vec<Vec<StoredTensor>> {
    let mut shards: Vec<Vec<StoredTensor>> = vec![Vec::new()];
    let mut filled = 0;
    for tensor in tensors {
        let size = byte_size(&tensor.layout, files.format);
        if filled > 0 && filled + size > files.shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

fn write_values(
    file: &mut fs_err::File,
    values: &[f32],
    format: WeightFormat,
) -> std::io::Result<()> {
    if cfg!(target_endian = "little") && format == WeightFormat::F32 {
        return file.write_all(bytemuck::cast_slice(values));
    }
    let mut writer = std::io::BufWriter::new(file);
    for &value in values {
        match format {
            WeightFormat::F32 => writer.write_all(&value.to_le_bytes())?,
            WeightFormat::Bf16 => writer.write_all(&bf16::from_f32(value).to_le_bytes())?,
        }
    }
    writer.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::checkpoint::weights::Weights;
    use crate::decoder::Family;
    use crate::formats::safetensors::SafetensorsFiles;
    use crate::formats::{JsonObject, WeightFile, WeightSource};

    /// A Llama that stores queries, keys and values as one tensor.
    #[derive(Debug)]
    struct Fused;

    impl Family for Fused {
        fn model_type(&self) -> &'static str {
            "fused"
        }

        fn architecture(&self) -> &'static str {
            "FusedForCausalLM"
        }

        fn sequence_classifier(&self) -> &'static str {
            "FusedForSequenceClassification"
        }

        fn read_hugging_face(&self, _: &JsonObject<'_>) -> Result<DecoderConfig> {
            Err(ModelError::Unsupported("the test reads none".into()))
        }

        fn write_hugging_face(&self, _: &DecoderConfig) -> Value {
            Value::Null
        }

        fn source(&self, config: &DecoderConfig, weight: &str) -> WeightSource {
            let (queries, keys) = (config.query_features(), config.key_features());
            let values = queries + keys;
            let parts = [
                ("q_proj.weight", 0..queries),
                ("k_proj.weight", queries..values),
                ("v_proj.weight", values..values + keys),
            ];
            for (part, rows) in parts {
                if let Some(module) = weight.strip_suffix(part) {
                    return WeightSource::rows(format!("{module}qkv_proj.weight"), rows);
                }
            }
            WeightSource::whole(weight)
        }
    }

    #[test]
    fn weights_that_a_family_fuses_are_written_and_read_by_rows() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/llama");
        let checkpoint = Checkpoint::open(&fixture).unwrap();
        let config = DecoderConfig { family: &Fused, ..checkpoint.config().clone() };
        let names: Vec<String> = checkpoint.tensor_names().map(String::from).collect();
        for shard_bytes in [1 << 30, 20_000] {
            let directory = tempfile::tempdir().unwrap();
            let tensors = names.iter().rev().map(|name| {
                let tensor = checkpoint.tensor(name)?;
                Ok((name.clone(), tensor.shape, tensor.values))
            });
            let files = WeightFiles { shard_bytes, ..WeightFiles::default() };
            let text = checkpoint.text();
            write_checkpoint(directory.path(), &config, text, None, tensors, files).unwrap();

            let files = SafetensorsFiles::open(directory.path()).unwrap();
            let fused = "model.layers.0.self_attn.qkv_proj.weight";
            assert_eq!(files.shape(fused), Some(&[128, 64][..]));
            assert_eq!(files.names().count(), names.len() - 2 * config.layer_count);
            let weights = Weights::of_hugging_face(&config, files);
            weights.check(directory.path()).unwrap();
            assert_eq!(weights.unused(&config), None);
            for name in &names {
                let expected = checkpoint.tensor(name).unwrap();
                let found = weights.read(&config, name).unwrap();
                assert_eq!(found, Some((expected.shape, expected.values)), "{name}");
            }
        }
    }
}
