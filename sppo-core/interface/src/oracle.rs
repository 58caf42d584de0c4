//! The author's side of a preference oracle.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::{FinishReason, PluginError, Progress, Services};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message<'a> {
    /// `system`, `user`, `assistant`, or whatever the model's chat template knows.
    pub role: Cow<'a, str>,
    /// The text of the turn.
    pub content: Cow<'a, str>,
}

impl<'a> Message<'a> {
    /// A turn of the user.
    pub fn user(content: impl Into<Cow<'a, str>>) -> Self {
        Self { role: "user".into(), content: content.into() }
    }

    /// A turn of the assistant.
    pub fn assistant(content: impl Into<Cow<'a, str>>) -> Self {
        Self { role: "assistant".into(), content: content.into() }
    }
}

/// The turns of a conversation, with their texts.
pub type Conversation = Vec<Message<'static>>;

/// One response to a prompt, as an oracle sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The response's text, without the stop token.
    pub text: Cow<'a, str>,
    /// Reason for which the response ended; `None` when it came from a file.
    pub finish_reason: Option<FinishReason>,
    /// The response's length in the policy's tokens; `None` when it came from a file.
    pub token_count: Option<usize>,
}

impl<'a> Candidate<'a> {
    /// A candidate with its text alone.
    pub fn from_text(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), finish_reason: None, token_count: None }
    }
}

/// A prompt and the K candidates to compare. Texts and lists are lent, also to plugins in libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison<'a> {
    /// The conversation so far, ending with the user's turn.
    pub prompt: List<'a, Message<'a>>,
    /// The prompt as the policy's chat template renders it; `None` when no policy is loaded.
    pub rendered_prompt: Option<Cow<'a, str>>,
    /// The K responses.
    pub candidates: List<'a, Candidate<'a>>,
}

/// An oracle's raw word on the K candidates of one comparison. Matrices are row-major `K x K`.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// `P[i][j]`: the probability that candidate `i` is preferred to candidate `j`. Finite, in
    /// `[0, 1]`, the diagonal 1/2. Need not be transitive.
    Probabilities(Vec<f64>),
    /// `O[i][j]`: the probability that candidate `i`, shown first, is preferred to candidate `j`, shown second;
    /// `None` where this order was not asked, or got no answer. Finite, in `[0, 1]`. The core averages both
    /// orders, and keeps them to tell how much the oracle favours a place.
    Orders(Vec<Option<f64>>),
    /// `L[i][j]`: the logit of a pairwise ranker with candidate `i` shown first and `j` second,
    /// diagonal 0. The core's win-rate estimator turns it into probabilities.
    Logits(Vec<f32>),
    /// One score per candidate, length `K`; the core makes a Bradley-Terry matrix of them.
    Scores(Vec<f64>),
}

/// Judges candidates.
pub trait Oracle {
    /// Gets ready: called once, before a long run begins, so that whatever is missing (a model, a
    /// server, another oracle) is found out now and not hours later.
    ///
    /// # Errors
    /// When the oracle could not judge.
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        let _ = (services, progress);
        Ok(())
    }

    /// One verdict for each comparison, in order. Called after [`Self::prepare`].
    ///
    /// # Errors
    /// When a comparison cannot be judged. A verdict is never guessed.
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError>;

    /// Label of the plugin that it was made of, for instance ``oracle `rules` ``, for errors about what it
    /// returns. The program sets it.
    fn plugin(&self) -> Option<&'static str> {
        None
    }

    /// Origin of its judgments besides this plugin's code and settings, for the record: a model's hash, or
    /// the name of a model and the address of its service. A run may only go on with the same.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Number of requests to a service, at most and without failures, that it takes to judge `comparisons`
    /// times `candidates` responses; `None` when no service is asked.
    fn expected_requests(&self, _comparisons: u64, _candidates: u64) -> Option<u64> {
        None
    }

    /// Number of sequences, at most, that a model on the run's backend computes to judge `comparisons` times
    /// `candidates` responses; `None` when no model is asked.
    fn expected_sequences(&self, _comparisons: u64, _candidates: u64) -> Option<u64> {
        None
    }
}

/// A list that is borrowed or owned; read it as a slice. Unlike `Cow<[T]>` it may
/// stand where one of a shorter lifetime is asked for.
#[derive(Clone)]
pub enum List<'a, T> {
    /// A slice of another list.
    Borrowed(&'a [T]),
    /// Its own values.
    Owned(Vec<T>),
}

impl<T> Deref for List<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Borrowed(values) => values,
            Self::Owned(values) => values,
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for List<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

impl<T: PartialEq> PartialEq for List<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for List<'_, T> {}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self::Borrowed(values)
    }
}

impl<T> From<Vec<T>> for List<'_, T> {
    fn from(values: Vec<T>) -> Self {
        Self::Owned(values)
    }
}

impl<T, const LENGTH: usize> From<[T; LENGTH]> for List<'_, T> {
    fn from(values: [T; LENGTH]) -> Self {
        Self::Owned(values.into())
    }
}

impl<T> FromIterator<T> for List<'_, T> {
    fn from_iter<Values: IntoIterator<Item = T>>(values: Values) -> Self {
        Self::Owned(values.into_iter().collect())
    }
}

impl<'a, T> IntoIterator for &'a List<'_, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
