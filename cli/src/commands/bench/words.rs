//! Prompts and pairs for a model whose tokens are the words `w0`, `w1`, and so on.

use serde_json::json;

const PROMPT_WORDS: u64 = 64;
const ANSWER_WORDS: u64 = 192;

/// Eight prompts of one length, as JSON lines.
pub(super) fn prompts(vocabulary: usize) -> String {
    let line =
        |index: u64| json!({"prompt": words(vocabulary, PROMPT_WORDS, index)}).to_string() + "\n";
    (0..8).map(line).collect()
}

/// Sixteen pairs of one length, as JSON lines.
pub(super) fn pairs(vocabulary: usize) -> String {
    let line = |index: u64| {
        let pair = json!({
            "prompt": words(vocabulary, PROMPT_WORDS, 3 * index),
            "chosen": words(vocabulary, ANSWER_WORDS, 3 * index + 1),
            "rejected": words(vocabulary, ANSWER_WORDS, 3 * index + 2),
        });
        pair.to_string() + "\n"
    };
    (0..16).map(line).collect()
}

/// Words that look drawn at random; `w0` ends answers, so it is not among them.
fn words(vocabulary: usize, count: u64, seed: u64) -> String {
    let others = vocabulary.saturating_sub(1).max(1) as u64;
    let word = |place: u64| {
        let draw = (seed * 1009 + place).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        format!("w{}", 1 + draw % others)
    };
    (0..count).map(word).collect::<Vec<_>>().join(" ")
}
