//! Checks of what files hold.

use std::path::Path;

use super::forms::TextOrMessages;
use crate::error::{Error, Result};
use crate::plugin::{Conversation, Message};
use crate::tables::Place;

/// Refuses a conversation at whose end nobody asks anything.
pub(super) fn require_question(messages: &[Message<'_>], place: &Place) -> Result<()> {
    let Some(last) = messages.last() else {
        return Err(place.error("the list of messages is empty"));
    };
    if last.role == "assistant" {
        return Err(place
            .error("the conversation ends with the assistant's message, there is nothing to answer")
            .with_hint(
                "leave the last message out; if the whole file holds answers, \
                 `--set prompts.columns.answered=true` leaves them out",
            ));
    }
    if matches!(&*last.role, "system" | "developer") {
        return Err(place
            .error(format!("the conversation ends with a `{}` message, nobody asks", last.role))
            .with_hint("end it with the user's turn"));
    }
    if last.content.trim().is_empty() {
        return Err(place.error("the prompt is empty").with_hint("remove the row"));
    }
    Ok(())
}

/// A file that the user gave must hold something.
pub(super) fn not_empty<T>(rows: Vec<T>, path: &Path) -> Result<Vec<T>> {
    if rows.is_empty() {
        return Err(Error::input(path, "the file holds no rows")
            .with_hint("every line must hold one JSON object, every row one prompt"));
    }
    Ok(rows)
}

/// Refuses a prompt that is not what a conversation beside it asks: a wrong join of two tables looks like
/// that.
///
/// # Errors
/// When they contradict each other.
pub(super) fn require_agreement(
    prompt: &TextOrMessages,
    conversation: &[Message<'_>],
    whose: &str,
    place: &Place,
) -> Result<()> {
    let agrees = match prompt {
        TextOrMessages::Text(text) => is_asked_in(text, conversation),
        TextOrMessages::Messages(messages) => is_same(messages, conversation),
    };
    match agrees {
        true => Ok(()),
        false => Err(place
            .error(format!("`prompt` is not what {whose} asks"))
            .with_hint("check the join of the two tables, or leave one of the columns out")),
    }
}

/// Whether a text is one of the turns, or a transcript of all of them.
fn is_asked_in(text: &str, conversation: &[Message<'_>]) -> bool {
    let text = words(text);
    let turns: Vec<String> = conversation.iter().map(|message| words(&message.content)).collect();
    turns.contains(&text)
        || (!turns.is_empty() && turns.iter().all(|turn| text.contains(turn.as_str())))
}

/// Whether two conversations say the same, an answer at the end and system messages aside.
fn is_same(one: &[Message<'_>], other: &[Message<'_>]) -> bool {
    fn turns<'a>(messages: &'a [Message<'_>]) -> Vec<(&'a str, String)> {
        let unanswered = match messages {
            [asked @ .., last] if last.role == "assistant" => asked,
            all => all,
        };
        let spoken = unanswered.iter().filter(|message| message.role != "system");
        spoken.map(|message| (message.role.as_ref(), words(&message.content))).collect()
    }
    turns(one) == turns(other)
}

/// A conversation up to the model's last turn.
pub(super) fn without_answer(mut messages: Conversation) -> Conversation {
    if messages.last().is_some_and(|last| last.role == "assistant") {
        messages.pop();
    }
    messages
}

/// The text with one space for every run of them.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
