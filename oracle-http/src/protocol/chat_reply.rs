//! The reply of an OpenAI-compatible chat API, read leniently: services differ in every field, and what is not
//! needed for the verdict may be of any kind.

use serde_json::Value;
use sppo_http_transport::Malformed;
use sppo_plugin::thought::{Thought, without_thought};

use super::lenient;
use super::log_probs::LogProbs;
use crate::question::{Ending, InvalidVerdict, JudgeReply, QuestionVerdict};

/// Characters of an invalid reply that are shown.
const EXCERPT: usize = 120;

/// Values of `finish_reason` besides those of a reply that came to its end, by beginnings of their names.
const FINISH_REASONS: [(&str, Ending); 14] = [
    ("length", Ending::CutOff),
    ("max_tokens", Ending::CutOff),
    ("max_output_tokens", Ending::CutOff),
    ("model_length", Ending::CutOff),
    ("content_filter", Ending::Filtered),
    ("content-filter", Ending::Filtered),
    ("safety", Ending::Filtered),
    ("prohibited", Ending::Filtered),
    ("sensitive", Ending::Filtered),
    ("refusal", Ending::Refused),
    ("tool", Ending::CalledTool),
    ("function_call", Ending::CalledTool),
    ("error", Ending::Broken),
    ("abort", Ending::Broken),
];

/// A reply, as far as a judge needs it.
#[derive(Debug, Default)]
pub(super) struct ChatReply {
    /// The text of the answer; thoughts that are marked within it are still there.
    pub(super) text: String,
    /// Whether the reply holds a thought beside the text.
    pub(super) has_thought: bool,
    pub(super) ending: Ending,
    pub(super) log_probs: LogProbs,
    pub(super) prompt_tokens: u64,
    pub(super) completion_tokens: u64,
}

impl ChatReply {
    /// Reads the first choice.
    ///
    /// # Errors
    /// When the body is not JSON, or has no choice with a message.
    pub(super) fn read(body: &[u8]) -> Result<Self, Malformed> {
        let body: Value = super::parse(body)?;
        let choice = body.get("choices").and_then(|choices| choices.get(0));
        let choice = choice.ok_or_else(|| Malformed(without_choices(&body)))?;
        let message = choice.get("message").unwrap_or(choice);
        let content = ["content", "text"].iter().find_map(|name| message.get(name));
        if content.is_none() && choice.get("message").is_none_or(is_empty) {
            return Err(Malformed("the first of `choices` has no `message`".into()));
        }
        let reply = Self::of(&body, choice, message, content.unwrap_or(&Value::Null));
        match reply.ending {
            Ending::Broken => Err(Malformed("the service broke the reply off".into())),
            _ => Ok(reply),
        }
    }

    /// The reply as the oracle takes it, with these verdicts; `None` for an invalid one.
    pub(super) fn judged(&self, verdicts: Vec<Option<QuestionVerdict>>) -> JudgeReply {
        let said = || InvalidVerdict(excerpt(&self.text));
        JudgeReply {
            verdicts: verdicts.into_iter().map(|verdict| verdict.ok_or_else(said)).collect(),
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            ending: self.ending_of_answer(),
            ..JudgeReply::default()
        }
    }

    /// The text of an answer that came to its end, without its thoughts.
    pub(super) fn whole_answer(&self) -> Option<Thought<'_>> {
        let thought = without_thought(&self.text);
        let is_whole = self.ending == Ending::Complete && thought.answer().is_some();
        is_whole.then_some(thought)
    }

    /// The end of the reply; one that has nothing but a thought did not come to it.
    fn ending_of_answer(&self) -> Ending {
        let nothing = match without_thought(&self.text) {
            Thought::Open => true,
            Thought::Absent(answer) => answer.trim().is_empty() && self.has_thought,
            Thought::Closed(answer) => answer.is_empty(),
        };
        match self.ending {
            Ending::Complete if nothing => Ending::ThoughtAlone,
            ending => ending,
        }
    }

    fn of(body: &Value, choice: &Value, message: &Value, content: &Value) -> Self {
        let usage = body.get("usage").unwrap_or(&Value::Null);
        let mut said = Content::default();
        said.add(content);
        let thoughts = ["reasoning_content", "reasoning", "thinking", "reasoning_details"];
        let has_thought =
            thoughts.iter().any(|name| message.get(name).is_some_and(|one| !is_empty(one)));
        let log_probs = ["logprobs", "log_probs"].iter().find_map(|name| choice.get(name));
        Self {
            ending: ending(choice, message, said.refuses),
            text: said.text,
            has_thought: has_thought || said.thinks,
            log_probs: log_probs.map(LogProbs::read).unwrap_or_default(),
            prompt_tokens: lenient::count(usage, &["prompt_tokens", "input_tokens"]),
            completion_tokens: lenient::count(usage, &["completion_tokens", "output_tokens"]),
        }
    }
}

/// The content of a message: a text, or a list of parts of which the texts count.
#[derive(Default)]
struct Content {
    text: String,
    thinks: bool,
    refuses: bool,
}

impl Content {
    fn add(&mut self, content: &Value) {
        match content {
            Value::String(text) => self.text.push_str(text),
            Value::Array(parts) => parts.iter().for_each(|part| self.add(part)),
            Value::Object(part) => {
                let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
                let is = |names: &[&str]| names.iter().any(|name| kind.contains(name));
                if is(&["think", "thought", "reason"])
                    || part.get("thought") == Some(&Value::Bool(true))
                {
                    self.thinks = true;
                } else if is(&["refusal"]) {
                    self.refuses = true;
                } else if let Some(text) =
                    ["text", "content", "value"].iter().find_map(|name| part.get(*name))
                {
                    self.add(text);
                }
            }
            _ => {}
        }
    }
}

/// The end of a reply, by what the service says of it.
fn ending(choice: &Value, message: &Value, refuses: bool) -> Ending {
    let is_there = |name: &str| message.get(name).is_some_and(|value| !is_empty(value));
    let named = |name: &str| choice.get(name).and_then(Value::as_str).map(str::to_lowercase);
    let reason = named("finish_reason").or_else(|| named("stop_reason")).unwrap_or_default();
    let of_reason = FINISH_REASONS.iter().find(|(name, _)| reason.starts_with(name));
    match of_reason {
        Some((_, ending)) => *ending,
        None if refuses || is_there("refusal") => Ending::Refused,
        None if choice.get("error").is_some_and(|error| !is_empty(error)) => Ending::Broken,
        None if is_there("tool_calls") || is_there("function_call") => Ending::CalledTool,
        None => Ending::Complete,
    }
}

/// The reason why there is no choice: mostly that the service speaks another protocol.
fn without_choices(body: &Value) -> String {
    let has = |name: &str| body.get(name).is_some();
    let other = match body {
        Value::Object(_) if has("message") && (has("done") || has("done_reason")) => {
            Some("Ollama's own; its address for others ends in /v1")
        }
        Value::Object(_) if has("response") && has("done") => {
            Some("Ollama's own; its address for others ends in /v1")
        }
        Value::Object(_) if has("content") && has("stop_reason") => {
            Some("Anthropic's /v1/messages")
        }
        Value::Object(_) if has("output") && body["object"] == "response" => Some("/v1/responses"),
        Value::Object(_) if has("candidates") => {
            Some("Gemini's own; it ends in /openai for others")
        }
        Value::Object(_) if has("generated_text") => Some("TGI's own; its address ends in /v1"),
        Value::Array(list) if list.iter().any(|one| one.get("generated_text").is_some()) => {
            Some("TGI's own; its address ends in /v1")
        }
        Value::Object(_) if has("data") || has("models") => Some("a list of models"),
        _ => None,
    };
    match (other, body.get("choices")) {
        (Some(other), _) => format!("no `choices`: this is another protocol ({other})"),
        (None, Some(Value::Array(_))) => "`choices` is empty".into(),
        (None, _) => "there are no `choices`".into(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.trim().is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

/// The beginning of a reply, or words for its lack.
fn excerpt(text: &str) -> String {
    let thought = without_thought(text);
    let said = thought.answer().filter(|answer| !answer.is_empty()).unwrap_or(text).trim();
    let excerpt: String = said.chars().take(EXCERPT).collect();
    if excerpt.is_empty() { "an empty reply".into() } else { excerpt }
}
