//! Candidates to rank: `{"prompt"|"messages", "candidates": [text, ...]}`, and the same rows ranked,
//! with `probability` (K x K), where the oracle scores `rm_scores`, and who judged as `oracle`.

use std::path::Path;

use arrow_schema::{DataType, Field};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::text::{TextOrMessages, answerable, conversation, not_empty};
use crate::error::Result;
use crate::plugin::Conversation;
use crate::records::Rollout;
use crate::tables::{self, Place};
use crate::win_rate::{Preferences, VerdictKind};

/// A prompt and its candidate answers.
#[derive(Clone, Debug, PartialEq)]
pub struct CandidateSet {
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
    /// The answers, at least two.
    pub candidates: Vec<String>,
    /// The row as it stands in the file, unknown columns included.
    row: Map<String, Value>,
}

/// A set with an oracle's preferences among its candidates.
#[derive(Clone, Debug, PartialEq)]
pub struct RankedCandidates {
    /// The set.
    pub set: CandidateSet,
    /// The preferences.
    pub preferences: Preferences,
}

#[derive(Deserialize)]
struct Row {
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
    candidates: Vec<String>,
}

impl CandidateSet {
    /// A set that does not come from a file.
    #[must_use]
    pub fn new(messages: Conversation, candidates: Vec<String>) -> Self {
        let mut row = Map::new();
        match messages.as_slice() {
            [only] if only.role == "user" => row.insert("prompt".into(), json!(only.content)),
            _ => row.insert("messages".into(), json!(messages)),
        };
        row.insert("candidates".into(), json!(candidates));
        Self { messages, candidates, row }
    }

    /// A prompt's sampled answers, as text.
    #[must_use]
    pub fn from_rollout(rollout: &Rollout) -> Self {
        let texts = rollout.responses.iter().map(|response| response.text.clone()).collect();
        Self::new(rollout.prompt.messages.clone(), texts)
    }

    fn from_row(row: Map<String, Value>, place: &Place) -> Result<Self> {
        let parsed: Row = serde_path_to_error::deserialize(Value::Object(row.clone())).map_err(
            |error: serde_path_to_error::Error<serde_json::Error>| {
                let reason = error.inner().to_string().replace("missing field", "missing column");
                match error.path().to_string().as_str() {
                    "." => place.error(reason),
                    column => place.error(format!("`{column}`: {reason}")),
                }
            },
        )?;
        let messages = answerable(conversation(parsed.prompt, parsed.messages, place)?, place)?;
        if parsed.candidates.len() < 2 {
            let count = parsed.candidates.len();
            return Err(place
                .error(format!("`candidates` holds {count} of them, which cannot be compared"))
                .with_hint("give at least two candidates per row"));
        }
        Ok(Self { messages, candidates: parsed.candidates, row })
    }
}

/// Reads candidates. Columns that are not known here are kept for [`write_ranked`].
///
/// # Errors
/// When the file cannot be read, is empty, or a row has fewer than two candidates; the error names the
/// line.
pub fn read_candidates(path: &Path) -> Result<Vec<CandidateSet>> {
    let wanted = |column: &Field| {
        let plain = has_json_form(column.data_type());
        if !plain {
            tracing::warn!("{}: column `{}` is left out", path.display(), column.name());
        }
        plain
    };
    let rows = tables::read_with(path, wanted, CandidateSet::from_row)?;
    not_empty(rows, path)
}

/// Whether values of this Arrow type are also values of JSON.
fn has_json_form(data_type: &DataType) -> bool {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            has_json_form(item.data_type())
        }
        DataType::Struct(fields) => fields.iter().all(|field| has_json_form(field.data_type())),
        DataType::Dictionary(_, values) => has_json_form(values),
        DataType::Null | DataType::Boolean => true,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_integer() || matches!(other, DataType::Float32 | DataType::Float64),
    }
}

/// Writes candidates, each row with the columns that it was read with.
///
/// # Errors
/// When the file cannot be written.
pub fn write_candidates(path: &Path, sets: &[CandidateSet]) -> Result<()> {
    let rows: Vec<Map<String, Value>> = sets.iter().map(|set| set.row.clone()).collect();
    tables::write_samples(path, &rows)
}

/// Writes each row as it was read, then `probability`, `rm_scores` where the oracle
/// scores, and the judge's name as `oracle`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_ranked(path: &Path, ranked: &[RankedCandidates], oracle: &str) -> Result<()> {
    let rows: Vec<Map<String, Value>> = ranked
        .iter()
        .map(|RankedCandidates { set, preferences }| {
            let mut row = set.row.clone();
            row.insert("probability".into(), json!(preferences.matrix));
            if preferences.kind != VerdictKind::Probabilities {
                row.insert("rm_scores".into(), json!(preferences.scores));
            }
            row.insert("oracle".into(), json!(oracle));
            row
        })
        .collect();
    tables::write_samples(path, &rows)
}
