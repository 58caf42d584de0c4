//! Text and messages in the forms that data sets hold them in.

use serde_json::{Map, Value};

use crate::plugin::{Conversation, Message};

/// A string, or messages with roles.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum TextOrMessages {
    Text(String),
    Messages(Conversation),
}

/// The part of a value that is of no known form.
#[derive(Debug, PartialEq)]
pub(super) struct Misfit {
    /// Path within the value, such as `[0].content`.
    pub(super) path: String,
    /// Description of the fault.
    pub(super) reason: String,
}

impl Misfit {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }

    fn within(self, path: &str) -> Self {
        Self { path: format!("{path}{}", self.path), ..self }
    }
}

type Formed<T> = Result<T, Misfit>;

impl TextOrMessages {
    /// Text; a list of messages; one message; or, as older versions of `datasets` store lists of tables, a
    /// table of lists.
    pub(super) fn of(value: Value) -> Formed<Self> {
        match value {
            Value::String(text) if is_messages_as_text(&text) => {
                Err(Misfit::new("", "is a list of messages written as a text; write it as a list"))
            }
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => messages(items).map(Self::Messages),
            Value::Object(table) if table.values().any(Value::is_array) && !has_parts(&table) => {
                messages(rows_of(table)?).map(Self::Messages)
            }
            Value::Object(table) => Ok(Self::Messages(vec![message(table)?])),
            _ => Err(Misfit::new(
                "",
                "expected text or a list of messages with `role` and `content`",
            )),
        }
    }

    pub(super) fn into_conversation(self) -> Conversation {
        match self {
            Self::Text(text) => vec![Message::user(text)],
            Self::Messages(messages) => messages,
        }
    }
}

/// Whether a text is messages in the notation of JSON or Python, as a table without lists holds them.
fn is_messages_as_text(text: &str) -> bool {
    let text = text.trim();
    let has =
        |name: &str| text.contains(&format!("\"{name}\"")) || text.contains(&format!("'{name}'"));
    text.starts_with("[{")
        && text.ends_with("}]")
        && (has("role") && has("content") || has("from") && has("value"))
}

fn messages(items: Vec<Value>) -> Formed<Conversation> {
    let numbered = items.into_iter().enumerate();
    numbered
        .map(|(index, item)| {
            let at = format!("[{index}]");
            match item {
                Value::Object(table) => message(table).map_err(|misfit| misfit.within(&at)),
                _ => Err(Misfit::new(at, "expected a message with `role` and `content`")),
            }
        })
        .collect()
}

/// Whether a table is one message whose content is a list of parts.
fn has_parts(table: &Map<String, Value>) -> bool {
    table.get("role").or(table.get("from")).is_some_and(Value::is_string)
}

/// The tables of a table of lists.
fn rows_of(columns: Map<String, Value>) -> Formed<Vec<Value>> {
    let length = columns.values().filter_map(Value::as_array).map(Vec::len).max().unwrap_or(0);
    let mut rows = vec![Map::new(); length];
    for (name, values) in columns {
        let Value::Array(values) = values else { continue };
        if values.len() != length {
            let reason = format!("holds {} of {length} messages", values.len());
            return Err(Misfit::new(format!(".{name}"), reason));
        }
        for (row, value) in rows.iter_mut().zip(values) {
            row.insert(name.clone(), value);
        }
    }
    Ok(rows.into_iter().map(Value::Object).collect())
}

/// A message `{role, content}`, or `{from, value}` as ShareGPT has it.
fn message(mut table: Map<String, Value>) -> Formed<Message<'static>> {
    for calls in ["tool_calls", "function_call"] {
        let is_call =
            |value: &Value| !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty());
        if table.get(calls).is_some_and(is_call) {
            let reason =
                "calls of tools are not rendered; leave the row out, or write the call as text";
            return Err(Misfit::new(format!(".{calls}"), reason));
        }
    }
    let mut take = |name: &str| table.remove(name).filter(|value| !value.is_null());
    let role = match (take("role"), take("from")) {
        (Some(Value::String(role)), _) => role,
        (None, Some(Value::String(from))) => from,
        (None, None) => return Err(Misfit::new("", "missing field `role`")),
        _ => return Err(Misfit::new(".role", "expected text")),
    };
    let (name, content) = match (take("content"), take("value")) {
        (Some(content), _) => ("content", content),
        (None, Some(value)) => ("value", value),
        (None, None) => return Err(Misfit::new("", "missing field `content`")),
    };
    let content = content_text(content).map_err(|misfit| misfit.within(&format!(".{name}")))?;
    Ok(Message { role: role.into(), content: content.into() })
}

/// Text, or a list of parts that are all text, which templates write one after the other.
fn content_text(content: Value) -> Formed<String> {
    match content {
        Value::String(text) => Ok(text),
        Value::Array(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(index, part)| {
                part_text(part).map_err(|misfit| misfit.within(&format!("[{index}]")))
            })
            .collect(),
        _ => Err(Misfit::new("", "expected text or a list of parts")),
    }
}

fn part_text(part: Value) -> Formed<String> {
    const TEXT_PARTS: [&str; 3] = ["text", "input_text", "output_text"];
    let mut table = match part {
        Value::String(text) => return Ok(text),
        Value::Object(table) => table,
        _ => return Err(Misfit::new("", "expected a part with `type` and `text`")),
    };
    if let Some(kind) = table.get("type").and_then(Value::as_str)
        && !TEXT_PARTS.contains(&kind)
    {
        return Err(Misfit::new(
            "",
            format!("is a part of the type `{kind}`, and only text is read"),
        ));
    }
    match table.remove("text") {
        Some(Value::String(text)) => Ok(text),
        _ => Err(Misfit::new("", "is a part without `text`")),
    }
}
