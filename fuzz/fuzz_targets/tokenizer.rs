//! A `tokenizer.json`, and text through it.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sppo_fuzz::{panics_may_be_caught_in, within_limits};
use sppo_model::text::Tokenizer;

const TEXT: &str = "Hi <s> there, <|im_start|>\n\té 漢 🙂 ab\u{301} 12 \u{0}x";

fuzz_target!(init: panics_may_be_caught_in("/tokenizers-"), |data: &[u8]| within_limits(|| {
    let Ok(mut tokenizer) = Tokenizer::from_json(data, Path::new("tokenizer.json")) else { return };
    let _ = tokenizer.make_special(&["<s>", "a"]);
    let shown = tokenizer.without_special_tokens(TEXT).into_owned();
    for text in [TEXT, &shown, ""] {
        if let Ok(tokens) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&tokens);
        }
    }
    for limit in [0, 3, 100] {
        let _ = tokenizer.encode_pair(TEXT, "b a", limit);
    }
    let _ = tokenizer.decode(&[0, 1, 2, 1_000_000]);
    let _ = tokenizer.tokens_from(tokenizer.vocabulary_size() / 2);
}));
