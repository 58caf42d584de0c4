//! Reading its `config.json`.

use serde_json::json;

use super::*;
use crate::decoder::{Rotary, RotaryScaling};

/// The rotary embedding of the first layer.
fn rotary(config: &DecoderConfig) -> Rotary {
    config.rotary[0].clone().unwrap()
}

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
        (config.norm_epsilon, rotary(&config).base, config.tied_head),
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
    assert_eq!(rotary(&old).base, 500_000.0);
    let expected = RotaryScaling::Llama3 {
        factor: 8.0,
        low_frequency_factor: 1.0,
        high_frequency_factor: 4.0,
        original_context: 32.0,
    };
    assert_eq!(rotary(&old).scaling, expected);
    let linear = json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2}});
    let linear = rotary(&parse(&linear).unwrap());
    assert_eq!(linear.scaling, RotaryScaling::Linear { factor: 2.0 });
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
        (json!({"rope_scaling": {"rope_type": "dynamic", "factor": 4}}), "`dynamic`"),
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
        (json!({"model_type": "smollm3", "mlp_bias": true}), "`mlp_bias`"),
        (json!({"model_type": "smollm3", "no_rope_layers": [1, 1]}), "36 numbers"),
        (json!({"model_type": "smollm3", "no_rope_layers": [2]}), "a list of 0 and 1"),
        (json!({"model_type": "olmo2", "clip_qkv": 8.0}), "`clip_qkv`"),
        (json!({"model_type": "olmo2", "attention_bias": true}), "`attention_bias`"),
        (
            json!({"model_type": "olmo3", "rope_parameters": {"rope_theta": 1e4}}),
            "`sliding_attention`",
        ),
        (
            json!({"model_type": "olmo3", "rope_scaling": {"rope_type": "yarn", "factor": 2,
                "truncate": false}}),
            "`truncate`",
        ),
        (
            json!({"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}),
            "`attn_logit_softcapping`",
        ),
        (
            json!({"model_type": "gemma3_text", "use_bidirectional_attention": true}),
            "`use_bidirectional_attention`",
        ),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": {"full_attention":
                {"rope_type": "longrope"}}}),
            "`longrope`",
        ),
        (
            json!({"model_type": "gemma3_text", "rope_parameters": {"chunked_attention": {}}}),
            "`chunked_attention`",
        ),
        (json!({"model_type": "phi3", "rope_scaling": {"type": "yarn", "factor": 2}}), "`yarn`"),
        (json!({"model_type": "phi3", "lm_head_bias": true}), "`lm_head_bias`"),
        (json!({"model_type": "qwen3_moe", "num_experts_per_tok": 200}), "200 of 128 experts"),
        (json!({"model_type": "qwen3_moe", "mlp_only_layers": "all"}), "`mlp_only_layers`"),
        (json!({"model_type": "qwen3_moe", "attention_bias": true}), "`attention_bias`"),
        (json!({"model_type": "phi3", "partial_rotary_factor": 1.5}), "`partial_rotary_factor`"),
        (json!({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}), "`short_factor`"),
        (
            json!({"model_type": "phi3", "rope_scaling": {"type": "longrope", "short_factor": [1.0],
                "long_factor": [1.0]}}),
            "48 positive numbers",
        ),
        (
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4, "beta_medium": 8}}),
            "`beta_medium`",
        ),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), "`factor`"),
        (json!({"rope_scaling": {"rope_type": "longrope", "factor": 4}}), "`longrope`"),
        (json!({"num_key_value_heads": 5}), "evenly"),
        (json!({"head_dim": 15}), "15 features of heads of 15 cannot be rotated"),
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

/// Frequencies are compared with what transformers makes of the same settings, in both layouts.
#[test]
fn rotary_frequencies_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/lm/rotary.json");
    let cases: Vec<Value> = serde_json::from_slice(&fs_err::read(path).unwrap()).unwrap();
    let assert_close = |found: &[f32], expected: &Value, what: &str| {
        let expected: Vec<f64> = serde_json::from_value(expected["frequencies"].clone()).unwrap();
        assert_eq!(found.len(), expected.len(), "{what}");
        for (&found, expected) in found.iter().zip(expected) {
            let off = (f64::from(found) - expected).abs();
            assert!(off < 1e-6 * expected, "{what}: {found} {expected}");
        }
    };
    assert!(cases.len() > 10);
    for case in cases {
        let mut json = case["config"].clone();
        // enough for layers of every kind
        json["num_hidden_layers"] = json!(12);
        json["num_key_value_heads"] = json!(2);
        let what = json.to_string();
        let config = parse(&json).unwrap();
        let full = config.main_rotary().unwrap().frequencies(config.head_size);
        assert_close(&full.frequencies, &case["full"], &what);
        let scale = case["full"]["scale"].as_f64().unwrap();
        assert!((f64::from(full.scale) - scale).abs() < 1e-6, "{what}: {}", full.scale);
        match full.long_frequencies {
            Some(long) => assert_close(&long, &case["long"], &what),
            None => assert_eq!(case.get("long"), None, "{what}"),
        }
        let windowed = config.attention_windows.iter().position(Option::is_some);
        if let (Some(layer), Some(expected)) = (windowed, case.get("sliding")) {
            let rotary = config.rotary[layer].as_ref().unwrap();
            assert_close(&rotary.frequencies(config.head_size).frequencies, expected, &what);
        }
    }
    let su = json!({"model_type": "phi3", "num_hidden_layers": 1, "hidden_size": 8,
        "num_attention_heads": 2, "original_max_position_embeddings": 16, "rope_scaling":
        {"type": "su", "short_factor": [1.0, 1.0], "long_factor": [1.0, 2.0]}});
    assert_eq!(parse(&su).unwrap().longest_short_sequence(), Some(16));
}

/// Layers that differ from one another, by the defaults of the families and as configurations say.
#[test]
fn layers_have_the_windows_and_rotary_embeddings_of_their_family() {
    let smollm = |json: Value| {
        let config = parse(&json).unwrap();
        let rotated: Vec<bool> = config.rotary.iter().map(Option::is_some).collect();
        (rotated, config.attention_windows)
    };
    let plain = json!({"model_type": "smollm3", "num_hidden_layers": 5});
    let fourth = vec![true, true, true, false, true];
    assert_eq!(smollm(plain.clone()), (fourth.clone(), vec![None; 5]));
    let mut windows = plain.clone();
    windows["use_sliding_window"] = json!(true);
    windows["sliding_window"] = json!(16);
    assert_eq!(smollm(windows), (fourth, vec![None, None, None, Some(16), None]));
    let mut listed = plain;
    listed["no_rope_layers"] = json!([0, 1, 0, 1, 1, 0]);
    assert_eq!(smollm(listed).0, [false, true, false, true, true]);

    let gemma = parse(&json!({"model_type": "gemma3_text", "num_hidden_layers": 7,
        "sliding_window_pattern": 3, "sliding_window": 512, "query_pre_attn_scalar": 64}));
    let gemma = gemma.unwrap();
    let (window, none) = (Some(512), None);
    assert_eq!(gemma.attention_windows, [window, window, none, window, window, none, window]);
    let bases: Vec<f64> = gemma.rotary.iter().flatten().map(|rotary| rotary.base).collect();
    assert_eq!(bases, [1e4, 1e4, 1e6, 1e4, 1e4, 1e6, 1e4]);
    assert_eq!((gemma.attention_scale, gemma.embedding_scale), (0.125, Some(48.0)));

    let olmo = parse(&json!({"model_type": "olmo3", "num_hidden_layers": 4, "rope_scaling":
        {"rope_type": "linear", "factor": 2.0}}))
    .unwrap();
    assert_eq!(olmo.attention_windows, [Some(4096), Some(4096), Some(4096), None]);
    let scaled: Vec<bool> = olmo
        .rotary
        .iter()
        .flatten()
        .map(|rotary| rotary.scaling != RotaryScaling::Unscaled)
        .collect();
    assert_eq!(scaled, [false, false, false, true]);
    assert_eq!((rotary(&olmo).base, olmo.norm_epsilon), (500_000.0, 1e-5));
}

#[test]
fn a_container_s_language_model_is_read_and_written_on_its_own() {
    let json = json!({
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "eos_token_id": [1, 106],
        "image_token_index": 262_144,
        "text_config": {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
        "vision_config": {"hidden_size": 1152},
    });
    let config = parse(&json).unwrap();
    assert_eq!((config.hidden_size, config.attention_heads, config.head_size), (2560, 8, 256));
    let own = hugging_face::of_language_model(config.family, json.as_object().unwrap());
    assert_eq!(own["architectures"], json!(["Gemma3ForCausalLM"]));
    assert_eq!((&own["eos_token_id"], own.get("vision_config")), (&json!([1, 106]), None));
    assert_eq!(parse(&Value::Object(own)).unwrap(), config);
    let mut bare = json.clone();
    bare["text_config"] = Value::Null;
    assert!(parse(&bare).unwrap_err().to_string().contains("`text_config`"));
    let mut quantised = json;
    quantised["quantization_config"] = json!({"bits": 4});
    assert!(parse(&quantised).unwrap_err().to_string().contains("`quantization_config`"));
}
