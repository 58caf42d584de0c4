//! The parts of writing GGUF files that families share: settings, and the tensors to be written.

use std::collections::HashMap;

use super::gguf::gguf_source;
use crate::decoder::{
    DecoderConfig, GgufWindows, RotaryScaling, StoredTensor, StoredWeight, TensorLayout,
    tensor_layout,
};
use crate::error::{ModelError, Result};
use crate::formats::{ArchitectureEntries, GgufEntries};

/// The tensor of Llama 3's divisors.
pub(super) const LLAMA3_DIVISORS: &str = "rope_freqs.weight";
/// The tensors of LongRoPE's divisors, of short and of long sequences.
pub(super) const LONG_ROPE_DIVISORS: [&str; 2] =
    ["rope_factors_short.weight", "rope_factors_long.weight"];

/// The configuration as GGUF and llama.cpp can have it. Where llama.cpp computes without windows, the
/// context ends with the smallest: up to there, they make no difference.
pub(crate) fn as_gguf_says(config: &DecoderConfig) -> DecoderConfig {
    let mut told = config.clone();
    let windows = config.family.gguf_windows();
    if windows != GgufWindows::Used {
        let smallest = config.attention_windows.iter().copied().flatten().min();
        told.context_length =
            smallest.map_or(config.context_length, |window| window.min(config.context_length));
    }
    if windows == GgufWindows::Absent {
        told.attention_windows.fill(None);
    }
    told
}

/// Adds the settings of a model.
///
/// # Errors
/// When there are no GGUF files of its family.
pub(crate) fn write_gguf_settings(config: &DecoderConfig, entries: &mut GgufEntries) -> Result<()> {
    let architecture = config.family.gguf_architecture().ok_or_else(|| {
        let family = config.family.model_type();
        ModelError::Unsupported(format!("there are no GGUF files of {family}"))
    })?;
    entries.set_text("general.architecture", architecture);
    let mut own = ArchitectureEntries::new(entries, architecture);
    own.set_count("vocab_size", config.vocabulary_size);
    own.set_count("context_length", config.context_length);
    own.set_count("embedding_length", config.hidden_size);
    own.set_count("block_count", config.layer_count);
    own.set_count("feed_forward_length", config.intermediate_size);
    own.set_count("attention.head_count", config.attention_heads);
    own.set_count("attention.head_count_kv", config.key_value_heads);
    own.set_count("attention.key_length", config.head_size);
    own.set_count("attention.value_length", config.head_size);
    own.set_number("attention.layer_norm_rms_epsilon", config.norm_epsilon);
    write_rotary(config, &mut own);
    config.family.write_gguf(config, &mut own);
    Ok(())
}

fn write_rotary(config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
    const CONTEXT: &str = "rope.scaling.original_context_length";
    let Some(rotary) = config.main_rotary() else { return };
    entries.set_count("rope.dimension_count", rotary.features);
    entries.set_number("rope.freq_base", rotary.base);
    match &rotary.scaling {
        RotaryScaling::Unscaled => {}
        RotaryScaling::Linear { factor } => {
            entries.set_text("rope.scaling.type", "linear");
            entries.set_number("rope.scaling.factor", *factor);
        }
        RotaryScaling::Llama3 { original_context, .. } => {
            entries.set_count(CONTEXT, *original_context as usize);
        }
        RotaryScaling::Yarn { factor, original_context, .. } => {
            entries.set_text("rope.scaling.type", "yarn");
            entries.set_number("rope.scaling.factor", *factor);
            entries.set_count(CONTEXT, *original_context as usize);
        }
        RotaryScaling::LongRope { original_context, attention_factor, .. } => {
            entries.set_count(CONTEXT, *original_context as usize);
            entries.set_number("rope.scaling.attn_factor", *attention_factor);
        }
    }
}

/// The window of the layers that have one.
pub(super) fn write_window(config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
    let window = config.attention_windows.iter().copied().flatten().next();
    entries.set_count("attention.sliding_window", window.unwrap_or(0));
}

/// The window, and which layers have it.
pub(super) fn write_windowed_layers(config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
    write_window(config, entries);
    let windowed: Vec<bool> = config.attention_windows.iter().map(Option::is_some).collect();
    entries.set_flags("attention.sliding_window_pattern", &windowed);
}

/// The divisors of rotary frequencies that are tensors in GGUF files: names and values.
pub(crate) fn rotary_tensors(config: &DecoderConfig) -> Vec<(&'static str, Vec<f32>)> {
    let Some(rotary) = config.main_rotary() else { return Vec::new() };
    match &rotary.scaling {
        RotaryScaling::Llama3 { .. } => {
            let divisors = (0..rotary.features / 2).map(|pair| rotary.divisor(pair) as f32);
            vec![(LLAMA3_DIVISORS, divisors.collect())]
        }
        RotaryScaling::LongRope { short, long, .. } => {
            let single =
                |divisors: &[f64]| divisors.iter().map(|&divisor| divisor as f32).collect();
            LONG_ROPE_DIVISORS.into_iter().zip([single(short), single(long)]).collect()
        }
        _ => Vec::new(),
    }
}

/// The tensors of a GGUF file, in the order of their first weights. The experts of a layer are one tensor
/// of three dimensions.
pub(crate) fn gguf_tensors(config: &DecoderConfig) -> Vec<StoredTensor> {
    let mut numbers: HashMap<String, usize> = HashMap::new();
    let mut tensors: Vec<StoredTensor> = Vec::new();
    for layout in tensor_layout(config) {
        let source = gguf_source(config, &layout.name);
        let rows = source.rows.unwrap_or(0..layout.shape[0]);
        let number = *numbers.entry(source.tensor.clone()).or_insert(tensors.len());
        if number == tensors.len() {
            let shape = [&[0], &layout.shape[1..]].concat();
            let layout = TensorLayout { name: source.tensor, shape };
            tensors.push(StoredTensor { layout, weights: Vec::new() });
        }
        let tensor = &mut tensors[number];
        tensor.layout.shape[0] = tensor.layout.shape[0].max(rows.end);
        tensor.weights.push(StoredWeight { layout, rows });
    }
    let experts = config.experts.as_ref().map_or(1, |experts| experts.routing.expert_count);
    for TensorLayout { name, shape } in tensors.iter_mut().map(|tensor| &mut tensor.layout) {
        if name.ends_with("_exps.weight") {
            shape[0] /= experts;
            shape.insert(0, experts);
        }
    }
    tensors
}
