//! Llama 2 and 3, SmolLM, and every other model that calls itself `LlamaForCausalLM`.

use serde_json::{Value, json};

use super::gguf;
use super::gguf_writing::LLAMA3_DIVISORS;
use super::hugging_face::{self, Defaults};
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family, Rotary, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, JsonObject, WeightFile};

/// Constants of Llama 3.1 to 3.3, which llama.cpp's converter does not write into the metadata.
const LLAMA3_LOW_FREQUENCY_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY_FACTOR: f64 = 4.0;
const LLAMA3_ORIGINAL_CONTEXT: f64 = 8192.0;

#[derive(Debug)]
pub(super) struct Llama;

impl Family for Llama {
    fn model_type(&self) -> &'static str {
        "llama"
    }

    fn architecture(&self) -> &'static str {
        "LlamaForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "LlamaForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("hidden_act", &json!("silu"))?;
        settings.refuse_unless("attention_bias", &json!(false))?;
        settings.refuse_unless("mlp_bias", &json!(false))?;
        let defaults = Defaults {
            vocabulary_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            layer_count: 32,
            attention_heads: 32,
            key_value_heads: None,
            head_size: None,
            context_length: 2048,
            norm_epsilon: 1e-6,
            tied_head: false,
            rotary: USUAL,
        };
        hugging_face::plain(&Self, settings, &defaults)
    }

    fn write_hugging_face(&self, _: &DecoderConfig) -> Value {
        json!({"attention_bias": false, "mlp_bias": false})
    }

    /// Mistral's files as well: llama.cpp does not tell the two apart.
    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("llama")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("attention.sliding_window", 0)?;
        let config = gguf::plain(&Self, file, keys)?;
        match config.main_rotary() {
            Some(Rotary { base, scaling: RotaryScaling::Unscaled, .. }) => {
                let scaling = llama3_scaling(file, keys, *base, config.head_size)?;
                let rotary = Rotary { base: *base, features: config.head_size, scaling };
                Ok(DecoderConfig { rotary: vec![Some(rotary); config.rotary.len()], ..config })
            }
            _ => Ok(config),
        }
    }

    /// llama.cpp rotates neighbouring features of a query or key head together, Hugging Face feature
    /// `i` with feature `i + head_size / 2`; the converter reorders the rows accordingly.
    fn restore_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        restore_queries_and_keys(config, weight, values);
    }

    fn gguf_row(&self, config: &DecoderConfig, weight: &str, row: usize) -> usize {
        row_of_queries_or_keys(config, weight, row)
    }

    fn convert_gguf(&self, config: &DecoderConfig, weight: &str, values: &mut Vec<f32>) {
        convert_queries_and_keys(config, weight, values);
    }
}

/// Undoes the reordering of the rows of queries and keys: row `(pair, half)` of each head becomes row
/// `(half, pair)`.
pub(super) fn restore_queries_and_keys(
    config: &DecoderConfig,
    weight: &str,
    values: &mut Vec<f32>,
) {
    reorder_heads(config, weight, values, |row| stored_row(config, row));
}

/// The row of the tensor in a GGUF file that is row `row` of a matrix: another one of the same head in those of
/// queries and keys.
pub(super) fn row_of_queries_or_keys(config: &DecoderConfig, weight: &str, row: usize) -> usize {
    let in_head = row % config.head_size.max(1);
    if is_reordered(weight) { row - in_head + stored_row(config, in_head) } else { row }
}

/// Row `(half, pair)` of a head stands at `(pair, half)`.
fn stored_row(config: &DecoderConfig, row: usize) -> usize {
    let half = config.head_size / 2;
    row % half * 2 + row / half
}

fn is_reordered(weight: &str) -> bool {
    weight.ends_with("q_proj.weight") || weight.ends_with("k_proj.weight")
}

/// Reorders the rows of queries and keys: row `(half, pair)` of each head becomes row `(pair, half)`.
pub(super) fn convert_queries_and_keys(
    config: &DecoderConfig,
    weight: &str,
    values: &mut Vec<f32>,
) {
    let half = config.head_size / 2;
    reorder_heads(config, weight, values, |row| row % 2 * half + row / 2);
}

/// Takes each row of a head of queries or keys from the row that `source` says.
fn reorder_heads(
    config: &DecoderConfig,
    weight: &str,
    values: &mut Vec<f32>,
    source: impl Fn(usize) -> usize,
) {
    if !is_reordered(weight) {
        return;
    }
    let (head_size, row) = (config.head_size, config.hidden_size);
    let mut reordered = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_size * row) {
        for target in 0..head_size {
            reordered.extend_from_slice(&head[source(target) * row..][..row]);
        }
    }
    *values = reordered;
}

/// Llama 3's scaling is written as one divisor per frequency, `rope_freqs.weight`.
fn llama3_scaling(
    file: &GgufFile,
    keys: &GgufKeys<'_>,
    base: f64,
    head_size: usize,
) -> Result<RotaryScaling> {
    if file.shape(LLAMA3_DIVISORS).is_none() {
        return Ok(RotaryScaling::Unscaled);
    }
    let divisors = file.values(LLAMA3_DIVISORS)?;
    let factor = f64::from(divisors.iter().copied().fold(1.0_f32, f32::max));
    let original = keys.count("rope.scaling.original_context_length")?;
    let original_context = original.map_or(LLAMA3_ORIGINAL_CONTEXT, |context| context as f64);
    let scaling = llama3(factor, original_context);
    let rotary = Rotary { base, features: head_size, scaling };
    let agree = divisors.len() == head_size / 2
        && divisors.iter().enumerate().all(|(pair, &divisor)| {
            let expected = rotary.divisor(pair);
            (f64::from(divisor) - expected).abs() <= 1e-3 * expected
        });
    if !agree {
        return Err(ModelError::Unsupported(format!(
            "{}: the rotary divisors in `{LLAMA3_DIVISORS}` are not those of Llama 3, which alone are supported",
            file.metadata().path().display()
        )));
    }
    if factor == 1.0 {
        return Ok(RotaryScaling::Unscaled);
    }
    Ok(rotary.scaling)
}

fn llama3(factor: f64, original_context: f64) -> RotaryScaling {
    RotaryScaling::Llama3 {
        factor,
        low_frequency_factor: LLAMA3_LOW_FREQUENCY_FACTOR,
        high_frequency_factor: LLAMA3_HIGH_FREQUENCY_FACTOR,
        original_context,
    }
}
