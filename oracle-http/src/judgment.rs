//! One number from a service.

use serde::{Deserialize, Serialize};

/// What a service says about one question.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Judgment {
    /// The probability that the answer shown first is better, in `[0, 1]`.
    Probability(f64),
    /// The log-odds of it.
    Logit(f64),
    /// The reward of a single answer.
    Score(f64),
}

impl Judgment {
    /// What it means when the two answers change places.
    pub(crate) fn swapped(self) -> Self {
        match self {
            Self::Probability(value) => Self::Probability(1.0 - value),
            Self::Logit(value) => Self::Logit(-value),
            Self::Score(_) => self,
        }
    }

    /// Whether it is a number that makes sense.
    pub(crate) fn is_valid(self) -> bool {
        match self {
            Self::Probability(value) => (0.0..=1.0).contains(&value),
            Self::Logit(value) => (value as f32).is_finite(),
            Self::Score(value) => value.is_finite(),
        }
    }
}
