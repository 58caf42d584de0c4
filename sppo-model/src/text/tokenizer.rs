//! A tokenizer in the `tokenizer.json` form of Hugging Face.

use std::path::Path;

use serde_json::Value;

use crate::error::{ModelError, Result};

/// A tokenizer: text to token ids and back.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary_size: usize,
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
        let json: Value = serde_json::from_slice(bytes).map_err(|error| broken(&error))?;
        check_merges(&json).map_err(|cause| broken(&cause))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(|error| broken(&error))?;
        inner.with_truncation(None).map_err(|error| broken(&error))?;
        inner.with_padding(None);
        let vocabulary_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        if vocabulary_size == 0 {
            return Err(broken(&"its vocabulary is empty"));
        }
        Ok(Self { inner, vocabulary_size })
    }

    /// Token ids of a text. `add_special_tokens` lets the tokenizer add its own begin and end tokens.
    ///
    /// # Errors
    /// When the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|error| ModelError::Input(format!("the tokenizer failed: {error}")))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids, special tokens left out. Ids that the tokenizer does not know (a model's
    /// vocabulary is often padded beyond its tokenizer's) stand for no text.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner
            .decode(tokens, true)
            .map_err(|error| ModelError::Input(format!("the tokenizer cannot decode: {error}")))
    }

    /// The largest token id plus one.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// The id of a token by its exact spelling.
    #[must_use]
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the token is marked special, so that decoding leaves it out.
    #[must_use]
    pub fn is_special(&self, token: &str) -> bool {
        self.inner.get_added_vocabulary().is_special_token(token)
    }
}

/// The `tokenizers` crate trusts that a merge's result is in the vocabulary and would index out of
/// bounds where it is not.
fn check_merges(json: &Value) -> std::result::Result<(), String> {
    let model = &json["model"];
    let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array())
    else {
        return Ok(());
    };
    let prefix = model["continuing_subword_prefix"].as_str().unwrap_or_default();
    for (index, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(left), Value::String(right)] => Some((&left[..], &right[..])),
                _ => None,
            },
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| format!("merge {index} is not a pair of tokens"))?;
        let result = right.strip_prefix(prefix).map(|rest| format!("{left}{rest}"));
        let known = |token: &str| vocabulary.contains_key(token);
        if !(known(left) && known(right) && result.is_some_and(|token| known(&token))) {
            return Err(format!(
                "merge {index} (`{left}` and `{right}`) names a token that is not in the vocabulary"
            ));
        }
    }
    Ok(())
}
