//! The author's side of a preference oracle.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{Host, List, PluginError};

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

/// One answer to a prompt, as an oracle sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The answer's text, without the end token.
    pub text: Cow<'a, str>,
    /// Whether the model ended the answer itself; `None` when the answer came from a file.
    pub finished: Option<bool>,
    /// The answer's length in the policy's tokens; `None` when it came from a file.
    pub token_count: Option<usize>,
}

impl<'a> Candidate<'a> {
    /// A candidate of which only the text is known.
    pub fn from_text(text: impl Into<Cow<'a, str>>) -> Self {
        Self { text: text.into(), finished: None, token_count: None }
    }
}

/// A prompt and the K candidates to compare. Texts and lists are lent, also to plugins in libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comparison<'a> {
    /// The conversation so far, ending with the user's turn.
    pub prompt: List<'a, Message<'a>>,
    /// The prompt as the policy's chat template renders it; `None` when no policy is loaded.
    pub rendered_prompt: Option<Cow<'a, str>>,
    /// The K answers.
    pub candidates: List<'a, Candidate<'a>>,
}

/// What an oracle says about the K candidates of one comparison. Matrices are row-major `K x K`.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// `P[i][j]`: the probability that candidate `i` is preferred to candidate `j`. Finite, in
    /// `[0, 1]`, the diagonal 1/2. Need not be transitive.
    Probabilities(Vec<f64>),
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
    fn prepare(&mut self, host: &dyn Host) -> Result<(), PluginError> {
        let _ = host;
        Ok(())
    }

    /// One verdict for each comparison, in order.
    ///
    /// # Errors
    /// When a comparison cannot be judged. A verdict is never guessed.
    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        host: &dyn Host,
    ) -> Result<Vec<Verdict>, PluginError>;

    /// What its judgments come from besides this plugin's code and settings, for the record of whoever
    /// uses them: a model's hash, or the name of a model and where it is asked. A run may only go on
    /// with the same.
    fn identity(&self) -> Option<String> {
        None
    }

    /// How many requests to a service it takes, at most and without failures, to judge `comparisons`
    /// times `candidates` answers; `None` when no service is asked.
    fn expected_requests(&self, _comparisons: u64, _candidates: u64) -> Option<u64> {
        None
    }
}
