//! Rankers.

use std::borrow::Cow;
use std::path::Path;

use safetensors::{Dtype, View};
use serde_json::json;

use crate::error::{ModelError, Result};
use crate::ops::random::Noise;

const HIDDEN: usize = 1024;
const INNER: usize = 4096;
const LAYERS: usize = 24;
const HEADS: usize = 16;
const VOCABULARY: usize = 128_005;
const SPAN: usize = 256;

/// The markers of the prompt, and of the first and second candidate.
const SYNTHETIC_RANKER_MARKERS: [u32; 3] = [128_001, 128_002, 128_003];

/// Writes a ranker of PairRM's shape: `config.json` and `model.safetensors` (1.7 GB) in the layout of
/// `llm-blender/PairRM-hf`.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_synthetic_ranker(directory: &Path) -> Result<()> {
    let [source, first, second] = SYNTHETIC_RANKER_MARKERS;
    let config = json!({
        "architectures": ["DebertaV2PairRM"],
        "model_type": "deberta-v2",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "vocab_size": VOCABULARY,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-7,
        "max_position_embeddings": 512,
        "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": false,
        "position_buckets": SPAN,
        "relative_attention": true,
        "share_att_key": true,
        "type_vocab_size": 0,
        "source_prefix_id": source,
        "cand1_prefix_id": first,
        "cand2_prefix_id": second,
    });
    let path = directory.join("config.json");
    fs_err::write(&path, config.to_string()).map_err(|error| unwritable(&path, error))?;
    let path = directory.join("model.safetensors");
    safetensors::serialize_to_file(weights(), None, &path).map_err(|error| unwritable(&path, error))
}

/// Tokens of a pair for such a ranker: a prompt of a tenth of them, and two answers.
#[must_use]
pub fn synthetic_ranker_sequence(pair: usize, tokens: usize) -> Vec<u32> {
    let mut sequence: Vec<u32> =
        (0..tokens).map(|place| ((pair * 7919 + place * 104_729) % 128_000) as u32).collect();
    let places = [1, tokens / 10, tokens * 55 / 100];
    for (marker, place) in SYNTHETIC_RANKER_MARKERS.iter().zip(places) {
        if let Some(token) = sequence.get_mut(place) {
            *token = *marker;
        }
    }
    sequence
}

fn unwritable(path: &Path, error: impl std::fmt::Display) -> ModelError {
    ModelError::file(path, format!("cannot be written: {error}"))
}

fn weights() -> Vec<(String, Random)> {
    let mut weights = Vec::new();
    let mut add = |name: String, shape: &[usize]| {
        let seed = weights.len() as u64;
        weights.push((name, Random { shape: shape.to_vec(), seed }));
    };
    let mut linear = |name: &str, output: usize, input: usize| {
        add(format!("{name}.weight"), &[output, input]);
        add(format!("{name}.bias"), &[output]);
    };
    linear("head_layer.1", HIDDEN, 2 * HIDDEN);
    linear("head_layer.4", 1, HIDDEN);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("pretrained_model.encoder.layer.{layer}.{part}");
        for part in ["self.query_proj", "self.key_proj", "self.value_proj", "output.dense"] {
            linear(&name(&format!("attention.{part}")), HIDDEN, HIDDEN);
        }
        linear(&name("intermediate.dense"), INNER, HIDDEN);
        linear(&name("output.dense"), HIDDEN, INNER);
    }
    let mut norm = |name: String| {
        add(format!("{name}.weight"), &[HIDDEN]);
        add(format!("{name}.bias"), &[HIDDEN]);
    };
    norm("pretrained_model.embeddings.LayerNorm".into());
    norm("pretrained_model.encoder.LayerNorm".into());
    for layer in 0..LAYERS {
        norm(format!("pretrained_model.encoder.layer.{layer}.attention.output.LayerNorm"));
        norm(format!("pretrained_model.encoder.layer.{layer}.output.LayerNorm"));
    }
    add("pretrained_model.encoder.rel_embeddings.weight".into(), &[2 * SPAN, HIDDEN]);
    add("pretrained_model.embeddings.word_embeddings.weight".into(), &[VOCABULARY, HIDDEN]);
    weights
}

/// Random values, made when they are written.
struct Random {
    shape: Vec<usize>,
    seed: u64,
}

impl View for Random {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Matrices keep the size of what they are multiplied with, vectors are near 1.
    fn data(&self) -> Cow<'_, [u8]> {
        let (factor, offset) = match self.shape[..] {
            [_, input] => ((3.0 / input as f32).sqrt(), 0.0),
            _ => (0.1, 0.5),
        };
        let values = Noise(self.seed).values(self.shape.iter().product());
        values.iter().flat_map(|value| (factor * value + offset).to_le_bytes()).collect()
    }

    fn data_len(&self) -> usize {
        size_of::<f32>() * self.shape.iter().product::<usize>()
    }
}
