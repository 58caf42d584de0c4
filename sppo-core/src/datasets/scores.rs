//! Responses to score: `{"prompt", "response"}` or `{"prompt_tokens", "response_tokens"}`.

use std::path::Path;

use arrow_schema::Schema;
use serde::{Deserialize, Serialize};

use super::columns::{ColumnNames, Columns};
use super::text::not_empty;
use crate::error::Result;
use crate::plugin::Conversation;
use crate::tables;

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

fn content(columns: Columns<'_>) -> Result<ScoreContent> {
    let place = columns.place;
    let prompt: Option<Vec<u32>> = columns.get("prompt_tokens")?;
    let response: Option<Vec<u32>> = columns.get("response_tokens")?;
    match (prompt, response) {
        (Some(prompt), Some(response)) if prompt.is_empty() || response.is_empty() => {
            Err(place.error("`prompt_tokens` and `response_tokens` must hold at least one token"))
        }
        (Some(prompt), Some(response)) => Ok(ScoreContent::Tokens { prompt, response }),
        (Some(_), None) => Err(columns.missing("response_tokens")),
        (None, Some(_)) => Err(columns.missing("prompt_tokens")),
        (None, None) => {
            let messages = columns.conversation()?;
            let Some(response) = columns.get("response")? else {
                return Err(columns.missing("response"));
            };
            Ok(ScoreContent::Text { messages: columns.answerable(messages)?, response })
        }
    }
}

/// Reads what to score; tokens count where a row has both tokens and text.
///
/// # Errors
/// When the file cannot be read, is empty, or a row is incomplete; the error names the line.
pub fn read_score_requests(path: &Path) -> Result<Vec<ScoreRequest>> {
    read_score_requests_named(path, &ColumnNames::default())
}

/// As [`read_score_requests`], from columns of these names.
///
/// # Errors
/// As [`read_score_requests`].
pub fn read_score_requests_named(path: &Path, names: &ColumnNames) -> Result<Vec<ScoreRequest>> {
    const COLUMNS: [&str; 3] = ["response", "prompt_tokens", "response_tokens"];
    let wanted = |schema: &Schema| names.positions(schema, &COLUMNS);
    let contents =
        tables::read_rows(path, wanted, |row, place| content(Columns { row: &row, names, place }))?;
    let requests = contents.into_iter().enumerate();
    not_empty(requests.map(|(row, content)| ScoreRequest { content, row }).collect(), path)
}
