//! The criteria, one file each. A criterion gives every response a measure; a pair's vote follows from
//! the two measures alone, so the measures are taken once per response and not once per pair.

mod ended;
mod json;
mod length;
mod patterns;
mod relevance;
mod repetition;

pub(crate) use ended::Ended;
pub(crate) use json::Json;
pub(crate) use length::Length;
pub(crate) use patterns::Patterns;
pub(crate) use relevance::Relevance;
pub(crate) use repetition::Repetition;
use sppo_plugin::PluginError;

use crate::text::Reading;

/// One member of the committee.
pub(crate) trait Criterion {
    /// One measure per response: the larger the better, never NaN; `None` where there is nothing to
    /// measure, which ties with every other response.
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>>;

    /// Measures that differ by no more than this tie.
    fn margin(&self) -> f64 {
        0.0
    }
}

/// A criterion's word on a pair of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Vote {
    First,
    Tie,
    Second,
}

impl Vote {
    /// The vote that follows from the measures of the first and of the second response.
    pub(crate) fn between(first: Option<f64>, second: Option<f64>, margin: f64) -> Self {
        match (first, second) {
            (Some(first), Some(second)) if first > second + margin => Self::First,
            (Some(first), Some(second)) if second > first + margin => Self::Second,
            _ => Self::Tie,
        }
    }

    /// 1 for the first response, -1 for the second, 0 for a tie.
    pub(crate) fn sign(self) -> f64 {
        match self {
            Self::First => 1.0,
            Self::Tie => 0.0,
            Self::Second => -1.0,
        }
    }
}

/// Refuses a margin that would silence its criterion or make no sense.
fn checked_margin(criterion: &str, margin: f64) -> Result<f64, PluginError> {
    if (0.0..=1.0).contains(&margin) {
        Ok(margin)
    } else {
        Err(PluginError::configuration(format!("{criterion}.margin: {margin} is not from 0 to 1"))
            .with_hint("0 lets the smallest difference decide, 0.05 is a usual value"))
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use sppo_plugin::{Candidate, Comparison, Message};

    use super::{Criterion, Vote};
    use crate::text::Reading;

    /// The criterion's vote on two responses to a question.
    pub(crate) fn vote(criterion: &dyn Criterion, question: &str, responses: [&str; 2]) -> Vote {
        vote_on_candidates(criterion, question, responses.map(Candidate::from_text))
    }

    pub(crate) fn vote_on_candidates(
        criterion: &dyn Criterion,
        question: &str,
        candidates: [Candidate; 2],
    ) -> Vote {
        let comparison = Comparison {
            prompt: [Message::user(question)].into(),
            rendered_prompt: None,
            candidates: candidates.into(),
        };
        let measures = criterion.measures(&Reading::new(&comparison));
        Vote::between(measures[0], measures[1], criterion.margin())
    }
}
