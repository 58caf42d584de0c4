//! A question to a service, and the verdict that it gives.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sppo_plugin::Comparison;

/// A question: how good one response is, or which of two is better.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) comparison: &'a Comparison<'a>,
    /// The response, or the one that is shown first.
    pub(crate) first: usize,
    /// The response shown second, when there are two.
    pub(crate) second: Option<usize>,
    /// The way in which it is asked, where a protocol asks about a response in several: the index of a criterion, or
    /// of an order.
    pub(crate) variant: usize,
}

impl<'a> Question<'a> {
    /// The question how good a response is, which is asked in no other way.
    pub(crate) fn about(comparison: &'a Comparison<'a>, response: usize) -> Self {
        Self { comparison, first: response, second: None, variant: 0 }
    }

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

/// The part of a request that asks one question. Together with the settings it decides the verdict.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// The content that all questions of a request share: parts that differ here need two requests.
    pub(crate) shared: Value,
    /// The content of this question alone.
    pub(crate) own: Value,
}

impl Part {
    pub(crate) fn of(own: Value) -> Self {
        Self { shared: Value::Null, own }
    }
}

/// The verdict of a service on one question.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum QuestionVerdict {
    /// The probability that the response shown first is better, in `[0, 1]`.
    Probability(f64),
    /// The log-odds of it.
    Logit(f64),
    /// The reward of a single response.
    Score(f64),
}

impl QuestionVerdict {
    /// The number alone.
    pub(crate) fn value(self) -> f64 {
        match self {
            Self::Probability(value) | Self::Logit(value) | Self::Score(value) => value,
        }
    }

    /// Whether the number is in its range.
    pub(crate) fn is_valid(self) -> bool {
        match self {
            Self::Probability(value) => (0.0..=1.0).contains(&value),
            Self::Logit(value) => (value as f32).is_finite(),
            Self::Score(value) => value.is_finite(),
        }
    }
}

/// A well-formed reply that holds no verdict: the text that the judge wrote instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InvalidVerdict(pub(crate) String);

/// The reply of a service to one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct JudgeReply {
    /// One for each question, in order.
    pub(crate) verdicts: Vec<Result<QuestionVerdict, InvalidVerdict>>,
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    /// The end of a language model's reply.
    pub(crate) ending: Ending,
    pub(crate) certainty: Certainty,
    /// Words in which the service refused the request; there are no verdicts then.
    pub(crate) refusal: Option<String>,
}

/// The end of a language model's reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It said all that it wanted to say.
    #[default]
    Complete,
    /// It reached the limit of tokens.
    CutOff,
    /// The service's filter stopped it.
    Filtered,
    /// The model declined to answer.
    Refused,
    /// It calls a tool in place of an answer.
    CalledTool,
    /// There is a thought and no answer.
    ThoughtAlone,
    /// The service broke it off with an error.
    Broken,
}

impl Ending {
    /// The reason why a reply with this end is no verdict, for people.
    pub(crate) fn reason(self, tables: Tables) -> Option<String> {
        let Tables { replies, max_tokens, .. } = tables;
        Some(match self {
            Self::Complete => return None,
            Self::CutOff => format!("cut off at {replies}.max_tokens ({max_tokens})"),
            Self::Filtered => "stopped by the service's content filter".into(),
            Self::Refused => "the judge declined to answer".into(),
            Self::CalledTool => "it calls a tool in place of an answer".into(),
            Self::ThoughtAlone => "a thought and no answer".into(),
            Self::Broken => "the service broke it off".into(),
        })
    }

    /// The remedy for many replies with this end.
    pub(crate) fn remedy(self, tables: Tables) -> String {
        let Tables { questions, replies, .. } = tables;
        match self {
            Self::CutOff => format!(
                "raise `{replies}.max_tokens`: a reasoning model needs thousands, and others room for what \
                 they say before the verdict"
            ),
            Self::Filtered => {
                "choose a judge whose service does not filter, or leave such prompts out".into()
            }
            Self::ThoughtAlone => format!(
                "raise `{replies}.max_tokens`, or switch the judge's thinking off (with \
                 `oracle.http.extra`, by the name that the service has for it)"
            ),
            _ => match questions {
                "judge" => {
                    "make the judge answer with a label alone (`judge.template`, `judge.system`), or take a \
                     better judge"
                        .into()
                }
                _ => format!("take a better judge, or ask it otherwise (the table `{questions}`)"),
            },
        }
    }
}

/// The tables of settings that a protocol reads, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables {
    /// The table of its questions.
    pub(crate) questions: &'static str,
    /// The table of the limits of its replies.
    pub(crate) replies: &'static str,
    /// The longest reply, in tokens.
    pub(crate) max_tokens: u32,
}

/// Fate of the log-probabilities of a reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// They were not asked for, or decided.
    #[default]
    AsAsked,
    /// The reply holds none.
    Missing,
    /// They cannot be read: their form is unknown.
    Unknown,
    /// They name tokens by numbers, which nothing explains.
    Numbers,
    /// They belong to other text than the answer, a thought for instance.
    Elsewhere,
    /// The labels have hardly any probability where the answer begins.
    NoLabels,
}

impl Certainty {
    /// The reason why verdicts are hard although log-probabilities were asked for.
    pub(crate) fn reason(self) -> Option<&'static str> {
        Some(match self {
            Self::AsAsked => return None,
            Self::Missing => "the judge gives no log-probabilities",
            Self::Unknown => "the judge's log-probabilities have a form that is not known",
            Self::Numbers => {
                "the judge's log-probabilities name tokens by numbers (vLLM does so with \
                 `--return-tokens-as-token-ids`)"
            }
            Self::Elsewhere => "the judge's log-probabilities do not belong to its answer",
            Self::NoLabels => "no label is likely where the judge's answer has its verdict",
        })
    }
}
