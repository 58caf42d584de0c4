//! Tokenizers and chat templates against what transformers makes of them.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use sppo_model::formats::{GgufMetadata, GgufValue};
use sppo_model::text::{TextCodec, Tokenizer};
use sppo_plugin::{Conversation, Message};
use support::{fixture, read_json};

const FAMILIES: [&str; 11] = [
    "llama",
    "mistral",
    "gemma2",
    "gemma3_text",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "olmo2",
    "olmo3",
    "phi3",
];

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

fn check_encodings(codec: &TextCodec, golden: &Value, what: &str) {
    for case in golden["encodings"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(codec.encode(text, true).unwrap(), ids(&case["ids"]), "{what}: {text:?}");
        let plain = codec.encode(text, false).unwrap();
        assert_eq!(plain, ids(&case["ids_no_special"]), "{what}: {text:?}");
    }
}

fn check_chats(codec: &TextCodec, golden: &Value, what: &str) {
    for case in golden["chats"].as_array().unwrap() {
        let messages: Conversation = serde_json::from_value(case["messages"].clone()).unwrap();
        let rendered = codec.render(&messages, case["add_generation_prompt"].as_bool().unwrap());
        let text = rendered.unwrap();
        assert_eq!(text, case["text"].as_str().unwrap(), "{what}");
        assert_eq!(codec.encode(&text, false).unwrap(), ids(&case["ids"]), "{what}: {text:?}");
    }
}

#[test]
fn encodings_and_chats_agree_with_transformers() {
    for family in FAMILIES {
        let directory = fixture(family);
        let codec = TextCodec::from_directory(&directory).unwrap();
        let golden = read_json(&directory.join("golden.json"));
        check_encodings(&codec, &golden, family);
        check_chats(&codec, &golden, family);
    }
}

#[test]
fn special_tokens_come_from_all_files() {
    let special =
        |family| TextCodec::from_directory(&fixture(family)).unwrap().special_tokens().clone();
    let llama = special("llama");
    assert_eq!((llama.bos_token, llama.eos_token), (Some(507), Some(511)));
    assert_eq!(llama.stop_tokens, [511]);
    let gemma = special("gemma2");
    assert_eq!((gemma.bos_token, gemma.eos_token), (Some(2), Some(1)));
    assert_eq!(gemma.stop_tokens, [1, 5], "<eos> and <end_of_turn>");
    assert_eq!(special("qwen2").bos_token, None);
}

#[test]
fn decoding_leaves_special_and_unknown_tokens_out() {
    let codec = TextCodec::from_directory(&fixture("llama")).unwrap();
    let text = "naïve 你好 🙂 x**2";
    let mut tokens = vec![507];
    tokens.extend(codec.encode(text, false).unwrap());
    tokens.extend([511, 100_000]);
    assert_eq!(codec.decode(&tokens).unwrap(), text);
}

#[test]
fn a_template_that_refuses_says_why() {
    let codec = TextCodec::from_directory(&fixture("mistral")).unwrap();
    let twice = [Message::user("a"), Message::user("b")];
    let error = codec.render(&twice, true).unwrap_err().to_string();
    assert!(
        error.contains("refused the conversation: Conversation roles must alternate"),
        "{error}"
    );
}

#[test]
fn a_damaged_tokenizer_is_refused() {
    let whole = read_json(&fixture("llama").join("tokenizer.json"));
    let mut unknown_merge = whole.clone();
    unknown_merge["model"]["merges"][0] = json!(["no such", "token"]);
    let mut long_merge = whole.clone();
    let longest = "<|begin_of_text|>";
    long_merge["model"]["vocab"][longest] = json!(507);
    long_merge["model"]["merges"][0] = json!([longest, longest]);
    for (json, expected) in [
        (unknown_merge, "not in the vocabulary"),
        (long_merge, "not in the vocabulary"),
        (json!({"model": 3}), "not a usable tokenizer"),
    ] {
        let directory = support::copy_of("llama");
        fs_err::write(directory.path().join("tokenizer.json"), json.to_string()).unwrap();
        let error = TextCodec::from_directory(directory.path()).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("tokenizer.json"), "{error}");
    }
    let directory = support::copy_of("llama");
    fs_err::remove_file(directory.path().join("tokenizer.json")).unwrap();
    let error = TextCodec::from_directory(directory.path()).unwrap_err().to_string();
    assert!(error.contains("holds no tokenizer.json"), "{error}");
}

/// What the library that reads them does not check: parts of length 0, cuts longer than a token, damaged maps, marks
/// without tokens.
#[test]
fn a_tokenizer_that_contradicts_itself_fails_with_an_error() {
    let sound = read_json(&fixture("llama").join("tokenizer.json"));
    let strip = json!({"type": "Strip", "content": "a", "start": 1, "stop": 99});
    let mark = json!([{"SpecialToken": {"id": "[X]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]);
    for (part, value) in [
        ("pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
        ("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})),
        ("decoder", strip),
        (
            "post_processor",
            json!({"type": "TemplateProcessing", "single": mark, "pair": mark, "special_tokens": {}}),
        ),
    ] {
        let mut tokenizer = sound.clone();
        tokenizer[part] = value;
        let opened = Tokenizer::from_json(tokenizer.to_string().as_bytes(), Path::new("t.json"));
        let failed = opened.and_then(|opened| {
            let tokens = opened.encode("a text", true)?;
            opened.decode(&tokens)
        });
        let error = failed.expect_err(&tokenizer[part].to_string()).to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

/// Merges are handed on in the form that takes less memory.
#[test]
fn merges_mean_the_same_as_pairs_and_as_texts() {
    let pairs = read_json(&fixture("llama").join("tokenizer.json"));
    let open = |tokenizer: &Value| {
        Tokenizer::from_json(tokenizer.to_string().as_bytes(), Path::new("t.json"))
    };
    let mut texts = pairs.clone();
    for merge in texts["model"]["merges"].as_array_mut().unwrap() {
        *merge = json!(format!("{} {}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()));
    }
    // A token that holds a space cannot be written in a text of two tokens.
    let mut spaced = pairs.clone();
    for (id, token) in [(900, "a b"), (901, "a bc")] {
        spaced["model"]["vocab"][token] = json!(id);
    }
    spaced["model"]["vocab"]["c"] =
        spaced["model"]["vocab"].get("c").cloned().unwrap_or(json!(902));
    spaced["model"]["merges"].as_array_mut().unwrap().push(json!(["a b", "c"]));
    let expected = open(&pairs).unwrap();
    for other in [open(&texts).unwrap(), open(&spaced).unwrap()] {
        for text in ["The answer is 42, of course.", "straße\n\n  x", "<|im_end|> \u{1f600}"] {
            assert_eq!(other.encode(text, true).unwrap(), expected.encode(text, true).unwrap());
        }
    }
    let mut unknown = pairs;
    unknown["model"]["merges"].as_array_mut().unwrap().push(json!(["a", "no such token"]));
    let error = open(&unknown).unwrap_err().to_string();
    assert!(
        error.contains("`no such token`) names a token that is not in the vocabulary"),
        "{error}"
    );
}

/// The metadata that llama.cpp's converter writes for a Hugging Face tokenizer.
fn gguf_metadata(family: &str, kind: &str, word_rule: Option<&str>) -> GgufMetadata {
    let directory = fixture(family);
    let tokenizer = read_json(&directory.join("tokenizer.json"));
    let config = read_json(&directory.join("tokenizer_config.json"));
    let mut tokens: Vec<(u64, String, i128)> = Vec::new();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        let kind = if token.starts_with("<0x") { 6 } else { 1 };
        tokens.push((id.as_u64().unwrap(), token.clone(), kind));
    }
    for token in added {
        let id = token["id"].as_u64().unwrap();
        tokens.retain(|(other, _, _)| *other != id);
        tokens.push((id, token["content"].as_str().unwrap().to_string(), 3));
    }
    tokens.sort();
    let merges: Vec<(String, String)> =
        serde_json::from_value(tokenizer["model"]["merges"].clone()).unwrap();
    let score = |token: &str| {
        let rank = merges.iter().position(|(left, right)| format!("{left}{right}") == token);
        rank.map_or(-1e6, |rank| -(rank as f64))
    };
    let text = |text: &str| GgufValue::Text(text.to_string());
    let mut entries = vec![
        ("tokenizer.ggml.model".to_string(), text(kind)),
        (
            "tokenizer.ggml.tokens".into(),
            GgufValue::Array(tokens.iter().map(|(_, token, _)| text(token)).collect()),
        ),
        (
            "tokenizer.ggml.token_type".into(),
            GgufValue::Array(tokens.iter().map(|&(_, _, kind)| GgufValue::Integer(kind)).collect()),
        ),
    ];
    if kind == "gpt2" {
        let merges = merges.iter().map(|(left, right)| text(&format!("{left} {right}"))).collect();
        entries.push(("tokenizer.ggml.merges".into(), GgufValue::Array(merges)));
    } else {
        let scores = tokens.iter().map(|(_, token, _)| GgufValue::Number(score(token))).collect();
        entries.push(("tokenizer.ggml.scores".into(), GgufValue::Array(scores)));
        entries
            .push(("tokenizer.ggml.add_space_prefix".into(), GgufValue::Flag(family == "mistral")));
    }
    if let Some(rule) = word_rule {
        entries.push(("tokenizer.ggml.pre".into(), text(rule)));
    }
    for (name, key) in [
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
    ] {
        if let Some((id, _, _)) = tokens.iter().find(|(_, token, _)| config[name] == token.as_str())
        {
            entries.push((format!("tokenizer.ggml.{key}"), GgufValue::Integer((*id).into())));
        }
    }
    if let Some(template) = config["chat_template"].as_str() {
        entries.push(("tokenizer.chat_template".into(), text(template)));
    }
    GgufMetadata::new("model.gguf", entries.into_iter().collect())
}

#[test]
fn a_tokenizer_out_of_gguf_gives_the_same_ids() {
    for (family, kind, word_rule) in [
        ("llama", "gpt2", Some("llama-bpe")),
        ("qwen2", "gpt2", Some("qwen2")),
        ("mistral", "llama", None),
        ("gemma2", "llama", None),
    ] {
        let metadata = gguf_metadata(family, kind, word_rule);
        let codec = TextCodec::from_gguf(&metadata, 256).unwrap();
        let golden = read_json(&fixture(family).join("golden.json"));
        check_encodings(&codec, &golden, family);
        check_chats(&codec, &golden, family);
        let original = TextCodec::from_directory(&fixture(family)).unwrap();
        assert_eq!(codec.special_tokens(), original.special_tokens(), "{family}");

        let directory = tempfile::tempdir().unwrap();
        codec.save(directory.path()).unwrap();
        let again = TextCodec::from_directory(directory.path()).unwrap();
        check_chats(&again, &golden, family);
        assert_eq!(again.special_tokens(), original.special_tokens(), "{family}");
    }
}

#[test]
fn smollm_takes_every_digit_alone() {
    // "a  12" is `a`, two spaces, `1`, `2`; GPT-2's own rule would tie one space to the digits
    let spaces = |rule| {
        let codec = TextCodec::from_gguf(&gguf_metadata("llama", "gpt2", Some(rule)), 256).unwrap();
        codec.encode("a  12", false).unwrap()
    };
    assert_eq!(spaces("smollm"), [64, 296, 16, 17]);
    assert_eq!(spaces("default"), [64, 220, 220, 16, 17]);
}

#[test]
fn gguf_tokenizers_that_we_do_not_know_are_refused() {
    for (kind, rule, expected) in [
        ("bert", None, "the tokenizer kind `bert` is not supported; supported: gpt2, llama"),
        ("gpt2", Some("chatglm-bpe"), "the pre-tokenizer `chatglm-bpe` is not supported"),
    ] {
        let error = TextCodec::from_gguf(&gguf_metadata("llama", kind, rule), 256).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn an_end_token_stands_for_no_text_whatever_its_mark() {
    // how a token is marked in tokenizer.json, and whether eos_token names it
    for (special, named) in [(true, true), (false, true), (false, false), (true, false)] {
        let directory = support::copy_of("qwen2");
        let path = directory.path().join("tokenizer.json");
        let mut tokenizer = read_json(&path);
        for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
            if token["content"] == "<|im_end|>" {
                token["special"] = special.into();
            }
        }
        support::write_json(&path, &tokenizer);
        if !named {
            let path = directory.path().join("tokenizer_config.json");
            let mut config = read_json(&path);
            config["eos_token"] = Value::Null;
            support::write_json(&path, &config);
        }
        let codec = TextCodec::from_directory(directory.path()).unwrap();
        let mut tokens = codec.encode("Hello", false).unwrap();
        let end = codec.encode("<|im_end|>", false).unwrap();
        assert_eq!(end.len(), 1);
        assert!(codec.special_tokens().stop_tokens.contains(&end[0]), "{special} {named}");
        tokens.extend(end);
        assert_eq!(codec.decode(&tokens).unwrap(), "Hello", "{special} {named}");
    }
}

#[test]
fn marks_of_thoughts_stay_in_the_text_though_they_are_special() {
    let directory = support::copy_of("llama");
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    for token in tokenizer["added_tokens"].as_array_mut().unwrap() {
        if token["id"] == 509 {
            token["content"] = json!("[THINK]");
        }
    }
    let spelled = |vocabulary: &mut serde_json::Map<String, Value>| {
        vocabulary.retain(|_, id| *id != json!(509));
        vocabulary.insert("[THINK]".into(), json!(509));
    };
    tokenizer["model"]["vocab"].as_object_mut().map(spelled);
    support::write_json(&path, &tokenizer);
    let codec = TextCodec::from_directory(directory.path()).unwrap();
    assert_eq!(codec.decode(&codec.encode("[THINK]so", false).unwrap()).unwrap(), "[THINK]so");
}

#[test]
fn the_files_beside_adapters_come_before_those_of_their_base() {
    let base = TextCodec::from_directory(&fixture("llama")).unwrap();
    let hello = [Message::user("Hi")];
    let own = |files: &[(&str, Value)]| {
        let directory = tempfile::tempdir().unwrap();
        for (name, json) in files {
            let bytes = json.as_str().map_or_else(|| json.to_string(), String::from);
            fs_err::write(directory.path().join(name), bytes).unwrap();
        }
        base.with_files_of(directory.path(), None).unwrap()
    };
    let theirs = base.render(&hello, true).unwrap();
    let template = json!({"chat_template": "own {{ messages[0].content }}{{ eos_token }}"});
    assert_eq!(own(&[]).render(&hello, true).unwrap(), theirs);
    let special = base.special_tokens();
    for files in [
        vec![("tokenizer_config.json", json!({"chat_template": "own Hi"}))],
        vec![("chat_template.jinja", json!("own Hi"))],
        vec![
            ("chat_template.json", json!({"chat_template": "own Hi"})),
            ("tokenizer_config.json", json!({})),
        ],
    ] {
        assert_eq!(own(&files).render(&hello, true).unwrap(), "own Hi", "{files:?}");
        let directory = tempfile::tempdir().unwrap();
        own(&files).save(directory.path()).unwrap();
        let saved = TextCodec::from_directory(directory.path()).unwrap();
        assert_eq!(saved.render(&hello, true).unwrap(), "own Hi", "{files:?}");
    }
    assert_eq!(
        own(&[("tokenizer_config.json", template)]).special_tokens().stop_tokens,
        special.stop_tokens
    );
    // settings without a template leave the base's
    let config = read_json(&fixture("llama").join("tokenizer_config.json"));
    let mut config = config.as_object().unwrap().clone();
    config.remove("chat_template");
    let kept = own(&[("tokenizer_config.json", Value::Object(config))]);
    assert_eq!(kept.render(&hello, true).unwrap(), theirs);
}

#[test]
fn a_model_without_a_template_says_where_to_put_one() {
    let directory = support::copy_of("llama");
    support::write_json(&directory.path().join("tokenizer_config.json"), &json!({}));
    let codec = TextCodec::from_directory(directory.path()).unwrap();
    let error = codec.render(&[Message::user("Hi")], true).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja") && !error.contains("role"), "{error}");
    fs_err::write(directory.path().join("chat_template.json"), r#"{"chat_template": "x"}"#)
        .unwrap();
    let codec = TextCodec::from_directory(directory.path()).unwrap();
    assert_eq!(codec.render(&[Message::user("Hi")], true).unwrap(), "x");
}

#[test]
fn variables_reach_the_chat_template() {
    let template =
        "{{ enable_thinking }}|{{ words | join(',') }}|{{ deep.a[0] }}|{{ size }}|{{ nothing }}";
    let directory = support::copy_of("llama");
    fs_err::write(directory.path().join("chat_template.jinja"), template).unwrap();
    let codec = TextCodec::from_directory(directory.path()).unwrap();
    let variables =
        json!({"enable_thinking": false, "words": ["a", "b"], "deep": {"a": [1.5]}, "size": 3});
    let set = codec.clone().with_template_variables(variables.as_object().unwrap()).unwrap();
    assert_eq!(set.render(&[Message::user("Hi")], true).unwrap(), "False|a,b|1.5|3|");
    assert!(codec.render(&[Message::user("Hi")], true).is_err(), "`deep.a` of nothing");
    for name in ["messages", "add_generation_prompt"] {
        let own = json!({name: 1});
        let refused = codec.clone().with_template_variables(own.as_object().unwrap());
        assert!(refused.unwrap_err().to_string().contains(name));
    }
}
