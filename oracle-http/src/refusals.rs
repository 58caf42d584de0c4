//! Refusals of judges: what they are about, and the setting that mends them.

use serde_json::{Map, Value};
use sppo_http_transport::{Address, Reason, Refusal};

use crate::config::HttpConfig;
use crate::question::Tables;

/// Statuses of a refusal that may be about a single question; 500 is that of one that fails every time.
const OF_A_QUESTION: [u16; 5] = [400, 413, 422, 451, 500];
/// Words of services about a text that is too long.
const TOO_LONG: [&str; 15] = [
    "context length",
    "context_length",
    "context window",
    "context size",
    "maximum context",
    "too long",
    "too large for",
    "payload too large",
    "entity too large",
    "request too large",
    "max_model_len",
    "maximum input length",
    "maximum number of tokens",
    "must have less than",
    "input tokens exceed",
];
/// Words of services about a text that they do not want to read.
const FILTERED: [&str; 9] = [
    "content_filter",
    "content filter",
    "content management policy",
    "content policy",
    "content_policy",
    "safety system",
    "flagged",
    "data_inspection_failed",
    "sensitive",
];
/// Words of services about a model that they do not have.
const NO_MODEL: [&str; 6] = [
    "model_not_found",
    "does not exist",
    "no such model",
    "unknown model",
    "model not found",
    "invalid model",
];

/// Words of services about a turn of the system.
const NO_SYSTEM: [&str; 6] = [
    "system role not supported",
    "does not support 'system'",
    "system role is not",
    "system messages are not",
    "system message is not",
    "system prompt is not",
];
/// Words of services about a number that is out of range.
const LIMITS: [&str; 9] = [
    "too large",
    "less than",
    "at most",
    "at least",
    "<=",
    ">=",
    "exceed",
    "between",
    "greater than",
];
/// Fields that no request can do without.
const NEEDED: [&str; 10] = [
    "model",
    "messages",
    "items",
    "query",
    "input",
    "inputs",
    "text_1",
    "text_2",
    "state",
    "questions",
];
/// Words of services about a model that makes no decisions.
const NO_DECISIONS: [&str; 6] = [
    "not implemented",
    "not supported",
    "unsupported",
    "does not support",
    "single token",
    "distinct token",
];

/// The subject of a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    /// A field of the request, by its name.
    Field(String),
    /// The model's name.
    Model,
    /// The turn of the system.
    System,
    /// A model that makes no decisions.
    NoDecisions,
    /// This one question: its text is too long, or filtered.
    Question,
    /// Not said in words that are known.
    Unknown,
}

/// The fields of requests, and what they are about.
pub(crate) struct Refusals {
    /// Names of the fields that may be left out or changed.
    fields: Vec<String>,
    extra: Map<String, Value>,
    max_tokens_field: String,
    tables: Tables,
    /// Whether the service makes decisions.
    decides: bool,
    model: Option<String>,
    /// An address of a chat API that may be a base address, which its clients would complete.
    maybe_base: Option<String>,
}

impl Refusals {
    /// `fields` are those of every request.
    pub(crate) fn new(config: &HttpConfig, fields: impl Iterator<Item = String>) -> Self {
        Self {
            fields: fields.filter(|field| !NEEDED.contains(&field.as_str())).collect(),
            extra: config.extra.clone(),
            max_tokens_field: config.judge.max_tokens_field.clone(),
            tables: config.tables(),
            decides: config.asks_decisions(),
            model: config.model.clone(),
            maybe_base: maybe_base(config),
        }
    }

    /// The subject of a refusal in these words.
    pub(crate) fn subject(&self, status: u16, words: &str) -> Subject {
        let words = words.to_lowercase();
        let holds = |some: &[&str]| some.iter().any(|word| words.contains(word));
        if holds(&TOO_LONG) || holds(&FILTERED) {
            return Subject::Question;
        }
        if holds(&NO_MODEL) && words.contains("model") {
            return Subject::Model;
        }
        if holds(&NO_SYSTEM) {
            return Subject::System;
        }
        if self.decides && (status == 501 || status == 400 && holds(&NO_DECISIONS)) {
            return Subject::NoDecisions;
        }
        match self.field_in(&words) {
            Some(field) if status != 404 => Subject::Field(field.to_owned()),
            _ => Subject::Unknown,
        }
    }

    /// Whether a refusal may be about a single question, as far as its words tell; `Some` if they do.
    pub(crate) fn is_of_a_question(&self, refusal: &Refusal) -> Option<bool> {
        if refusal.reason != Reason::Request || !OF_A_QUESTION.contains(&refusal.status) {
            return Some(false);
        }
        match self.subject(refusal.status, &refusal.details) {
            Subject::Question => Some(true),
            Subject::Field(_) | Subject::Model | Subject::System | Subject::NoDecisions => {
                Some(false)
            }
            Subject::Unknown => None,
        }
    }

    /// The remedy for a refusal, where one is known.
    pub(crate) fn hint(&self, status: u16, words: &str) -> Option<String> {
        match self.subject(status, words) {
            Subject::Field(field) => Some(self.hint_about(&field, &words.to_lowercase())),
            Subject::Model => Some(format!(
                "check `oracle.http.model`: the service does not know `{}`",
                self.model.as_deref().unwrap_or_default()
            )),
            Subject::System => Some(format!(
                "set `{0}.system = \"\"`, and say in `{0}.{1}` what the judge should know",
                self.tables.questions,
                if self.tables.questions == "rubric" { "state" } else { "template" },
            )),
            Subject::NoDecisions => Some(
                "take a model that this server makes decisions with: vLLM 0.33 does so only for some families \
                 (among them Qwen 3, Qwen 3.5 and Gemma 4), SGLang for chat models whose labels are one token \
                 each; others answer as `openai-judge`"
                    .into(),
            ),
            Subject::Question if status == 413 => {
                Some("lower `questions_per_request`, or shorten the answers".into())
            }
            Subject::Question => Some(format!(
                "shorten this prompt and its answers or leave them out, take a judge with a longer context \
                 or lower `{}.max_tokens`, or raise `oracle.http.max_refused_share`, the share of prompts that may be set aside",
                self.tables.replies
            )),
            Subject::Unknown => match status {
                404 | 405 => Some(match &self.maybe_base {
                    Some(base) => format!(
                        "check `endpoints` (if `{base}` is a base address, write `{base}{CHAT}`), `protocol` \
                         and `model`"
                    ),
                    None => "check `endpoints`, `protocol` and `model`".into(),
                }),
                413 => Some("lower `questions_per_request`, or shorten the answers".into()),
                _ => None,
            },
        }
    }

    fn hint_about(&self, field: &str, words: &str) -> String {
        let replies = self.tables.replies;
        let leave_out = format!("`oracle.http.leave_out = [\"{field}\"]` sends none");
        let says = |some: &[&str]| some.iter().any(|word| words.contains(word));
        if self.extra.contains_key(field) {
            return format!("take `{field}` out of `oracle.http.extra`, or change it there");
        }
        match field {
            "logprobs" => {
                "set `judge.log_probs = false`: this model does not give log-probabilities".into()
            }
            "top_logprobs" if says(&LIMITS) => {
                "lower `judge.top_log_probs` to what the service says (5 will do)".into()
            }
            "top_logprobs" => format!("set `judge.log_probs = false`, or {leave_out}"),
            "temperature" => format!("set `{replies}.temperature = 1`, or {leave_out}"),
            _ if field != self.max_tokens_field => leave_out,
            "max_tokens" if says(&["max_completion_tokens"]) || !says(&LIMITS) => {
                format!(
                    "set `judge.max_tokens_field = \"max_completion_tokens\"`; models that ask for it usually \
                     also want `judge.log_probs = false` and `{replies}.temperature = 1`"
                )
            }
            _ if says(&LIMITS) => {
                format!("change `{replies}.max_tokens` to what the service allows")
            }
            _ => format!("set `judge.max_tokens_field = \"max_tokens\"`, or {leave_out}"),
        }
    }

    /// The field whose name stands first in the text as a word, one in quotes before others: a refusal may name
    /// others that would do in its place.
    fn field_in(&self, words: &str) -> Option<&str> {
        let in_quotes = |field: &&String| {
            ['\'', '"', '`'].iter().any(|quote| words.contains(&format!("{quote}{field}{quote}")))
        };
        let place = |field: &&String| position_of_word(words, field).unwrap_or(usize::MAX);
        let named = self.fields.iter().filter(|field| position_of_word(words, field).is_some());
        let first = named.clone().filter(in_quotes).min_by_key(place);
        first.or_else(|| named.min_by_key(place)).map(String::as_str)
    }
}

/// The end of a chat API's address.
const CHAT: &str = "/chat/completions";

fn maybe_base(config: &HttpConfig) -> Option<String> {
    let is_chat = config.asks_chat();
    let shown =
        |endpoint: &String| Address::parse(endpoint, CHAT).ok().map(|address| address.shown);
    let mut addresses = config.endpoints.iter().filter_map(shown).filter(|_| is_chat);
    addresses.find(|address| !address.ends_with(CHAT))
}

/// The place of a word in a text.
fn position_of_word(text: &str, word: &str) -> Option<usize> {
    let is_of_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    text.match_indices(word).map(|(index, _)| index).find(|index| {
        let before = text[..*index].chars().next_back();
        let after = text[index + word.len()..].chars().next();
        !before.is_some_and(is_of_word) && !after.is_some_and(is_of_word)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::ProtocolName;

    fn refusals() -> Refusals {
        let fields =
            ["model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs", "seed"];
        let extra = Map::from_iter([("seed".to_owned(), json!(1))]);
        let config = HttpConfig { extra, model: Some("judge-1".into()), ..HttpConfig::default() };
        Refusals::new(&config, fields.map(String::from).into_iter())
    }

    /// Statuses, words of services, and what the hint must name.
    const HINTS: [(u16, &str, &str); 18] = [
        (
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "max_tokens_field = \"max_completion_tokens\"",
        ),
        (
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "judge.temperature = 1",
        ),
        (
            400,
            "max_tokens is too large: 5000. This model supports at most 4096 completion tokens",
            "`judge.max_tokens`",
        ),
        (
            400,
            "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
            "judge.temperature = 1",
        ),
        (400, "`temperature` is deprecated for this model.", "leave_out = [\"temperature\"]"),
        (
            422,
            "{\"detail\":[{\"type\":\"extra_forbidden\",\"loc\":[\"body\",\"temperature\"]}]}",
            "judge.temperature",
        ),
        (403, "You are not allowed to request logprobs from this model", "judge.log_probs = false"),
        (400, "property 'logprobs' is unsupported", "judge.log_probs = false"),
        (
            400,
            "Invalid value for 'top_logprobs': must be less than or equal to 5.",
            "judge.top_log_probs",
        ),
        (
            400,
            "Unrecognized request argument supplied: top_logprobs",
            "leave_out = [\"top_logprobs\"]",
        ),
        (400, "{\"error\":{\"message\":\"no\",\"param\":\"seed\"}}", "out of `oracle.http.extra`"),
        (404, "The model `judge-1` does not exist or you do not have access to it.", "`judge-1`"),
        (400, "model_not_found: judge-1", "oracle.http.model"),
        (400, "System role not supported", "judge.system = \"\""),
        (
            400,
            "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
            "judge.system = \"\"",
        ),
        (404, "no such page", "`endpoints`"),
        (413, "Payload too large", "questions_per_request"),
        (
            400,
            "This model's maximum context length is 1024 tokens. However, you requested 1040 (max_tokens 16).",
            "max_refused_share",
        ),
    ];

    #[test]
    fn hints_name_the_setting_that_mends_a_refused_parameter() {
        for (status, words, hint) in HINTS {
            let said = refusals().hint(status, words).unwrap_or_default();
            assert!(said.contains(hint), "{words}: {said}");
        }
        assert_eq!(refusals().hint(400, "so it is"), None);
        let genrm = HttpConfig { protocol: ProtocolName::NvidiaGenrm, ..HttpConfig::default() };
        let fields = ["temperature".to_owned()].into_iter();
        let hint = Refusals::new(&genrm, fields).hint(400, "'temperature' is not supported");
        assert!(hint.unwrap().contains("set `genrm.temperature = 1`"));
        let config = HttpConfig {
            protocol: ProtocolName::OpenaiJudge,
            endpoints: vec!["http://h:1/v1".into(), "http://h:1/my/gateway".into()],
            ..HttpConfig::default()
        };
        let hint = Refusals::new(&config, std::iter::empty()).hint(404, "no such page").unwrap();
        assert!(hint.contains("write `http://h:1/my/gateway/chat/completions`"), "{hint}");
    }

    #[test]
    fn a_refusal_is_about_a_question_or_about_all_of_them() {
        let of = |status, reason, details: &str| {
            refusals().is_of_a_question(&Refusal { status, reason, details: details.into() })
        };
        for details in [
            "This model's maximum context length is 1024 tokens.",
            "Input is too long for requested model.",
            "The request exceeds the available context size",
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy",
            "Your input was flagged",
        ] {
            assert_eq!(of(400, Reason::Request, details), Some(true), "{details}");
        }
        assert_eq!(of(400, Reason::Request, "so it is"), None);
        for status in [401, 403, 404, 405, 302] {
            assert_eq!(of(status, Reason::Request, "too long"), Some(false), "{status}");
        }
        assert_eq!(of(400, Reason::Request, "'temperature' is not supported"), Some(false));
        assert_eq!(of(400, Reason::Request, "unknown model judge-1"), Some(false));
        assert_eq!(of(400, Reason::Payment, "too long"), Some(false));
    }
}
