//! Writing a model as a GGUF file.
//!
//! The header is read back before the weights are written: what llama.cpp would compute or tokenise otherwise
//! is refused, and not written.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::Checkpoint;
use crate::decoder::{
    DecoderConfig, StoredTensor, as_gguf_says, gguf_tensors, rotary_tensors, write_gguf_settings,
};
use crate::error::{ModelError, Result};
use crate::formats::{GgufEntries, GgufFile, GgufFormat, GgufTensor, GgufWriter};
use crate::text::{check_tokenizer, name_in_gguf, write_template, write_tokenizer};

/// The version of ggml's quantised formats.
const QUANTIZATION_VERSION: u32 = 2;

/// Numbers are single in GGUF files.
const TOLERANCE: f64 = 1e-6;

/// A model as a GGUF file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GgufExport {
    /// Of a model whose attention has windows that llama.cpp computes without: the context in tokens, which
    /// ends where they begin to make a difference.
    pub shortened_context: Option<usize>,
    /// Matrices by their number format, where that is not the one asked for, and their number.
    pub other_formats: BTreeMap<String, usize>,
}

/// Writes a model, with its adapters merged into it if it has any, as a GGUF file.
///
/// The metadata are those of `base`, where it is given and is a model of the same shape, else of the model's
/// own GGUF file, else made from its configuration and tokenizer. Matrices are written in `format`; those whose
/// rows are no whole blocks, and the output head beside 4 bits, in one with more bits. Norms, biases, routers
/// and rotary divisors are always in f32.
///
/// # Errors
/// When the file exists or cannot be written, the model cannot be read, or llama.cpp would compute with it
/// or divide text into tokens otherwise than this program.
pub fn write_gguf(
    checkpoint: &Checkpoint,
    path: &Path,
    format: GgufFormat,
    base: Option<&Path>,
) -> Result<GgufExport> {
    let config = checkpoint.config();
    let (entries, told) = match (base, checkpoint.original_config()) {
        (Some(base), _) => (entries_of_base(checkpoint, base, format)?, as_gguf_says(config)),
        (None, None) => (entries_of_base(checkpoint, checkpoint.path(), format)?, config.clone()),
        (None, Some(_)) => {
            let told = as_gguf_says(config);
            (own_entries(checkpoint, &told, path, format)?, told)
        }
    };
    let stored = gguf_tensors(config);
    let divisors = rotary_tensors(config);
    let mut tensors: Vec<GgufTensor> =
        stored.iter().map(|tensor| described(config, tensor, format)).collect();
    let other_formats = other_formats(&tensors, format);
    tensors.extend(divisors.iter().map(|(name, values)| GgufTensor {
        name: (*name).into(),
        shape: vec![values.len()],
        format: GgufFormat::F32,
    }));
    let mut writer = GgufWriter::create(path, &entries, tensors)?;
    for (name, values) in &divisors {
        writer.write(name, 0, values)?;
    }
    check_header(checkpoint, &told, &writer.partial_path())?;
    for tensor in &stored {
        write_tensor(checkpoint, tensor, &mut writer)?;
    }
    writer.finish()?;
    let shortened = told.context_length < config.context_length;
    let shortened_context = shortened.then_some(told.context_length);
    Ok(GgufExport { shortened_context, other_formats })
}

/// The metadata of a GGUF file of the same model, with what differs.
fn entries_of_base(
    checkpoint: &Checkpoint,
    base: &Path,
    format: GgufFormat,
) -> Result<GgufEntries> {
    let file = GgufFile::open(base)?;
    let mut entries = file.entries();
    entries.set_integer("general.file_type", format.file_type());
    entries.set_integer("general.quantization_version", QUANTIZATION_VERSION);
    // those that the weights were quantised with
    entries.remove_all("quantize.imatrix.");
    write_template(checkpoint.text(), &mut entries);
    Ok(entries)
}

/// Metadata from the configuration and the tokenizer.
fn own_entries(
    checkpoint: &Checkpoint,
    told: &DecoderConfig,
    path: &Path,
    format: GgufFormat,
) -> Result<GgufEntries> {
    let mut entries = GgufEntries::default();
    write_gguf_settings(told, &mut entries)?;
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = name_in_gguf(checkpoint.text(), &name)?;
    entries.set_text("general.type", "model");
    entries.set_text("general.name", &name);
    entries.set_integer("general.file_type", format.file_type());
    entries.set_integer("general.quantization_version", QUANTIZATION_VERSION);
    write_tokenizer(checkpoint.text(), told.vocabulary_size, &mut entries)?;
    Ok(entries)
}

/// A tensor's name, shape and format in the file.
fn described(config: &DecoderConfig, tensor: &StoredTensor, format: GgufFormat) -> GgufTensor {
    let (name, shape) = (tensor.layout.name.clone(), tensor.layout.shape.clone());
    let is_head = name == "output.weight" || config.tied_head && name == "token_embd.weight";
    let row = shape.last().copied().unwrap_or(1);
    let wanted: &[GgufFormat] = match format {
        _ if shape.len() == 1 || name.ends_with("ffn_gate_inp.weight") => &[GgufFormat::F32],
        GgufFormat::Q4_0 if !is_head => &[GgufFormat::Q4_0, GgufFormat::F16],
        GgufFormat::Q4_K if !is_head => &[GgufFormat::Q4_K, GgufFormat::Q8_0, GgufFormat::F16],
        GgufFormat::Q8_0 | GgufFormat::Q4_0 | GgufFormat::Q4_K => {
            &[GgufFormat::Q8_0, GgufFormat::F16]
        }
        GgufFormat::F16 => &[GgufFormat::F16],
        GgufFormat::Bf16 => &[GgufFormat::Bf16],
        GgufFormat::F32 => &[GgufFormat::F32],
    };
    let fits = |format: &&GgufFormat| row.is_multiple_of(format.block_values());
    let format = wanted.iter().find(fits).copied().unwrap_or(GgufFormat::F32);
    GgufTensor { name, shape, format }
}

/// Numbers of matrices in each format other than the one asked for.
fn other_formats(tensors: &[GgufTensor], format: GgufFormat) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    let matrices = tensors.iter().filter(|tensor| tensor.shape.len() > 1);
    for tensor in matrices.filter(|tensor| ![format, GgufFormat::F32].contains(&tensor.format)) {
        *counts.entry(tensor.format.to_string()).or_insert(0) += 1;
    }
    counts
}

fn write_tensor(
    checkpoint: &Checkpoint,
    tensor: &StoredTensor,
    writer: &mut GgufWriter,
) -> Result<()> {
    let config = checkpoint.config();
    for part in &tensor.weights {
        let mut values = checkpoint.tensor(&part.layout.name)?.values;
        config.family.convert_gguf(config, &part.layout.name, &mut values);
        let row = values.len() / part.rows.len().max(1);
        writer.write(&tensor.layout.name, part.rows.start * row, &values)?;
    }
    Ok(())
}

/// Refuses a file whose header is read as another model or another tokenizer.
fn check_header(checkpoint: &Checkpoint, told: &DecoderConfig, path: &Path) -> Result<()> {
    let file = GgufFile::open(path)?;
    let found = DecoderConfig::from_gguf(&file)?;
    let as_json = |config: &DecoderConfig| serde_json::to_value(config).unwrap_or_default();
    let (expected, read) = (as_json(told), as_json(&found));
    let same_architecture = told.family.gguf_architecture() == found.family.gguf_architecture();
    for (key, value) in expected.as_object().into_iter().flatten() {
        let is_family = key == "family" && same_architecture;
        if !is_family && !is_near(value, &read[key]) {
            let (value, other) = first_difference(value, &read[key]);
            return Err(ModelError::Unsupported(format!(
                "llama.cpp cannot compute this model as it is: its `{key}` is {value}, and would be {other} from \
                 a GGUF file"
            )));
        }
    }
    let (rows, context) = (told.vocabulary_size, told.context_length);
    check_tokenizer(checkpoint.text(), file.metadata(), rows, context)
}

/// The first elements in which two lists differ, or the values themselves.
fn first_difference<'a>(one: &'a Value, other: &'a Value) -> (&'a Value, &'a Value) {
    let lists = one.as_array().zip(other.as_array());
    let mut pairs = lists.into_iter().flat_map(|(one, other)| one.iter().zip(other));
    pairs.find(|(one, other)| !is_near(one, other)).unwrap_or((one, other))
}

/// Whether two values agree up to the rounding of numbers.
fn is_near(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            let (one, other) = (one.as_f64().unwrap_or(0.0), other.as_f64().unwrap_or(0.0));
            (one - other).abs() <= TOLERANCE * one.abs()
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len()
                && one.iter().zip(other).all(|(one, other)| is_near(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let near = |(key, value): (&String, &Value)| {
                other.get(key).is_some_and(|other| is_near(value, other))
            };
            one.len() == other.len() && one.iter().all(near)
        }
        _ => one == other,
    }
}
