//! Responses to score: `{"prompt", "response"}` or `{"prompt_tokens", "response_tokens"}`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::text::{TextOrMessages, answerable, conversation, not_empty};
use crate::error::Result;
use crate::plugin::Conversation;
use crate::tables::{self, Place};

/// A response whose log-probability is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct ScoreRequest {
    /// The response with its prompt.
    pub content: ScoreContent,
    /// The row's number in the file, from 0.
    pub row: usize,
}

/// A response with its prompt, as text or as tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum ScoreContent {
    /// A response to a conversation.
    Text {
        /// The conversation, ending with the user's turn.
        messages: Conversation,
        /// The response.
        response: String,
    },
    /// Token ids, at least one of each.
    Tokens {
        /// Tokens before the response.
        prompt: Vec<u32>,
        /// The response.
        response: Vec<u32>,
    },
}

/// A response's log-probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredResponse {
    /// The response's token ids.
    pub tokens: Vec<u32>,
    /// The log-probability of each.
    pub log_probs: Vec<f32>,
    /// Their sum.
    pub log_prob: f64,
}

#[derive(Deserialize)]
struct Row {
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
    response: Option<String>,
    prompt_tokens: Option<Vec<u32>>,
    response_tokens: Option<Vec<u32>>,
}

impl Row {
    fn content(self, place: &Place) -> Result<ScoreContent> {
        match (self.prompt_tokens, self.response_tokens) {
            (Some(prompt), Some(response)) if prompt.is_empty() || response.is_empty() => {
                Err(place
                    .error("`prompt_tokens` and `response_tokens` must hold at least one token"))
            }
            (Some(prompt), Some(response)) => Ok(ScoreContent::Tokens { prompt, response }),
            (Some(_), None) => Err(place.error("missing column `response_tokens`")),
            (None, Some(_)) => Err(place.error("missing column `prompt_tokens`")),
            (None, None) => {
                let messages = conversation(self.prompt, self.messages, place)?;
                let Some(response) = self.response else {
                    return Err(place.error("missing column `response`"));
                };
                Ok(ScoreContent::Text { messages: answerable(messages, place)?, response })
            }
        }
    }
}

/// Reads what to score; tokens count where a row has both tokens and text.
///
/// # Errors
/// When the file cannot be read, is empty, or a row is incomplete; the error names the line.
pub fn read_score_requests(path: &Path) -> Result<Vec<ScoreRequest>> {
    const COLUMNS: [&str; 5] =
        ["prompt", "messages", "response", "prompt_tokens", "response_tokens"];
    let wanted = |column: &arrow_schema::Field| COLUMNS.contains(&column.name().as_str());
    let contents = tables::read_with(path, wanted, |row: Row, place| row.content(place))?;
    let requests = contents.into_iter().enumerate();
    not_empty(requests.map(|(row, content)| ScoreRequest { content, row }).collect(), path)
}
