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
}
