//! The rules that split text into words before byte-level BPE merges within them, by their names in
//! `tokenizer.ggml.pre`.

use serde_json::{Value, json};

use crate::error::{ModelError, Result};
use crate::formats::GgufMetadata;

const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

const GPT4O_SPLIT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's rule where nothing is known of the model's own: each expression divides the words that those
/// before it left.
const DEFAULT_SPLITS: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
];

/// Splitting of text into words, before byte-level BPE merges within them.
#[derive(Clone, Copy)]
pub(super) enum Split {
    /// GPT-2's rule.
    Gpt2,
    /// Every digit alone, then GPT-2's rule.
    Digits,
    /// Regular expressions, one after the other.
    Patterns(&'static [&'static str]),
}

/// The rule for words behind a name in `tokenizer.ggml.pre`.
pub(super) struct WordRule {
    names: &'static [&'static str],
    pub(super) split: Split,
    /// Words that are tokens are taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Text is put into Unicode's composed form first.
    pub(super) compose: bool,
    /// Whether a begin token is added where the file does not say.
    pub(super) add_beginning: bool,
}

const WORD_RULES: [WordRule; 8] = [
    WordRule {
        names: &["default"],
        split: Split::Patterns(&DEFAULT_SPLITS),
        ignore_merges: false,
        compose: false,
        add_beginning: false,
    },
    WordRule {
        names: &["gpt-2"],
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
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3"],
        split: Split::Patterns(&[LLAMA3_SPLIT]),
        ignore_merges: true,
        compose: false,
        add_beginning: true,
    },
    WordRule {
        names: &["dbrx", "smaug-bpe"],
        split: Split::Patterns(&[LLAMA3_SPLIT]),
        ignore_merges: false,
        compose: false,
        add_beginning: false,
    },
    WordRule {
        names: &["qwen2", "deepseek-r1-qwen"],
        split: Split::Patterns(&[QWEN2_SPLIT]),
        ignore_merges: false,
        compose: true,
        add_beginning: false,
    },
    WordRule {
        names: &["tekken"],
        split: Split::Patterns(&[TEKKEN_SPLIT]),
        ignore_merges: true,
        compose: false,
        add_beginning: true,
    },
    WordRule {
        names: &["gpt-4o", "llama4"],
        split: Split::Patterns(&[GPT4O_SPLIT]),
        ignore_merges: false,
        compose: false,
        add_beginning: false,
    },
];

/// The rule that `tokenizer.ggml.pre` names.
pub(super) fn word_rule(metadata: &GgufMetadata) -> Result<&'static WordRule> {
    const KEY: &str = "tokenizer.ggml.pre";
    let name = match metadata.text(KEY)? {
        Some(name) if !name.is_empty() => name,
        _ => {
            return Err(ModelError::file(
                metadata.path(),
                format!(
                    "metadata key `{KEY}` is missing, so it is not known how the model splits text into \
                     words; files from before May 2024 lack it"
                ),
            )
            .with_hint(
                "convert the model again with a current convert_hf_to_gguf.py of llama.cpp, or name its \
                 Hugging Face directory",
            ));
        }
    };
    if name == "default" {
        let path = metadata.path().display();
        tracing::warn!(
            "{path}: `{KEY}` is `default`, llama.cpp's guess; the model may have been trained on text that \
             was split otherwise"
        );
    }
    WORD_RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = WORD_RULES.iter().flat_map(|rule| rule.names).copied().collect();
        ModelError::Unsupported(format!(
            "{}: the pre-tokenizer `{name}` is not supported; supported: {}; \
             use the model's Hugging Face directory instead",
            metadata.path().display(),
            known.join(", ")
        ))
    })
}

/// The `pre_tokenizer` of a `tokenizer.json` that splits text by a rule.
pub(super) fn pre_tokenizer(split: Split) -> Value {
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    let sequence = |mut steps: Vec<Value>, use_regex: bool| {
        steps.push(byte_level(use_regex));
        json!({"type": "Sequence", "pretokenizers": steps})
    };
    let by_pattern = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    match split {
        Split::Gpt2 => byte_level(true),
        Split::Digits => sequence(vec![json!({"type": "Digits", "individual_digits": true})], true),
        Split::Patterns(patterns) => sequence(patterns.iter().map(by_pattern).collect(), false),
    }
}

/// The name in `tokenizer.ggml.pre` of the rule by which a `tokenizer.json` splits text, if there is one.
pub(super) fn word_rule_name(tokenizer: &Value) -> Option<&'static str> {
    let ignore_merges = tokenizer["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let splits = plainly(&tokenizer["pre_tokenizer"]);
    let is_it = |rule: &&WordRule| {
        rule.ignore_merges == ignore_merges && plainly(&pre_tokenizer(rule.split)) == splits
    };
    WORD_RULES.iter().find(is_it)?.names.first().copied()
}

/// The steps of a `pre_tokenizer`, alike for steps that do the same. Expressions that match all text leave
/// nothing between their matches, so it is the same to keep the matches and to remove what is not matched.
fn plainly(pre_tokenizer: &Value) -> Vec<Value> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.clone(),
        None => vec![pre_tokenizer.clone()],
    };
    let plain = |step: Value| match (&step["behavior"], &step["invert"]) {
        (Value::String(behavior), Value::Bool(invert)) => {
            let alike =
                matches!((behavior.as_str(), invert), ("Isolated", false) | ("Removed", true));
            if alike { json!({"split": step["pattern"]}) } else { step }
        }
        _ if step["type"] == "ByteLevel" => {
            json!({"bytes": step["use_regex"].as_bool().unwrap_or(true), "prefix": step["add_prefix_space"]})
        }
        _ => step,
    };
    steps.into_iter().map(plain).collect()
}
