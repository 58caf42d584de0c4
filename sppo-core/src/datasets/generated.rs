//! All answers of an iteration in the form of the official `generated/.../train.parquet`.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::plugin::{Conversation, Message};
use crate::records::{Judgment, Rollout};
use crate::tables;

/// Writes one row per prompt: `prompt`, `generate_0` ... (each the conversation with that answer),
/// `probability` (K x K) and `rm_scores`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_generated(path: &Path, rollouts: &[Rollout], judgments: &[Judgment]) -> Result<()> {
    let rows: Vec<Map<String, Value>> =
        rollouts.iter().zip(judgments).map(|(rollout, judgment)| row(rollout, judgment)).collect();
    tables::write_samples(path, &rows)
}

fn row(rollout: &Rollout, judgment: &Judgment) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("prompt".into(), json!(last_turn(&rollout.prompt.messages)));
    for (index, response) in rollout.responses.iter().enumerate() {
        let answered = answered(&rollout.prompt.messages, &response.text);
        row.insert(format!("generate_{index}"), json!(answered));
    }
    row.insert("probability".into(), json!(judgment.matrix));
    row.insert("rm_scores".into(), json!(judgment.scores));
    row
}

/// The text of the turn that is answered.
pub(super) fn last_turn<'a>(messages: &'a [Message<'_>]) -> &'a str {
    messages.last().map(|message| &*message.content).unwrap_or_default()
}

/// The conversation with an answer to it.
pub(super) fn answered(messages: &[Message<'static>], answer: &str) -> Conversation {
    let mut conversation = messages.to_vec();
    conversation.push(Message::assistant(answer.to_owned()));
    conversation
}
