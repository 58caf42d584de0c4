//! Reward models: sequence classifiers of transformers with one label, which is the score of a
//! conversation.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::EncoderConfig;
use super::forward::{Encoder, EncoderBatch, linear};
use super::weights::{Linear, Loader};
use crate::decoder::{DecoderClassifier, DecoderConfig, FAMILIES, Head, InputLimits};
use crate::error::{ModelError, Result};
use crate::formats::json::read_config;
use crate::formats::safetensors::SafetensorsFiles;
use crate::formats::weight_names::NamedWeights;
use crate::formats::{JsonObject, WeightFile};
use crate::ops::encoder::{EncoderOps, Pointwise};

const ENCODER: &str = "DebertaV2ForSequenceClassification";

/// Prefix of the encoder's weights, before their names in transformers.
const ENCODER_PREFIX: &str = "deberta.";

/// The labels of a sequence classifier whose configuration says nothing of them.
const DEFAULT_LABELS: usize = 2;

/// Every supported architecture, as `config.json` calls it.
pub(crate) fn architectures() -> impl Iterator<Item = &'static str> {
    std::iter::once(ENCODER).chain(FAMILIES.iter().map(|family| family.sequence_classifier()))
}

/// The shape of a reward model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RewardModelConfig {
    /// DeBERTa v2 or v3, whose first token is looked at.
    Encoder(EncoderConfig),
    /// A decoder, whose last token is looked at.
    Decoder {
        /// The decoder.
        decoder: DecoderConfig,
        /// The token that does not count as the last one.
        padding: Option<u32>,
    },
}

impl RewardModelConfig {
    /// Reads the `config.json` of a model directory.
    ///
    /// # Errors
    /// When it cannot be read, has not exactly one label, or is of another kind.
    pub fn read(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let json = read_config(&path)?;
        let settings = JsonObject::of(&json, &path)?;
        let named = settings.texts("architectures")?.unwrap_or_default();
        let is_named = |name: &str| named.first() == Some(&name);
        if is_named(ENCODER) {
            check_labels(&settings)?;
            let encoder = EncoderConfig::from_hugging_face(&settings)?;
            settings.refuse_unless("pooler_hidden_act", &json!("gelu"))?;
            settings.refuse_unless("pooler_hidden_size", &json!(encoder.hidden_size))?;
            return Ok(Self::Encoder(encoder));
        }
        let family = FAMILIES.iter().find(|family| is_named(family.sequence_classifier()));
        let family = family.ok_or_else(|| {
            let supported: Vec<_> = architectures().collect();
            settings.wrong("architectures", &format!("one of {}", supported.join(", ")))
        })?;
        check_labels(&settings)?;
        let padding = settings.get("pad_token_id").and_then(Value::as_u64);
        Ok(Self::Decoder {
            decoder: DecoderConfig::of_family(*family, &settings)?,
            padding: padding.and_then(|token| u32::try_from(token).ok()),
        })
    }

    /// Longest sequence that the model is meant for, in tokens. Decoders take no longer ones; to an
    /// encoder, tokens that are farther apart than this look equally far.
    #[must_use]
    pub fn context_length(&self) -> usize {
        match self {
            Self::Encoder(encoder) => encoder.buckets.longest_distance,
            Self::Decoder { decoder, .. } => decoder.context_length,
        }
    }
}

fn check_labels(settings: &JsonObject<'_>) -> Result<()> {
    let named = settings.object("id2label")?.map(|names| names.keys().count());
    let labels = match named {
        Some(labels) => labels,
        None => settings.count("num_labels")?.unwrap_or(DEFAULT_LABELS),
    };
    if labels == 1 {
        return Ok(());
    }
    Err(ModelError::file(
        settings.path(),
        format!("the model has {labels} labels; a reward model has one, the score"),
    )
    .with_hint("name a model that was trained with num_labels=1"))
}

/// A reward model on an op set.
pub struct RewardModel<O: EncoderOps> {
    classifier: Classifier<O>,
}

enum Classifier<O: EncoderOps> {
    Encoder(EncoderClassifier<O>),
    Decoder(DecoderClassifier<O>),
}

impl<O: EncoderOps> RewardModel<O> {
    /// Loads a model directory.
    ///
    /// # Errors
    /// When it cannot be read, is of another kind, or does not fit into memory.
    pub fn load(ops: &O, directory: &Path) -> Result<Self> {
        let files = SafetensorsFiles::open(directory)?;
        Self::with_weights(ops, &RewardModelConfig::read(directory)?, &files)
    }

    /// As [`Self::load`], of a known shape.
    ///
    /// # Errors
    /// When a weight is missing or has another shape, or memory runs out.
    pub(crate) fn with_weights(
        ops: &O,
        config: &RewardModelConfig,
        files: &dyn WeightFile,
    ) -> Result<Self> {
        let classifier = match config {
            RewardModelConfig::Encoder(config) => {
                let files = NamedWeights::unwrapped(files)?;
                Classifier::Encoder(EncoderClassifier::load(ops, config, &files)?)
            }
            RewardModelConfig::Decoder { decoder, padding } => {
                let heads = [Head::score()];
                let wanted = DecoderClassifier::<O>::weight_names(decoder, &heads);
                let files = NamedWeights::find(files, &wanted, &[])?;
                let decoder = DecoderClassifier::load(ops, decoder, *padding, &heads, &files)?;
                Classifier::Decoder(decoder)
            }
        };
        Ok(Self { classifier })
    }

    /// The score of each sequence: the higher, the better the answer that it ends with.
    ///
    /// # Errors
    /// When a sequence is empty, too long or holds an unknown token, or the tensor library fails.
    pub fn scores(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        match &self.classifier {
            Classifier::Encoder(encoder) => encoder.scores(ops, sequences),
            Classifier::Decoder(decoder) => decoder.scores(ops, sequences),
        }
    }
}

/// An encoder with the head of `DebertaV2ForSequenceClassification`.
struct EncoderClassifier<O: EncoderOps> {
    encoder: Encoder<O>,
    pooler: Linear<O::Parameter>,
    classifier: Linear<O::Parameter>,
}

impl<O: EncoderOps> EncoderClassifier<O> {
    /// Loads the weights.
    fn load(ops: &O, config: &EncoderConfig, files: &dyn WeightFile) -> Result<Self> {
        let hidden = config.hidden_size;
        let head = Loader { ops, files, prefix: String::new() };
        Ok(Self {
            pooler: head.linear("pooler.dense", [hidden, hidden])?,
            classifier: head.linear("classifier", [1, hidden])?,
            encoder: Encoder::load(ops, config.clone(), files, ENCODER_PREFIX)?,
        })
    }

    /// `classifier(gelu(pooler(h)))` of each sequence's first token. Sequences may be of any length:
    /// positions are relative.
    fn scores(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        let limits = InputLimits {
            vocabulary_size: self.encoder.config().vocabulary_size,
            context_length: usize::MAX,
            longest_short_sequence: None,
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
