//! Requests for responses, and the responses.

use abi_stable::StableAbi;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::check::{self, Check};

/// The way tokens are drawn.
#[repr(C)]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, StableAbi)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParameters {
    /// Divides the logits before sampling; 0 takes the most probable token.
    pub temperature: f64,
    /// Keeps the most probable tokens whose probabilities sum to at least this (1 keeps all).
    pub top_p: f64,
    /// Keeps this many most probable tokens (0 keeps all).
    pub top_k: usize,
    /// Keeps tokens whose probability, after the temperature, is at least this share of the most probable
    /// token's (0 keeps all). Applies after `top_k` and `top_p`.
    pub min_p: f64,
    /// Longest response, in tokens, the stop token included.
    pub max_new_tokens: usize,
    /// No stop token is drawn before this many tokens.
    pub min_new_tokens: usize,
}

impl Default for SamplingParameters {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_new_tokens: 128,
            min_new_tokens: 0,
        }
    }
}

impl SamplingParameters {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is out of its range, or the shortest response is longer than the longest.
    pub fn check(&self) -> Check {
        check::not_negative("temperature", self.temperature)?;
        check::require(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "top_p",
            format!("{} is not above 0 and up to 1", self.top_p),
            "give 1.0 to keep all tokens",
        )?;
        check::require(
            (0.0..1.0).contains(&self.min_p),
            "min_p",
            format!("{} is not from 0 to below 1", self.min_p),
            "give 0 to keep all tokens",
        )?;
        check::at_least_one("max_new_tokens", self.max_new_tokens as u64)?;
        check::require(
            self.min_new_tokens <= self.max_new_tokens,
            "min_new_tokens",
            format!(
                "{} is more than `max_new_tokens` ({})",
                self.min_new_tokens, self.max_new_tokens
            ),
            "lower the one or raise the other",
        )
    }
}

/// A tokenised prompt and the number that identifies it for sampling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationPrompt {
    /// Keys the random draws; the same id, seed and sample always draw the same numbers.
    pub id: u64,
    /// Token ids, at least one.
    pub tokens: Vec<u32>,
}

/// A request for K responses to each of several prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationRequest {
    /// The prompts.
    pub prompts: Vec<GenerationPrompt>,
    /// Responses per prompt (K).
    pub samples_per_prompt: usize,
    /// The way tokens are drawn.
    pub sampling: SamplingParameters,
    /// The run's seed. Draws depend on `(seed, stream, prompt id, sample, position)` and on nothing
    /// else, so not on how prompts are batched.
    pub seed: u64,
    /// Separates independent uses of one seed: the iteration, or an evaluation.
    pub stream: u64,
}

/// Reason for which a response ended.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, StableAbi)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model drew a stop token, which is the response's last token.
    #[serde(rename = "end_token")]
    Stop,
    /// The response reached `max_new_tokens` or the context's end.
    Length,
}

/// One sampled response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneratedResponse {
    /// The tokens that were drawn, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the untempered, untruncated policy.
    pub log_probs: Vec<f32>,
    /// Reason for which it ended.
    pub finish_reason: FinishReason,
}
