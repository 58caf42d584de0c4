//! Loading the weights of an encoder, by their names in transformers.

use super::EncoderConfig;
use crate::error::{ModelError, Result};
use crate::formats::WeightFile;
use crate::ops::encoder::{DisentangledShape, EncoderOps};

/// A linear map.
pub(super) struct Linear<P> {
    pub(super) weight: P,
    pub(super) bias: P,
}

/// A layer normalisation.
pub(super) struct Norm<P> {
    pub(super) weight: P,
    pub(super) bias: P,
}

/// One layer.
pub(super) struct Layer<O: EncoderOps> {
    pub(super) query: Linear<O::Parameter>,
    pub(super) key: Linear<O::Parameter>,
    pub(super) value: Linear<O::Parameter>,
    /// The projections of relative positions: they depend on weights alone.
    pub(super) relative: O::RelativeTables,
    pub(super) attention_output: Linear<O::Parameter>,
    pub(super) attention_norm: Norm<O::Parameter>,
    pub(super) intermediate: Linear<O::Parameter>,
    pub(super) output: Linear<O::Parameter>,
    pub(super) output_norm: Norm<O::Parameter>,
}

/// All weights of an encoder.
pub(super) struct EncoderWeights<O: EncoderOps> {
    pub(super) embedding: O::Parameter,
    pub(super) embedding_norm: Norm<O::Parameter>,
    pub(super) layers: Vec<Layer<O>>,
}

/// Takes weights out of files and onto an op set, below a prefix of their names.
pub(super) struct Loader<'a, O> {
    pub(super) ops: &'a O,
    pub(super) files: &'a dyn WeightFile,
    pub(super) prefix: String,
}

impl<O: EncoderOps> Loader<'_, O> {
    fn below(&self, name: &str) -> Self {
        Self { prefix: format!("{}{name}", self.prefix), ..*self }
    }

    /// Row-major values of a weight that must have this shape.
    pub(super) fn values(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = format!("{}{name}", self.prefix);
        match self.files.shape(&name) {
            Some(found) if found == shape => self.files.values(&name),
            Some(found) => Err(ModelError::Input(format!(
                "the weight `{name}` has the shape {found:?}, but the model's configuration calls \
                 for {shape:?}"
            ))),
            None => Err(ModelError::Input(format!("the weight `{name}` is missing"))),
        }
    }

    pub(super) fn parameter(&self, name: &str, shape: &[usize]) -> Result<O::Parameter> {
        self.ops.parameter(self.values(name, shape)?, shape, false)
    }

    pub(super) fn linear(&self, name: &str, shape: [usize; 2]) -> Result<Linear<O::Parameter>> {
        Ok(Linear {
            weight: self.parameter(&format!("{name}.weight"), &shape)?,
            bias: self.parameter(&format!("{name}.bias"), &shape[..1])?,
        })
    }

    fn norm(&self, name: &str, size: usize) -> Result<Norm<O::Parameter>> {
        Ok(Norm {
            weight: self.parameter(&format!("{name}.weight"), &[size])?,
            bias: self.parameter(&format!("{name}.bias"), &[size])?,
        })
    }

    /// The encoder.
    pub(super) fn encoder(&self, config: &EncoderConfig) -> Result<EncoderWeights<O>> {
        let (hidden, rows) = (config.hidden_size, config.buckets.count());
        let relative = self.parameter("encoder.rel_embeddings.weight", &[rows, hidden])?;
        let all_rows: Vec<u32> = (0..rows as u32).collect();
        let relative = self.ops.embedding(&relative, &all_rows)?;
        let norm = self.norm("encoder.LayerNorm", hidden)?;
        let epsilon = config.norm_epsilon as f32;
        let relative = self.ops.layer_norm(&relative, &norm.weight, &norm.bias, epsilon)?;
        let layer = |layer| self.below(&format!("encoder.layer.{layer}.")).layer(config, &relative);
        let table = [config.vocabulary_size, hidden];
        Ok(EncoderWeights {
            embedding: self.parameter("embeddings.word_embeddings.weight", &table)?,
            embedding_norm: self.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.layer_count).map(layer).collect::<Result<_>>()?,
        })
    }

    fn layer(&self, config: &EncoderConfig, relative: &O::Tensor) -> Result<Layer<O>> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = [hidden, hidden];
        let query = self.linear("attention.self.query_proj", square)?;
        let key = self.linear("attention.self.key_proj", square)?;
        let project = |linear: &Linear<O::Parameter>| {
            self.ops.linear(relative, &linear.weight, Some(&linear.bias))
        };
        let shape = config.attention_shape();
        Ok(Layer {
            relative: self.ops.relative_tables(&project(&key)?, &project(&query)?, &shape)?,
            query,
            key,
            value: self.linear("attention.self.value_proj", square)?,
            attention_output: self.linear("attention.output.dense", square)?,
            attention_norm: self.norm("attention.output.LayerNorm", hidden)?,
            intermediate: self.linear("intermediate.dense", [inner, hidden])?,
            output: self.linear("output.dense", [hidden, inner])?,
            output_norm: self.norm("output.LayerNorm", hidden)?,
        })
    }
}

impl EncoderConfig {
    /// The attention of every layer. Scores are the sum of three products and scaled as one product of
    /// three times the features.
    pub(super) fn attention_shape(&self) -> DisentangledShape {
        let head_size = self.hidden_size / self.heads.max(1);
        let scale = 1.0 / (3.0 * head_size as f64).sqrt();
        DisentangledShape {
            heads: self.heads,
            head_size,
            scale: scale as f32,
            buckets: self.buckets,
        }
    }
}
