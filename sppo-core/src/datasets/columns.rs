//! The columns that rows have, under our names or those of the settings.

use arrow_schema::Schema;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::forms::{Misfit, TextOrMessages};
use super::roles::in_known_roles;
use super::text::{require_agreement, require_question, without_answer};
use crate::error::{Error, Result};
use crate::plugin::{Conversation, Message};
use crate::tables::{Place, Row};

/// Settings of the table `[prompts.columns]`: the columns of files whose names are others. They hold for
/// prompts, candidates, pairs and responses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ColumnNames {
    /// In place of `prompt`: a column, or several whose texts are joined by an empty line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<OneOrMore>,
    /// In place of `messages`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// A column with a system message to put before a conversation that has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// In place of `candidates`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidates: Option<String>,
    /// In place of `chosen`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
    /// In place of `rejected`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
    /// In place of `response`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// Leave out the assistant's message at the end of each conversation: the file holds answers too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub answered: bool,
}

/// The name of a column, or a list of names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected the name of a column, or a list of names")]
pub enum OneOrMore {
    /// One column.
    One(String),
    /// Several.
    More(Vec<String>),
}

impl OneOrMore {
    fn names(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::More(names) => names,
        }
    }
}

impl ColumnNames {
    /// Whether no column has another name.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The columns of a Parquet file that say what stands before the answer, and these of ours. Empty where it
    /// has none of them.
    pub(super) fn positions(&self, schema: &Schema, ours: &[&str]) -> Vec<usize> {
        let prompt = self.prompt_columns().chain([self.messages()]).chain(SHAREGPT);
        let named: Vec<&str> = prompt.chain(ours.iter().map(|ours| self.of(ours))).collect();
        let position = |name: &str| schema.fields().iter().position(|field| field.name() == name);
        let mut found: Vec<usize> = named.into_iter().filter_map(position).collect();
        if !found.is_empty() {
            found.extend(position(self.system()));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    fn prompt_columns(&self) -> impl Iterator<Item = &str> {
        let given = self.prompt.as_ref().map_or(&[][..], OneOrMore::names);
        let ours = given.is_empty().then_some("prompt");
        given.iter().map(String::as_str).chain(ours)
    }

    fn messages(&self) -> &str {
        self.messages.as_deref().unwrap_or("messages")
    }

    fn system(&self) -> &str {
        self.system.as_deref().unwrap_or("system")
    }

    /// The file's name of one of our columns that hold answers.
    pub(super) fn of<'a>(&'a self, ours: &'a str) -> &'a str {
        let given = match ours {
            "candidates" => &self.candidates,
            "chosen" => &self.chosen,
            "rejected" => &self.rejected,
            "response" => &self.response,
            _ => &None,
        };
        given.as_deref().unwrap_or(ours)
    }
}

/// Names of a conversation in the form of ShareGPT.
const SHAREGPT: [&str; 2] = ["conversations", "conversation"];

/// A row, read by the names of the settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    pub(super) row: &'a Row,
    pub(super) names: &'a ColumnNames,
    pub(super) place: &'a Place,
}

/// An answer and, where the column holds a whole conversation, what precedes it.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) before: Conversation,
    pub(super) text: String,
}

impl Columns<'_> {
    /// The value of a column.
    pub(super) fn get<T: DeserializeOwned>(&self, ours: &str) -> Result<Option<T>> {
        self.row.get(self.names.of(ours), self.place)
    }

    fn text_or_messages(&self, column: &str) -> Result<Option<TextOrMessages>> {
        let Some(value) = self.row.get::<Value>(column, self.place)? else { return Ok(None) };
        let found = TextOrMessages::of(value).map_err(|misfit| self.refuse(column, misfit))?;
        Ok(Some(match found {
            TextOrMessages::Messages(messages) => {
                TextOrMessages::Messages(in_known_roles(messages, self.place)?)
            }
            text => text,
        }))
    }

    fn refuse(&self, column: &str, misfit: Misfit) -> Error {
        self.place.error(format!("`{column}{}`: {}", misfit.path, misfit.reason))
    }

    /// What stands before the answer, where a column of its own says it.
    ///
    /// # Errors
    /// When the columns are of another form, or contradict each other.
    pub(super) fn stated(&self) -> Result<Option<TextOrMessages>> {
        let mut messages = self.messages(self.names.messages())?;
        let Some(prompt) = self.prompt()? else {
            for name in SHAREGPT {
                if messages.is_none() {
                    messages = self.messages(name)?;
                }
            }
            return Ok(messages.map(TextOrMessages::Messages));
        };
        if let Some(messages) = messages.filter(|messages| !messages.is_empty()) {
            require_agreement(&prompt, &messages, "the conversation in `messages`", self.place)?;
        }
        Ok(Some(prompt))
    }

    /// A column that holds messages and no text.
    fn messages(&self, column: &str) -> Result<Option<Conversation>> {
        match self.text_or_messages(column)? {
            Some(TextOrMessages::Text(_)) => {
                let reason = "expected a list of messages with `role` and `content`";
                Err(self.place.error(format!("`{column}`: {reason}")))
            }
            Some(TextOrMessages::Messages(messages)) => Ok(Some(messages)),
            None => Ok(None),
        }
    }

    fn prompt(&self) -> Result<Option<TextOrMessages>> {
        let mut found = Vec::new();
        for column in self.names.prompt_columns() {
            found.extend(self.text_or_messages(column)?);
        }
        if found.len() < 2 {
            return Ok(found.pop());
        }
        let texts: Option<Vec<String>> = found
            .into_iter()
            .map(|part| match part {
                TextOrMessages::Text(text) => Some(text),
                TextOrMessages::Messages(_) => None,
            })
            .collect();
        let Some(mut texts) = texts else {
            return Err(self
                .place
                .error("the columns of the prompt hold messages, which are not joined"));
        };
        texts.retain(|text| !text.trim().is_empty());
        Ok(Some(TextOrMessages::Text(texts.join("\n\n"))))
    }

    /// The conversation with the system message of a column of its own, where there is one.
    pub(super) fn with_system(&self, stated: TextOrMessages) -> Result<Conversation> {
        let mut messages = stated.into_conversation();
        let system = match self.names.system.is_some() || self.is_of_sharegpt() {
            true => self.row.get::<String>(self.names.system(), self.place)?,
            false => None,
        };
        let has_one = messages.first().is_some_and(|first| first.role == "system");
        if let Some(text) = system.filter(|text| !has_one && !text.trim().is_empty()) {
            messages.insert(0, Message { role: "system".into(), content: text.into() });
        }
        Ok(messages)
    }

    /// Whether the conversation is in a column of ShareGPT, which may have a system message beside it.
    fn is_of_sharegpt(&self) -> bool {
        let has = |wanted: &str| self.row.names().any(|name| name == wanted);
        let is_ours = self.names.prompt_columns().chain([self.names.messages()]).any(has);
        !is_ours && SHAREGPT.into_iter().any(has)
    }

    /// What stands before the answer.
    ///
    /// # Errors
    /// When no column says it; the error names the columns that there are.
    pub(super) fn conversation(&self) -> Result<Conversation> {
        match self.stated()? {
            Some(stated) => self.with_system(stated),
            None => Err(self.missing_prompt()),
        }
    }

    /// The conversation that `chosen` and `rejected` answer, where they hold one.
    ///
    /// # Errors
    /// When they answer different ones.
    pub(super) fn implied(&self) -> Result<Option<Conversation>> {
        let (Some(chosen), Some(rejected)) = (self.answer("chosen")?, self.answer("rejected")?)
        else {
            return Ok(None);
        };
        self.require_same(&chosen, &rejected)?;
        if chosen.before.is_empty() {
            return Ok(None);
        }
        self.with_system(TextOrMessages::Messages(chosen.before)).map(Some)
    }

    /// Refuses two answers to different conversations.
    pub(super) fn require_same(&self, chosen: &Answer, rejected: &Answer) -> Result<()> {
        match chosen.before == rejected.before {
            true => Ok(()),
            false => Err(self
                .place
                .error("`chosen` and `rejected` do not answer the same conversation")
                .with_hint("leave the row out, or check where the two come from")),
        }
    }

    /// The conversation that an answer belongs to: `before`, which stands in the answer's own column, and what
    /// other columns say.
    ///
    /// # Errors
    /// When they contradict each other, or none says anything.
    pub(super) fn answered(&self, before: Conversation) -> Result<Conversation> {
        let stated = match self.stated()? {
            None if before.is_empty() => return Err(self.missing_prompt()),
            None => return self.with_system(TextOrMessages::Messages(before)),
            Some(stated) => stated,
        };
        if before.first().is_none_or(|first| first.role == "assistant") {
            let mut messages = self.with_system(stated)?;
            messages.extend(before);
            return Ok(messages);
        }
        require_agreement(&stated, &before, "the conversation in `chosen`", self.place)?;
        let messages = match stated {
            // It may begin with a system message that the other lacks.
            TextOrMessages::Messages(messages) if messages.len() > before.len() => {
                without_answer(messages)
            }
            _ => before,
        };
        self.with_system(TextOrMessages::Messages(messages))
    }

    /// An answer, as text or with its conversation; `None` without the column.
    ///
    /// # Errors
    /// When the column does not end with an answer.
    pub(super) fn answer(&self, ours: &str) -> Result<Option<Answer>> {
        let column = self.names.of(ours);
        match self.text_or_messages(column)? {
            None => Ok(None),
            Some(TextOrMessages::Text(text)) => Ok(Some(Answer { before: Vec::new(), text })),
            Some(TextOrMessages::Messages(mut before)) => match before.pop() {
                Some(last) if last.role == "assistant" => {
                    Ok(Some(Answer { before, text: last.content.into() }))
                }
                _ => Err(self
                    .place
                    .error(format!("`{column}` does not end with the assistant's message"))),
            },
        }
    }

    /// Candidates: texts, or messages that say one each; `None` without the column.
    ///
    /// # Errors
    /// When one of them is neither.
    pub(super) fn candidates(&self) -> Result<Option<Vec<String>>> {
        let texts = self.get::<Vec<String>>("candidates");
        let column = self.names.of("candidates");
        if texts.is_ok() {
            return texts;
        }
        match self.row.get(column, self.place)? {
            Some(Value::Array(items))
                if items.iter().any(|item| item.is_object() || item.is_array()) =>
            {
                let numbered = items.into_iter().enumerate();
                numbered
                    .map(|(index, item)| self.candidate(item, &format!("{column}[{index}]")))
                    .collect::<Result<_>>()
                    .map(Some)
            }
            _ => texts,
        }
    }

    fn candidate(&self, item: Value, name: &str) -> Result<String> {
        match TextOrMessages::of(item).map_err(|misfit| self.refuse(name, misfit))? {
            TextOrMessages::Text(text) => Ok(text),
            TextOrMessages::Messages(messages) => match messages.as_slice() {
                [only] if only.role == "assistant" => Ok(only.content.to_string()),
                _ => Err(self.place.error(format!("`{name}` is not one message of the assistant"))),
            },
        }
    }

    /// A conversation that can be answered.
    ///
    /// # Errors
    /// When nobody asks anything at its end.
    pub(super) fn answerable(&self, messages: Conversation) -> Result<Conversation> {
        let messages = if self.names.answered { without_answer(messages) } else { messages };
        require_question(&messages, self.place)?;
        Ok(messages)
    }

    /// The error of a row without a column that is needed.
    pub(super) fn missing(&self, ours: &str) -> Error {
        let column = self.names.of(ours);
        if let Some(error) = self.null(&[column]) {
            return error;
        }
        let error = self.place.error(format!("missing column `{column}`; it has {}", self.known()));
        match ["candidates", "chosen", "rejected", "response"].contains(&ours) {
            true => error.with_hint(format!(
                "rename the column, or name it: `--set prompts.columns.{ours}=NAME`"
            )),
            false => error,
        }
    }

    /// The error of a row in which one of these columns is there and null.
    fn null(&self, columns: &[&str]) -> Option<Error> {
        let column = self.row.names().find(|name| columns.contains(name))?;
        Some(self.place.error(format!("`{column}` is null")).with_hint("leave the row out"))
    }

    /// The error of a row that says nowhere what is answered.
    pub(super) fn missing_prompt(&self) -> Error {
        let columns: Vec<&str> =
            self.names.prompt_columns().chain([self.names.messages()]).collect();
        if let Some(error) = self.null(&columns) {
            return error;
        }
        let wanted: Vec<String> = columns.iter().map(|name| format!("`{name}`")).collect();
        let names = self.place.columns().unwrap_or_else(|| self.row.names().collect());
        self.place
            .error(format!("missing column {}; it has {}", wanted.join(" or "), self.known()))
            .with_hint(remedy_for(&names))
    }

    /// The names of all columns of the file.
    fn known(&self) -> String {
        let names = self.place.columns().unwrap_or_else(|| self.row.names().collect());
        if names.is_empty() {
            return "none".into();
        }
        names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
    }
}

/// Advice on a row with these columns, none of which is a prompt by its name.
fn remedy_for(names: &[&str]) -> String {
    /// Names under which data sets have prompts, the more telling first.
    const USUAL: [&str; 11] = [
        "prompt",
        "instruction",
        "question",
        "query",
        "problem",
        "text",
        "content",
        "inputs",
        "input",
        "user",
        "goal",
    ];
    let named = |wanted: &str| names.iter().find(|name| name.eq_ignore_ascii_case(wanted));
    let system = match named("system").or(named("system_prompt")) {
        Some(name) => format!("; `--set prompts.columns.system={name}` puts `{name}` before it"),
        None => String::new(),
    };
    let prompt = USUAL.into_iter().find_map(named);
    match (prompt, named("input")) {
        (Some(&"instruction"), Some(&"input")) => format!(
            "`--set 'prompts.columns.prompt=[\"instruction\",\"input\"]'` takes both, an empty line between \
             them{system}"
        ),
        (Some(name), _) => {
            format!("if `{name}` is the prompt: `--set prompts.columns.prompt={name}`{system}")
        }
        (None, _) if named("chosen").is_some() => {
            "write `chosen` and `rejected` as lists of messages, or give the prompt in a column of its own: \
             `prompt`, or `--set prompts.columns.prompt=NAME`"
                .into()
        }
        (None, _) => "give `prompt` (text) or `messages` (a list of {role, content}), or name the column: \
                      `--set prompts.columns.prompt=NAME`"
            .into(),
    }
}
