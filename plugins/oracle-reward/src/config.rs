//! The settings of the oracle, the table `[oracle.reward]`.

use schemars::JsonSchema;
use serde::Deserialize;

/// Which reward model judges, where it computes, and how much it gets to see.
///
/// Scores become probabilities with `preference.bradley_terry_temperature`.
#[derive(Clone, Debug, PartialEq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RewardConfig {
    /// A directory, or a model on the Hugging Face hub. It must be set. The model is a sequence
    /// classifier of transformers with one label: `DebertaV2ForSequenceClassification`, or that of a
    /// decoder, for instance `LlamaForSequenceClassification`.
    pub model: String,
    /// A branch, tag or commit of the model on the hub; its main branch when left out.
    pub revision: Option<String>,
    /// The backend that the model computes on, with its own settings; the run's when left out.
    pub backend: Option<String>,
    /// Most tokens of a conversation with its answer; what the model is meant for
    /// (`max_position_embeddings`) when left out. Of longer ones the beginning is cut off, so that the
    /// answer is kept.
    pub maximum_tokens: Option<usize>,
    /// Tokens that are computed together, at most, unless one answer has more. It changes memory and
    /// speed, not the result.
    pub batch_tokens: usize,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            model: String::new(),
            revision: None,
            backend: None,
            maximum_tokens: None,
            batch_tokens: 2048,
        }
    }
}
