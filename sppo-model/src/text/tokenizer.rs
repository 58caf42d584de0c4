//! A tokenizer in the `tokenizer.json` form of Hugging Face.

use std::borrow::Cow;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use sppo_plugin::thought::is_part_of_mark;
use tokenizers::{AddedToken, PostProcessor, TruncationDirection};

use super::tokenizer_merges::with_checked_merges;
use crate::error::{ModelError, Result};

/// A tokenizer: text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary_size: usize,
    /// Spellings of the special tokens, in the order of their ids.
    special_tokens: Vec<String>,
    /// Special tokens that stand for no text. Those around a thought do: without them the thought would be
    /// part of the answer.
    silent_tokens: HashSet<u32>,
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`; `path` names them in errors.
    ///
    /// Truncation and padding stored in the file are left out, as transformers does when it encodes
    /// a single text.
    ///
    /// # Errors
    /// When the bytes are not a tokenizer or contradict themselves.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        let broken = |cause: &dyn std::fmt::Display| {
            ModelError::file(path, format!("is not a usable tokenizer: {cause}"))
                .with_hint("download the model again, or re-save its tokenizer with transformers")
        };
        let bytes = with_checked_merges(bytes).map_err(|cause| broken(&cause))?;
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|error| broken(&error))?;
        inner.with_truncation(None).map_err(|error| broken(&error))?;
        inner.with_padding(None);
        let vocabulary_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if vocabulary_size == 0 {
            return Err(broken(&"its vocabulary is empty"));
        }
        let mut tokenizer = Self {
            inner,
            vocabulary_size,
            special_tokens: Vec::new(),
            silent_tokens: HashSet::new(),
        };
        tokenizer.find_special_tokens();
        Ok(tokenizer)
    }

    /// Makes tokens of the vocabulary special, as transformers does with those that a tokenizer's settings
    /// name: text that spells one is this token, and it stands for no text.
    ///
    /// # Errors
    /// When the tokenizer refuses them.
    pub fn make_special(&mut self, spellings: &[&str]) -> Result<()> {
        let missing = |token: &&&str| self.token_id(token).is_some() && !self.is_special(token);
        let tokens: Vec<AddedToken> =
            spellings.iter().filter(missing).map(|token| AddedToken::from(*token, true)).collect();
        guarded(|| self.inner.add_special_tokens(tokens)).map_err(|error| {
            ModelError::Input(format!("the tokenizer refuses a token: {error}"))
        })?;
        self.find_special_tokens();
        Ok(())
    }

    fn find_special_tokens(&mut self) {
        let mut special: Vec<_> = self.inner.get_added_tokens_decoder().into_iter().collect();
        special.retain(|(_, token)| token.special || self.is_special(&token.content));
        special.sort_unstable_by_key(|&(id, _)| id);
        let silent = special.iter().filter(|(_, token)| !is_part_of_mark(&token.content));
        self.silent_tokens = silent.map(|&(id, _)| id).collect();
        self.special_tokens = special.into_iter().map(|(_, token)| token.content).collect();
    }

    /// Token ids of a text. `add_special_tokens` lets the tokenizer add its own begin and end tokens.
    ///
    /// # Errors
    /// When the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding =
            guarded(|| self.inner.encode_fast(text, add_special_tokens)).map_err(failed)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a pair of texts as the tokenizer joins them, `[CLS] first [SEP] second [SEP]` for
    /// instance, in at most `limit` tokens: of the first text, the end is kept, and where the second
    /// does not fit by itself, its beginning.
    ///
    /// # Errors
    /// When the tokenizer fails on these texts.
    pub fn encode_pair(&self, first: &str, second: &str, limit: usize) -> Result<Vec<u32>> {
        let added = self.inner.get_post_processor().map_or(0, |added| added.added_tokens(true));
        let encode = |text, room: usize, kept| -> Result<_> {
            let mut encoding = guarded(|| self.inner.encode_fast(text, false)).map_err(failed)?;
            encoding.truncate(room, 0, kept);
            // What was cut off would be joined too.
            encoding.take_overflowing();
            Ok(encoding)
        };
        let room = limit.saturating_sub(added);
        let second = encode(second, room, TruncationDirection::Right)?;
        let first = encode(first, room - second.len(), TruncationDirection::Left)?;
        let joined =
            guarded(|| self.inner.post_process(first, Some(second), true)).map_err(failed)?;
        Ok(joined.get_ids().to_vec())
    }

    /// The text with a space inside each special token that it spells, so that it is encoded as text
    /// and cannot end a turn or begin one.
    #[must_use]
    pub fn without_special_tokens<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for spelling in &self.special_tokens {
            if let Some((first, _)) = spelling.char_indices().nth(1)
                && text.contains(spelling)
            {
                let (start, rest) = spelling.split_at(first);
                text = text.replace(spelling, &format!("{start} {rest}")).into();
            }
        }
        text
    }

    /// Text of token ids, special tokens left out, except those around a thought. Ids that the tokenizer does not know (a model's
    /// vocabulary is often padded beyond its tokenizer's) stand for no text.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let spoken: Vec<u32> =
            tokens.iter().copied().filter(|id| !self.silent_tokens.contains(id)).collect();
        guarded(|| self.inner.decode(&spoken, false))
            .map_err(|error| ModelError::Input(format!("the tokenizer cannot decode: {error}")))
    }

    /// The largest token id plus one.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The tokens with this id and above, in the order of their ids.
    #[must_use]
    pub fn tokens_from(&self, first: usize) -> Vec<(u32, String)> {
        let all = self.inner.get_vocab(true).into_iter();
        let beyond = all.map(|(token, id)| (id, token)).filter(|&(id, _)| id as usize >= first);
        let mut tokens: Vec<_> = beyond.collect();
        tokens.sort_unstable();
        tokens
    }

    /// The id of a token by its exact spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token.
    #[must_use]
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether the token was added to the vocabulary, and is found in text before all else.
    #[must_use]
    pub fn is_added(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().get_vocab().contains_key(token)
    }

    /// Whether the token is marked special, so that decoding leaves it out.
    #[must_use]
    pub fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }
}

fn failed(error: String) -> ModelError {
    ModelError::Input(format!("the tokenizer failed: {error}"))
}

/// Calls the `tokenizers` crate, which panics over tokenizers that contradict themselves in other ways than
/// [`with_checked_merges`] finds: pieces of length 0, a precompiled map that is damaged, marks without tokens.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("tokenizer.json contradicts itself".into()),
    }
}
