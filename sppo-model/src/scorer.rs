//! The adapter that turns any op set with the ops of encoders into a core [`Scorer`].

use std::path::Path;

use sppo_core::plugin::{PluginError, Scorer};

use crate::encoder::PairRanker;
use crate::error::Result;
use crate::ops::encoder::EncoderOps;

/// A pair ranker that scores sequences of tokens: each score is the logit that the first candidate of
/// the sequence is better than the second.
pub struct PairRankerScorer<O: EncoderOps> {
    ops: O,
    ranker: PairRanker<O>,
}

impl<O: EncoderOps> PairRankerScorer<O> {
    /// Loads a model directory in the layout of `llm-blender/PairRM` or of `llm-blender/PairRM-hf`.
    ///
    /// # Errors
    /// When it cannot be read, is of another kind, or does not fit into memory.
    pub fn load(ops: O, path: &Path) -> Result<Self> {
        let ranker = PairRanker::load(&ops, path)?;
        Ok(Self { ops, ranker })
    }
}

impl<O: EncoderOps> Scorer for PairRankerScorer<O> {
    fn score(&mut self, sequences: &[Vec<u32>]) -> std::result::Result<Vec<f32>, PluginError> {
        Ok(self.ranker.logits(&self.ops, sequences)?)
    }
}
