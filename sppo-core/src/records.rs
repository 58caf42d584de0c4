//! What the stages of an iteration hand to each other and leave in the run directory.

use serde::{Deserialize, Serialize};

use crate::plugin::{Conversation, FinishReason};

/// A prompt of the run's prompt set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prompt {
    /// Its place in the prompt set; keys the random draws.
    pub id: u64,
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
}

/// One sampled answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// Its text, special tokens left out.
    pub text: String,
    /// The tokens that were drawn, the end token included. These are trained on.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the policy that drew it.
    pub log_probs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// A prompt and its K sampled answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The prompt.
    pub prompt: Prompt,
    /// The prompt as rendered by the chat template.
    pub rendered_prompt: String,
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The K answers.
    pub responses: Vec<Response>,
}

/// What the oracle said about one rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Judgment {
    /// The prompt's id.
    pub prompt_id: u64,
    /// `P[i][j]` = P(answer i beats answer j), row-major `K x K`.
    pub probability: Vec<f64>,
    /// One score per answer, by which best and worst are chosen (official: `rm_scores`).
    pub scores: Vec<f64>,
}

/// One answer that is trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingResponse {
    /// Its text, for people.
    pub text: String,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The prompt's tokens for this answer alone, where they differ from the example's: the official
    /// tokenisation lets an answer change the prompt's last token.
    #[serde(default)]
    pub own_prompt_tokens: Option<Vec<u32>>,
    /// Estimated probability of beating the current policy, in `[0, 1]`.
    pub win_rate: f64,
    /// Summed log-probability under the reference policy, once known.
    pub reference_log_prob: Option<f64>,
}

/// A prompt with the answers to train on: `[chosen, rejected]`, or all K.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainingExample {
    /// The prompt's id.
    pub prompt_id: u64,
    /// The conversation.
    pub messages: Conversation,
    /// The prompt's tokens.
    pub prompt_tokens: Vec<u32>,
    /// The answers, the best first and the worst last.
    pub responses: Vec<TrainingResponse>,
    /// `P[chosen][rejected]` when there are two answers (official: `chosen_probs`).
    pub chosen_probability: Option<f64>,
}
