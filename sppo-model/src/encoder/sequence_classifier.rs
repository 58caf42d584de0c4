//! An encoder as a sequence classifier with one label: a score from the hidden state of the first token.

use super::EncoderConfig;
use super::forward::{Encoder, EncoderBatch, linear};
use super::weights::{Linear, Loader};
use crate::decoder::InputLimits;
use crate::error::Result;
use crate::formats::WeightFile;
use crate::ops::encoder::{EncoderOps, Pointwise};

/// What the weights of the encoder are called before their names in transformers.
const PREFIX: &str = "deberta.";

/// An encoder with the head of `DebertaV2ForSequenceClassification`.
pub(crate) struct EncoderClassifier<O: EncoderOps> {
    encoder: Encoder<O>,
    pooler: Linear<O::Parameter>,
    classifier: Linear<O::Parameter>,
}

impl<O: EncoderOps> EncoderClassifier<O> {
    /// Loads the weights.
    pub(crate) fn load(ops: &O, config: &EncoderConfig, files: &dyn WeightFile) -> Result<Self> {
        let hidden = config.hidden_size;
        let head = Loader { ops, files, prefix: String::new() };
        Ok(Self {
            pooler: head.linear("pooler.dense", [hidden, hidden])?,
            classifier: head.linear("classifier", [1, hidden])?,
            encoder: Encoder::load(ops, config.clone(), files, PREFIX)?,
        })
    }

    /// `classifier(gelu(pooler(h)))` of each sequence's first token. Sequences may be of any length:
    /// positions are relative.
    pub(crate) fn scores(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        let limits = InputLimits {
            vocabulary_size: self.encoder.config().vocabulary_size,
            context_length: usize::MAX,
        };
        let mut batch = EncoderBatch::default();
        for (number, tokens) in sequences.iter().enumerate() {
            limits.check_sequence(tokens, &|| format!("sequence {number}"))?;
            batch.push(tokens, &[0]);
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.encoder.hidden_states(ops, &batch)?;
        let pooled = ops.pointwise(&linear(ops, &first, &self.pooler)?, Pointwise::Gelu)?;
        ops.values(&linear(ops, &pooled, &self.classifier)?)
    }
}
