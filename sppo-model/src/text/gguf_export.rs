//! The tokenizer and chat template of a model as metadata of a GGUF file: the way back of
//! [`gguf_tokenizer`](super::gguf_tokenizer).

use std::collections::HashMap;

use serde_json::Value;

use super::codec::TextCodec;
use super::files::END_OF_TURN_TOKENS;
use super::gguf_vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED};
use super::gguf_word_rules::word_rule_name;
use crate::error::{ModelError, Result};
use crate::formats::{GgufEntries, GgufMetadata};

/// A text that most ways of splitting text into words and tokens divide differently.
const SAMPLE: &str = "Hello, world! It's 3, 33, 333 and 12345678 o'clock -- we'LL see...\n\n\tfor (i = 0; i < 10; i++) \
                      { x[i] += 'tab\ttab'; }\r\n   Größe, café, l'été; Привет, мир! 你好，世界。 日本語 한국어 नमस्ते \
                      🚀😀 \u{200d} 3.14e-10 https://example.org/a_b?c=d#e   end  ";

/// The mark of a space in SentencePiece vocabularies.
const SPACE: &str = "▁";
const BYTES: usize = 256;

/// Adds the tokenizer and the chat template, of a model with so many rows in its embedding table.
///
/// # Errors
/// When the tokenizer is of a kind that GGUF has no name for.
pub(crate) fn write_tokenizer(
    text: &TextCodec,
    rows: usize,
    entries: &mut GgufEntries,
) -> Result<()> {
    let tokenizer = text.json("tokenizer.json")?;
    let model = &tokenizer["model"];
    if !["BPE", ""].contains(&model["type"].as_str().unwrap_or_default()) {
        return Err(unsupported(&format!("it is a {} model; BPE is supported", model["type"])));
    }
    let is_pieces = model["byte_fallback"].as_bool().unwrap_or(false);
    let table = Table::of(text, &tokenizer, rows, is_pieces);
    match is_pieces {
        true => write_pieces(&tokenizer, &table, entries)?,
        false => write_byte_level(&tokenizer, entries)?,
    }
    entries.set_texts("tokenizer.ggml.tokens", &table.tokens);
    entries.set_integers("tokenizer.ggml.token_type", &table.kinds);
    write_special_tokens(text, &tokenizer, &table, entries)?;
    write_template(text, entries);
    Ok(())
}

/// Sets the chat template, where the model has one.
pub(crate) fn write_template(text: &TextCodec, entries: &mut GgufEntries) {
    if let Some(template) = text.template_source() {
        entries.set_text("tokenizer.chat_template", template);
    }
}

/// The name of a model in a GGUF file. llama.cpp lets the special tokens of models that are called Phi 3 take the
/// spaces after them, and does not load others of that name.
///
/// # Errors
/// When the model's special tokens do so and it is no Phi 3, or the tokenizer's file is not JSON.
pub(crate) fn name_in_gguf(text: &TextCodec, name: &str) -> Result<String> {
    /// Tokens without which llama.cpp loads no model of that name.
    const OF_PHI3: [&str; 4] = ["</s>", "<unk>", "<s>", "<|endoftext|>"];
    let tokenizer = text.json("tokenizer.json")?;
    let strips = |token: &Value| token["lstrip"] == true || token["rstrip"] == true;
    let mut added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let strips = added.any(|token| token["special"] == true && strips(token));
    let lower_case = name.to_lowercase();
    let says_so = ["phi-3", "phi3"].iter().any(|mark| lower_case.contains(mark));
    let is_phi3 = || OF_PHI3.iter().all(|token| text.token_id(token).is_some());
    match (strips, says_so) {
        (true, _) if !is_phi3() => {
            Err(unsupported("its special tokens take the spaces beside them, as only Phi 3's can"))
        }
        (true, false) => Ok(format!("{name} (Phi-3)")),
        (false, true) => Ok("model".into()),
        _ => Ok(name.into()),
    }
}

/// Refuses metadata whose tokenizer makes other tokens of a text than that of the model does.
///
/// # Errors
/// When it does, or the metadata describe none.
pub(crate) fn check_tokenizer(
    text: &TextCodec,
    metadata: &GgufMetadata,
    rows: usize,
    context_length: usize,
) -> Result<()> {
    let written = TextCodec::from_gguf(metadata, context_length)?;
    if written.vocabulary_size() != rows {
        return Err(unsupported(&format!(
            "the file lists {} tokens, and the model has {rows}",
            written.vocabulary_size()
        )));
    }
    // a special token first, because some tokenizers add a space to what stands before all else
    let special = text.special_tokens();
    let first = special.stop_tokens.first().and_then(|&id| text.token(id)).unwrap_or_default();
    let sample = format!("{first}{SAMPLE}{first}{SAMPLE}");
    let (expected, found) = (text.encode(&sample, false)?, written.encode(&sample, false)?);
    match expected.iter().zip(&found).position(|(expected, found)| expected != found) {
        None if expected.len() == found.len() => Ok(()),
        difference => {
            let place = difference.unwrap_or(expected.len().min(found.len()));
            let read = text.decode(&expected[..place.min(expected.len())])?;
            let last: String =
                read.chars().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect();
            Err(unsupported(&format!(
                "llama.cpp would divide text into other tokens, in a test text after `{last}`"
            )))
        }
    }
}

fn unsupported(why: &str) -> ModelError {
    ModelError::Unsupported(format!(
        "this model's tokenizer cannot be written to a GGUF file: {why}; take the metadata of a GGUF file of \
         the same model with --base"
    ))
}

/// Every token and its kind, by id.
struct Table {
    tokens: Vec<String>,
    kinds: Vec<i32>,
}

impl Table {
    fn of(text: &TextCodec, tokenizer: &Value, rows: usize, is_pieces: bool) -> Self {
        let mut table = Self {
            tokens: (0..rows).map(|id| format!("[PAD{id}]")).collect(),
            kinds: vec![UNUSED as i32; rows],
        };
        let unknown = text.spelling("unk_token").unwrap_or_default();
        for (token, id) in tokenizer["model"]["vocab"].as_object().into_iter().flatten() {
            let kind = match is_pieces {
                true if is_byte(token) => BYTE,
                true if *token == unknown => UNKNOWN,
                _ => NORMAL,
            };
            table.set(id, token.clone(), kind);
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let token = added["content"].as_str().unwrap_or_default();
            let is_special = added["special"] == true || text.is_special(token);
            match (is_special, is_pieces) {
                (true, true) if token == unknown => {}
                (true, _) => table.set(&added["id"], token.into(), CONTROL),
                // llama.cpp looks for these in text whose spaces are not marked yet
                (false, true) => {
                    table.set(&added["id"], token.replace(SPACE, " "), USER_DEFINED);
                }
                (false, false) => table.set(&added["id"], token.into(), USER_DEFINED),
            }
        }
        table
    }

    fn set(&mut self, id: &Value, token: String, kind: i128) {
        let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
        let place = id.and_then(|id| Some((self.tokens.get_mut(id)?, self.kinds.get_mut(id)?)));
        if let Some((known, known_kind)) = place {
            *known = token;
            *known_kind = kind as i32;
        }
    }
}

/// `<0x0A>`, for instance.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
}

/// The pairs of a tokenizer's merges, in order.
fn merges(tokenizer: &Value) -> impl Iterator<Item = (&str, &str)> {
    let merges = tokenizer["model"]["merges"].as_array().into_iter().flatten();
    merges.filter_map(|merge| match merge {
        Value::String(text) => text.split_once(' '),
        merge => merge[0].as_str().zip(merge[1].as_str()),
    })
}

fn write_byte_level(tokenizer: &Value, entries: &mut GgufEntries) -> Result<()> {
    let rule = word_rule_name(tokenizer).ok_or_else(|| {
        unsupported(
            "it splits text into words by a rule that is not known here (`pre_tokenizer` in tokenizer.json)",
        )
    })?;
    // llama.cpp composes no characters, so that texts that are composed already are the same with and without
    let normalizer = &tokenizer["normalizer"];
    if !(normalizer.is_null() || normalizer["type"] == "NFC") {
        return Err(unsupported(&format!(
            "its normalizer {} is not supported",
            normalizer["type"]
        )));
    }
    let merges: Vec<String> =
        merges(tokenizer).map(|(left, right)| format!("{left} {right}")).collect();
    entries.set_text("tokenizer.ggml.model", "gpt2");
    entries.set_text("tokenizer.ggml.pre", rule);
    entries.set_texts("tokenizer.ggml.merges", &merges);
    Ok(())
}

/// SentencePiece's BPE, whose pieces have scores: those that merge first have the highest.
fn write_pieces(tokenizer: &Value, table: &Table, entries: &mut GgufEntries) -> Result<()> {
    let bytes = table.kinds.iter().filter(|&&kind| kind == BYTE as i32).count();
    if bytes != BYTES {
        return Err(unsupported(&format!("it has {bytes} of {BYTES} tokens for single bytes")));
    }
    let mut ranks: HashMap<String, usize> = HashMap::new();
    for (left, right) in merges(tokenizer) {
        let next = ranks.len();
        ranks.entry(format!("{left}{right}")).or_insert(next);
    }
    let mut unmerged = ranks.len();
    let scores = table.tokens.iter().zip(&table.kinds).map(|(token, &kind)| {
        let rank = ranks.get(token).copied().unwrap_or_else(|| {
            unmerged += 1;
            unmerged
        });
        // f32 tells ranks apart up to 2^24
        if kind == NORMAL as i32 { -(rank as f32) } else { 0.0 }
    });
    let scores: Vec<f32> = scores.collect();
    entries.set_text("tokenizer.ggml.model", "llama");
    entries.set_text("tokenizer.ggml.pre", "default");
    entries.set_numbers("tokenizer.ggml.scores", &scores);
    entries.set_flag("tokenizer.ggml.add_space_prefix", adds_space(tokenizer)?);
    Ok(())
}

/// Whether a space is put before a text, and before what follows a special token. A tokenizer that does so
/// before whole texts alone counts as one that does not: chats begin with a special token.
fn adds_space(tokenizer: &Value) -> Result<bool> {
    let steps = |value: &Value, key: &str| match value[key].as_array() {
        Some(steps) => steps.clone(),
        None if value.is_null() => Vec::new(),
        None => vec![value.clone()],
    };
    let mut adds = false;
    let mut marks_spaces = false;
    let normalizers = steps(&tokenizer["normalizer"], "normalizers");
    for step in normalizers.iter().chain(&steps(&tokenizer["pre_tokenizer"], "pretokenizers")) {
        match step["type"].as_str().unwrap_or_default() {
            "Prepend" if step["prepend"] == SPACE => adds = true,
            "Replace" if step["pattern"]["String"] == " " && step["content"] == SPACE => {
                marks_spaces = true;
            }
            "Metaspace" if step["split"] != true && step["replacement"] == SPACE => {
                marks_spaces = true;
                adds = step["prepend_scheme"] == "always";
            }
            // spaces are marked when it runs, so it finds none
            "Split" if step["pattern"]["String"] == " " && marks_spaces => {}
            other => return Err(unsupported(&format!("its step {other} is not supported"))),
        }
    }
    if marks_spaces { Ok(adds) } else { Err(unsupported("it does not mark spaces")) }
}

fn write_special_tokens(
    text: &TextCodec,
    tokenizer: &Value,
    table: &Table,
    entries: &mut GgufEntries,
) -> Result<()> {
    let special = text.special_tokens();
    let mut set = |key: &str, id: Option<u32>| {
        if let Some(id) = id.filter(|&id| (id as usize) < table.tokens.len()) {
            entries.set_integer(&format!("tokenizer.ggml.{key}_token_id"), id);
        }
    };
    let eos = special.eos_token.or(special.stop_tokens.first().copied());
    let mut others: Vec<u32> =
        special.stop_tokens.iter().copied().filter(|&id| Some(id) != eos).collect();
    others.sort_by_key(|&id| {
        let ends_turn = |token: &String| END_OF_TURN_TOKENS.contains(&token.as_str());
        !table.tokens.get(id as usize).is_some_and(ends_turn)
    });
    set("bos", special.bos_token);
    set("eos", eos);
    set("eot", others.first().copied());
    set("eom", others.get(1).copied());
    set("unknown", text.spelling("unk_token").and_then(|token| text.token_id(token)));
    set("padding", text.spelling("pad_token").and_then(|token| text.token_id(token)));
    let [begins, ends] = added_tokens(text, tokenizer)?;
    entries.set_flag("tokenizer.ggml.add_bos_token", begins);
    entries.set_flag("tokenizer.ggml.add_eos_token", ends);
    Ok(())
}

/// Whether the tokenizer adds its begin token and its end token to a text.
fn added_tokens(text: &TextCodec, tokenizer: &Value) -> Result<[bool; 2]> {
    let processor = &tokenizer["post_processor"];
    let processors = match processor["processors"].as_array() {
        Some(processors) => processors.clone(),
        None => vec![processor.clone()],
    };
    let template = processors.iter().find(|step| step["type"] == "TemplateProcessing");
    let pieces = template.and_then(|template| template["single"].as_array());
    let pieces = pieces.map_or(&[][..], Vec::as_slice);
    let is_text = |piece: &Value| !piece["Sequence"].is_null();
    let place = pieces.iter().position(is_text).unwrap_or(0);
    let spelt = |pieces: &[Value]| -> Vec<String> {
        let added = pieces.iter().filter_map(|piece| piece["SpecialToken"]["id"].as_str());
        added.map(String::from).collect()
    };
    let known = |added: &[String], name: &str| match added {
        [] => Ok(false),
        [one] if Some(one.as_str()) == text.spelling(name) => Ok(true),
        _ => Err(unsupported(&format!("it adds `{}` to every text", added.concat()))),
    };
    let after = pieces.get(place + 1..).unwrap_or_default();
    Ok([known(&spelt(&pieces[..place]), "bos_token")?, known(&spelt(after), "eos_token")?])
}
