//! Text that files hold either plainly or as a list of messages.

use std::path::Path;

use serde::Deserialize;

use super::roles::in_known_roles;
use crate::error::{Error, Result};
use crate::plugin::{Conversation, Message};
use crate::tables::Place;

/// A string, or messages with roles.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected text or a list of messages with `role` and `content`")]
pub(super) enum TextOrMessages {
    Text(String),
    Messages(Conversation),
}

impl TextOrMessages {
    fn into_conversation(self) -> Conversation {
        match self {
            Self::Text(text) => vec![Message::user(text)],
            Self::Messages(messages) => messages,
        }
    }
}

/// The conversation of a row: `prompt` where there is one, else `messages`.
pub(super) fn conversation(
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
    place: &Place,
) -> Result<Conversation> {
    match prompt.or(messages.map(TextOrMessages::Messages)) {
        Some(found) => Ok(found.into_conversation()),
        None => Err(place
            .error("missing column `prompt` or `messages`")
            .with_hint("give `prompt` (text) or `messages` (a list of {role, content})")),
    }
}

/// A conversation that can be answered, in roles that chat templates know.
pub(super) fn answerable(messages: Conversation, place: &Place) -> Result<Conversation> {
    let messages = in_known_roles(messages, place)?;
    let Some(last) = messages.last() else {
        return Err(place.error("the list of messages is empty"));
    };
    if last.role == "assistant" {
        return Err(place
            .error("the conversation ends with the assistant's message, there is nothing to answer")
            .with_hint("leave the last message out"));
    }
    if matches!(&*last.role, "system" | "developer") {
        return Err(place
            .error(format!("the conversation ends with a `{}` message, nobody asks", last.role))
            .with_hint("end it with the user's turn"));
    }
    if last.content.trim().is_empty() {
        return Err(place.error("the prompt is empty").with_hint("remove the row"));
    }
    Ok(messages)
}

/// A file that the user gave must hold something.
pub(super) fn not_empty<T>(rows: Vec<T>, path: &Path) -> Result<Vec<T>> {
    if rows.is_empty() {
        return Err(Error::input(path, "the file holds no rows")
            .with_hint("every line must hold one JSON object, every row one prompt"));
    }
    Ok(rows)
}
