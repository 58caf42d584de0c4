//! The tables of a tokenizer in the metadata of a GGUF file, checked against each other.
//!
//! A table that is missing or of the wrong length would not stop anything: text would only be split
//! otherwise than in training. So each is there or is refused by name; where llama.cpp has a default that
//! the vocabulary bears out, it is taken.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value, json};

use crate::error::{ModelError, Result};
use crate::formats::{GgufMetadata, GgufValue};

/// The kinds of token in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i128 = 1;
pub(super) const UNKNOWN: i128 = 2;
pub(super) const CONTROL: i128 = 3;
pub(super) const USER_DEFINED: i128 = 4;
pub(super) const UNUSED: i128 = 5;
pub(super) const BYTE: i128 = 6;
const LAST_KIND: i128 = BYTE;

const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const BYTES: usize = 256;
const CONVERT_AGAIN: &str = "convert the model again with a current convert_hf_to_gguf.py of llama.cpp, or name its Hugging \
     Face directory";

/// Names of special tokens in transformers (none where it has none) and in GGUF.
const SPECIAL: [(&str, &str); 6] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("pad_token", "padding_token_id"),
    ("", "eot_token_id"),
    ("", "eom_token_id"),
];

/// Special tokens that llama.cpp assumes in SentencePiece vocabularies, which are right where they are
/// spelled so.
const SENTENCE_PIECE_DEFAULTS: [(&str, u32, &str); 3] =
    [("bos_token", 1, "<s>"), ("eos_token", 2, "</s>"), ("unk_token", 0, "<unk>")];

/// The tables of a tokenizer.
pub(super) struct Vocabulary<'a> {
    metadata: &'a GgufMetadata,
    pub(super) tokens: Vec<&'a str>,
    kinds: Vec<i128>,
    /// transformers' name of a special token, and its id.
    special: Vec<(&'static str, u32)>,
    /// Tokens that end an answer.
    pub(super) end_tokens: BTreeSet<u32>,
}

impl<'a> Vocabulary<'a> {
    /// Reads the tables; `is_sentence_piece` says which defaults llama.cpp has.
    pub(super) fn read(metadata: &'a GgufMetadata, is_sentence_piece: bool) -> Result<Self> {
        let tokens = metadata.texts(TOKENS)?.ok_or_else(|| metadata.missing(TOKENS))?;
        if tokens.len() != tokens.iter().collect::<BTreeSet<_>>().len() {
            return Err(refused(metadata, "two tokens of `tokenizer.ggml.tokens` are spelt alike"));
        }
        let kinds = kinds(metadata, tokens.len())?;
        let mut vocabulary =
            Self { metadata, tokens, kinds, special: Vec::new(), end_tokens: BTreeSet::new() };
        vocabulary.read_special()?;
        if is_sentence_piece {
            vocabulary.add_sentence_piece_defaults();
            vocabulary.check_characters()?;
        }
        match vocabulary.special("eos_token") {
            Some((id, _)) => vocabulary.end_tokens.insert(id),
            None => return Err(metadata.missing("tokenizer.ggml.eos_token_id")),
        };
        Ok(vocabulary)
    }

    fn read_special(&mut self) -> Result<()> {
        for (name, key) in SPECIAL {
            let key = format!("tokenizer.ggml.{key}");
            let Some(id) = self.metadata.integer(&key)? else { continue };
            let id = u32::try_from(id).ok().filter(|&id| (id as usize) < self.tokens.len());
            let id = id.ok_or_else(|| {
                refused(self.metadata, format!("`{key}` is not a token of the vocabulary"))
            })?;
            match name {
                "" => _ = self.end_tokens.insert(id),
                name => self.special.push((name, id)),
            }
        }
        Ok(())
    }

    fn add_sentence_piece_defaults(&mut self) {
        for (name, id, spelling) in SENTENCE_PIECE_DEFAULTS {
            if self.special(name).is_none() && self.tokens.get(id as usize) == Some(&spelling) {
                self.special.push((name, id));
            }
        }
    }

    /// Refuses a vocabulary in which characters that are no pieces would vanish.
    fn check_characters(&self) -> Result<()> {
        let ids = self.ids();
        let bytes = (0..BYTES).filter(|byte| ids.contains_key(format!("<0x{byte:02X}>").as_str()));
        match bytes.count() {
            BYTES => Ok(()),
            _ if self.special("unk_token").is_some() => Ok(()),
            found => Err(refused(
                self.metadata,
                format!(
                    "has {found} of the {BYTES} byte tokens, and `tokenizer.ggml.unknown_token_id` is \
                     missing, so there is no token for unknown characters"
                ),
            )),
        }
    }

    /// The score of every piece.
    pub(super) fn scores(&self) -> Result<Vec<f64>> {
        let scores = self.metadata.numbers(SCORES)?.ok_or_else(|| self.metadata.missing(SCORES))?;
        check_length(self.metadata, SCORES, scores.len(), self.tokens.len())?;
        let of_pieces: Vec<f64> = scores
            .iter()
            .zip(&self.kinds)
            .filter(|(_, kind)| **kind == NORMAL)
            .map(|(score, _)| *score)
            .collect();
        if of_pieces.iter().any(|score| !score.is_finite()) {
            return Err(refused(
                self.metadata,
                format!("`{SCORES}` holds a score that is no number"),
            ));
        }
        let differ = of_pieces.windows(2).any(|pair| pair[0] != pair[1]);
        if !differ && of_pieces.len() > 1 {
            return Err(refused(
                self.metadata,
                format!("`{SCORES}` are all alike, so they do not say which pieces to join first"),
            ));
        }
        Ok(scores)
    }

    /// Whether the file, or `default` where it does not say, has a token added to every text; it is then
    /// the one with this name of transformers.
    pub(super) fn added(
        &self,
        key: &str,
        default: bool,
        name: &str,
    ) -> Result<Option<(u32, &'a str)>> {
        let key = format!("tokenizer.ggml.{key}");
        if !self.metadata.flag(&key)?.unwrap_or(default) {
            return Ok(None);
        }
        let token = self.special(name).ok_or_else(|| {
            refused(
                self.metadata,
                format!(
                    "`{key}` is {}, but `tokenizer.ggml.{name}_id` is missing",
                    if self.metadata.get(&key).is_some() { "true" } else { "true by default" }
                ),
            )
        })?;
        Ok(Some(token))
    }

    /// Refuses tokens that the chat template writes and that would fall into several: those that look like
    /// control tokens and neither are marked as such nor come about by a merge of the `tokenizer.json`.
    pub(super) fn check_template(&self, template: &str, tokenizer: &Value) -> Result<()> {
        let is_plain = |id: u32, kind: i128| {
            let is_special = self.special.iter().any(|&(_, special)| special == id);
            ![UNKNOWN, CONTROL, USER_DEFINED].contains(&kind) && !is_special
        };
        let tokens = self.tokens.iter().zip(&self.kinds).zip(0..);
        let written: Vec<&str> = tokens
            .filter(|&((token, &kind), id)| is_plain(id, kind) && looks_like_control(token))
            .map(|((&token, _), _)| token)
            .filter(|token| template.contains(token))
            .collect();
        if written.is_empty() {
            return Ok(());
        }
        let merges = tokenizer["model"]["merges"].as_array().into_iter().flatten();
        let joined = |merge: &Value| Some(format!("{}{}", merge[0].as_str()?, merge[1].as_str()?));
        let merged: HashSet<String> = merges.filter_map(joined).collect();
        match written.iter().find(|token| !merged.contains(**token)) {
            None => Ok(()),
            Some(token) => Err(refused(
                self.metadata,
                format!(
                    "the chat template writes the token `{token}`, which `{KINDS}` marks as plain text, \
                     so that it would fall into several"
                ),
            )),
        }
    }

    pub(super) fn ids(&self) -> HashMap<&'a str, u32> {
        self.tokens.iter().zip(0..).map(|(&token, id)| (token, id)).collect()
    }

    pub(super) fn is_control(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&CONTROL)
    }

    /// Whether a token comes about by merging others.
    pub(super) fn is_normal(&self, id: usize) -> bool {
        self.kinds.get(id) == Some(&NORMAL)
    }

    /// The token with transformers' name, for instance `bos_token`.
    pub(super) fn special(&self, name: &str) -> Option<(u32, &'a str)> {
        let &(_, id) = self.special.iter().find(|(special, _)| *special == name)?;
        Some((id, self.tokens.get(id as usize)?))
    }

    pub(super) fn special_names(&self) -> Map<String, Value> {
        self.special
            .iter()
            .filter_map(|&(name, id)| {
                Some((name.to_string(), (*self.tokens.get(id as usize)?).into()))
            })
            .collect()
    }

    /// Control and user-defined tokens, which text is searched for before anything else.
    pub(super) fn added_tokens(&self) -> Vec<Value> {
        let special_ids: BTreeSet<u32> = self.special.iter().map(|&(_, id)| id).collect();
        self.tokens
            .iter()
            .zip(&self.kinds)
            .zip(0..)
            .filter_map(|((token, &kind), id)| {
                let special = kind == CONTROL || kind == UNKNOWN || special_ids.contains(&id);
                (special || kind == USER_DEFINED).then(|| {
                    json!({
                        "id": id, "content": token, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": special,
                    })
                })
            })
            .collect()
    }

    pub(super) fn model_vocabulary(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .zip(0..)
            .map(|(token, id): (_, u32)| ((*token).to_string(), id.into()))
            .collect()
    }
}

/// The kind of every token.
fn kinds(metadata: &GgufMetadata, tokens: usize) -> Result<Vec<i128>> {
    let kinds = match metadata.get(KINDS) {
        Some(GgufValue::Array(kinds)) => kinds,
        Some(_) => return Err(refused(metadata, format!("`{KINDS}` is not an array of integers"))),
        None => {
            let message =
                "so it is not known which tokens are control tokens and must not be divided";
            return Err(refused(metadata, format!("metadata key `{KINDS}` is missing, {message}")));
        }
    };
    check_length(metadata, KINDS, kinds.len(), tokens)?;
    let kind = |kind: &GgufValue| match kind {
        GgufValue::Integer(kind @ 0..=LAST_KIND) => Ok(*kind),
        other => {
            Err(refused(metadata, format!("`{KINDS}` holds {other:?}, which is no kind of token")))
        }
    };
    kinds.iter().map(kind).collect()
}

fn check_length(metadata: &GgufMetadata, key: &str, found: usize, tokens: usize) -> Result<()> {
    if found == tokens {
        return Ok(());
    }
    Err(refused(
        metadata,
        format!("`{key}` has {found} entries for the {tokens} tokens of `{TOKENS}`"),
    ))
}

/// `<|im_start|>`, `</s>` or `[INST]`, for instance.
fn looks_like_control(token: &str) -> bool {
    let within = |start: char, end: char| {
        token.strip_prefix(start).and_then(|rest| rest.strip_suffix(end)).unwrap_or_default()
    };
    let name = within('[', ']');
    !within('<', '>').is_empty()
        || !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || "_/".contains(c))
}

/// An error of the tokenizer's tables.
fn refused(metadata: &GgufMetadata, message: impl Into<String>) -> ModelError {
    ModelError::file(metadata.path(), message).with_hint(CONVERT_AGAIN)
}
