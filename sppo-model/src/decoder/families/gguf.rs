//! The parts of reading GGUF files that families share: metadata, and the names of tensors.

use crate::decoder::{DecoderConfig, Family, NormPlacement, QueryKeyNorm, Rotary, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, WeightFile, WeightSource};
use crate::ops::Activation;

/// Reads the settings that all architectures share; peculiarities are left at none.
pub(super) fn plain(
    family: &'static dyn Family,
    file: &GgufFile,
    keys: &GgufKeys<'_>,
) -> Result<DecoderConfig> {
    keys.refuse_unless("expert_count", 0)?;
    with_experts(family, file, keys)
}

/// As [`plain`], of an architecture that has experts, which are left at none.
pub(super) fn with_experts(
    family: &'static dyn Family,
    file: &GgufFile,
    keys: &GgufKeys<'_>,
) -> Result<DecoderConfig> {
    let mut config = unscaled(family, file, keys)?;
    keys.refuse_unless("rope.dimension_count", config.head_size as u64)?;
    set_scaling(&mut config, &rotary_scaling(keys)?);
    Ok(config)
}

/// Scales the rotary embedding of every layer that has one.
pub(super) fn set_scaling(config: &mut DecoderConfig, scaling: &RotaryScaling) {
    config.rotary.iter_mut().flatten().for_each(|rotary| rotary.scaling = scaling.clone());
}

/// As [`plain`], without a scaling of the rotary embedding, which may be of a part of each head.
pub(super) fn unscaled(
    family: &'static dyn Family,
    file: &GgufFile,
    keys: &GgufKeys<'_>,
) -> Result<DecoderConfig> {
    let hidden_size = keys.required_count("embedding_length")?;
    let layer_count = keys.required_count("block_count")?;
    let attention_heads = keys.required_count("attention.head_count")?;
    let head_size = match keys.count("attention.key_length")? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    keys.refuse_unless("attention.value_length", head_size as u64)?;
    let rotary = Rotary {
        base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        features: keys.count("rope.dimension_count")?.unwrap_or(head_size),
        scaling: RotaryScaling::Unscaled,
    };
    // a hostile layer count is refused afterwards; until then it must not allocate
    let layers = layer_count.min(1 << 16);
    let vocabulary_size = match file.shape("token_embd.weight") {
        Some([rows, _]) => *rows,
        _ => keys.required_count("vocab_size")?,
    };
    let epsilon = "attention.layer_norm_rms_epsilon";
    Ok(DecoderConfig {
        family,
        vocabulary_size,
        hidden_size,
        intermediate_size: keys.required_count("feed_forward_length")?,
        layer_count,
        attention_heads,
        key_value_heads: keys.uniform_count("attention.head_count_kv")?.unwrap_or(attention_heads),
        head_size,
        context_length: keys.required_count("context_length")?,
        norm_epsilon: keys.number(epsilon)?.ok_or_else(|| keys.missing(epsilon))?,
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        tied_head: file.shape("output.weight").is_none(),
        attention_bias: false,
        query_key_norm: QueryKeyNorm::Absent,
        attention_scale: 1.0 / (head_size as f64).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: None,
        attention_windows: vec![None; layers],
        rotary: vec![Some(rotary); layers],
        experts: None,
    })
}

/// Whether each layer has a window: listed, or all layers but every so many, `interval` where the file does
/// not say.
pub(super) fn windowed_layers(
    keys: &GgufKeys<'_>,
    layers: usize,
    interval: usize,
) -> Result<Vec<bool>> {
    const KEY: &str = "attention.sliding_window_pattern";
    let interval = match keys.flags(KEY)? {
        Some(flags) if flags.len() == layers => return Ok(flags),
        Some(flags) => {
            return Err(ModelError::file(
                keys.path(),
                format!("`{}` lists {} of {layers} layers", keys.full(KEY), flags.len()),
            ));
        }
        None => keys.count(KEY)?.unwrap_or(interval),
    };
    let windowed = |layer: usize| interval > 0 && !(layer + 1).is_multiple_of(interval);
    Ok((0..layers).map(windowed).collect())
}

/// As llama.cpp reads it: without a type, the factor is linear; of the type `none`, it does not count.
pub(super) fn rotary_scaling(keys: &GgufKeys<'_>) -> Result<RotaryScaling> {
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    keys.refuse_unless_number("rope.scaling.attn_factor", 1.0)?;
    if kind == "yarn" {
        return yarn(keys, factor.unwrap_or(1.0));
    }
    match (kind, factor.filter(|&factor| factor != 1.0 && factor != 0.0)) {
        ("none", _) | ("linear", None) => Ok(RotaryScaling::Unscaled),
        ("linear", Some(factor)) if factor > 0.0 => Ok(RotaryScaling::Linear { factor }),
        _ => Err(ModelError::Unsupported(format!(
            "{}: rope scaling `{kind}` by {} is not supported; supported: none, linear, \
             yarn, and Llama 3's",
            keys.path().display(),
            factor.unwrap_or(1.0)
        ))),
    }
}

/// YaRN with llama.cpp's constants, which are those of transformers.
fn yarn(keys: &GgufKeys<'_>, factor: f64) -> Result<RotaryScaling> {
    const CONTEXT: &str = "rope.scaling.original_context_length";
    let constants =
        [("ext_factor", 1.0), ("attn_factor", 1.0), ("beta_fast", 32.0), ("beta_slow", 1.0)];
    for (key, usual) in constants {
        keys.refuse_unless_number(&format!("rope.scaling.yarn_{key}"), usual)?;
    }
    keys.refuse_unless_number("rope.scaling.yarn_log_multiplier", 0.0)?;
    let context = keys.count(CONTEXT)?.ok_or_else(|| keys.missing(CONTEXT))?;
    Ok(RotaryScaling::Yarn {
        factor,
        fast_rotations: 32.0,
        slow_rotations: 1.0,
        original_context: context as f64,
        rounds_range: true,
        attention_factor: 0.1 * factor.max(1.0).ln() + 1.0,
    })
}

/// Parts of a layer: `blk.N.<left>.weight` is `model.layers.N.<right>.weight`, and likewise `.bias`.
const LAYER_PARTS: [(&str, &str); 10] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The tensor of a GGUF file that holds a weight, or some rows of it.
pub(crate) fn gguf_source(config: &DecoderConfig, weight: &str) -> WeightSource {
    if let Some(source) = config.family.gguf_source(config, weight) {
        return source;
    }
    let mut source = config.family.source(config, weight);
    source.tensor = gguf_name(config.family, &source.tensor).unwrap_or(source.tensor);
    source
}

/// The GGUF name of a weight, given by its Hugging Face name; `None` where it has none.
fn gguf_name(family: &dyn Family, weight: &str) -> Option<String> {
    match weight {
        "model.embed_tokens.weight" => return Some("token_embd.weight".into()),
        "model.norm.weight" => return Some("output_norm.weight".into()),
        "lm_head.weight" => return Some("output.weight".into()),
        _ => {}
    }
    let (layer, rest) = weight.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = rest.rsplit_once('.')?;
    let mut parts = LAYER_PARTS.iter().chain(family.gguf_parts());
    let (part, _) = parts.find(|(_, hugging_face)| *hugging_face == part)?;
    Some(format!("blk.{layer}.{part}.{kind}"))
}
