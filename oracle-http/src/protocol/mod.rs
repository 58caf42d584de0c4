//! How questions become requests and replies become judgments, for each kind of service.

mod openai_judge;
mod openrlhf;
mod pairwise;
mod tei;
mod verdict;
mod vllm;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sppo_plugin::{Comparison, PluginError};

use crate::config::{HttpConfig, ProtocolName};
use crate::judgment::Judgment;

/// What is asked: how good one answer is, or which of two is better.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) comparison: &'a Comparison<'a>,
    /// The answer, or the one that is shown first.
    pub(crate) first: usize,
    /// The answer shown second, when there are two.
    pub(crate) second: Option<usize>,
}

impl<'a> Question<'a> {
    pub(crate) fn first_text(&self) -> &'a str {
        self.text(Some(self.first))
    }

    pub(crate) fn second_text(&self) -> &'a str {
        self.text(self.second)
    }

    fn text(&self, index: Option<usize>) -> &'a str {
        let candidate = index.and_then(|index| self.comparison.candidates.get(index));
        candidate.map_or("", |candidate| &*candidate.text)
    }
}

/// What of a question goes into a request. With the settings it decides the judgment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Parts with different values cannot share a request.
    pub(crate) shared: Value,
    /// What stands for this question in the request.
    pub(crate) own: Value,
}

impl Part {
    fn of(own: Value) -> Self {
        Self { shared: Value::Null, own }
    }
}

/// What a service said.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reply {
    /// One for each question, in order.
    pub(crate) judgments: Vec<Result<Judgment, Invalid>>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
}

/// A reply in good form that is no verdict: what the judge said instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Invalid(pub(crate) String);

/// Why a reply makes no sense: what is wrong with its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

/// A way to talk to a service.
pub(crate) trait Protocol: Send + Sync {
    /// The path that it is served at, unless the user says otherwise.
    fn path(&self) -> &'static str;

    /// Whether it compares two answers, rather than scoring one.
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

    /// Lays a question out.
    fn part(&self, question: Question<'_>) -> Result<Part, PluginError>;

    /// The body of a request, the fields `model` and `extra` aside.
    fn body(&self, parts: Vec<Part>) -> Map<String, Value>;

    /// Reads the reply to a request with `count` parts.
    fn read(&self, body: &[u8], count: usize) -> Result<Reply, Malformed>;
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

/// What stands for each question.
fn own(parts: Vec<Part>) -> Value {
    parts.into_iter().map(|part| part.own).collect()
}

/// What stands for the only question.
fn only(parts: Vec<Part>) -> Value {
    parts.into_iter().next().map_or(Value::Null, |part| part.own)
}

/// What the questions of a request share.
fn shared(parts: &[Part]) -> Value {
    parts.first().map_or(Value::Null, |part| part.shared.clone())
}

/// The fields that a reply must have.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(body).map_err(|error| Malformed(format!("not as expected: {error}")))
}

/// One valid judgment for each question.
fn all_valid(
    judgments: impl ExactSizeIterator<Item = Judgment>,
    count: usize,
) -> Result<Vec<Result<Judgment, Invalid>>, Malformed> {
    if judgments.len() != count {
        return Err(Malformed(format!("{} results for {count} questions", judgments.len())));
    }
    judgments
        .map(|judgment| match judgment.is_valid() {
            true => Ok(Ok(judgment)),
            false => Err(Malformed(format!("{judgment:?} makes no sense"))),
        })
        .collect()
}

/// Results that each say which question they answer, brought into the questions' order.
fn in_order<T>(results: Vec<(usize, T)>, count: usize) -> Result<Vec<T>, Malformed> {
    if results.len() != count {
        return Err(Malformed(format!("{} results for {count} questions", results.len())));
    }
    let mut slots: Vec<Option<T>> = (0..count).map(|_| None).collect();
    for (index, result) in results {
        match slots.get_mut(index) {
            Some(slot @ None) => *slot = Some(result),
            _ => return Err(Malformed(format!("index {index} is out of range or repeated"))),
        }
    }
    Ok(slots.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
