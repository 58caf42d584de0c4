//! The tokenizer in the metadata of a GGUF file, written out in the files of Hugging Face.
//!
//! GGUF keeps a vocabulary, merges or scores, and the *name* of the rule that splits text into words.
//! From these we write the `tokenizer.json` that the model had before it was converted, so that
//! there is one way to load a tokenizer and what we save is what we use.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::files::{END_OF_TURN_TOKENS, TextFile};
use super::gguf_vocabulary::Vocabulary;
use super::gguf_word_rules::{pre_tokenizer, word_rule};
use crate::error::{ModelError, Result};
use crate::formats::GgufMetadata;

/// The tokenizer files of a GGUF model.
///
/// # Errors
/// When the kind of tokenizer is not supported or its tables contradict each other.
pub(super) fn tokenizer_files(
    metadata: &GgufMetadata,
    context_length: usize,
) -> Result<Vec<TextFile>> {
    let kind = metadata
        .text("tokenizer.ggml.model")?
        .ok_or_else(|| metadata.missing("tokenizer.ggml.model"))?;
    if !["gpt2", "llama"].contains(&kind) {
        return Err(ModelError::Unsupported(format!(
            "{}: the tokenizer kind `{kind}` is not supported; supported: gpt2, llama",
            metadata.path().display()
        )));
    }
    let is_sentence_piece = kind == "llama";
    let vocabulary = Vocabulary::read(metadata, is_sentence_piece)?;
    let tokenizer = match is_sentence_piece {
        true => sentence_piece(metadata, &vocabulary)?,
        false => byte_level(metadata, &vocabulary)?,
    };
    if let Some(template) = metadata.text("tokenizer.chat_template")? {
        vocabulary.check_template(template, &tokenizer)?;
    }
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

/// The pairs of `tokenizer.ggml.merges`, in order.
fn merges(metadata: &GgufMetadata) -> Result<Vec<Value>> {
    const KEY: &str = "tokenizer.ggml.merges";
    let merges = metadata.texts(KEY)?.ok_or_else(|| metadata.missing(KEY))?;
    let pair = |merge: &str| {
        // the space that divides them is not the first character
        let second = merge.char_indices().nth(1).map_or(0, |(start, _)| start);
        let (left, right) = merge.split_at(second + merge[second..].find(' ')?);
        Some(json!([left, &right[1..]]))
    };
    merges
        .into_iter()
        .map(|merge| {
            pair(merge).ok_or_else(|| {
                ModelError::file(metadata.path(), format!("the merge `{merge}` is not a pair"))
            })
        })
        .collect()
}

fn byte_level(metadata: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let rule = word_rule(metadata)?;
    let merges = merges(metadata)?;
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": if rule.compose { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": pre_tokenizer(rule.split),
        "post_processor": post_processor(vocabulary, rule.add_beginning)?,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": rule.ignore_merges,
        },
    });
    Ok(with_tables(tokenizer, vocabulary, merges))
}

/// A tokenizer with the tables of its model, which `json!` would copy.
fn with_tables(mut tokenizer: Value, vocabulary: &Vocabulary<'_>, merges: Vec<Value>) -> Value {
    tokenizer["model"]["vocab"] = Value::Object(vocabulary.model_vocabulary());
    tokenizer["model"]["merges"] = Value::Array(merges);
    tokenizer
}

/// SentencePiece's BPE: pieces merge in the order of their scores, unknown characters become bytes.
fn sentence_piece(metadata: &GgufMetadata, vocabulary: &Vocabulary<'_>) -> Result<Value> {
    let scores = vocabulary.scores()?;
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
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": vocabulary.added_tokens(),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": post_processor(vocabulary, true)?,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null,
            "unk_token": vocabulary.special("unk_token").map(|(_, token)| token),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false,
        },
    });
    Ok(with_tables(tokenizer, vocabulary, merges_from_scores(vocabulary, &scores)))
}

/// Every way in which a piece is made of two others, the best-scored piece first.
fn merges_from_scores(vocabulary: &Vocabulary<'_>, scores: &[f64]) -> Vec<Value> {
    let ids = vocabulary.ids();
    let mut merges = Vec::new();
    for (id, (&piece, &score)) in vocabulary.tokens.iter().zip(scores).enumerate() {
        // only normal pieces come about by merging
        if !vocabulary.is_normal(id) {
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
fn post_processor(vocabulary: &Vocabulary<'_>, add_beginning: bool) -> Result<Value> {
    let beginning = vocabulary.added("add_bos_token", add_beginning, "bos_token")?;
    let end = vocabulary.added("add_eos_token", false, "eos_token")?;
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
        vocabulary.is_control(id).then_some(id)
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
