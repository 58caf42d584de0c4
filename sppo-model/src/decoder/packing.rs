//! Packing of sequences for a forward pass: one row per token, no padding, shared prompts once.
//!
//! ```text
//! rows        | p0 p1 p2 | a0 a1 | b0 b1 b2 |     prompt p, responses a0 a1 a2 and b0 b1 b2 b3
//! predicting         p2    a0 a1   p2 b0 b1 b2    the last row of the prompt predicts every first token
//! targets            a0    a1 a2   b0 b1 b2 b3    a response's last token predicts nothing: no row
//! ```

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use sppo_plugin::SequenceBatch;

use super::DecoderConfig;
use crate::error::{ModelError, Result};
use crate::ops::{AttentionSegment, Position};

/// Rows for a forward pass, and those that predict response tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBatch {
    /// The token of each row.
    pub tokens: Arc<[u32]>,
    /// The position of each row in its sequence; a response continues its prompt's.
    pub positions: Arc<[Position]>,
    /// Rows that see each other.
    pub segments: Arc<[AttentionSegment]>,
    /// The rows of the keys and values that segments refer to, where these are not just the batch's own: all rows in
    /// order, then those of prefixes that lie in two pieces.
    pub key_value_rows: Option<Arc<[u32]>>,
    /// The rows whose hidden state predicts a response token, response after response.
    pub predicting_rows: Arc<[u32]>,
    /// The token that each predicting row is asked for.
    pub targets: Arc<[u32]>,
    /// The part of `targets` that belongs to each response.
    pub responses: Vec<Range<usize>>,
}

/// Limits of a model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputLimits {
    /// Tokens must be below this.
    pub vocabulary_size: usize,
    /// Prompt and response together may be this long, in tokens.
    pub context_length: usize,
    /// Longer sequences than this are rotated otherwise; `None` where length makes no difference.
    pub longest_short_sequence: Option<usize>,
}

impl InputLimits {
    /// Those of a model.
    #[must_use]
    pub fn of(config: &DecoderConfig) -> Self {
        Self {
            vocabulary_size: config.vocabulary_size,
            context_length: config.context_length,
            longest_short_sequence: config.longest_short_sequence(),
        }
    }

    /// Whether a sequence of so many tokens is rotated as a long one.
    #[must_use]
    pub fn is_long(&self, tokens: usize) -> bool {
        self.longest_short_sequence.is_some_and(|longest| tokens > longest)
    }

    /// Checks that tokens are known to the model and that there is at least one.
    ///
    /// # Errors
    /// Names the part (`what`) that is empty or holds an unknown token.
    pub fn check(&self, tokens: &[u32], what: &dyn Fn() -> String) -> Result<()> {
        if tokens.is_empty() {
            return Err(ModelError::Input(format!("{} has no tokens", what())));
        }
        match tokens.iter().find(|&&token| token as usize >= self.vocabulary_size) {
            Some(token) => Err(ModelError::Input(format!(
                "{} holds token {token}, but the model's vocabulary ends at {}; was it made with \
                 another model's tokenizer?",
                what(),
                self.vocabulary_size - 1
            ))),
            None => Ok(()),
        }
    }

    /// As [`Self::check`], for a sequence that must fit by itself.
    ///
    /// # Errors
    /// As there, or when the sequence is too long.
    pub fn check_sequence(&self, tokens: &[u32], what: &dyn Fn() -> String) -> Result<()> {
        self.check(tokens, what)?;
        if tokens.len() > self.context_length {
            return Err(ModelError::Input(format!(
                "{} is {} tokens long; the model takes {}",
                what(),
                tokens.len(),
                self.context_length
            )));
        }
        Ok(())
    }
}

#[derive(Default)]
pub(super) struct Packer {
    tokens: Vec<u32>,
    positions: Vec<Position>,
    segments: Vec<AttentionSegment>,
    /// Rows that the whole batch will have, where that is known.
    row_count: usize,
    /// Rows whose keys and values are there once more, behind all rows.
    repeated_rows: Vec<u32>,
    predicting_rows: Vec<u32>,
    targets: Vec<u32>,
    responses: Vec<Range<usize>>,
}

impl Packer {
    /// A packer of a batch that will have so many rows.
    pub(super) fn of_rows(row_count: usize) -> Self {
        Self { row_count, ..Self::default() }
    }

    /// The keys and values of two pieces of a sequence as those of one prefix. The packer must know how many rows the
    /// batch will have.
    pub(super) fn joined(&mut self, first: Range<usize>, second: Range<usize>) -> Range<usize> {
        if second.is_empty() {
            return first;
        }
        if first.is_empty() || first.end == second.start {
            return second.start - first.len()..second.end;
        }
        let start = self.row_count + self.repeated_rows.len();
        self.repeated_rows.extend(first.chain(second).map(|row| row as u32));
        start..self.row_count + self.repeated_rows.len()
    }

    /// Adds rows that see `prefix` and continue its sequence, which is long or not; returns the rows.
    pub(super) fn push(
        &mut self,
        tokens: &[u32],
        prefix: Range<usize>,
        is_long: bool,
    ) -> Range<usize> {
        let before = prefix.len();
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        if !tokens.is_empty() {
            self.tokens.extend_from_slice(tokens);
            self.positions.extend(
                (before..before + tokens.len())
                    .map(|index| Position { index: index as u32, is_in_long_sequence: is_long }),
            );
            let (queries, own) = (rows.clone(), rows.clone());
            self.segments.push(AttentionSegment { queries, prefix, own });
        }
        rows
    }

    /// Adds a response to the prompt in `prompt` rows. Its last token predicts no target, so it gets no
    /// row.
    fn push_response(&mut self, tokens: &[u32], prompt: Range<usize>, is_long: bool) {
        let inner = tokens.split_last().map_or(tokens, |(_, inner)| inner);
        let last_prompt_row = prompt.end as u32 - 1;
        let rows = self.push(inner, prompt, is_long);
        self.predicting_rows.push(last_prompt_row);
        self.predicting_rows.extend(rows.map(|row| row as u32));
        self.responses.push(self.targets.len()..self.targets.len() + tokens.len());
        self.targets.extend_from_slice(tokens);
    }

    /// Has a row predict each of these tokens.
    pub(super) fn ask(&mut self, row: usize, next_tokens: &[u32]) {
        self.predicting_rows.extend(next_tokens.iter().map(|_| row as u32));
        self.responses.push(self.targets.len()..self.targets.len() + next_tokens.len());
        self.targets.extend_from_slice(next_tokens);
    }

    pub(super) fn finish(self) -> PackedBatch {
        let own = 0..self.tokens.len() as u32;
        let is_repeated = !self.repeated_rows.is_empty();
        PackedBatch {
            tokens: self.tokens.into(),
            positions: self.positions.into(),
            segments: self.segments.into(),
            key_value_rows: is_repeated.then(|| own.chain(self.repeated_rows).collect()),
            predicting_rows: self.predicting_rows.into(),
            targets: self.targets.into(),
            responses: self.responses,
        }
    }
}

impl PackedBatch {
    /// Packs prompts and the responses that continue them. A prompt without responses is left out, and one
    /// of both long and short sequences is there twice.
    ///
    /// # Errors
    /// Names the prompt or response that is empty, holds an unknown token, is too long, or continues
    /// something that is not an earlier prompt.
    pub fn from_sequences(batch: &SequenceBatch, limits: InputLimits) -> Result<Self> {
        let mut packer = Packer::default();
        let mut prompt_rows: HashMap<(usize, bool), Range<usize>> = HashMap::new();
        for (number, segment) in batch.responses().enumerate() {
            let what = || format!("response {number} of the batch");
            let tokens = part(batch, &segment.tokens, &what)?;
            limits.check(tokens, &what)?;
            let index = segment.prompt.unwrap_or_default();
            let prompt = batch.segments().get(index).filter(|prompt| prompt.prompt.is_none());
            let Some(prompt) = prompt else {
                return Err(ModelError::Input(format!("{} continues no prompt", what())));
            };
            let total = prompt.tokens.len() + tokens.len();
            if total > limits.context_length {
                return Err(ModelError::Input(format!(
                    "{} and its prompt are {total} tokens long, but the model's context is {}; \
                     shorten the prompt or the response",
                    what(),
                    limits.context_length
                )));
            }
            let is_long = limits.is_long(total);
            let rows = match prompt_rows.get(&(index, is_long)) {
                Some(rows) => rows.clone(),
                None => {
                    let what = || format!("the prompt of response {number} of the batch");
                    let tokens = part(batch, &prompt.tokens, &what)?;
                    limits.check(tokens, &what)?;
                    let rows = packer.push(tokens, 0..0, is_long);
                    prompt_rows.insert((index, is_long), rows.clone());
                    rows
                }
            };
            packer.push_response(tokens, rows, is_long);
        }
        Ok(packer.finish())
    }

    /// Packs whole prompts, each predicting one token from its last row (prefill). No targets.
    #[must_use]
    pub fn from_prompts<'a>(
        prompts: impl IntoIterator<Item = &'a [u32]>,
        limits: InputLimits,
    ) -> Self {
        let mut packer = Packer::default();
        for tokens in prompts {
            let rows = packer.push(tokens, 0..0, limits.is_long(tokens.len()));
            packer.predicting_rows.push(rows.end.saturating_sub(1) as u32);
        }
        packer.finish()
    }
}

fn part<'a>(
    batch: &'a SequenceBatch,
    range: &Range<usize>,
    what: &dyn Fn() -> String,
) -> Result<&'a [u32]> {
    batch
        .tokens()
        .get(range.clone())
        .ok_or_else(|| ModelError::Input(format!("{} lies outside of the batch", what())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: InputLimits =
        InputLimits { vocabulary_size: 100, context_length: 6, longest_short_sequence: None };

    fn segment(rows: Range<usize>, prefix: Range<usize>) -> AttentionSegment {
        AttentionSegment { queries: rows.clone(), prefix, own: rows }
    }

    #[test]
    fn responses_continue_their_shared_prompt() {
        let mut batch = SequenceBatch::new();
        let first = batch.push_prompt(&[1, 2, 3]);
        let unused = batch.push_prompt(&[7, 8]);
        batch.push_response(first, &[4, 5, 6]);
        let second = batch.push_prompt(&[9]);
        batch.push_response(second, &[10]);
        batch.push_response(first, &[11, 12]);
        let packed = PackedBatch::from_sequences(&batch, LIMITS).unwrap();
        assert_eq!(unused, 1);
        assert_eq!(*packed.tokens, [1, 2, 3, 4, 5, 9, 11]);
        assert_eq!(*packed.positions, [0, 1, 2, 3, 4, 0, 3].map(Position::of));
        let expected =
            [segment(0..3, 0..0), segment(3..5, 0..3), segment(5..6, 0..0), segment(6..7, 0..3)];
        assert_eq!(*packed.segments, expected);
        assert_eq!(*packed.predicting_rows, [2, 3, 4, 5, 2, 6]);
        assert_eq!(*packed.targets, [4, 5, 6, 10, 11, 12]);
        assert_eq!(packed.responses, [0..3, 3..4, 4..6]);
    }

    #[test]
    fn a_prompt_of_long_and_short_sequences_is_there_twice() {
        let mut batch = SequenceBatch::new();
        let prompt = batch.push_prompt(&[1, 2]);
        batch.push_response(prompt, &[3, 4, 5]);
        batch.push_response(prompt, &[6, 7]);
        batch.push_response(prompt, &[8]);
        let limits = InputLimits { longest_short_sequence: Some(4), ..LIMITS };
        let packed = PackedBatch::from_sequences(&batch, limits).unwrap();
        assert_eq!(*packed.tokens, [1, 2, 3, 4, 1, 2, 6]);
        let long: Vec<bool> =
            packed.positions.iter().map(|position| position.is_in_long_sequence).collect();
        assert_eq!(long, [true, true, true, true, false, false, false]);
        assert_eq!(*packed.predicting_rows, [1, 2, 3, 5, 6, 5]);
        let prompts = PackedBatch::from_prompts([&[1, 2, 3, 4, 5][..], &[6]], limits);
        assert!(prompts.positions[0].is_in_long_sequence);
        assert!(!prompts.positions[5].is_in_long_sequence);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |prompt: &[u32], response: &[u32]| {
            let mut batch = SequenceBatch::new();
            let prompt = batch.push_prompt(prompt);
            batch.push_response(prompt, response);
            PackedBatch::from_sequences(&batch, LIMITS).unwrap_err().to_string()
        };
        assert!(error(&[], &[1]).contains("prompt of response 0 of the batch has no tokens"));
        assert!(error(&[1], &[]).contains("response 0 of the batch has no tokens"));
        assert!(error(&[1, 2, 3], &[4, 5, 6, 7]).contains("7 tokens long"));
        assert!(error(&[1], &[2, 100]).contains("token 100"));
        let mut batch = SequenceBatch::new();
        batch.push_response(3, &[1]);
        assert!(PackedBatch::from_sequences(&batch, LIMITS).is_err());
    }
}
