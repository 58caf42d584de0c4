//! The encoder, top to bottom.

use std::ops::Range;

use super::EncoderConfig;
use super::weights::{EncoderWeights, Layer, Linear, Loader, Norm};
use crate::error::Result;
use crate::formats::WeightFile;
use crate::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};

/// Sequences packed without padding, and the tokens whose hidden states are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EncoderBatch {
    tokens: Vec<u32>,
    /// Each sequence, queried by all of its tokens.
    sequences: Vec<EncoderSegment>,
    /// The rows of the tokens that are wanted.
    wanted: Vec<u32>,
    /// Each sequence, queried by the tokens that are wanted.
    queried: Vec<EncoderSegment>,
}

impl EncoderBatch {
    /// Adds a sequence of which the tokens at `positions` are wanted.
    pub fn push(&mut self, tokens: &[u32], positions: &[u32]) {
        let rows = next_rows(self.tokens.len(), tokens.len());
        self.tokens.extend_from_slice(tokens);
        let queries = next_rows(self.wanted.len(), positions.len());
        self.wanted.extend(positions.iter().map(|&position| rows.start as u32 + position));
        let all = (0..tokens.len() as u32).collect();
        self.sequences.push(EncoderSegment {
            keys: rows.clone(),
            queries: rows.clone(),
            positions: all,
        });
        self.queried.push(EncoderSegment { keys: rows, queries, positions: positions.into() });
    }

    /// Number of sequences.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no sequences.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

fn next_rows(start: usize, length: usize) -> Range<usize> {
    start..start + length
}

/// An encoder on an op set.
pub struct Encoder<O: EncoderOps> {
    config: EncoderConfig,
    weights: EncoderWeights<O>,
}

impl<O: EncoderOps> Encoder<O> {
    /// Loads the weights whose names begin with `prefix`, and projects the relative positions.
    pub(super) fn load(
        ops: &O,
        config: EncoderConfig,
        files: &dyn WeightFile,
        prefix: &str,
    ) -> Result<Self> {
        let weights = Loader { ops, files, prefix: prefix.into() }.encoder(&config)?;
        Ok(Self { config, weights })
    }

    /// The shape.
    #[must_use]
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Hidden states of the wanted tokens after the last layer, `[wanted, features]`.
    ///
    /// # Errors
    /// When the tensor library fails.
    pub fn hidden_states(&self, ops: &O, batch: &EncoderBatch) -> Result<O::Tensor> {
        let shape = self.config.attention_shape();
        let embedded = ops.embedding(&self.weights.embedding, &batch.tokens)?;
        let mut hidden = self.norm(ops, &embedded, &self.weights.embedding_norm)?;
        let (last, earlier) = match self.weights.layers.split_last() {
            Some(layers) => layers,
            None => return ops.select_rows(&hidden, &batch.wanted),
        };
        for layer in earlier {
            hidden = self.layer(ops, layer, &hidden, &hidden, &shape, &batch.sequences)?;
        }
        // Only the requested rows are needed from the last layer.
        let wanted = ops.select_rows(&hidden, &batch.wanted)?;
        self.layer(ops, last, &hidden, &wanted, &shape, &batch.queried)
    }

    /// One layer (post-norm) for the rows of `queries`, which attend to the rows of `hidden`:
    ///
    /// ```text
    /// a = norm(queries + attention(queries, hidden))
    /// output = norm(a + W2 gelu(W1 a))
    /// ```
    fn layer(
        &self,
        ops: &O,
        layer: &Layer<O>,
        hidden: &O::Tensor,
        queries: &O::Tensor,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<O::Tensor> {
        let attended = ops.disentangled_attention(
            &linear(ops, queries, &layer.query)?,
            &linear(ops, hidden, &layer.key)?,
            &linear(ops, hidden, &layer.value)?,
            &layer.relative,
            shape,
            segments,
        )?;
        let attended = linear(ops, &attended, &layer.attention_output)?;
        let attended = self.norm(ops, &ops.add(&attended, queries)?, &layer.attention_norm)?;
        let inner = linear(ops, &attended, &layer.intermediate)?;
        let inner = ops.pointwise(&inner, Pointwise::Gelu)?;
        let transformed = linear(ops, &inner, &layer.output)?;
        self.norm(ops, &ops.add(&transformed, &attended)?, &layer.output_norm)
    }

    fn norm(&self, ops: &O, x: &O::Tensor, norm: &Norm<O::Parameter>) -> Result<O::Tensor> {
        ops.layer_norm(x, &norm.weight, &norm.bias, self.config.norm_epsilon as f32)
    }
}

pub(super) fn linear<O: EncoderOps>(
    ops: &O,
    x: &O::Tensor,
    linear: &Linear<O::Parameter>,
) -> Result<O::Tensor> {
    ops.linear(x, &linear.weight, Some(&linear.bias))
}
