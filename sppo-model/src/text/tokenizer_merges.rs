//! The merges of a `tokenizer.json`, checked before the `tokenizers` crate sees them.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

#[derive(Deserialize)]
struct TokenizerJson<'a> {
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

/// The tables of a model, unread: there are a hundred thousand entries, and not every kind of model has them in
/// this form.
#[derive(Deserialize)]
struct ModelTables<'a> {
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
    #[serde(borrow)]
    continuing_subword_prefix: Option<&'a RawValue>,
}

/// The file's bytes, once each merge is known to make a token of the vocabulary of two others: the `tokenizers`
/// crate trusts in that, and would index out of bounds.
///
/// Merges that are written as pairs become texts with a space where no token holds one. They mean the same, and
/// the crate, which keeps each table in four forms while it reads, takes half the memory.
///
/// # Errors
/// The cause, when the bytes are not JSON or a merge names a token that there is not.
pub(super) fn with_checked_merges(bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let file: TokenizerJson = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Some(model) = file.model.filter(|model| model.get().starts_with('{')) else {
        return Ok(bytes.into());
    };
    let tables: ModelTables = parsed(model)?;
    let (Some(vocabulary), Some(merges)) = (
        tables.vocab.filter(|table| table.get().starts_with('{')),
        tables.merges.filter(|table| table.get().starts_with('[')),
    ) else {
        return Ok(bytes.into());
    };
    let vocabulary: HashMap<String, IgnoredAny> = parsed(vocabulary)?;
    let prefix = tables.continuing_subword_prefix;
    let prefix: String = prefix.and_then(|prefix| parsed(prefix).ok()).unwrap_or_default();

    let mut texts = Some(Vec::new());
    for (index, merge) in parsed::<Vec<&RawValue>>(merges)?.into_iter().enumerate() {
        let (left, right) =
            pair(merge).ok_or_else(|| format!("merge {index} is not a pair of tokens"))?;
        let result = right.strip_prefix(&*prefix).map(|rest| format!("{left}{rest}"));
        let known = |token: &str| vocabulary.contains_key(token);
        if !(known(&left) && known(&right) && result.is_some_and(|token| known(&token))) {
            return Err(format!(
                "merge {index} (`{left}` and `{right}`) names a token that is not in the vocabulary"
            ));
        }
        texts = texts.filter(|_| can_be_text(merge, &left, &right));
        if let Some(texts) = &mut texts {
            texts.push(format!("{left} {right}"));
        }
    }
    let Some(texts) = texts else { return Ok(bytes.into()) };
    let texts = serde_json::to_vec(&texts).map_err(|error| error.to_string())?;
    // The table is a part of the bytes.
    let start = merges.get().as_ptr().addr() - bytes.as_ptr().addr();
    let end = start + merges.get().len();
    Ok([&bytes[..start], &texts, &bytes[end..]].concat().into())
}

fn parsed<'a, T: Deserialize<'a>>(json: &'a RawValue) -> Result<T, String> {
    serde_json::from_str(json.get()).map_err(|error| error.to_string())
}

/// The two tokens of a merge: `"a b"` or `["a", "b"]`.
fn pair(merge: &RawValue) -> Option<(String, String)> {
    if let Ok(text) = parsed::<String>(merge) {
        let (left, right) = text.split_once(' ')?;
        return Some((left.into(), right.into()));
    }
    parsed::<[String; 2]>(merge).ok().map(|[left, right]| (left, right))
}

/// Whether a merge is a pair that a text can stand for: the crate divides texts at every space, and takes one
/// that begins with `#version` for a comment.
fn can_be_text(merge: &RawValue, left: &str, right: &str) -> bool {
    let is_pair = merge.get().starts_with('[');
    is_pair && !left.contains(' ') && !right.contains(' ') && !left.starts_with("#version")
}
