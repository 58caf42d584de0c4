//! Models on disk, opened for reading: Hugging Face directories, GGUF files and PEFT directories.
//!
//! Weights are mapped into memory and converted to f32 one tensor at a time. Pickled files are never
//! read.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::source::{self, ModelSourceOptions};
use super::weights::Weights;
use crate::decoder::{Container, DecoderConfig, merge, stored_tensors};
use crate::error::{ModelError, Result};
use crate::formats::bitsandbytes::{self, Nf4Files};
use crate::formats::files::{file_sha256, hexadecimal, listing_sha256};
use crate::formats::json::read_config;
use crate::formats::peft::ADAPTER_CONFIG;
use crate::formats::safetensors::{INDEX_FILE, SafetensorsFiles};
use crate::formats::weight_file::check_finite;
use crate::formats::{AdapterFiles, AdapterValues, GgufFile, QuantizedMatrix, WeightFile};
use crate::text::{TemplateVariables, TextCodec};

/// One weight in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// Identity of a model's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckpointIdentity {
    /// The directory or file.
    pub path: PathBuf,
    /// SHA-256 in hexadecimal: of the file itself for GGUF; for a directory, of the lines
    /// `<sha256>  <name>` of its config, tokenizer and weight files, sorted by name, and for GGUF in
    /// several files of those of the parts. With adapters, of that identity of the base model and of the
    /// hashes of their files.
    pub sha256: String,
}

/// A model on disk, opened for reading.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: DecoderConfig,
    original_config: Option<Value>,
    text: TextCodec,
    weights: Weights,
    adapters: Option<AdapterFiles>,
}

/// The shape of a model on disk and the places of its weights. Its tokenizer, which takes more time and memory to
/// read, is left out.
#[derive(Debug)]
pub struct ModelShape {
    path: PathBuf,
    /// Shape and settings.
    pub config: DecoderConfig,
    original_config: Option<Value>,
    weights: Weights,
}

impl ModelShape {
    /// Reads what [`Checkpoint::open`] opens; of adapters, their base model.
    ///
    /// # Errors
    /// When the path holds no model, or one that is damaged or not supported.
    pub fn read(path: &Path) -> Result<Self> {
        if AdapterFiles::are_in(path) {
            return Self::read(&base_of(&AdapterFiles::open(path)?, path)?);
        }
        if path.is_dir() {
            Self::of_directory(path)
        } else {
            Self::of_gguf(path, GgufFile::open(path)?)
        }
    }

    fn of_directory(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        let mut json = read_config(&config_path)?;
        let is_in_nf4 = bitsandbytes::take_config(&mut json, &config_path)?;
        let config = DecoderConfig::from_hugging_face(&json, &config_path)?;
        let files = SafetensorsFiles::open(path)?;
        let weights = match is_in_nf4 {
            true => Weights::of_wrapped(&config, Nf4Files::new(files)?)?,
            false => Weights::of_wrapped(&config, files)?,
        };
        Ok(Self { path: path.to_path_buf(), config, original_config: Some(json), weights })
    }

    fn of_gguf(path: &Path, file: GgufFile) -> Result<Self> {
        let config = DecoderConfig::from_gguf(&file)?;
        let weights = Weights::of_gguf(&config, file);
        Ok(Self { path: path.to_path_buf(), config, original_config: None, weights })
    }

    /// Whether every matrix is stored in bf16.
    #[must_use]
    pub fn is_stored_in_bf16(&self) -> bool {
        self.weights.are_bf16()
    }

    /// The weights that are stored in blocks, and the size of these in bytes.
    ///
    /// # Errors
    /// As those of [`Checkpoint::quantized_bytes`].
    pub fn quantized_bytes(&self) -> Result<HashMap<String, u64>> {
        quantized_bytes(&self.weights, &self.path)
    }

    fn with_text(self, text: TextCodec) -> Checkpoint {
        let Self { path, config, original_config, weights } = self;
        Checkpoint { path, config, original_config, text, weights, adapters: None }
    }
}

fn quantized_bytes(weights: &Weights, path: &Path) -> Result<HashMap<String, u64>> {
    let found = weights.quantized_bytes();
    if !found.is_empty() {
        return Ok(found);
    }
    Err(ModelError::file(
        path,
        "holds no quantized weights, which `training.frozen_weights = \"quantized\"` would keep as they are",
    )
    .with_hint(
        "name a .gguf file of Q8_0 or fewer bits (sppo export gguf makes one) or a model in bitsandbytes' NF4, \
         or set training.frozen_weights = \"dense\"",
    ))
}

/// The path of the model that adapters were made for.
fn base_of(adapters: &AdapterFiles, directory: &Path) -> Result<PathBuf> {
    let offline = ModelSourceOptions { offline: true, ..ModelSourceOptions::default() };
    let base = adapters.base();
    let found = source::resolve(base, adapters.revision(), &offline, &|_| ())
        .map_err(|error| {
            ModelError::file(directory, format!("the model that these adapters were made for cannot be found: {error}"))
                .with_hint(format!("fetch it by naming {base} with --model once, or correct base_model_name_or_path in {ADAPTER_CONFIG}"))
        })?;
    if AdapterFiles::are_in(&found.path) {
        return Err(ModelError::file(
            directory,
            "its base model is a directory of adapters itself",
        )
        .with_hint("merge those adapters first: sppo merge"));
    }
    Ok(found.path)
}

impl Checkpoint {
    /// Opens a Hugging Face model directory or a `.gguf` file, and checks that every weight is there
    /// with the shape that the configuration demands. A PEFT directory is opened together with the
    /// model that its adapters were made for, which must be on this machine.
    ///
    /// # Errors
    /// When the path holds no model, the model is damaged, or it is of a kind that is not supported.
    pub fn open(path: &Path) -> Result<Self> {
        if AdapterFiles::are_in(path) {
            return Self::open_adapters(path);
        }
        let mut checkpoint = if path.is_dir() {
            Self::open_directory(path)?
        } else if path.is_file() {
            Self::open_gguf(path)?
        } else {
            return Err(ModelError::file(path, "there is no such file or directory")
                .with_hint("name a Hugging Face model directory or a .gguf file"));
        };
        checkpoint.check_vocabulary()?;
        Ok(checkpoint)
    }

    /// The checkpoint with variables of its chat template, a JSON object as text; empty for none.
    ///
    /// # Errors
    /// When the text is no such object, or names a variable that the program itself gives.
    pub fn with_template_variables(mut self, variables: &str) -> Result<Self> {
        if !variables.is_empty() {
            let variables: TemplateVariables = serde_json::from_str(variables)
                .map_err(|error| ModelError::Input(format!("template_variables: {error}")))?;
            self.text = self.text.with_template_variables(&variables)?;
        }
        Ok(self)
    }

    fn open_adapters(directory: &Path) -> Result<Self> {
        let adapters = AdapterFiles::open(directory)?;
        let base = Self::open(&base_of(&adapters, directory)?)?;
        let stored = stored_tensors(&base.config);
        adapters
            .check(stored.iter().map(|tensor| (&*tensor.layout.name, &*tensor.layout.shape)))?;
        let text = base.text.with_files_of(directory, base.original_config.as_ref())?;
        Ok(Self { adapters: Some(adapters), text, ..base })
    }

    fn open_directory(path: &Path) -> Result<Self> {
        let model = ModelShape::of_directory(path)?;
        let text = TextCodec::from_directory(path)?;
        model.weights.check(path)?;
        let container = model.config.container(model.original_config.as_ref());
        check_other_weights(&model.weights, path, &model.config, container)?;
        Ok(model.with_text(text))
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let mut file = GgufFile::open(path)?;
        let config = DecoderConfig::from_gguf(&file)?;
        let text_files = TextCodec::files_of_gguf(file.metadata(), config.context_length)?;
        file.release_vocabulary();
        let text = TextCodec::from_files(path, text_files, None)?;
        let weights = Weights::of_gguf(&config, file);
        let model = ModelShape { path: path.to_path_buf(), config, original_config: None, weights };
        model.weights.check(path)?;
        // an architecture that only shares its name with ours
        if let Some(name) = model.weights.unused(&model.config) {
            let model_type = model.config.family.model_type();
            return Err(ModelError::file(
                path,
                format!("holds the tensor `{name}`, which a {model_type} model does not have"),
            )
            .with_hint("this variant of the architecture is not supported"));
        }
        Ok(model.with_text(text))
    }

    fn check_vocabulary(&mut self) -> Result<()> {
        let rows = self.config.vocabulary_size;
        self.text
            .limit_to(rows)
            .map_err(|(message, hint)| ModelError::file(&self.path, message).with_hint(hint))
    }

    /// The directory or file that holds the weights: of the base model where there are adapters.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape and settings.
    #[must_use]
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The adapters, if what was opened holds any.
    #[must_use]
    pub fn adapters(&self) -> Option<&AdapterFiles> {
        self.adapters.as_ref()
    }

    /// `config.json` as it was read; `None` for GGUF.
    #[must_use]
    pub fn original_config(&self) -> Option<&Value> {
        self.original_config.as_ref()
    }

    /// The tokenizer, chat template and special tokens.
    #[must_use]
    pub fn text(&self) -> &TextCodec {
        &self.text
    }

    /// The configuration, `config.json` as it was read, and the text side, when the weights are no
    /// longer needed.
    #[must_use]
    pub fn into_parts(self) -> (DecoderConfig, Option<Value>, TextCodec) {
        (self.config, self.original_config, self.text)
    }

    /// Whether every matrix of the model is stored in bf16.
    #[must_use]
    pub fn is_stored_in_bf16(&self) -> bool {
        self.weights.are_bf16()
    }

    /// The Hugging Face names of the weights, in the order of [`tensor_layout`](crate::decoder::tensor_layout).
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.weights.layout().map(|tensor| tensor.name.as_str())
    }

    /// One weight, converted to f32, with its adapter merged into it if it has one.
    ///
    /// # Errors
    /// When there is no such weight, its number format is not supported, or a value is infinite or not a
    /// number.
    pub fn tensor(&self, name: &str) -> Result<TensorData> {
        let mut tensor = self.base_tensor(name)?;
        let Some(adapters) = &self.adapters else { return Ok(tensor) };
        // the weight may be some rows of a larger tensor, to which the adapter belongs
        let stored = stored_tensors(&self.config);
        let found = stored.iter().find_map(|stored| {
            let part = stored.weights.iter().find(|part| part.layout.name == name)?;
            Some((stored, part.rows.clone()))
        });
        let Some((stored, rows)) = found else { return Ok(tensor) };
        let part = |values: Vec<f32>, row: usize| values[rows.start * row..rows.end * row].to_vec();
        if let Some(values) = adapters.whole(&stored.layout.name)? {
            tensor.values = part(values, tensor.values.len() / rows.len().max(1));
        }
        if let Some((module, shape)) = stored.module()
            && let Some(AdapterValues { a, b }) = adapters.values(module, shape)?
        {
            let row = b.len() / shape[0].max(1);
            let values = AdapterValues { a, b: part(b, row) };
            merge(&mut tensor.values, shape[1], &values, adapters.scale(module));
            let [_, file] = adapters.paths();
            check_finite(&file, name, &tensor.values)?;
        }
        Ok(tensor)
    }

    /// The names of the tensors in which a Hugging Face model of this family stores its weights.
    #[must_use]
    pub fn stored_names(&self) -> Vec<String> {
        stored_tensors(&self.config).into_iter().map(|stored| stored.layout.name).collect()
    }

    /// One weight, converted to f32, without its adapter.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn base_tensor(&self, name: &str) -> Result<TensorData> {
        let (shape, values) = self.weights.read(&self.config, name)?.ok_or_else(|| {
            ModelError::file(&self.path, format!("the model has no weight `{name}`"))
        })?;
        Ok(TensorData { shape, values })
    }

    /// A matrix in the blocks in which it is stored, without its adapter; `None` for a weight that is stored
    /// number by number.
    ///
    /// # Errors
    /// When a value is infinite or not a number.
    pub fn quantized_base_matrix(&self, name: &str) -> Result<Option<QuantizedMatrix>> {
        self.weights.quantized(&self.config, name)
    }

    /// The weights that [`Self::quantized_base_matrix`] gives, and the size of their blocks in bytes.
    ///
    /// # Errors
    /// When there are none.
    pub fn quantized_bytes(&self) -> Result<HashMap<String, u64>> {
        quantized_bytes(&self.weights, &self.path)
    }

    /// Identity of the model's content. Reads all of its files.
    ///
    /// # Errors
    /// When a file can no longer be read.
    pub fn identity(&self) -> Result<CheckpointIdentity> {
        let mut paths: Vec<_> = self.weights.paths().into_iter().map(Path::to_path_buf).collect();
        let sha256 = match self.path.is_dir() {
            false if paths.len() > 1 => {
                listing_sha256(self.path.parent().unwrap_or(Path::new("")), paths)?
            }
            false => file_sha256(&self.path)?,
            true => {
                let index = self.path.join(INDEX_FILE);
                paths.extend((paths.len() > 1 && index.is_file()).then_some(index));
                paths.push(self.path.join("config.json"));
                paths.extend(self.text.file_names().map(|name| self.path.join(name)));
                listing_sha256(&self.path, paths)?
            }
        };
        let sha256 = match &self.adapters {
            None => sha256,
            Some(adapters) => {
                let mut listing = Sha256::new();
                listing.update(format!("{sha256}  base\n"));
                for path in adapters.paths() {
                    listing.update(format!("{}\n", file_sha256(&path)?));
                }
                hexadecimal(&listing.finalize())
            }
        };
        Ok(CheckpointIdentity { path: self.path.clone(), sha256 })
    }
}

/// Refuses adapters among the weights, and warns of others that are not used, as transformers does.
fn check_other_weights(
    weights: &Weights,
    path: &Path,
    config: &DecoderConfig,
    container: Option<Container>,
) -> Result<()> {
    if let Some(name) = weights.adapter() {
        return Err(ModelError::file(
            path,
            format!("holds adapters that are not merged into the weights: `{name}`"),
        )
        .with_hint("merge them with PEFT, merge_and_unload(), before save_pretrained()"));
    }
    let shown = path.display();
    if let Some(Container { architecture, .. }) = container {
        tracing::warn!(
            "{shown}: of this {architecture}, the text part alone is used, and written where it is saved"
        );
    } else if let Some(name) = weights.unused(config) {
        tracing::warn!("{shown}: the weight `{name}` is not used by this architecture");
    }
    if weights.has_another_head() {
        tracing::warn!(
            "{shown}: `lm_head.weight` differs from the embedding table, which is the head because \
             tie_word_embeddings is true; set that to false in config.json if the model has a head of its own"
        );
    }
    Ok(())
}

/// Identity of the content of a directory with a model that scores text: as
/// [`Checkpoint::identity`], of its `config.json`, its weight files and these files. Reads all of them.
///
/// # Errors
/// When the directory holds no weights, or a file cannot be read.
pub fn scorer_identity<'a>(
    directory: &Path,
    text_files: impl Iterator<Item = &'a str>,
) -> Result<CheckpointIdentity> {
    let files = SafetensorsFiles::open(directory)?;
    let mut paths: Vec<_> = files.paths().into_iter().map(Path::to_path_buf).collect();
    paths.push(directory.join("config.json"));
    paths.extend(text_files.map(|name| directory.join(name)));
    let sha256 = listing_sha256(directory, paths)?;
    Ok(CheckpointIdentity { path: directory.to_path_buf(), sha256 })
}
