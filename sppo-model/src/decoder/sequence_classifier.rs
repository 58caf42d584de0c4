//! A decoder as a sequence classifier with one label: a score from the hidden state of the last token.

use super::packing::{InputLimits, PackedBatch};
use super::weights::{DecoderWeights, tensor_layout};
use super::{Decoder, DecoderConfig};
use crate::error::{ModelError, Result};
use crate::formats::WeightFile;
use crate::ops::{Graph, Ops, ParameterId, ParameterStore};

const SCORE: &str = "score.weight";

/// A decoder with a score in place of a language model's head.
pub(crate) struct DecoderClassifier<O: Ops> {
    decoder: Decoder,
    parameters: ParameterStore<O>,
    score: ParameterId,
    padding: Option<u32>,
}

impl<O: Ops> DecoderClassifier<O> {
    /// Stored names of the weights that [`Self::load`] reads.
    pub(crate) fn weight_names(config: &DecoderConfig) -> Vec<String> {
        let config = without_head(config);
        let weights = tensor_layout(&config).into_iter();
        let stored = weights.map(|weight| config.family.source(&config, &weight.name).tensor);
        stored.chain([SCORE.to_string()]).collect()
    }

    /// Loads the weights. `padding` is the token that does not count as the last one.
    pub(crate) fn load(
        ops: &O,
        config: &DecoderConfig,
        padding: Option<u32>,
        files: &dyn WeightFile,
    ) -> Result<Self> {
        let config = without_head(config);
        let mut tensor = |name: &str| {
            let source = config.family.source(&config, name);
            Ok((source.shape(files).unwrap_or_default(), source.values(files)?))
        };
        let (weights, mut parameters) = DecoderWeights::load(ops, &config, &mut tensor, false)?;
        let (shape, values) = tensor(SCORE)?;
        if shape != [1, config.hidden_size] {
            return Err(ModelError::Input(format!(
                "the weight `{SCORE}` has the shape {shape:?}, but a score from {} features has {:?}",
                config.hidden_size,
                [1, config.hidden_size]
            )));
        }
        let score = parameters.push(ops, SCORE.into(), shape, values, false)?;
        Ok(Self { decoder: Decoder::new(config, weights), parameters, score, padding })
    }

    /// One score per sequence.
    pub(crate) fn scores(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        let config = self.decoder.config();
        let limits = InputLimits::of(config);
        for (number, tokens) in sequences.iter().enumerate() {
            limits.check_sequence(tokens, &|| format!("sequence {number}"))?;
        }
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let counted = sequences.iter().map(|tokens| self.without_padding(tokens));
        let batch = PackedBatch::from_prompts(counted, limits);
        let mut graph = Graph::inference(ops, &self.parameters);
        let states = self.decoder.predicting_states(&mut graph, &batch)?;
        let scores = graph.linear(&states, self.score, None)?;
        ops.values(scores.value())
    }

    /// transformers takes the last token that is not padding, even where a text's own end is spelled
    /// like padding, and the first token where there is nothing else. What follows changes nothing.
    fn without_padding<'a>(&self, tokens: &'a [u32]) -> &'a [u32] {
        let last = tokens.iter().rposition(|&token| Some(token) != self.padding).unwrap_or(0);
        &tokens[..=last]
    }
}

/// The configuration without a language model's head.
fn without_head(config: &DecoderConfig) -> DecoderConfig {
    DecoderConfig { tied_head: true, ..config.clone() }
}
