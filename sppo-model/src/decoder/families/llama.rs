//! Llama 2 and 3, SmolLM, and every other model that calls itself `LlamaForCausalLM`.

use std::f64::consts::TAU;

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults};
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family, Rotary, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, JsonObject, WeightFile};

/// Constants of Llama 3.1 to 3.3, which the converter does not write into the metadata.
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
                let scaling = llama3_scaling(file, *base, config.head_size)?;
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
}

/// Undoes the reordering of the rows of queries and keys.
pub(super) fn restore_queries_and_keys(
    config: &DecoderConfig,
    weight: &str,
    values: &mut Vec<f32>,
) {
    if weight.ends_with("q_proj.weight") || weight.ends_with("k_proj.weight") {
        *values = restore_head_order(values, config.head_size, config.hidden_size);
    }
}

/// Row `(pair, half)` of each head becomes row `(half, pair)`.
fn restore_head_order(values: &[f32], head_size: usize, row: usize) -> Vec<f32> {
    let half = head_size / 2;
    let mut restored = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_size * row) {
        for target in 0..head_size {
            let source = target % half * 2 + target / half;
            restored.extend_from_slice(&head[source * row..][..row]);
        }
    }
    restored
}

/// Llama 3's scaling is written as one divisor per frequency, `rope_freqs.weight`.
fn llama3_scaling(file: &GgufFile, base: f64, head_size: usize) -> Result<RotaryScaling> {
    const NAME: &str = "rope_freqs.weight";
    if file.shape(NAME).is_none() {
        return Ok(RotaryScaling::Unscaled);
    }
    let divisors = file.values(NAME)?;
    let factor = f64::from(divisors.iter().copied().fold(1.0_f32, f32::max));
    let agree = divisors.len() == head_size / 2
        && divisors.iter().enumerate().all(|(pair, &divisor)| {
            let expected = llama3_divisor(factor, base, pair, head_size);
            (f64::from(divisor) - expected).abs() <= 1e-3 * expected
        });
    if !agree {
        return Err(ModelError::Unsupported(format!(
            "{}: the rotary divisors in `{NAME}` are not those of Llama 3, which alone are supported",
            file.metadata().path().display()
        )));
    }
    if factor == 1.0 {
        return Ok(RotaryScaling::Unscaled);
    }
    Ok(RotaryScaling::Llama3 {
        factor,
        low_frequency_factor: LLAMA3_LOW_FREQUENCY_FACTOR,
        high_frequency_factor: LLAMA3_HIGH_FREQUENCY_FACTOR,
        original_context: LLAMA3_ORIGINAL_CONTEXT,
    })
}

/// Divisor of the frequency of a feature pair in Llama 3.
fn llama3_divisor(factor: f64, base: f64, pair: usize, head_size: usize) -> f64 {
    let wavelength = TAU * base.powf(2.0 * pair as f64 / head_size as f64);
    if wavelength < LLAMA3_ORIGINAL_CONTEXT / LLAMA3_HIGH_FREQUENCY_FACTOR {
        1.0
    } else if wavelength > LLAMA3_ORIGINAL_CONTEXT / LLAMA3_LOW_FREQUENCY_FACTOR {
        factor
    } else {
        let smooth = (LLAMA3_ORIGINAL_CONTEXT / wavelength - LLAMA3_LOW_FREQUENCY_FACTOR)
            / (LLAMA3_HIGH_FREQUENCY_FACTOR - LLAMA3_LOW_FREQUENCY_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
