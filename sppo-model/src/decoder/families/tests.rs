//! Reading its `config.json`.

use serde_json::json;

use super::*;
use crate::decoder::RotaryScaling;

fn parse(json: &Value) -> Result<DecoderConfig> {
    DecoderConfig::from_hugging_face(json, Path::new("config.json"))
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = parse(&json!({"model_type": "llama"})).unwrap();
    assert_eq!(
        (config.vocabulary_size, config.hidden_size, config.intermediate_size, config.layer_count),
        (32_000, 4096, 11_008, 32)
    );
    assert_eq!(
        (config.attention_heads, config.key_value_heads, config.head_size, config.context_length),
        (32, 32, 128, 2048)
    );
    assert_eq!(
        (config.norm_epsilon, config.rotary_base, config.tied_head),
        (1e-6, 10_000.0, false)
    );
}

/// The published settings that a model's `config.json` leaves to the class, or says as `null`.
#[test]
fn windows_stand_where_the_family_has_them() {
    let windows = |json: Value| parse(&json).unwrap().attention_windows;
    let first_version = json!({"model_type": "mistral", "sliding_window": 4096});
    assert_eq!(windows(first_version), vec![Some(4096); 32]);
    assert_eq!(windows(json!({"model_type": "mistral"})), vec![Some(4096); 32]);
    assert_eq!(windows(json!({"model_type": "mistral", "sliding_window": null})), [None; 32]);
    let gemma = windows(json!({"model_type": "gemma2", "num_hidden_layers": 3}));
    assert_eq!(gemma, [Some(4096), None, Some(4096)]);
    let qwen = json!({"model_type": "qwen2", "sliding_window": 8, "max_window_layers": 30});
    assert_eq!(windows(qwen.clone()), [None; 32]);
    let mut sliding = qwen;
    sliding["use_sliding_window"] = json!(true);
    let late = [vec![None; 30], vec![Some(8); 2]].concat();
    assert_eq!(windows(sliding), late);
}

#[test]
fn gemma_2_scales_and_caps_as_published() {
    let config = parse(&json!({"model_type": "gemma2"})).unwrap();
    assert_eq!(
        (config.attention_scale, config.attention_soft_cap, config.logit_soft_cap),
        (1.0 / 16.0, Some(50.0), Some(30.0))
    );
    assert_eq!((config.embedding_scale, config.tied_head), (Some(48.0), true));
    let largest = json!({"model_type": "gemma2", "query_pre_attn_scalar": 144,
        "final_logit_softcapping": null});
    let config = parse(&largest).unwrap();
    assert_eq!((config.attention_scale, config.logit_soft_cap), (1.0 / 12.0, None));
}

#[test]
fn both_layouts_of_rope_settings_mean_the_same() {
    let scaling = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4,
        "original_max_position_embeddings": 32,
    });
    let mut parameters = scaling.clone();
    parameters["rope_theta"] = json!(500_000.0);
    let old =
        parse(&json!({"model_type": "llama", "rope_theta": 500_000, "rope_scaling": scaling}));
    let new = parse(&json!({"architectures": ["LlamaForCausalLM"], "rope_parameters": parameters}));
    let (old, new) = (old.unwrap(), new.unwrap());
    assert_eq!(old, new);
    assert_eq!(old.rotary_base, 500_000.0);
    let expected = RotaryScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 32.0,
    };
    assert_eq!(old.rotary_scaling, expected);
    let linear = json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2}});
    assert_eq!(parse(&linear).unwrap().rotary_scaling, RotaryScaling::Linear { factor: 2.0 });
}

#[test]
fn what_would_change_the_result_is_refused_by_name() {
    let cases = [
        (
            json!({"architectures": ["GPT2LMHeadModel"]}),
            "GPT2LMHeadModel (model_type not given) is not supported; supported: LlamaForCausalLM, Mistral",
        ),
        (json!({"architectures": ["LlamaForCausalLM"], "model_type": "mixtral"}), "mixtral"),
        (json!({}), "architecture"),
        (json!({"hidden_act": "gelu"}), "`hidden_act` = \"gelu\""),
        (json!({"attention_bias": true}), "`attention_bias`"),
        (json!({"quantization_config": {"bits": 4}}), "`quantization_config`"),
        (json!({"rope_scaling": {"rope_type": "yarn", "factor": 4}}), "`yarn`"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "`factor` must be a number"),
        (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "`partial_rotary_factor`"),
        (json!({"hidden_size": "big"}), "`hidden_size` must be a positive integer; it is \"big\""),
        (json!({"hidden_size": 18_446_744_073_709_551_615_u64}), "hidden size"),
        (json!({"num_hidden_layers": 4_000_000_000_u64}), "number of layers"),
        (
            json!({"rope_scaling": {"rope_type": "default", "mrope_section": [16, 24, 24]}}),
            "`mrope_section` = [16,24,24]",
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_type": "default"}}}),
            "`full_attention`",
        ),
        (json!({"model_type": "mistral", "attention_bias": true}), "`attention_bias`"),
        (json!({"model_type": "gemma2", "hidden_activation": "gelu"}), "`hidden_activation`"),
        (
            json!({"model_type": "gemma2", "use_bidirectional_attention": true}),
            "`use_bidirectional_attention`",
        ),
        (json!({"model_type": "gemma2", "attn_logit_softcapping": -1}), "soft-caps"),
        (json!({"model_type": "qwen2", "layer_types": ["full_attention"]}), "32 names"),
        (
            json!({"model_type": "qwen3", "num_hidden_layers": 1, "layer_types": ["linear"]}),
            "`linear`",
        ),
        (
            json!({"model_type": "qwen3", "num_hidden_layers": 1,
                "layer_types": ["sliding_attention"]}),
            "`sliding_window` is not set or not in use",
        ),
        (json!({"num_attention_heads": 0}), "`num_attention_heads`"),
        (json!({"num_key_value_heads": 5}), "evenly"),
        (json!({"head_dim": 15}), "odd"),
        (json!([1]), "not a JSON object"),
    ];
    for (mut json, expected) in cases {
        let bare = json.as_object().is_none_or(|object| object.is_empty());
        let named = json.get("architectures").or(json.get("model_type"));
        if !bare && named.is_none() {
            json["model_type"] = json!("llama");
        }
        let error = parse(&json).unwrap_err().to_string();
        assert!(error.contains(expected), "{json}: {error}");
        assert!(error.starts_with("config.json"), "{error}");
    }
}
