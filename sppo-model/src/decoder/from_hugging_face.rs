//! Reading the `config.json` of Hugging Face models.
//!
//! Defaults are those of transformers' configuration classes. Settings that change the result and
//! are not supported are refused by name.

use std::path::Path;

use serde_json::{Value, json};

use super::{DecoderConfig, Family, NormPlacement, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::json::Settings;
use crate::ops::Activation;

/// What the rotary settings may say; anything else could change the result.
const ROTARY_KEYS: [&str; 8] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
];

impl DecoderConfig {
    /// Reads a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// When the architecture or a setting is not supported, or a value is missing or malformed.
    pub fn from_hugging_face(json: &Value, path: &Path) -> Result<Self> {
        let settings = Settings::of(json, path)?;
        Self::of_family(family(&settings)?, &settings)
    }

    /// Reads the settings of a model that is known to be of this family.
    pub(crate) fn of_family(family: Family, settings: &Settings<'_>) -> Result<Self> {
        let config = match family {
            Family::Llama => llama(settings)?,
            Family::Mistral => mistral(settings)?,
            Family::Gemma2 => gemma2(settings)?,
            Family::Qwen2 => qwen2(settings)?,
            Family::Qwen3 => qwen3(settings)?,
        };
        config.check(settings.path)
    }
}

fn family(settings: &Settings<'_>) -> Result<Family> {
    let architecture = match settings.object.get("architectures") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .get(0)
                .and_then(Value::as_str)
                .ok_or_else(|| settings.wrong("architectures", "a list of names"))?,
        ),
    };
    let model_type = settings.text("model_type")?;
    let known = Family::ALL.into_iter().find(|family| {
        architecture.is_none_or(|name| name == family.architecture())
            && model_type.is_none_or(|name| name == family.model_type())
    });
    match known {
        Some(family) if architecture.is_some() || model_type.is_some() => Ok(family),
        _ => Err(ModelError::Unsupported(format!(
            "{}: the architecture {} (model_type {}) is not supported; supported: {}",
            settings.path.display(),
            architecture.unwrap_or("that is not named"),
            model_type.unwrap_or("not given"),
            Family::ALL.map(Family::architecture).join(", ")
        ))),
    }
}

/// What a family's configuration class says where `config.json` says nothing.
struct Defaults {
    vocabulary_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    layer_count: usize,
    attention_heads: usize,
    /// `None`: as many as there are query heads.
    key_value_heads: Option<usize>,
    /// `None`: the hidden size divided among the heads.
    head_size: Option<usize>,
    context_length: usize,
    tied_head: bool,
}

fn llama(settings: &Settings<'_>) -> Result<DecoderConfig> {
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
        tied_head: false,
    };
    plain(Family::Llama, settings, &defaults)
}

fn mistral(settings: &Settings<'_>) -> Result<DecoderConfig> {
    settings.refuse_unless("hidden_act", &json!("silu"))?;
    settings.refuse_unless("attention_bias", &json!(false))?;
    let defaults = Defaults {
        vocabulary_size: 32_000,
        hidden_size: 4096,
        intermediate_size: 14_336,
        layer_count: 32,
        attention_heads: 32,
        key_value_heads: Some(8),
        head_size: None,
        context_length: 131_072,
        tied_head: false,
    };
    let mut config = plain(Family::Mistral, settings, &defaults)?;
    config.attention_windows.fill(settings.count_or("sliding_window", Some(4096))?);
    Ok(config)
}

fn gemma2(settings: &Settings<'_>) -> Result<DecoderConfig> {
    settings.refuse_unless("hidden_activation", &json!("gelu_pytorch_tanh"))?;
    settings.refuse_unless("attention_bias", &json!(false))?;
    settings.refuse_unless("use_bidirectional_attention", &json!(false))?;
    let defaults = Defaults {
        vocabulary_size: 256_000,
        hidden_size: 2304,
        intermediate_size: 9216,
        layer_count: 26,
        attention_heads: 8,
        key_value_heads: Some(4),
        head_size: Some(256),
        context_length: 8192,
        tied_head: true,
    };
    let plain = plain(Family::Gemma2, settings, &defaults)?;
    let window = settings.count_or("sliding_window", Some(4096))?;
    Ok(DecoderConfig {
        norm_weight_offset: true,
        norm_placement: NormPlacement::BeforeAndAfter,
        activation: Activation::GeluTanh,
        attention_scale: settings.number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
        attention_soft_cap: settings.number_or("attn_logit_softcapping", 50.0)?,
        logit_soft_cap: settings.number_or("final_logit_softcapping", 30.0)?,
        embedding_scale: Some((plain.hidden_size as f64).sqrt()),
        attention_windows: windows(settings, &plain, window, |layer| layer % 2 == 0)?,
        ..plain
    })
}

fn qwen2(settings: &Settings<'_>) -> Result<DecoderConfig> {
    let defaults = Defaults {
        vocabulary_size: 151_936,
        hidden_size: 4096,
        intermediate_size: 22_016,
        layer_count: 32,
        attention_heads: 32,
        key_value_heads: Some(32),
        head_size: None,
        context_length: 32_768,
        tied_head: false,
    };
    let config = qwen(Family::Qwen2, settings, &defaults)?;
    Ok(DecoderConfig { attention_bias: true, ..config })
}

fn qwen3(settings: &Settings<'_>) -> Result<DecoderConfig> {
    settings.refuse_unless("attention_bias", &json!(false))?;
    let defaults = Defaults {
        vocabulary_size: 151_936,
        hidden_size: 4096,
        intermediate_size: 22_016,
        layer_count: 32,
        attention_heads: 32,
        key_value_heads: Some(32),
        head_size: Some(128),
        context_length: 32_768,
        tied_head: false,
    };
    let config = qwen(Family::Qwen3, settings, &defaults)?;
    Ok(DecoderConfig { query_key_norm: true, ..config })
}

/// What the Qwen families share: a window that must be switched on, and then holds for late layers.
fn qwen(family: Family, settings: &Settings<'_>, defaults: &Defaults) -> Result<DecoderConfig> {
    settings.refuse_unless("hidden_act", &json!("silu"))?;
    let config = plain(family, settings, defaults)?;
    let window = match settings.flag("use_sliding_window")?.unwrap_or(false) {
        true => settings.count_or("sliding_window", Some(4096))?,
        false => None,
    };
    let full_layers =
        settings.typed("max_window_layers", "a number of layers", Value::as_u64)?.unwrap_or(28);
    let attention_windows =
        windows(settings, &config, window, |layer| layer as u64 >= full_layers)?;
    Ok(DecoderConfig { attention_windows, ..config })
}

/// The settings that all families share, without any family's peculiarities.
fn plain(family: Family, settings: &Settings<'_>, defaults: &Defaults) -> Result<DecoderConfig> {
    settings.refuse_unless("quantization_config", &Value::Null)?;
    settings.refuse_unless("partial_rotary_factor", &json!(1.0))?;
    let count = |key: &str, default: usize| Ok(settings.count(key)?.unwrap_or(default));
    let hidden_size = count("hidden_size", defaults.hidden_size)?;
    let layer_count = count("num_hidden_layers", defaults.layer_count)?;
    let attention_heads = count("num_attention_heads", defaults.attention_heads)?;
    let head_size = match settings.count_or("head_dim", defaults.head_size)? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    let context_length = count("max_position_embeddings", defaults.context_length)?;
    let (rotary_base, rotary_scaling) = rotary(settings, context_length)?;
    Ok(DecoderConfig {
        family,
        vocabulary_size: count("vocab_size", defaults.vocabulary_size)?,
        hidden_size,
        intermediate_size: count("intermediate_size", defaults.intermediate_size)?,
        layer_count,
        attention_heads,
        key_value_heads: settings
            .count_or("num_key_value_heads", defaults.key_value_heads)?
            .unwrap_or(attention_heads),
        head_size,
        context_length,
        norm_epsilon: settings.number("rms_norm_eps")?.unwrap_or(1e-6),
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        rotary_base,
        rotary_scaling,
        tied_head: settings.flag("tie_word_embeddings")?.unwrap_or(defaults.tied_head),
        attention_bias: false,
        query_key_norm: false,
        attention_scale: 1.0 / (head_size as f64).sqrt(),
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: None,
        // a hostile layer count is refused afterwards; until then it must not allocate
        attention_windows: vec![None; layer_count.min(1 << 16)],
    })
}

/// The window of each layer: of those that `layer_types` calls sliding, or without it of those that
/// `slides` says.
fn windows(
    settings: &Settings<'_>,
    config: &DecoderConfig,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let layers = 0..config.attention_windows.len();
    let Some(kinds) = settings.texts("layer_types")? else {
        return Ok(layers.map(|layer| window.filter(|_| slides(layer))).collect());
    };
    if kinds.len() != config.layer_count {
        let expected = format!("a list of {} names, one per layer", config.layer_count);
        return Err(settings.wrong("layer_types", &expected));
    }
    let window_of = |kind: &&str| match (*kind, window) {
        ("full_attention", _) => Ok(None),
        ("sliding_attention", Some(window)) => Ok(Some(window)),
        ("sliding_attention", None) => Err(ModelError::file(
            settings.path,
            "key `layer_types` has sliding layers, but `sliding_window` is not set or not in use",
        )),
        (other, _) => Err(ModelError::Unsupported(format!(
            "{}: `layer_types` names `{other}`, which is not supported; supported: \
             full_attention, sliding_attention",
            settings.path.display()
        ))),
    };
    kinds.iter().map(window_of).collect()
}

/// The rotary base and scaling, in the layout of transformers 5 (`rope_parameters`) or 4
/// (`rope_theta` and `rope_scaling`, which wins where both are given, as in transformers).
fn rotary(settings: &Settings<'_>, context_length: usize) -> Result<(f64, RotaryScaling)> {
    let top_level_base = settings.number("rope_theta")?;
    let scaling = settings.object("rope_scaling")?;
    let parameters = match scaling {
        Some(scaling) if !scaling.object.is_empty() => Some(scaling),
        _ => settings.object("rope_parameters")?,
    };
    let Some(parameters) = parameters else {
        return Ok((top_level_base.unwrap_or(10_000.0), RotaryScaling::Unscaled));
    };
    let base = parameters.number("rope_theta")?.or(top_level_base).unwrap_or(10_000.0);
    parameters.refuse_unless("partial_rotary_factor", &json!(1.0))?;
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
    };
    let required = |key: &str| {
        parameters
            .number(key)?
            .ok_or_else(|| parameters.wrong(key, "a number, which this rope_type needs"))
    };
    let scaling = match kind {
        "default" => RotaryScaling::Unscaled,
        "linear" => RotaryScaling::Linear { factor: required("factor")? },
        "llama3" => RotaryScaling::Llama3 {
            factor: required("factor")?,
            low_frequency_factor: required("low_freq_factor")?,
            high_frequency_factor: required("high_freq_factor")?,
            original_context: parameters
                .number("original_max_position_embeddings")?
                .unwrap_or(context_length as f64),
        },
        other => {
            return Err(ModelError::Unsupported(format!(
                "{}: rope_type `{other}` is not supported; supported: default, linear, llama3",
                settings.path.display()
            )));
        }
    };
    for key in parameters.object.keys().filter(|key| !ROTARY_KEYS.contains(&key.as_str())) {
        parameters.refuse_unless(key, &Value::Null)?;
    }
    check_scaling(&scaling, &parameters)?;
    Ok((base, scaling))
}

fn check_scaling(scaling: &RotaryScaling, parameters: &Settings<'_>) -> Result<()> {
    let sound = match *scaling {
        RotaryScaling::Unscaled => true,
        RotaryScaling::Linear { factor } => factor > 0.0,
        RotaryScaling::Llama3 {
            factor,
            low_frequency_factor: low,
            high_frequency_factor: high,
            original_context,
        } => factor > 0.0 && low > 0.0 && high > low && original_context > 0.0,
    };
    if sound {
        return Ok(());
    }
    Err(ModelError::file(
        parameters.path,
        "the rope scaling needs positive factors and low_freq_factor below high_freq_factor",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &Value) -> Result<DecoderConfig> {
        DecoderConfig::from_hugging_face(json, Path::new("config.json"))
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let config = parse(&json!({"model_type": "llama"})).unwrap();
        assert_eq!(
            (
                config.vocabulary_size,
                config.hidden_size,
                config.intermediate_size,
                config.layer_count
            ),
            (32_000, 4096, 11_008, 32)
        );
        assert_eq!(
            (
                config.attention_heads,
                config.key_value_heads,
                config.head_size,
                config.context_length
            ),
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
        let new =
            parse(&json!({"architectures": ["LlamaForCausalLM"], "rope_parameters": parameters}));
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
        let linear =
            json!({"model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2}});
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
            (
                json!({"hidden_size": "big"}),
                "`hidden_size` must be a positive integer; it is \"big\"",
            ),
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
}
