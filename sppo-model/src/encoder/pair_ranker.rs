//! PairRM (arXiv 2306.02561): which of two candidates answers a prompt better, from the hidden states of
//! three marker tokens.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::EncoderConfig;
use super::forward::{Encoder, EncoderBatch, linear};
use super::weights::{Linear, Loader};
use crate::decoder::InputLimits;
use crate::error::{ModelError, Result};
use crate::formats::files::cause;
use crate::formats::json::read_config;
use crate::formats::safetensors::SafetensorsFiles;
use crate::formats::weight_names::NamedWeights;
use crate::formats::{JsonObject, WeightFile};
use crate::ops::encoder::{EncoderOps, Pointwise};

/// Prefix of the encoder's weights, before their names in transformers.
const PREFIX: &str = "pretrained_model.";
/// Longest sequence, in tokens: the ranker was trained on no longer ones.
const LONGEST_SEQUENCE: usize = 2048;
/// JsonObject of an encoder that is no released DeBERTa v3, beside LLM-Blender's `config.json`.
const ENCODER_CONFIG: &str = "config-hf.json";

/// The tokens that stand before the prompt and before either candidate. Each must occur once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairMarkers {
    /// `<|source|>`.
    pub source: u32,
    /// `<|candidate1|>`.
    pub first: u32,
    /// `<|candidate2|>`.
    pub second: u32,
}

/// The shape of a ranker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairRankerConfig {
    /// The encoder.
    pub encoder: EncoderConfig,
    /// Tokens whose hidden states the head reads.
    pub markers: PairMarkers,
    /// Scores per candidate, which are averaged.
    pub tasks: usize,
}

impl PairRankerConfig {
    /// Reads the `config.json` of a directory: that of `llm-blender/PairRM`, which says which DeBERTa v3
    /// it is made of and not its sizes, or that of `llm-blender/PairRM-hf`.
    pub(crate) fn read(directory: &Path, files: &dyn WeightFile) -> Result<Self> {
        let path = directory.join("config.json");
        let json = read_config(&path)?;
        let settings = JsonObject::of(&json, &path)?;
        match settings.get("ranker_type") {
            Some(_) => Self::from_llm_blender(&settings, directory, files),
            None => Self::from_hugging_face(&settings),
        }
    }

    fn from_hugging_face(settings: &JsonObject<'_>) -> Result<Self> {
        let marker = |key: &str| {
            let id = settings.count(key)?.and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| settings.wrong(key, "a token id"))
        };
        Ok(Self {
            encoder: EncoderConfig::from_hugging_face(settings)?,
            markers: PairMarkers {
                source: marker("source_prefix_id")?,
                first: marker("cand1_prefix_id")?,
                second: marker("cand2_prefix_id")?,
            },
            tasks: settings.count("n_tasks")?.unwrap_or(1),
        })
    }

    fn from_llm_blender(
        settings: &JsonObject<'_>,
        directory: &Path,
        files: &dyn WeightFile,
    ) -> Result<Self> {
        settings.refuse_unless("ranker_type", &json!("pairranker"))?;
        settings.refuse_unless("model_type", &json!("deberta"))?;
        let backbone = settings.text("model_name")?.unwrap_or_default();
        let encoder_config = directory.join(ENCODER_CONFIG);
        let encoder = if encoder_config.is_file() {
            let json = read_config(&encoder_config)?;
            EncoderConfig::from_hugging_face(&JsonObject::of(&json, &encoder_config)?)?
        } else if backbone.starts_with("microsoft/deberta-v3-") {
            EncoderConfig::from_released(files, PREFIX)?
        } else {
            return Err(ModelError::file(
                settings.path(),
                format!(
                    "`model_name` is {backbone:?}, which is no DeBERTa v3 whose shape is known"
                ),
            )
            .with_hint(format!(
                "put the encoder's transformers configuration beside it as {ENCODER_CONFIG}"
            )));
        };
        Ok(Self {
            encoder,
            markers: PairMarkers::from_tokenizer(&directory.join("tokenizer.json"))?,
            tasks: settings.count("n_tasks")?.unwrap_or(1),
        })
    }
}

impl PairMarkers {
    /// The ids that a `tokenizer.json` gives to the markers.
    fn from_tokenizer(path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            added_tokens: Vec<AddedToken>,
        }
        #[derive(Deserialize)]
        struct AddedToken {
            id: u32,
            content: String,
        }
        let bytes = fs_err::read(path).map_err(|error| ModelError::file(path, cause(&error)))?;
        let file: File = serde_json::from_slice(&bytes)
            .map_err(|error| ModelError::file(path, format!("is not a tokenizer: {error}")))?;
        let id = |marker: &str| {
            let found = file.added_tokens.iter().find(|token| token.content == marker);
            found.map(|token| token.id).ok_or_else(|| {
                ModelError::file(path, format!("has no token `{marker}`"))
                    .with_hint("use the tokenizer of llm-blender/PairRM")
            })
        };
        Ok(Self {
            source: id("<|source|>")?,
            first: id("<|candidate1|>")?,
            second: id("<|candidate2|>")?,
        })
    }

    /// Positions of the markers in a sequence.
    fn positions(&self, tokens: &[u32]) -> Result<[u32; 3]> {
        let position = |marker: u32, what: &str| {
            let mut found = (0..).zip(tokens).filter(|&(_, &token)| token == marker);
            match (found.next(), found.next()) {
                (Some((position, _)), None) => Ok(position),
                (first, _) => Err(ModelError::Input(format!(
                    "the marker of the {what} (token {marker}) occurs {} in a sequence, but must once",
                    if first.is_some() { "several times" } else { "nowhere" }
                ))),
            }
        };
        Ok([
            position(self.source, "prompt")?,
            position(self.first, "first candidate")?,
            position(self.second, "second candidate")?,
        ])
    }
}

/// A ranker on an op set.
pub struct PairRanker<O: EncoderOps> {
    encoder: Encoder<O>,
    markers: PairMarkers,
    tasks: usize,
    /// The halves of the head's first matrix: for the prompt's hidden state, and for a candidate's.
    source: O::Parameter,
    candidate: Linear<O::Parameter>,
    score: Linear<O::Parameter>,
}

impl<O: EncoderOps> PairRanker<O> {
    /// Loads a directory in either layout.
    ///
    /// # Errors
    /// When it cannot be read, is of another kind, or does not fit into memory.
    pub fn load(ops: &O, directory: &Path) -> Result<Self> {
        let files = &NamedWeights::unwrapped(SafetensorsFiles::open(directory)?)?;
        Self::with_weights(ops, PairRankerConfig::read(directory, files)?, files)
    }

    /// As [`Self::load`], of a known shape.
    ///
    /// # Errors
    /// When a weight is missing or has another shape, or memory runs out.
    pub(crate) fn with_weights(
        ops: &O,
        config: PairRankerConfig,
        files: &dyn WeightFile,
    ) -> Result<Self> {
        let files = &NamedWeights::unwrapped(files)?;
        let PairRankerConfig { encoder, markers, tasks } = config;
        let hidden = encoder.hidden_size;
        let head = Loader { ops, files, prefix: "head_layer.".into() };
        let joint = head.values("1.weight", &[hidden, 2 * hidden])?;
        let half = |start: usize| {
            let rows = joint.chunks_exact(2 * hidden);
            let values = rows.flat_map(|row| &row[start..start + hidden]).copied().collect();
            ops.parameter(values, &[hidden, hidden], false)
        };
        Ok(Self {
            source: half(0)?,
            candidate: Linear { weight: half(hidden)?, bias: head.parameter("1.bias", &[hidden])? },
            score: head.linear("4", [tasks, hidden])?,
            encoder: Encoder::load(ops, encoder, files, PREFIX)?,
            markers,
            tasks,
        })
    }

    /// The logit that the first candidate is better than the second, for each sequence
    /// `[CLS] <|source|> ... [SEP] [CLS] <|candidate1|> ... [SEP] [CLS] <|candidate2|> ... [SEP]`.
    ///
    /// # Errors
    /// When a sequence is too long, holds an unknown token or not each marker once, or the tensor
    /// library fails.
    pub fn logits(&self, ops: &O, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
        let limits = InputLimits {
            vocabulary_size: self.encoder.config().vocabulary_size,
            context_length: LONGEST_SEQUENCE,
            longest_short_sequence: None,
        };
        let mut batch = EncoderBatch::default();
        for (number, tokens) in sequences.iter().enumerate() {
            limits.check_sequence(tokens, &|| format!("sequence {number}"))?;
            batch.push(tokens, &self.markers.positions(tokens)?);
        }
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        self.head(ops, &self.encoder.hidden_states(ops, &batch)?, batch.len())
    }

    /// `score(tanh(source h_source + candidate h_candidate))` of both candidates, and the difference.
    fn head(&self, ops: &O, hidden: &O::Tensor, sequences: usize) -> Result<Vec<f32>> {
        let sources: Vec<u32> =
            (0..sequences as u32).flat_map(|sequence| [3 * sequence; 2]).collect();
        let candidates: Vec<u32> = (0..sequences as u32)
            .flat_map(|sequence| [3 * sequence + 1, 3 * sequence + 2])
            .collect();
        let of_source = ops.linear(&ops.select_rows(hidden, &sources)?, &self.source, None)?;
        let of_candidate = linear(ops, &ops.select_rows(hidden, &candidates)?, &self.candidate)?;
        let inner = ops.pointwise(&ops.add(&of_source, &of_candidate)?, Pointwise::Tanh)?;
        let scores = ops.values(&linear(ops, &inner, &self.score)?)?;
        let logit = |scores: &[f32]| {
            let (left, right) = scores.split_at(self.tasks);
            let differences = left.iter().zip(right).map(|(left, right)| left - right);
            differences.sum::<f32>() / self.tasks as f32
        };
        Ok(scores.chunks_exact(2 * self.tasks).map(logit).collect())
    }
}
