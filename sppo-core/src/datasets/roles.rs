//! Roles of turns: those that chat templates know, by the names that data sets give them.

use crate::error::Result;
use crate::plugin::{Conversation, Message};
use crate::tables::Place;

/// The roles that chat templates know, each with its names in other formats (ShareGPT, OpenAssistant, Gemini,
/// Cohere), in lower case.
const ROLES: [(&str, &[&str]); 5] = [
    ("system", &["system"]),
    ("user", &["user", "human", "prompter"]),
    (
        "assistant",
        &["assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"],
    ),
    ("tool", &["tool", "function", "observation", "ipython"]),
    ("developer", &["developer"]),
];

/// The turn with the role as chat templates know it.
///
/// # Errors
/// When nothing is known under the role's name: templates write any role, and the model never saw it.
pub(super) fn in_known_role(
    mut message: Message<'static>,
    place: &Place,
) -> Result<Message<'static>> {
    let written = message.role.trim().to_lowercase();
    let known = ROLES.iter().find(|(_, names)| names.contains(&written.as_str()));
    let Some((role, _)) = known else {
        return Err(place
            .error(format!("`{}` is not a role that chat templates know", message.role))
            .with_hint("use `system`, `user`, `assistant`, `tool` or `developer`"));
    };
    message.role = (*role).into();
    Ok(message)
}

/// The conversation in roles that chat templates know.
///
/// # Errors
/// As [`in_known_role`].
pub(super) fn in_known_roles(messages: Conversation, place: &Place) -> Result<Conversation> {
    messages.into_iter().map(|message| in_known_role(message, place)).collect()
}
