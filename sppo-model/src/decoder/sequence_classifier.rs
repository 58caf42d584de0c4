//! A decoder with linear heads in place of a language model's: numbers from the hidden state of the last token.

use serde::{Deserialize, Serialize};

use super::packing::{InputLimits, PackedBatch};
use super::weights::{DecoderWeights, tensor_layout};
use super::{Decoder, DecoderConfig};
use crate::error::{ModelError, Result};
use crate::formats::WeightFile;
use crate::ops::{Graph, Ops, ParameterId, ParameterStore};

/// A linear map of the last hidden state, without a bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Name of its weight, `[outputs, features]`.
    pub(crate) name: String,
    /// Numbers that it gives.
    pub(crate) outputs: usize,
}

impl Head {
    /// The score of a sequence classifier of transformers with one label.
    pub(crate) fn score() -> Self {
        Self { name: "score.weight".into(), outputs: 1 }
    }
}

/// A decoder with heads that score.
pub(crate) struct DecoderClassifier<O: Ops> {
    decoder: Decoder,
    parameters: ParameterStore<O>,
    heads: Vec<(ParameterId, usize)>,
    padding: Option<u32>,
}

impl<O: Ops> DecoderClassifier<O> {
    /// Stored names of the weights that [`Self::load`] reads.
    pub(crate) fn weight_names(config: &DecoderConfig, heads: &[Head]) -> Vec<String> {
        let config = without_head(config);
        let weights = tensor_layout(&config).into_iter();
        let stored = weights.map(|weight| config.family.source(&config, &weight.name).tensor);
        stored.chain(heads.iter().map(|head| head.name.clone())).collect()
    }

    /// Loads the weights. `padding` is the token that does not count as the last one.
    pub(crate) fn load(
        ops: &O,
        config: &DecoderConfig,
        padding: Option<u32>,
        heads: &[Head],
        files: &dyn WeightFile,
    ) -> Result<Self> {
        let config = without_head(config);
        let mut tensor = |name: &str| {
            let source = config.family.source(&config, name);
            Ok((source.shape(files).unwrap_or_default(), source.values(files)?))
        };
        let (weights, mut parameters) = DecoderWeights::load(ops, &config, &mut tensor, false)?;
        let mut load = |Head { name, outputs }: &Head| {
            let (shape, values) = tensor(name)?;
            if shape != [*outputs, config.hidden_size] {
                return Err(ModelError::Input(format!(
                    "the weight `{name}` has the shape {shape:?}, but a score from {} features has {:?}",
                    config.hidden_size,
                    [*outputs, config.hidden_size]
                )));
            }
            Ok((parameters.push(ops, name.clone(), shape, values, false)?, *outputs))
        };
        let heads = heads.iter().map(&mut load).collect::<Result<_>>()?;
        Ok(Self { decoder: Decoder::new(config, weights), parameters, heads, padding })
    }

    /// The numbers of each sequence.
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
        let mut outputs = Vec::with_capacity(self.heads.len());
        for (weight, width) in &self.heads {
            let values = ops.values(graph.linear(&states, *weight, None)?.value())?;
            outputs.push((values, *width));
        }
        let of_sequence = |number: usize| {
            outputs.iter().flat_map(move |(values, width)| {
                values[number * width..(number + 1) * width].iter().copied()
            })
        };
        Ok((0..sequences.len()).flat_map(of_sequence).collect())
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
