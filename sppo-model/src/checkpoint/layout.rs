//! Which tensors a model has, by their Hugging Face names.

use crate::decoder::{DecoderConfig, Family};

/// The name and shape of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorLayout {
    /// The Hugging Face name, for instance `model.embed_tokens.weight`.
    pub name: String,
    /// Outermost dimension first; a projection is `[outputs, inputs]`.
    pub shape: Vec<usize>,
}

/// All weights of a model, in the order in which they are written.
#[must_use]
pub fn tensor_layout(config: &DecoderConfig) -> Vec<TensorLayout> {
    match config.family {
        Family::Llama => llama(config),
    }
}

fn llama(config: &DecoderConfig) -> Vec<TensorLayout> {
    let hidden = config.hidden_size;
    let queries = config.attention_heads * config.head_size;
    let keys = config.key_value_heads * config.head_size;
    let tensor = |name: String, shape: &[usize]| TensorLayout { name, shape: shape.to_vec() };

    let mut layout =
        vec![tensor("model.embed_tokens.weight".into(), &[config.vocabulary_size, hidden])];
    for layer in 0..config.layer_count {
        let parts: [(&str, &[usize]); 9] = [
            ("input_layernorm", &[hidden]),
            ("self_attn.q_proj", &[queries, hidden]),
            ("self_attn.k_proj", &[keys, hidden]),
            ("self_attn.v_proj", &[keys, hidden]),
            ("self_attn.o_proj", &[hidden, queries]),
            ("post_attention_layernorm", &[hidden]),
            ("mlp.gate_proj", &[config.intermediate_size, hidden]),
            ("mlp.up_proj", &[config.intermediate_size, hidden]),
            ("mlp.down_proj", &[hidden, config.intermediate_size]),
        ];
        layout.extend(
            parts
                .into_iter()
                .map(|(part, shape)| tensor(format!("model.layers.{layer}.{part}.weight"), shape)),
        );
    }
    layout.push(tensor("model.norm.weight".into(), &[hidden]));
    if !config.tied_head {
        layout.push(tensor("lm_head.weight".into(), &[config.vocabulary_size, hidden]));
    }
    layout
}
