//! Answers of several models to the same prompts.

use serde::Serialize;

/// Answers of the models of one run or several, side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Samples {
    /// The sets to choose from.
    pub sets: Vec<SampleSet>,
}

/// Answers of several models to the same prompts. The first model is the one that the others are compared with.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SampleSet {
    /// Name of the set, for instance of the run.
    pub name: String,
    /// Names of the models.
    pub models: Vec<String>,
    /// The prompts.
    pub prompts: Vec<SamplePrompt>,
    /// Number of prompts that were left out, because a page must not become too large.
    pub left_out: usize,
}

/// A prompt with its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SamplePrompt {
    /// The prompt's id.
    pub id: u64,
    /// The conversation.
    pub turns: Vec<Turn>,
    /// The answers, by model and sample.
    pub answers: Vec<Vec<Answer>>,
    /// The verdicts on each model's answers against the first model's, by model and sample; empty where they
    /// are not known.
    pub verdicts: Vec<Vec<SampleVerdict>>,
}

/// A turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Turn {
    /// The speaker, for instance `user`.
    pub role: String,
    /// The text.
    pub text: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Its length in tokens.
    pub tokens: usize,
    /// Whether the model ended it itself.
    pub ended: bool,
}

/// A verdict: the probability that an answer beats that of the first model, in both orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct SampleVerdict {
    /// Probability where the oracle reads the answer first.
    pub read_first: f64,
    /// Probability where it reads it second.
    pub read_second: f64,
}
