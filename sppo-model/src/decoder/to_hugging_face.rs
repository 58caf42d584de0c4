//! Writing the `config.json` of Hugging Face models, in the layout that transformers 4 and 5 read.

use serde_json::{Map, Value, json};

use super::{DecoderConfig, Family, RotaryScaling};
use crate::ops::Activation;
use crate::text::TextCodec;

impl DecoderConfig {
    /// The `config.json` of this model, whose weights have PyTorch's number format `data_type`. What
    /// `original` says beyond these settings is kept.
    #[must_use]
    pub fn to_hugging_face(
        &self,
        original: Option<&Value>,
        text: &TextCodec,
        data_type: &str,
    ) -> Value {
        let mut object = match original.and_then(Value::as_object) {
            Some(object) => object.clone(),
            None => written_from_nothing(self, text),
        };
        // newer files say `dtype`
        let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        object.insert(key.into(), data_type.into());
        Value::Object(object)
    }
}

fn written_from_nothing(config: &DecoderConfig, text: &TextCodec) -> Map<String, Value> {
    let special = text.special_tokens();
    let object = json!({
        "architectures": [config.family.architecture()],
        "model_type": config.family.model_type(),
        "attention_dropout": 0.0,
        "bos_token_id": special.beginning,
        "eos_token_id": special.end_of_sequence,
        "head_dim": config.head_size,
        "hidden_act": activation_name(config.activation),
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "num_attention_heads": config.attention_heads,
        "num_hidden_layers": config.layer_count,
        "num_key_value_heads": config.key_value_heads,
        "rms_norm_eps": config.norm_epsilon,
        "rope_scaling": rope_scaling(&config.rotary_scaling),
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.tied_head,
        "use_cache": true,
        "vocab_size": config.vocabulary_size,
    });
    let mut object = object.as_object().cloned().unwrap_or_default();
    if let Some(peculiar) = peculiarities(config).as_object_mut() {
        object.append(peculiar);
    }
    object
}

/// What only this family's configuration says.
fn peculiarities(config: &DecoderConfig) -> Value {
    let window = config.attention_windows.iter().copied().flatten().next();
    match config.family {
        Family::Llama => json!({"attention_bias": false, "mlp_bias": false}),
        Family::Mistral => json!({"sliding_window": window}),
        Family::Gemma2 => json!({
            "attention_bias": false,
            "attn_logit_softcapping": config.attention_soft_cap,
            "final_logit_softcapping": config.logit_soft_cap,
            "hidden_activation": activation_name(config.activation),
            "layer_types": layer_types(config),
            "query_pre_attn_scalar": near_integer(config.attention_scale.powi(-2)),
            "sliding_window": window,
        }),
        Family::Qwen2 | Family::Qwen3 => json!({
            "attention_bias": config.attention_bias,
            "layer_types": layer_types(config),
            "sliding_window": window,
            "use_sliding_window": window.is_some(),
        }),
    }
}

fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

fn layer_types(config: &DecoderConfig) -> Vec<&'static str> {
    let kind = |window: &Option<usize>| match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    config.attention_windows.iter().map(kind).collect()
}

/// Undoes the rounding of a square root: these settings are integers in every known model.
fn near_integer(value: f64) -> Value {
    let rounded = value.round();
    if (value - rounded).abs() < 1e-9 * value { json!(rounded as i64) } else { json!(value) }
}

fn rope_scaling(scaling: &RotaryScaling) -> Value {
    match *scaling {
        RotaryScaling::Unscaled => Value::Null,
        RotaryScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RotaryScaling::Llama3 {
            factor,
            low_frequency_factor,
            high_frequency_factor,
            original_context,
        } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_frequency_factor,
            "high_freq_factor": high_frequency_factor,
            "original_max_position_embeddings": original_context as u64,
        }),
    }
}
