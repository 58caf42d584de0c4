//! Helpers of several test files.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::path::{Path, PathBuf};

use serde_json::Value;
use sppo_model::checkpoint::{Checkpoint, TensorData};
use sppo_model::{ModelError, Result};

/// The directory of a tiny model with golden numbers.
pub(crate) fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm").join(family)
}

pub(crate) fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap()
}

pub(crate) fn write_json(path: &Path, json: &Value) {
    fs_err::write(path, json.to_string()).unwrap();
}

/// A copy of a fixture that a test may damage.
pub(crate) fn copy_of(family: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for entry in fs_err::read_dir(fixture(family)).unwrap() {
        let path = entry.unwrap().path();
        fs_err::copy(&path, directory.path().join(path.file_name().unwrap())).unwrap();
    }
    directory
}

/// Builds GGUF files, sound and unsound ones.
#[derive(Clone, Default)]
pub(crate) struct GgufBuilder {
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    pub(crate) tensors: Vec<GgufTensor>,
}

#[derive(Clone)]
pub(crate) struct GgufTensor {
    pub(crate) name: String,
    /// Innermost first.
    pub(crate) dimensions: Vec<u64>,
    pub(crate) kind: u32,
    pub(crate) bytes: Vec<u8>,
    /// Written in place of the true offset.
    pub(crate) offset: Option<u64>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

impl GgufBuilder {
    pub(crate) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        self.entries.push((key.into(), [&kind.to_le_bytes()[..], value].concat()));
        self
    }

    pub(crate) fn integer(&mut self, key: &str, value: u32) -> &mut Self {
        self.raw(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn number(&mut self, key: &str, value: f32) -> &mut Self {
        self.raw(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, 8, &text(value))
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[String]) -> &mut Self {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| text(value)));
        self.raw(key, 9, &bytes)
    }

    pub(crate) fn integers(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = 5_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    pub(crate) fn numbers(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let mut bytes = 6_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.raw(key, 9, &bytes)
    }

    pub(crate) fn tensor(
        &mut self,
        name: &str,
        dimensions: &[u64],
        kind: u32,
        bytes: Vec<u8>,
    ) -> &mut Self {
        let dimensions = dimensions.to_vec();
        self.tensors.push(GgufTensor { name: name.into(), dimensions, kind, bytes, offset: None });
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(3_u32.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            file.extend(text(key));
            file.extend(value);
        }
        let mut data = Vec::new();
        for tensor in &self.tensors {
            file.extend(text(&tensor.name));
            file.extend((tensor.dimensions.len() as u32).to_le_bytes());
            file.extend(tensor.dimensions.iter().flat_map(|size| size.to_le_bytes()));
            file.extend(tensor.kind.to_le_bytes());
            file.extend(tensor.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&tensor.bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        file
    }
}

pub(crate) fn tensors(checkpoint: &Checkpoint) -> Vec<(String, TensorData)> {
    let names: Vec<String> = checkpoint.tensor_names().map(String::from).collect();
    names.into_iter().map(|name| (name.clone(), checkpoint.tensor(&name).unwrap())).collect()
}

/// What opening a model is refused with: the message, and the hint in brackets.
pub(crate) fn refusal(path: &Path) -> String {
    let error = Checkpoint::open(path).unwrap_err();
    let ModelError::File { ref hint, .. } = error else { return error.to_string() };
    let text = error.to_string();
    assert_eq!(text.lines().count(), 1, "{text}");
    format!("{text} [{}]", hint.as_deref().unwrap_or_default())
}

/// A fixture as llama.cpp's converter would write it, in f32.
pub(crate) fn gguf_of_fixture(family: &str) -> GgufBuilder {
    let checkpoint = Checkpoint::open(&fixture(family)).unwrap();
    let config = checkpoint.config();
    let mut file = GgufBuilder::default();
    let architecture = config.family.gguf_architecture().unwrap();
    let key = |key: &str| format!("{architecture}.{key}");
    let rotary = config.rotary.iter().flatten().last().unwrap();
    let full = (config.rotary.iter().zip(&config.attention_windows))
        .find_map(|(rotary, window)| rotary.as_ref().filter(|_| window.is_none()));
    let rotary = full.unwrap_or(rotary);
    file.text("general.architecture", architecture)
        .integer(&key("block_count"), config.layer_count as u32)
        .integer(&key("context_length"), 256)
        .integer(&key("embedding_length"), 64)
        .integer(&key("feed_forward_length"), 112)
        .integer(&key("attention.head_count"), 4)
        .integer(&key("attention.head_count_kv"), 2)
        .integer(&key("attention.key_length"), config.head_size as u32)
        .integer(&key("attention.value_length"), config.head_size as u32)
        .integer(&key("rope.dimension_count"), rotary.features as u32)
        .number(&key("rope.freq_base"), rotary.base as f32)
        .number(&key("attention.layer_norm_rms_epsilon"), config.norm_epsilon as f32);
    if family == "gemma2" {
        file.number("gemma2.attn_logit_softcapping", 4.0)
            .number("gemma2.final_logit_softcapping", 5.0)
            .integer("gemma2.attention.sliding_window", 8);
    }
    let window = config.attention_windows.iter().copied().flatten().next();
    if let Some(window) = window.filter(|_| ["gemma3", "olmo2", "phi3"].contains(&architecture)) {
        file.integer(&key("attention.sliding_window"), window as u32);
    }
    if architecture == "gemma3" {
        let windowed = config.attention_windows.iter().map(|window| u8::from(window.is_some()));
        let flags = [&7_u32.to_le_bytes()[..], &4_u64.to_le_bytes(), &windowed.collect::<Vec<_>>()];
        file.raw(&key("attention.sliding_window_pattern"), 9, &flags.concat());
        file.text(&key("rope.scaling.type"), "linear").number(&key("rope.scaling.factor"), 8.0);
    }
    if let Some(experts) = &config.experts {
        file.integer(&key("expert_count"), experts.routing.expert_count as u32)
            .integer(&key("expert_used_count"), experts.routing.chosen as u32)
            .integer(&key("expert_feed_forward_length"), experts.intermediate_size as u32);
    }
    add_tokenizer(&mut file, family);
    for (name, data) in gguf_tensors(&checkpoint) {
        let values: Vec<f32> = match &name {
            name if ["llama", "smollm3"].contains(&family)
                && (name.contains("q_proj") || name.contains("k_proj")) =>
            {
                interleave_heads(&data.values)
            }
            name if family.starts_with("gemma") && name.contains("norm") => {
                data.values.iter().map(|value| value + 1.0).collect()
            }
            _ => data.values,
        };
        let dimensions: Vec<u64> = data.shape.iter().rev().map(|&size| size as u64).collect();
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.tensor(&gguf_name(family, &name), &dimensions, 0, bytes);
    }
    file
}

/// The tensors of a model as the converter takes them: fused as they are stored, and the experts of a layer
/// one after the other in one.
fn gguf_tensors(checkpoint: &Checkpoint) -> Vec<(String, TensorData)> {
    let config = checkpoint.config();
    let mut fused: Vec<(String, TensorData)> = Vec::new();
    for (name, data) in tensors(checkpoint) {
        let stored = config.family.source(config, &name).tensor;
        let Some((layer, expert)) = stored.split_once(".experts.") else {
            match fused.last_mut().filter(|(last, _)| *last == stored) {
                Some((_, all)) => {
                    all.shape[0] += data.shape[0];
                    all.values.extend(data.values);
                }
                None => fused.push((stored, data)),
            }
            continue;
        };
        let (_, part) = expert.split_once('.').unwrap();
        let stored = format!("{layer}.experts.{part}");
        match fused.iter_mut().find(|(name, _)| *name == stored) {
            Some((_, all)) => {
                all.shape[0] += 1;
                all.values.extend(data.values);
            }
            None => {
                let shape = [&[1], &data.shape[..]].concat();
                fused.push((stored, TensorData { shape, ..data }));
            }
        }
    }
    fused
}

fn add_tokenizer(file: &mut GgufBuilder, family: &str) {
    let tokenizer = read_json(&fixture(family).join("tokenizer.json"));
    let mut tokens = vec![String::new(); 512];
    for (token, id) in tokenizer["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let mut kinds: Vec<i32> =
        tokens.iter().map(|token| if token.starts_with("<0x") { 6 } else { 1 }).collect();
    for token in tokenizer["added_tokens"].as_array().unwrap() {
        let id = token["id"].as_u64().unwrap() as usize;
        tokens[id] = token["content"].as_str().unwrap().into();
        kinds[id] = 3;
    }
    let merges: Vec<(String, String)> =
        serde_json::from_value(tokenizer["model"]["merges"].clone()).unwrap();
    match family {
        "gemma2" | "gemma3_text" | "phi3" => {
            let rank = |token: &String| {
                merges.iter().position(|(left, right)| format!("{left}{right}") == *token)
            };
            let scores: Vec<f32> = tokens
                .iter()
                .map(|token| rank(token).map_or(-1e6, |rank| -(rank as f32)))
                .collect();
            file.text("tokenizer.ggml.model", "llama").numbers("tokenizer.ggml.scores", &scores);
        }
        _ => {
            let rule = match family {
                "llama" | "smollm3" => "llama-bpe",
                "olmo2" => "dbrx",
                _ => "qwen2",
            };
            let merges: Vec<String> = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
            file.text("tokenizer.ggml.model", "gpt2")
                .text("tokenizer.ggml.pre", rule)
                .texts("tokenizer.ggml.merges", &merges);
        }
    }
    let config = read_json(&fixture(family).join("tokenizer_config.json"));
    for name in ["bos", "eos"] {
        let token = &config[format!("{name}_token")];
        if let Some(id) = tokens.iter().position(|known| token == known.as_str()) {
            file.integer(&format!("tokenizer.ggml.{name}_token_id"), id as u32);
        }
    }
    file.texts("tokenizer.ggml.tokens", &tokens).integers("tokenizer.ggml.token_type", &kinds);
}

/// convert_hf_to_gguf.py's `reshape(heads, 2, size / 2, row).swapaxes(1, 2)` for heads of 16 rows of 64.
fn interleave_heads(values: &[f32]) -> Vec<f32> {
    let rows: Vec<&[f32]> = values.chunks(64).collect();
    let order = (0..rows.len()).map(|row| row / 16 * 16 + row % 2 * 8 + row % 16 / 2);
    order.flat_map(|row| rows[row].to_vec()).collect()
}

pub(crate) fn gguf_name(family: &str, name: &str) -> String {
    let is_after = family.starts_with("gemma") || family.starts_with("olmo");
    let post_attention = if is_after { "post_attention_norm" } else { "ffn_norm" };
    name.replace("model.embed_tokens", "token_embd")
        .replace("model.norm", "output_norm")
        .replace("lm_head", "output")
        .replace("model.layers", "blk")
        .replace("input_layernorm", "attn_norm")
        .replace("post_attention_layernorm", post_attention)
        .replace("pre_feedforward_layernorm", "ffn_norm")
        .replace("post_feedforward_layernorm", "post_ffw_norm")
        .replace("self_attn.o_proj", "attn_output")
        .replace("mlp.gate.weight", "ffn_gate_inp.weight")
        .replace("mlp.gate_up_proj", "ffn_up")
        .replace("mlp.experts.gate_proj", "ffn_gate_exps")
        .replace("mlp.experts.up_proj", "ffn_up_exps")
        .replace("mlp.experts.down_proj", "ffn_down_exps")
        .replace("self_attn.", "attn_")
        .replace("mlp.", "ffn_")
        .replace("_proj", "")
}

pub(crate) fn open_gguf(bytes: &[u8]) -> (tempfile::TempDir, Result<Checkpoint>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.gguf");
    fs_err::write(&path, bytes).unwrap();
    let opened = Checkpoint::open(&path);
    (directory, opened)
}

/// Names, shapes and f32 values of a safetensors file.
pub(crate) fn write_safetensors(
    path: &Path,
    metadata: &Value,
    tensors: &[(String, Vec<usize>, Vec<f32>)],
) {
    let mut header = serde_json::Map::new();
    header.insert("__metadata__".into(), metadata.clone());
    let mut data: Vec<u8> = Vec::new();
    for (name, shape, values) in tensors {
        let start = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        let place = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), place);
    }
    let header = Value::Object(header).to_string();
    let length = (header.len() as u64).to_le_bytes();
    fs_err::write(path, [&length[..], header.as_bytes(), &data].concat()).unwrap();
}
