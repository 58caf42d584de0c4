//! Token sequences on their way to a policy.

use std::ops::Range;

/// One part of a [`SequenceBatch`]: a prompt, or a response that continues an earlier prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The segment's tokens within [`SequenceBatch::tokens`].
    pub tokens: Range<usize>,
    /// For a response, the index of the prompt segment that it continues.
    pub prompt: Option<usize>,
}

/// Sequences packed without padding. A prompt shared by several responses is stored, and may be
/// computed, once. Policies answer one result per *response*, in the order they were pushed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SequenceBatch {
    tokens: Vec<u32>,
    segments: Vec<Segment>,
}

impl SequenceBatch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn from_parts(tokens: Vec<u32>, segments: Vec<Segment>) -> Self {
        Self { tokens, segments }
    }

    /// Adds a prompt (at least one token) and returns its segment index for [`Self::push_response`].
    pub fn push_prompt(&mut self, tokens: &[u32]) -> usize {
        self.push(tokens, None)
    }

    /// Adds a response (at least one token) to the prompt at segment index `prompt`.
    pub fn push_response(&mut self, prompt: usize, tokens: &[u32]) {
        self.push(tokens, Some(prompt));
    }

    fn push(&mut self, tokens: &[u32], prompt: Option<usize>) -> usize {
        let start = self.tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.segments.push(Segment { tokens: start..self.tokens.len(), prompt });
        self.segments.len() - 1
    }

    /// All token ids, segment after segment.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// All segments, prompts and responses, in the order they were pushed.
    #[must_use]
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The response segments, in order.
    pub fn responses(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.prompt.is_some())
    }

    /// Number of responses.
    #[must_use]
    pub fn response_count(&self) -> usize {
        self.responses().count()
    }
}
