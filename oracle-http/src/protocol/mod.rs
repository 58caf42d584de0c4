//! Protocols: from questions to requests and from replies to verdicts, for each kind of service.

mod chat_judge;
mod chat_reply;
mod decisions;
mod dialect;
mod genrm;
mod groupwise;
mod json_in_text;
mod labels;
mod lenient;
mod log_probs;
mod nemo_gym;
mod openai_judge;
mod openrlhf;
mod pairwise;
mod rubric;
mod rubric_file;
mod tei;
mod tokens;
mod verdict;
mod vllm;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sppo_http_transport::Malformed;
use sppo_plugin::{Comparison, PluginError};

use self::dialect::Dialect;
use crate::combination::Combination;
use crate::config::{HttpConfig, ProtocolName, RubricJudge};
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

    /// The content that the questions of a request must have in common.
    fn common(&self) -> Common {
        Common::Nothing
    }

    /// Ways in which each response is asked about, unless responses are compared.
    fn variants(&self) -> usize {
        1
    }

    /// The questions about the responses to a prompt, unless they are compared. Those that share a request stand
    /// together.
    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        let responses = 0..comparison.candidates.len();
        responses.map(|response| Question::about(comparison, response)).collect()
    }

    /// The meaning of the answers about each response, unless responses are compared.
    fn combination(&self) -> Combination {
        Combination::Mean
    }

    /// The part of the judge's identity that stands in no setting.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Whether the same question may get another answer the next time, so that an invalid one is worth asking again.
    fn varies(&self) -> bool {
        true
    }

    /// The part of a request that asks this question.
    fn part(&self, question: Question<'_>) -> Result<Part, PluginError>;

    /// The body of a request, the fields `model` and `extra` aside.
    fn body(&self, parts: Vec<Part>) -> Map<String, Value>;

    /// Reads the reply to a request with `count` parts.
    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed>;
}

/// The path of chat APIs.
const CHAT_PATH: &str = "/v1/chat/completions";

/// The content that the questions of a request have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Common {
    /// Nothing: any questions may share a request.
    Nothing,
    /// The prompt.
    Prompt,
    /// The prompt and the response.
    Response,
    /// The prompt and one order of all responses, which are asked about together or not at all.
    Group,
}

/// The protocol that the settings name.
pub(crate) fn create(config: &HttpConfig) -> Result<Box<dyn Protocol>, PluginError> {
    Ok(match config.protocol {
        ProtocolName::Pairwise => Box::new(pairwise::Pairwise),
        ProtocolName::OpenaiJudge => Box::new(openai_judge::OpenaiJudge::new(&config.judge)?),
        ProtocolName::Systemone => Box::new(decisions::Decisions::new(config, Dialect::SystemOne)?),
        ProtocolName::OpenaiDecisions => {
            Box::new(decisions::Decisions::new(config, Dialect::OpenAi)?)
        }
        ProtocolName::NvidiaGenrm => Box::new(genrm::Genrm::new(&config.genrm)?),
        ProtocolName::OpenaiRubric => match config.rubric.ask {
            RubricJudge::Chat => Box::new(rubric::ChatRubric::new(config)?),
            RubricJudge::Systemone => {
                Box::new(rubric::DecisionRubric::new(config, Dialect::SystemOne)?)
            }
            RubricJudge::OpenaiDecisions => {
                Box::new(rubric::DecisionRubric::new(config, Dialect::OpenAi)?)
            }
        },
        ProtocolName::OpenaiGroupwise => Box::new(groupwise::Groupwise::new(config)?),
        ProtocolName::NemoGymCompare => Box::new(nemo_gym::NemoGym::new(&config.genrm)),
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
        _ if protocol.common() == Common::Group => usize::MAX,
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
mod decision_tests;
#[cfg(test)]
mod group_tests;
#[cfg(test)]
mod judge_replies;
#[cfg(test)]
mod tests;
