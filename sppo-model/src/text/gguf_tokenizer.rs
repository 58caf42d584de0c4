//! The tokenizer in the metadata of a GGUF file, written out in the files of Hugging Face.
//!
//! GGUF keeps a vocabulary, merges or scores, and the *name* of the rule that splits text into words.
//! From these we write the `tokenizer.json` that the model had before it was converted, so that
//! there is one way to load a tokenizer and what we save is what we use.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use super::files::{END_OF_TURN_TOKENS, TextFile};
use crate::error::{ModelError, Result};
use crate::formats::GgufMetadata;

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The kinds of token in `tokenizer.ggml.token_type`.
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// Splitting of text into words, before byte-level BPE merges within them.
#[derive(Clone, Copy)]
enum Split {
    /// GPT-2's rule.
    Gpt2,
    /// Every digit alone, then GPT-2's rule.
    Digits,
    /// A regular expression.
    Pattern(&'static str),
}

/// The rule for words behind a name in `tokenizer.ggml.pre`.
struct WordRule {
    names: &'static [&'static str],
    split: Split,
    /// Words that are tokens are taken whole, whatever the merges say.
    ignore_merges: bool,
    /// Text is put into Unicode's composed form first.
    compose: bool,
    /// Whether a begin token is added where the file does not say.
    add_beginning: bool,
}

const WORD_RULES: [WordRule; 5] = [
    WordRule {
        names: &["default", "gpt-2"],
        split: Split::Gpt2,
        ignore_merges: false,
        compose: false,
        add_beginning: false,
    },
    WordRule {
        names: &["smollm", "starcoder", "refact"],
        split: Split::Digits,
        ignore_merges: false,
        compose: false,
        add_beginning: false,
    },
    WordRule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "smaug-bpe"],
        split: Split::Pattern(LLAMA3_SPLIT),
        ignore_merges: true,
        compose: false,
        add_beginning: true,
    },
    WordRule {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Split::Pattern(QWEN2_SPLIT),
        ignore_merges: false,
        compose: true,
        add_beginning: false,
    },
    WordRule {
        names: &["tekken"],
        split: Split::Pattern(TEKKEN_SPLIT),
        ignore_merges: true,
        compose: false,
        add_beginning: true,
    },
];

/// The tokenizer files of a GGUF model.
///
/// # Errors
/// When the kind of tokenizer is not supported or its tables contradict each other.
pub(super) fn tokenizer_files(
    metadata: &GgufMetadata,
    context_length: usize,
) -> Result<Vec<TextFile>> {
    let vocabulary = Vocabulary::read(metadata)?;
    let kind = metadata
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| metadata.missing("tokenizer.ggml.model"))?;
    let tokenizer = match kind {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => sentence_piece(metadata, &vocabulary)?,
        other => {
            return Err(ModelError::Unsupported(format!(
                "{}: the tokenizer kind `{other}` is not supported; supported: gpt2, llama",
                metadata.path().display()
            )));
        }
    };
    let file = |name: &str, json: &Value| TextFile {
        name: name.to_string(),
        bytes: format!("{json:#}\n").into_bytes(),
    };
    Ok(vec![
        TextFile { name: "tokenizer.json".into(), bytes: tokenizer.to_string().into_bytes() },
        file("tokenizer_config.json", &tokenizer_config(metadata, &vocabulary, context_length)?),
        file("special_tokens_map.json", &Value::Object(vocabulary.special_names())),
        file("generation_config.json", &generation_config(&vocabulary)),
    ])
}

/// The tables of a tokenizer.
struct Vocabulary<'a> {
    tokens: Vec<&'a str>,
    kinds: Vec<i64>,
    /// transformers' name of a special token, and its id.
    special: Vec<(&'static str, u32)>,
    /// Tokens that end an answer.
    end_tokens: BTreeSet<u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a GgufMetadata) -> Result<Self> {
        let tokens = metadata
            .texts("tokenizer.ggml.tokens")?
            .ok_or_else(|| metadata.missing("tokenizer.ggml.tokens"))?;
        if tokens.len() != tokens.iter().collect::<BTreeSet<_>>().len() {
            return Err(ModelError::file(
                metadata.path(),
                "two tokens of `tokenizer.ggml.tokens` are spelt alike",
            ));
        }
        #[expect(clippy::cast_possible_truncation, reason = "token kinds are small integers")]
        let kinds: Vec<i64> = metadata
            .numbers("tokenizer.ggml.token_type")?
            .map(|kinds| kinds.into_iter().map(|kind| kind as i64).collect())
            .unwrap_or_default();
        let keys = [
            ("bos_token", "bos_token_id"),
            ("eos_token", "eos_token_id"),
            ("unk_token", "unknown_token_id"),
            ("pad_token", "padding_token_id"),
            ("", "eot_token_id"),
        ];
        let mut special = Vec::new();
        let mut end_tokens = BTreeSet::new();
        for (name, key) in keys {
            let key = format!("tokenizer.ggml.{key}");
            let Some(id) = metadata.integer(&key)? else { continue };
            let id = u32::try_from(id).ok().filter(|&id| (id as usize) < tokens.len());
            let id = id.ok_or_else(|| {
                ModelError::file(
                    metadata.path(),
                    format!("`{key}` is not a token of the vocabulary"),
                )
            })?;
            if !name.is_empty() {
                special.push((name, id));
            }
            if name.is_empty() || name == "eos_token" {
                end_tokens.insert(id);
            }
        }
        Ok(Self { tokens, kinds, special, end_tokens })
    }

    fn ids(&self) -> HashMap<&'a str, u32> {
        self.tokens.iter().zip(0..).map(|(&token, id)| (token, id)).collect()
    }

    /// The token with transformers' name, for instance `bos_token`.
    fn special(&self, name: &str) -> Option<(u32, &'a str)> {
        let &(_, id) = self.special.iter().find(|(special, _)| *special == name)?;
        Some((id, self.tokens.get(id as usize)?))
    }

    fn special_names(&self) -> Map<String, Value> {
        self.special
            .iter()
            .filter_map(|&(name, id)| {
                Some((name.to_string(), (*self.tokens.get(id as usize)?).into()))
            })
            .collect()
    }

    /// Control and user-defined tokens, which text is searched for before anything else.
    fn added_tokens(&self) -> Vec<Value> {
        let special_ids: BTreeSet<u32> = self.special.iter().map(|&(_, id)| id).collect();
        let kinds = self.kinds.iter().copied().chain(std::iter::repeat(0));
        self.tokens
            .iter()
            .zip(kinds)
            .zip(0..)
            .filter_map(|((token, kind), id)| {
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

    fn model_vocabulary(&self) -> Map<String, Value> {
        self.tokens
            .iter()
            .zip(0..)
            .map(|(token, id): (_, u32)| ((*token).to_string(), id.into()))
            .collect()
    }
}

fn byte_level(metadata: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let name = metadata.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let rule = WORD_RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = WORD_RULES.iter().flat_map(|rule| rule.names).copied().collect();
        ModelError::Unsupported(format!(
            "{}: the pre-tokenizer `{name}` is not supported; supported: {}; \
             use the model's Hugging Face directory instead",
            metadata.path().display(),
            known.join(", ")
        ))
    })?;
    let merges = metadata
        .texts("tokenizer.ggml.merges")?
        .ok_or_else(|| metadata.missing("tokenizer.ggml.merges"))?;
    let merges: Vec<Value> = merges
        .into_iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok(json!([left, right])),
            None => {
                Err(ModelError::file(metadata.path(), format!("the merge `{merge}` is not a pair")))
            }
        })
        .collect::<Result<_>>()?;
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence = |first: Value, use_regex: bool| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
    let pre_tokenizer = match rule.split {
        Split::Gpt2 => byte_level(true),
        Split::Digits => sequence(json!({"type": "Digits", "individual_digits": true}), true),
        Split::Pattern(pattern) => sequence(
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false}),
            false,
        ),
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": if rule.compose { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor(metadata, vocabulary, rule.add_beginning)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rule.ignore_merges,
            "vocab": vocabulary.model_vocabulary(), "merges": merges,
        },
    }))
}

/// SentencePiece's BPE: pieces merge in the order of their scores, unknown characters become bytes.
fn sentence_piece(metadata: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let scores = metadata
        .numbers("tokenizer.ggml.scores")?
        .filter(|scores| scores.len() == vocabulary.tokens.len())
        .ok_or_else(|| metadata.missing("tokenizer.ggml.scores"))?;
    let prefix_space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut normalizers = vec![replace];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix_space {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": post_processor(metadata, vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null,
            "unk_token": vocabulary.special("unk_token").map(|(_, token)| token),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.model_vocabulary(), "merges": merges_from_scores(vocabulary, &scores),
        },
    }))
}

/// Every way in which a piece is made of two others, the best-scored piece first.
fn merges_from_scores(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let ids = vocabulary.ids();
    let kinds = vocabulary.kinds.iter().copied().chain(std::iter::repeat(1));
    let mut merges = Vec::new();
    for ((&piece, &score), kind) in vocabulary.tokens.iter().zip(scores).zip(kinds) {
        // only normal pieces come about by merging
        if kind != 1 {
            continue;
        }
        let first = merges.len();
        for (cut, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(cut);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((score, left_id, right_id, left, right));
            }
        }
        if let Some(added) = merges.get_mut(first..) {
            added.sort_by_key(|&(_, left, right, _, _)| (left, right));
        }
    }
    // stable, so that equal scores keep the vocabulary's order
    merges.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal));
    merges.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect()
}

/// Adds begin and end tokens where the file says so.
fn post_processor(
    metadata: &GgufMetadata,
    vocabulary: &Vocabulary<'_>,
    add_beginning: bool,
) -> Result<Value> {
    let add = |key: &str, default: bool, name: &str| -> Result<Option<(u32, &str)>> {
        let wanted = metadata.flag(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default);
        Ok(vocabulary.special(name).filter(|_| wanted))
    };
    let beginning = add("add_bos_token", add_beginning, "bos_token")?;
    let end = add("add_eos_token", false, "eos_token")?;
    let mut tokens = Map::new();
    for (id, token) in beginning.into_iter().chain(end) {
        tokens.insert(token.into(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    let sequence = |name: &str, kind: u32| {
        let special = |token: Option<(u32, &str)>| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": kind}}))
        };
        let text = json!({"Sequence": {"id": name, "type_id": kind}});
        special(beginning).into_iter().chain([text]).chain(special(end)).collect::<Vec<Value>>()
    };
    let single = sequence("A", 0);
    let pair: Vec<Value> = single.iter().cloned().chain(sequence("B", 1)).collect();
    Ok(json!({
        "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens,
    }))
}

fn tokenizer_config(
    metadata: &GgufMetadata,
    vocabulary: &Vocabulary<'_>,
    context_length: usize,
) -> Result<Value> {
    let mut config = vocabulary.special_names();
    config.insert("clean_up_tokenization_spaces".into(), false.into());
    config.insert("model_max_length".into(), context_length.into());
    config.insert("tokenizer_class".into(), "PreTrainedTokenizerFast".into());
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        config.insert("chat_template".into(), template.into());
    }
    Ok(Value::Object(config))
}

fn generation_config(vocabulary: &Vocabulary<'_>) -> Value {
    let id = |name: &str| vocabulary.special(name).map(|(id, _)| id);
    let mut end_tokens = vocabulary.end_tokens.clone();
    let ids = vocabulary.ids();
    end_tokens.extend(END_OF_TURN_TOKENS.iter().filter_map(|token| {
        let &id = ids.get(token)?;
        (vocabulary.kinds.get(id as usize) == Some(&CONTROL)).then_some(id)
    }));
    let mut config = Map::new();
    let mut insert = |key: &str, value: Value| {
        if !value.is_null() {
            config.insert(key.into(), value);
        }
    };
    insert("bos_token_id", json!(id("bos_token")));
    insert(
        "eos_token_id",
        match Vec::from_iter(end_tokens).as_slice() {
            [] => Value::Null,
            [one] => json!(one),
            several => json!(several),
        },
    );
    insert("pad_token_id", json!(id("pad_token")));
    Value::Object(config)
}
