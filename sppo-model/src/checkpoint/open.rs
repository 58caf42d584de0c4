//! Models on disk, opened for reading: Hugging Face directories, GGUF files and PEFT directories.
//!
//! Weights are mapped into memory and converted to f32 one tensor at a time. Pickled files are never
//! read.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::source::{self, ModelSourceOptions};
use crate::decoder::{DecoderConfig, Family, TensorLayout, hugging_face_name, lora, tensor_layout};
use crate::error::{ModelError, Result};
use crate::formats::hash::{file_sha256, hexadecimal, listing_sha256};
use crate::formats::json::read_json;
use crate::formats::peft::ADAPTER_CONFIG;
use crate::formats::safetensors::{INDEX_FILE, SafetensorsFiles};
use crate::formats::{AdapterFiles, GgufFile};
use crate::text::TextCodec;

/// One weight in f32.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorData {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub values: Vec<f32>,
}

/// What identifies a model's content.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CheckpointIdentity {
    /// The directory or file.
    pub path: PathBuf,
    /// SHA-256 in hexadecimal: of the file itself for GGUF; for a directory, of the lines
    /// `<sha256>  <name>` of its config, tokenizer and weight files, sorted by name. With adapters, of
    /// that identity of the base model and of the hashes of their files.
    pub sha256: String,
}

#[derive(Debug)]
enum Weights {
    Safetensors(SafetensorsFiles),
    Gguf(GgufFile),
}

/// A model on disk, opened for reading.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    config: DecoderConfig,
    original_config: Option<Value>,
    text: TextCodec,
    weights: Weights,
    layout: Vec<TensorLayout>,
    adapters: Option<AdapterFiles>,
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
        let checkpoint = if path.is_dir() {
            Self::open_directory(path)?
        } else if path.is_file() {
            Self::open_gguf(path)?
        } else {
            return Err(ModelError::file(path, "there is no such file or directory")
                .with_hint("name a Hugging Face model directory or a .gguf file"));
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    fn open_adapters(directory: &Path) -> Result<Self> {
        let adapters = AdapterFiles::open(directory)?;
        let offline = ModelSourceOptions { offline: true, ..ModelSourceOptions::default() };
        let base = adapters.base();
        let found = source::resolve(base, adapters.revision(), &offline, &|_| ())
            .map_err(|error| {
                ModelError::file(directory, format!("the model that these adapters were made for cannot be found: {error}"))
                    .with_hint(format!("fetch it by naming {base} with --model once, or correct base_model_name_or_path in {}", ADAPTER_CONFIG))
            })?;
        if AdapterFiles::are_in(&found.path) {
            return Err(ModelError::file(
                directory,
                "its base model is a directory of adapters itself",
            )
            .with_hint("merge those adapters first: sppo merge"));
        }
        let base = Self::open(&found.path)?;
        adapters.check(base.layout.iter().map(|tensor| (&*tensor.name, &*tensor.shape)))?;
        Ok(Self { adapters: Some(adapters), ..base })
    }

    fn open_directory(path: &Path) -> Result<Self> {
        let config_path = path.join("config.json");
        let json = read_json(&config_path)?;
        let config = DecoderConfig::from_hugging_face(&json, &config_path)?;
        let weights = SafetensorsFiles::open(path)?;
        let text = TextCodec::from_directory(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            layout: tensor_layout(&config),
            config,
            original_config: Some(json),
            text,
            weights: Weights::Safetensors(weights),
            adapters: None,
        })
    }

    fn open_gguf(path: &Path) -> Result<Self> {
        let file = GgufFile::open(path)?;
        let config = DecoderConfig::from_gguf(&file)?;
        let text = TextCodec::from_gguf(file.metadata(), config.context_length)?;
        Ok(Self {
            path: path.to_path_buf(),
            layout: tensor_layout(&config),
            config,
            original_config: None,
            text,
            weights: Weights::Gguf(file),
            adapters: None,
        })
    }

    fn check(&self) -> Result<()> {
        for tensor in &self.layout {
            let name = &tensor.name;
            let stored = match &self.weights {
                Weights::Safetensors(files) => files.shape(name),
                Weights::Gguf(file) => {
                    gguf_name(self.config.family, file, name).and_then(|name| file.shape(name))
                }
            };
            let Some(stored) = stored else {
                return Err(ModelError::file(&self.path, format!("the weight `{name}` is missing"))
                    .with_hint("the configuration and the weights do not belong together, or a file is missing"));
            };
            if stored != tensor.shape {
                return Err(ModelError::file(
                    &self.path,
                    format!("the weight `{name}` has the shape {stored:?}; the configuration demands {:?}", tensor.shape),
                )
                .with_hint("the configuration and the weights do not belong together"));
            }
        }
        self.check_unused()?;
        let (tokens, rows) = (self.text.vocabulary_size(), self.config.vocabulary_size);
        if tokens > rows {
            return Err(ModelError::file(
                &self.path,
                format!("the tokenizer knows {tokens} tokens, the model only {rows}"),
            )
            .with_hint(
                "the tokenizer does not belong to this model; use the one it was trained with",
            ));
        }
        Ok(())
    }

    /// Weights that the architecture has no place for. transformers leaves them out and warns; in a
    /// GGUF file they mean an architecture that only shares its name with ours.
    fn check_unused(&self) -> Result<()> {
        let known = |name: &str| self.layout.iter().any(|tensor| tensor.name == name);
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq")
                || name == "lm_head.weight"
                || name == "rope_freqs.weight"
        };
        let unused = match &self.weights {
            Weights::Safetensors(files) => {
                files.names().find(|name| !known(name) && !harmless(name)).map(String::from)
            }
            Weights::Gguf(file) => file
                .names()
                .find(|name| {
                    let hugging_face_name = hugging_face_name(self.config.family, name);
                    !harmless(name) && !hugging_face_name.is_some_and(|name| known(&name))
                })
                .map(String::from),
        };
        match (unused, &self.weights) {
            (Some(name), Weights::Gguf(_)) => Err(ModelError::file(
                &self.path,
                format!(
                    "holds the tensor `{name}`, which a {} model does not have",
                    self.config.family.model_type()
                ),
            )
            .with_hint("this variant of the architecture is not supported")),
            (Some(name), Weights::Safetensors(_)) => {
                tracing::warn!(
                    "{}: the weight `{name}` is not used by this architecture",
                    self.path.display()
                );
                Ok(())
            }
            (None, _) => Ok(()),
        }
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
        match &self.weights {
            Weights::Safetensors(files) => {
                let mut matrices = self.layout.iter().filter(|tensor| tensor.shape.len() == 2);
                matrices.all(|tensor| files.is_bf16(&tensor.name))
            }
            Weights::Gguf(_) => false,
        }
    }

    /// The Hugging Face names of the weights, in the order of [`tensor_layout`].
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.layout.iter().map(|tensor| tensor.name.as_str())
    }

    /// One weight, converted to f32, with its adapter merged into it if it has one.
    ///
    /// # Errors
    /// When there is no such weight or its number format is not supported.
    pub fn tensor(&self, name: &str) -> Result<TensorData> {
        let mut tensor = self.base_tensor(name)?;
        let module = name.strip_suffix(".weight").unwrap_or(name);
        if let (Some(adapters), &[output, input]) = (&self.adapters, tensor.shape.as_slice())
            && let Some(values) = adapters.values(module, [output, input])?
        {
            lora::merge(&mut tensor.values, input, &values, adapters.settings().scale());
        }
        Ok(tensor)
    }

    /// One weight, converted to f32, without its adapter.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    pub fn base_tensor(&self, name: &str) -> Result<TensorData> {
        let tensor = self.layout.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
            ModelError::file(&self.path, format!("the model has no weight `{name}`"))
        })?;
        let values = match &self.weights {
            Weights::Safetensors(files) => files.values(name)?,
            Weights::Gguf(file) => self.gguf_values(file, name)?,
        };
        Ok(TensorData { shape: tensor.shape.clone(), values })
    }

    /// Undoes what llama.cpp's converter did to the values.
    fn gguf_values(&self, file: &GgufFile, name: &str) -> Result<Vec<f32>> {
        let config = &self.config;
        let stored = gguf_name(config.family, file, name)
            .ok_or_else(|| ModelError::file(&self.path, format!("has no weight `{name}`")))?;
        let mut values = file.values(stored)?;
        // It turns neighbouring features of a Llama's query or key head by one angle, Hugging Face
        // turns feature `i` with feature `i + head_size / 2`; so it reordered the rows.
        let rotated = name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight");
        if rotated && config.family == Family::Llama {
            values = restore_head_order(&values, config.head_size, config.hidden_size);
        }
        if config.norm_weight_offset && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value -= 1.0);
        }
        Ok(values)
    }

    /// What identifies the model's content. Reads all of its files.
    ///
    /// # Errors
    /// When a file can no longer be read.
    pub fn identity(&self) -> Result<CheckpointIdentity> {
        let sha256 = match &self.weights {
            Weights::Gguf(_) => file_sha256(&self.path)?,
            Weights::Safetensors(files) => {
                let mut paths: Vec<PathBuf> = files.paths().map(Path::to_path_buf).collect();
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

/// What identifies the content of a directory with a model that scores text: as
/// [`Checkpoint::identity`], of its `config.json`, its weight files and these files. Reads all of them.
///
/// # Errors
/// When the directory holds no weights, or a file cannot be read.
pub fn scorer_identity<'a>(
    directory: &Path,
    text_files: impl Iterator<Item = &'a str>,
) -> Result<CheckpointIdentity> {
    let files = SafetensorsFiles::open(directory)?;
    let mut paths: Vec<PathBuf> = files.paths().map(Path::to_path_buf).collect();
    paths.push(directory.join("config.json"));
    paths.extend(text_files.map(|name| directory.join(name)));
    let sha256 = listing_sha256(directory, paths)?;
    Ok(CheckpointIdentity { path: directory.to_path_buf(), sha256 })
}

/// The GGUF name of a weight.
fn gguf_name<'a>(family: Family, file: &'a GgufFile, name: &str) -> Option<&'a str> {
    file.names().find(|stored| hugging_face_name(family, stored).as_deref() == Some(name))
}

/// Row `(pair, half)` of each head becomes row `(half, pair)`.
fn restore_head_order(values: &[f32], head_size: usize, row: usize) -> Vec<f32> {
    let half = head_size / 2;
    let mut restored = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_size * row) {
        for target in 0..head_size {
            let source = target % half * 2 + target / half;
            restored.extend_from_slice(&head[source * row..][..row]);
        }
    }
    restored
}
