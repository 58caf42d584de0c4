//! Protocols: from questions to requests and from replies to verdicts, for each kind of service.

mod chat_reply;
mod labels;
mod lenient;
mod log_probs;
mod openai_judge;
mod openrlhf;
mod pairwise;
mod tei;
mod tokens;
mod verdict;
mod vllm;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use crate::config::{HttpConfig, ProtocolName};
use crate::question::{InvalidVerdict, JudgeReply, Part, Question, QuestionVerdict};

/// A protocol that a service speaks.
pub(crate) trait Protocol: Send + Sync {
    /// The path of the service, unless the user gives another.
    fn path(&self) -> &'static str;

    /// Whether it compares two responses, rather than scoring one.
    fn compares(&self) -> bool;

    /// Questions per request that suit it.
    fn questions_per_request(&self) -> usize;

    /// Whether a request may hold other than one question.
    fn takes_several(&self) -> bool {
        true
    }

    /// Whether the questions of a request must be about the same prompt.
    fn shares_prompt(&self) -> bool {
        false
    }

    /// The part of a request that asks this question.
    fn part(&self, question: Question<'_>) -> Result<Part, PluginError>;

    /// The body of a request, the fields `model` and `extra` aside.
    fn body(&self, parts: Vec<Part>) -> Map<String, Value>;

    /// Reads the reply to a request with `count` parts.
    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed>;
}

/// The protocol that the settings name.
pub(crate) fn create(config: &HttpConfig) -> Result<Box<dyn Protocol>, PluginError> {
    Ok(match config.protocol {
        ProtocolName::Pairwise => Box::new(pairwise::Pairwise),
        ProtocolName::OpenaiJudge => Box::new(openai_judge::OpenaiJudge::new(&config.judge)?),
        ProtocolName::Openrlhf => Box::new(openrlhf::OpenRlhf::new(&config.scoring)?),
        ProtocolName::VllmClassify => Box::new(vllm::Classify::new(&config.scoring)?),
        ProtocolName::VllmScore => Box::new(vllm::Score::new(&config.scoring)?),
        ProtocolName::TeiPredict => Box::new(tei::Predict::new(&config.scoring)?),
        ProtocolName::TeiRerank => Box::new(tei::Rerank::new(&config.scoring)?),
    })
}

/// The most questions that one request holds.
pub(crate) fn questions_per_request(config: &HttpConfig, protocol: &dyn Protocol) -> usize {
    match config.questions_per_request {
        _ if !protocol.takes_several() => 1,
        0 => protocol.questions_per_request(),
        wanted => wanted,
    }
}

/// The parts of all questions, as a list.
fn own(parts: Vec<Part>) -> Value {
    parts.into_iter().map(|part| part.own).collect()
}

/// The part of the only question.
fn only(parts: Vec<Part>) -> Value {
    parts.into_iter().next().map_or(Value::Null, |part| part.own)
}

/// The content that the questions of a request share.
fn shared(parts: &[Part]) -> Value {
    parts.first().map_or(Value::Null, |part| part.shared.clone())
}

/// Parses the fields that a reply must have.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|error| {
        Malformed(match form(body) {
            Some(form) => format!("it is {form}"),
            None => format!("not as expected: {error}"),
        })
    })
}

/// The form of a reply whose scores are no numbers.
pub(crate) const NOT_A_NUMBER: &str = "JSON with NaN or Infinity, which is no score";

/// The form of a body that is no JSON, if it is a frequent one.
fn form(body: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(body);
    let start = text.trim_start();
    let begins =
        |with: &str| start.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with));
    let holds =
        |number: &str| text.split(|c: char| !c.is_alphanumeric()).any(|word| word == number);
    if begins("<!doctype") || begins("<html") {
        Some("a web page: the address is that of something else")
    } else if begins("data:") || begins("event:") {
        Some("a stream; set `stream` to false in `extra`, or leave it out")
    } else if (begins("{") || begins("["))
        && ["NaN", "Infinity", "inf", "nan"].into_iter().any(holds)
    {
        Some(NOT_A_NUMBER)
    } else {
        None
    }
}

/// One valid verdict for each question.
fn all_valid(
    verdicts: impl ExactSizeIterator<Item = QuestionVerdict>,
    count: usize,
) -> Result<Vec<Result<QuestionVerdict, InvalidVerdict>>, Malformed> {
    if verdicts.len() != count {
        return Err(Malformed(format!("{} results for {count} questions", verdicts.len())));
    }
    verdicts
        .map(|verdict| match verdict.is_valid() {
            true => Ok(Ok(verdict)),
            false => Err(Malformed(format!("{verdict:?} is out of range"))),
        })
        .collect()
}

/// Results that each carry the index of their question, brought into the order of the questions. Without any
/// index they are in order.
fn in_order<T>(results: Vec<(Option<usize>, T)>, count: usize) -> Result<Vec<T>, Malformed> {
    if results.len() != count {
        return Err(Malformed(format!("{} results for {count} questions", results.len())));
    }
    let mut slots: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let has_indices = results.iter().any(|(index, _)| index.is_some());
    for (place, (index, result)) in results.into_iter().enumerate() {
        let index = index.or_else(|| (!has_indices).then_some(place));
        let index =
            index.ok_or_else(|| Malformed("a result has no index, and others do".into()))?;
        match slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(result),
            _ => return Err(Malformed(format!("index {index} is out of range or repeated"))),
        }
    }
    Ok(slots.into_iter().flatten().collect())
}

#[cfg(test)]
mod judge_replies;
#[cfg(test)]
mod tests;
