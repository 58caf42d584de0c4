//! The weights of an opened model by their Hugging Face names, whatever file holds them.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use crate::decoder::{
    DecoderConfig, EMBEDDING, TensorLayout, gguf_source, rotary_tensors, tensor_layout,
};
use crate::error::{ModelError, Result};
use crate::formats::weight_names::NamedWeights;
use crate::formats::{QuantizedMatrix, WeightFile, WeightSource};

const HEAD: &str = "lm_head.weight";

/// Undoes what a format's converter did to a weight's values; the text is the weight's name.
type Restore = fn(&DecoderConfig, &str, &mut Vec<f32>);

/// The row of a stored matrix that is a row of a weight, given by its name.
type StoredRow = fn(&DecoderConfig, &str, usize) -> usize;

/// A file of weights, and the place in it of every weight that the configuration calls for.
#[derive(Debug)]
pub(super) struct Weights {
    file: Box<dyn WeightFile>,
    places: Vec<(TensorLayout, WeightSource)>,
    restore: Restore,
    stored_row: StoredRow,
}

impl Weights {
    /// Weights that are stored by their Hugging Face names.
    pub(super) fn of_hugging_face(config: &DecoderConfig, file: impl WeightFile + 'static) -> Self {
        let source = |tensor: &TensorLayout| config.family.source(config, &tensor.name);
        Self {
            file: Box::new(file),
            places: places(config, source),
            restore: |_, _, _| (),
            stored_row: |_, _, row| row,
        }
    }

    /// As [`Self::of_hugging_face`], of weights whose names may be those that wrappers of the model made.
    pub(super) fn of_wrapped(
        config: &DecoderConfig,
        file: impl WeightFile + 'static,
    ) -> Result<Self> {
        let tensor = |tensor: TensorLayout| config.family.source(config, &tensor.name).tensor;
        let wanted: Vec<String> = tensor_layout(config).into_iter().map(tensor).collect();
        // of one matrix under two names, either may have been kept
        let alternatives: &[[&str; 2]] = if config.tied_head { &[[EMBEDDING, HEAD]] } else { &[] };
        Ok(Self::of_hugging_face(config, NamedWeights::find(file, &wanted, alternatives)?))
    }

    /// Weights that llama.cpp's converter named and changed.
    pub(super) fn of_gguf(config: &DecoderConfig, file: impl WeightFile + 'static) -> Self {
        let source = |tensor: &TensorLayout| gguf_source(config, &tensor.name);
        Self {
            file: Box::new(file),
            places: places(config, source),
            restore: |config, weight, values| config.family.restore_gguf(config, weight, values),
            stored_row: |config, weight, row| config.family.gguf_row(config, weight, row),
        }
    }

    /// Refuses files that lack a weight or hold one of another shape.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        for (tensor, source) in &self.places {
            let name = &tensor.name;
            let Some(stored) = source.shape(&*self.file) else {
                return Err(self.missing(name, path));
            };
            if stored != tensor.shape {
                return Err(ModelError::file(
                    path,
                    format!("the weight `{name}` has the shape {stored:?}; the configuration demands {:?}", tensor.shape),
                )
                .with_hint("the configuration and the weights do not belong together"));
            }
        }
        Ok(())
    }

    fn missing(&self, name: &str, path: &Path) -> ModelError {
        let mut stored: Vec<&str> = self.file.names().collect();
        stored.sort_unstable();
        let count = stored.len();
        stored.truncate(3);
        let message = format!(
            "the weight `{name}` is missing; there are {count} tensors: `{}`",
            stored.join("`, `")
        );
        let hint = if name == HEAD && self.file.shape(EMBEDDING).is_some() {
            "save the whole model (AutoModelForCausalLM), not the inner one; or set tie_word_embeddings to \
             true in config.json, if the head is the embedding table"
        } else {
            "the configuration and the weights do not belong together, or a file is missing"
        };
        ModelError::file(path, message + if count > 3 { ", ..." } else { "" }).with_hint(hint)
    }

    /// Whether there is a head of its own in a model whose head is to be its embedding table.
    pub(super) fn has_another_head(&self) -> bool {
        let is_place = self.places.iter().any(|(_, source)| source.tensor == HEAD);
        !is_place && self.file.shape(HEAD).is_some() && !self.file.are_alike(HEAD, EMBEDDING)
    }

    /// A matrix of an adapter that stands beside the weights.
    pub(super) fn adapter(&self) -> Option<&str> {
        self.file.names().find(|name| name.contains(".lora_"))
    }

    /// A stored tensor that holds no weight of the model and is not a known by-product either.
    pub(super) fn unused(&self, config: &DecoderConfig) -> Option<&str> {
        let divisors = rotary_tensors(config);
        let used: HashSet<&str> =
            self.places.iter().map(|(_, source)| source.tensor.as_str()).collect();
        let harmless = |name: &str| {
            name.ends_with("rotary_emb.inv_freq")
                || name.ends_with(HEAD)
                || name == "rope_freqs.weight"
                || divisors.iter().any(|(known, _)| *known == name)
        };
        self.file.names().find(|name| !used.contains(name) && !harmless(name))
    }

    /// Names and shapes, in the order of [`tensor_layout`].
    pub(super) fn layout(&self) -> impl Iterator<Item = &TensorLayout> {
        self.places.iter().map(|(tensor, _)| tensor)
    }

    /// Shape and values of a weight; `None` where the model has no such weight.
    pub(super) fn read(
        &self,
        config: &DecoderConfig,
        name: &str,
    ) -> Result<Option<(Vec<usize>, Vec<f32>)>> {
        let Some((tensor, source)) = self.place(name) else { return Ok(None) };
        let mut values = source.values(&*self.file)?;
        (self.restore)(config, name, &mut values);
        Ok(Some((tensor.shape.clone(), values)))
    }

    /// A weight in the blocks in which it is stored; `None` where it has none.
    pub(super) fn quantized(
        &self,
        config: &DecoderConfig,
        name: &str,
    ) -> Result<Option<QuantizedMatrix>> {
        let place = self.place(name).filter(|(tensor, _)| tensor.shape.len() == 2);
        let Some((_, source)) = place else { return Ok(None) };
        let stored = source.quantized(&*self.file)?;
        Ok(stored.map(|matrix| matrix.reordered(|row| (self.stored_row)(config, name, row))))
    }

    /// The weights that are stored in blocks, and the size of these in bytes.
    pub(super) fn quantized_bytes(&self) -> HashMap<String, u64> {
        let matrices = self.places.iter().filter(|(tensor, _)| tensor.shape.len() == 2);
        let sized = matrices.filter_map(|(tensor, source)| {
            Some((tensor.name.clone(), source.quantized_bytes(&*self.file)?))
        });
        sized.collect()
    }

    fn place(&self, name: &str) -> Option<&(TensorLayout, WeightSource)> {
        self.places.iter().find(|(tensor, _)| tensor.name == name)
    }

    /// Whether every matrix is stored in bf16.
    pub(super) fn are_bf16(&self) -> bool {
        let mut matrices = self.places.iter().filter(|(tensor, _)| tensor.shape.len() == 2);
        matrices.all(|(_, source)| self.file.is_bf16(&source.tensor))
    }

    /// The files.
    pub(super) fn paths(&self) -> Vec<&Path> {
        self.file.paths()
    }
}

fn places(
    config: &DecoderConfig,
    source: impl Fn(&TensorLayout) -> WeightSource,
) -> Vec<(TensorLayout, WeightSource)> {
    let located = |tensor: TensorLayout| {
        let source = source(&tensor);
        (tensor, source)
    };
    tensor_layout(config).into_iter().map(located).collect()
}
