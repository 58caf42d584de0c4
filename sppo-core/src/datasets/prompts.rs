//! Prompts: `{"prompt": text}` or `{"messages": [{role, content}, ...]}`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::text::{TextOrMessages, answerable, conversation, not_empty};
use crate::error::Result;
use crate::plugin::Conversation;
use crate::records::Prompt;
use crate::tables::{self, Place};

#[derive(Deserialize)]
struct Row {
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
}

impl Row {
    fn conversation(self, place: &Place) -> Result<Conversation> {
        answerable(conversation(self.prompt, self.messages, place)?, place)
    }
}

/// Reads prompts; their ids are their positions, from 0. Where a row has both columns, `prompt` counts.
///
/// # Errors
/// When the file cannot be read, is empty, or a row holds no prompt; the error names the line.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let wanted =
        |column: &arrow_schema::Field| matches!(column.name().as_str(), "prompt" | "messages");
    let rows = tables::read_with(path, wanted, |row: Row, place| row.conversation(place))?;
    Ok(numbered(not_empty(rows, path)?))
}

/// Prompts from JSON lines in memory; `name` stands for the file in errors.
///
/// # Errors
/// As [`read_prompts`].
pub fn parse_prompts(name: &str, text: &str) -> Result<Vec<Prompt>> {
    let rows = tables::read_text_with(name, text, |row: Row, place| row.conversation(place))?;
    Ok(numbered(not_empty(rows, Path::new(name))?))
}

fn numbered(conversations: Vec<Conversation>) -> Vec<Prompt> {
    (0..).zip(conversations).map(|(id, messages)| Prompt { id, messages }).collect()
}

/// Writes prompts with the column `messages`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_prompts(path: &Path, prompts: &[Prompt]) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Written {
        messages: Conversation,
    }
    let rows: Vec<Written> =
        prompts.iter().map(|prompt| Written { messages: prompt.messages.clone() }).collect();
    tables::write(path, &rows)
}
