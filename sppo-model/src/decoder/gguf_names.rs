//! llama.cpp's tensor names in those of Hugging Face.

use super::Family;

/// The parts of a layer, `blk.N.<left>.weight` being `model.layers.N.<right>.weight`, and likewise
/// `.bias`.
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

/// The norms that follow attention, as far as their names go, of layers with two norms and with four.
const TWO_NORMS: [(&str, &str); 1] = [("ffn_norm", "post_attention_layernorm")];
const FOUR_NORMS: [(&str, &str); 3] = [
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// The Hugging Face name of a GGUF tensor; `None` where it has none.
pub(crate) fn hugging_face_name(family: Family, name: &str) -> Option<String> {
    match name {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let (part, kind) =
        rest.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let norms = if family == Family::Gemma2 { &FOUR_NORMS[..] } else { &TWO_NORMS };
    let (_, part) = LAYER_PARTS.iter().chain(norms).find(|(gguf, _)| *gguf == part)?;
    Some(format!("model.layers.{layer}.{part}.{kind}"))
}
