//! Weights under other names, damaged ones, and tokens that have none.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use sppo_model::checkpoint::Checkpoint;
use support::{
    copy_of, fixture, gguf_of_fixture, read_json, refusal, tensors, write_json, write_safetensors,
};

type Tensors = Vec<(String, Vec<usize>, Vec<f32>)>;

fn stored(family: &str) -> Tensors {
    let all = tensors(&Checkpoint::open(&fixture(family)).unwrap());
    all.into_iter().map(|(name, data)| (name, data.shape, data.values)).collect()
}

/// A fixture with other weights in its file.
fn with_weights(family: &str, weights: &Tensors, metadata: Value) -> tempfile::TempDir {
    let directory = copy_of(family);
    write_safetensors(&directory.path().join("model.safetensors"), &metadata, weights);
    directory
}

fn set(directory: &Path, file: &str, key: &str, value: Value) {
    let path = directory.join(file);
    let mut json = read_json(&path);
    json[key] = value;
    write_json(&path, &json);
}

fn renamed(weights: &Tensors, rename: impl Fn(&str) -> String) -> Tensors {
    weights
        .iter()
        .map(|(name, shape, values)| (rename(name), shape.clone(), values.clone()))
        .collect()
}

#[test]
fn weights_are_found_whatever_the_model_was_wrapped_in() {
    let weights = stored("llama");
    let expected = tensors(&Checkpoint::open(&fixture("llama")).unwrap());
    type Rename = fn(&str) -> String;
    let cases: [Rename; 10] = [
        |name| format!("_orig_mod.{name}"),
        |name| format!("module.{name}"),
        |name| format!("module._orig_mod.{name}"),
        |name| format!("base_model.model.{name}"),
        |name| format!("base_model.{name}"),
        |name| {
            format!("_fsdp_wrapped_module.{}", name.replace(".mlp", "._fsdp_wrapped_module.mlp"))
        },
        |name| name.replace(".self_attn", "._checkpoint_wrapped_module.self_attn"),
        |name| name.replace("q_proj.", "q_proj.base_layer."),
        |name| name.replace("model.", "model.language_model."),
        |name| format!("language_model.{name}"),
    ];
    for rename in cases {
        let weights = renamed(&weights, rename);
        let directory = with_weights("llama", &weights, json!({"format": "pt"}));
        let found = Checkpoint::open(directory.path())
            .unwrap_or_else(|error| panic!("{}: {error}", weights[0].0));
        assert_eq!(tensors(&found), expected, "{}", weights[0].0);
    }
}

#[test]
fn weights_of_the_inner_model_alone_need_no_head() {
    let inner = |weights: &Tensors| {
        let inner =
            weights.iter().filter(|(name, _, _)| name != "lm_head.weight").cloned().collect();
        renamed(&inner, |name| name.replace("model.", ""))
    };
    let tied = stored("gemma2");
    let directory = with_weights("gemma2", &inner(&tied), json!({}));
    let found = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(tensors(&found), tensors(&Checkpoint::open(&fixture("gemma2")).unwrap()));
    let directory = with_weights("llama", &inner(&stored("llama")), json!({}));
    let error = refusal(directory.path());
    assert!(error.contains("`lm_head.weight` is missing"), "{error}");
    assert!(error.contains("[save the whole model"), "{error}");
}

#[test]
fn one_of_two_models_in_a_file_is_not_guessed() {
    let weights = stored("llama");
    let mut both = renamed(&weights, |name| format!("policy.{name}"));
    both.extend(renamed(&weights, |name| format!("reference.{name}")));
    let error = refusal(with_weights("llama", &both, json!({})).path());
    assert!(error.contains("could be in"), "{error}");
    let mut adapted = weights.clone();
    adapted.push((
        "model.layers.0.self_attn.q_proj.lora_A.default.weight".into(),
        vec![1],
        vec![1.0],
    ));
    let error = refusal(with_weights("llama", &adapted, json!({})).path());
    assert!(error.contains("adapters that are not merged"), "{error}");
    let error = refusal(
        with_weights(
            "llama",
            &renamed(&weights, |name| name.replace("layers", "blocks")),
            json!({}),
        )
        .path(),
    );
    assert!(error.contains("there are 30 tensors: `lm_head.weight`, `model.blocks.0"), "{error}");
}

#[test]
fn a_tied_matrix_may_have_either_name() {
    let weights = stored("gemma2");
    let expected = tensors(&Checkpoint::open(&fixture("gemma2")).unwrap());
    let as_head = |name: &str| name.replace("model.embed_tokens.weight", "lm_head.weight");
    let shared = json!({"format": "pt", "model.embed_tokens.weight": "lm_head.weight"});
    for (rename, metadata) in [
        (&as_head as &dyn Fn(&str) -> String, json!({})),
        (&as_head, shared.clone()),
        (&|name: &str| format!("module.{}", as_head(name)), json!({})),
    ] {
        let directory = with_weights("gemma2", &renamed(&weights, rename), metadata);
        let found = Checkpoint::open(directory.path()).unwrap();
        assert_eq!(tensors(&found), expected);
    }
    // a head that shares its memory needs no `tie_word_embeddings`
    let directory = with_weights("gemma2", &renamed(&weights, as_head), shared);
    set(directory.path(), "config.json", "tie_word_embeddings", json!(false));
    let found = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(
        found.tensor("lm_head.weight").unwrap(),
        found.tensor("model.embed_tokens.weight").unwrap()
    );
    let error =
        refusal(with_weights("llama", &renamed(&stored("qwen2"), as_head), json!({})).path());
    assert!(error.contains("is missing") || error.contains("has the shape"), "{error}");
}

#[test]
fn a_weight_that_is_no_number_is_refused_when_it_is_read() {
    for (value, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut weights = stored("llama");
        weights[3].2[5] = value;
        let name = &weights[3].0;
        let directory = with_weights("llama", &weights, json!({}));
        let error =
            Checkpoint::open(directory.path()).unwrap().tensor(name).unwrap_err().to_string();
        let expected = format!(
            "1 of its {} values are infinite or not a number, the first {shown}",
            weights[3].2.len()
        );
        assert!(error.contains(&expected), "{error}");
    }
    let mut file = gguf_of_fixture("llama");
    file.tensors[0].bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    let (_directory, opened) = support::open_gguf(&file.build());
    let error = opened.unwrap().tensor("model.embed_tokens.weight").unwrap_err().to_string();
    assert!(error.contains("tensor `token_embd.weight` is damaged"), "{error}");
}

/// The Llama fixture, of 512 rows, whose tokenizer has got more tokens.
fn with_tokens(tokens: &[&str]) -> tempfile::TempDir {
    let directory = copy_of("llama");
    let path = directory.path().join("tokenizer.json");
    let mut tokenizer = read_json(&path);
    for (id, token) in (512..).zip(tokens) {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    write_json(&path, &tokenizer);
    directory
}

#[test]
fn a_padding_token_needs_no_row() {
    for tokens in [&["[PAD]"][..], &["<pad>"], &["<|finetune_right_pad_id|>", "[PAD]"]] {
        let directory = with_tokens(tokens);
        let opened = Checkpoint::open(directory.path()).unwrap();
        assert!(opened.text().encode("plain text", true).is_ok());
        let error = opened.text().encode(&format!("a {} b", tokens[0]), false).unwrap_err();
        assert!(
            error.to_string().contains("the token 512, which was added to the tokenizer"),
            "{error}"
        );
    }
    let declared = with_tokens(&["<|fill|>"]);
    set(declared.path(), "tokenizer_config.json", "pad_token", json!("<|fill|>"));
    assert!(Checkpoint::open(declared.path()).is_ok());
}

#[test]
fn a_token_that_texts_can_hold_needs_a_row() {
    for (tokens, key, written) in [
        (&["[PAD]", "<|im_start|>"][..], "", ""),
        (&["<|fill|>"], "", ""),
        (&["[PAD]"], "eos_token", ""),
        (&["[PAD]"], "bos_token", ""),
        (&["[PAD]"], "pad_token", "{{ messages[0].content }}{{ pad_token }}"),
        (&["[PAD]"], "", "{{ messages[0].content }}[PAD]"),
    ] {
        let directory = with_tokens(tokens);
        if !key.is_empty() {
            set(directory.path(), "tokenizer_config.json", key, json!(tokens[0]));
        }
        if !written.is_empty() {
            set(directory.path(), "tokenizer_config.json", "chat_template", json!(written));
        }
        let error = refusal(directory.path());
        let expected = format!(
            "the model only 512, and `{}` was added without resizing",
            tokens.last().unwrap()
        );
        assert!(error.contains(&expected) && error.contains("resize_token_embeddings"), "{error}");
    }
}

#[test]
fn a_model_in_nf4_is_near_the_one_that_was_quantized_and_is_saved_without_blocks() {
    let path = fixture("../nf4/llama");
    let checkpoint = Checkpoint::open(&path).unwrap();
    let sizes = checkpoint.quantized_bytes().unwrap();
    // seven matrices in each of three layers
    assert_eq!(sizes.len(), 21);
    assert!(checkpoint.original_config().unwrap()["quantization_config"].is_null());
    let original = tensors(&Checkpoint::open(&fixture("llama")).unwrap());
    for ((name, found), (_, original)) in tensors(&checkpoint).into_iter().zip(original) {
        let largest = original.values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
        let pairs = found.values.iter().zip(&original.values);
        let off = pairs.map(|(found, original)| (found - original).abs()).fold(0.0, f32::max);
        let matrix = checkpoint.quantized_base_matrix(&name).unwrap();
        assert_eq!(matrix.is_some(), sizes.contains_key(&name), "{name}");
        let share = if matrix.is_some() { 0.2 } else { 1.0 / 128.0 };
        assert!(off > 0.0 || share < 0.1, "{name}");
        assert!(off <= share * largest, "{name}: {off} of {largest}");
        if let Some(matrix) = matrix {
            assert_eq!(matrix.values(), found.values, "{name}");
        }
    }
    let directory = copy_of("../nf4/llama");
    set(directory.path(), "config.json", "quantization_config", Value::Null);
    let error = refusal(directory.path());
    assert!(error.contains("has the shape"), "{error}");
}
