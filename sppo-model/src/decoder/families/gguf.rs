//! The parts of reading GGUF files that families share: metadata, and the names of tensors.

use crate::decoder::{DecoderConfig, Family, NormPlacement, QueryKeyNorm, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufKeys, WeightFile};
use crate::ops::Activation;

/// Reads the settings that all architectures share; peculiarities are left at none.
pub(super) fn plain(
    family: &'static dyn Family,
    file: &GgufFile,
    keys: &GgufKeys<'_>,
) -> Result<DecoderConfig> {
    keys.refuse_unless("expert_count", 0)?;
    let hidden_size = keys.required_count("embedding_length")?;
    let layer_count = keys.required_count("block_count")?;
    let attention_heads = keys.required_count("attention.head_count")?;
    let head_size = match keys.count("attention.key_length")? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    for key in ["rope.dimension_count", "attention.value_length"] {
        keys.refuse_unless(key, head_size as u64)?;
    }
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
        rotary_base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        rotary_scaling: rotary_scaling(keys)?,
        tied_head: file.shape("output.weight").is_none(),
        attention_bias: false,
        query_key_norm: QueryKeyNorm::Absent,
        attention_scale: 1.0 / (head_size as f64).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: None,
        // a hostile layer count is refused afterwards; until then it must not allocate
        attention_windows: vec![None; layer_count.min(1 << 16)],
    })
}

/// As llama.cpp reads it: without a type, the factor is linear; of the type `none`, it does not count.
fn rotary_scaling(keys: &GgufKeys<'_>) -> Result<RotaryScaling> {
    let kind = keys.text("rope.scaling.type")?.unwrap_or("linear");
    let factor = match keys.number("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => keys.number("rope.scale_linear")?,
    };
    keys.refuse_unless_number("rope.scaling.attn_factor", 1.0)?;
    match (kind, factor.filter(|&factor| factor != 1.0 && factor != 0.0)) {
        ("none", _) | ("linear", None) => Ok(RotaryScaling::Unscaled),
        ("linear", Some(factor)) if factor > 0.0 => Ok(RotaryScaling::Linear { factor }),
        _ => Err(ModelError::Unsupported(format!(
            "{}: rope scaling `{kind}` by {} is not supported; supported: none, linear, and \
             Llama 3's",
            keys.path().display(),
            factor.unwrap_or(1.0)
        ))),
    }
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

/// The GGUF name of a weight, given by its Hugging Face name; `None` where it has none.
pub(crate) fn gguf_name(family: &dyn Family, weight: &str) -> Option<String> {
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
