//! The parts of `config.json` that families share: reading and writing it.
//!
//! Defaults are those of transformers' configuration classes. Settings that change the result and
//! are not supported are refused by name.

use serde_json::{Map, Value, json};

use super::rotary_settings::{self, RotaryDefaults};
use crate::decoder::{DecoderConfig, Family, NormPlacement, QueryKeyNorm};
use crate::error::{ModelError, Result};
use crate::formats::JsonObject;
use crate::ops::Activation;
use crate::text::TextCodec;

/// Settings of a family's configuration class in transformers, for those that `config.json` omits.
pub(super) struct Defaults {
    pub(super) vocabulary_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layer_count: usize,
    pub(super) attention_heads: usize,
    /// `None`: as many as there are query heads.
    pub(super) key_value_heads: Option<usize>,
    /// `None`: the hidden size divided among the heads.
    pub(super) head_size: Option<usize>,
    pub(super) context_length: usize,
    pub(super) norm_epsilon: f64,
    pub(super) tied_head: bool,
    pub(super) rotary: RotaryDefaults,
}

/// Reads the settings that all families share; peculiarities are left at none.
pub(super) fn plain(
    family: &'static dyn Family,
    settings: &JsonObject<'_>,
    defaults: &Defaults,
) -> Result<DecoderConfig> {
    settings.refuse_unless("quantization_config", &Value::Null)?;
    let count = |key: &str, default: usize| Ok(settings.count(key)?.unwrap_or(default));
    let hidden_size = count("hidden_size", defaults.hidden_size)?;
    let layer_count = count("num_hidden_layers", defaults.layer_count)?;
    let attention_heads = count("num_attention_heads", defaults.attention_heads)?;
    let head_size = match settings.count_or("head_dim", defaults.head_size)? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    let context_length = count("max_position_embeddings", defaults.context_length)?;
    let [rotary, _] = rotary_settings::read(settings, &defaults.rotary, head_size, context_length)?;
    // a hostile layer count is refused afterwards; until then it must not allocate
    let layers = layer_count.min(1 << 16);
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
        norm_epsilon: settings.number("rms_norm_eps")?.unwrap_or(defaults.norm_epsilon),
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        tied_head: settings.flag("tie_word_embeddings")?.unwrap_or(defaults.tied_head),
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

/// A configuration whose windows are known, with the rotary embedding of layers with a window.
pub(super) fn with_windowed_rotary(
    config: DecoderConfig,
    settings: &JsonObject<'_>,
    defaults: &Defaults,
) -> Result<DecoderConfig> {
    let (head_size, context) = (config.head_size, config.context_length);
    let [full, windowed] = rotary_settings::read(settings, &defaults.rotary, head_size, context)?;
    let of_layer = |window: &Option<usize>| match window {
        Some(_) => Some(windowed.clone()),
        None => Some(full.clone()),
    };
    let rotary = config.attention_windows.iter().map(of_layer).collect();
    Ok(DecoderConfig { rotary, ..config })
}

/// The window of each layer: `window` in the layers that `layer_types` calls sliding, or without that
/// setting in those for which `slides` is true.
pub(super) fn windows(
    settings: &JsonObject<'_>,
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
            settings.path(),
            "key `layer_types` has sliding layers, but `sliding_window` is not set or not in use",
        )),
        (other, _) => Err(ModelError::Unsupported(format!(
            "{}: `layer_types` names `{other}`, which is not supported; supported: \
             full_attention, sliding_attention",
            settings.path().display()
        ))),
    };
    kinds.iter().map(window_of).collect()
}

impl DecoderConfig {
    /// The `config.json` of this model, whose weights have PyTorch's number format `dtype`. Other
    /// settings of `original` are kept.
    #[must_use]
    pub fn to_hugging_face(
        &self,
        original: Option<&Value>,
        text: &TextCodec,
        dtype: &str,
    ) -> Value {
        let mut object = match original.and_then(Value::as_object) {
            Some(object) => of_language_model(self.family, object),
            None => without_original(self, text),
        };
        // newer files say `dtype`
        let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        object.insert(key.into(), dtype.into());
        Value::Object(object)
    }
}

/// The settings of the language model, on its own where the model was in a container.
pub(super) fn of_language_model(
    family: &dyn Family,
    original: &Map<String, Value>,
) -> Map<String, Value> {
    /// Settings of a container that count for its language model too.
    const SHARED: [&str; 6] = [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "dtype",
        "torch_dtype",
        "transformers_version",
    ];
    let container = family.container().filter(|container| container.is_described_by(original));
    let own = container.and_then(|container| original.get(container.settings)?.as_object());
    let Some(own) = own else { return original.clone() };
    let mut object = own.clone();
    for key in SHARED {
        if let Some(value) = original.get(key) {
            object.insert(key.into(), value.clone());
        }
    }
    object.insert("architectures".into(), json!([family.architecture()]));
    object.insert("model_type".into(), family.model_type().into());
    object
}

/// A configuration in the layout that transformers 4 and 5 read, for a model that came without one.
fn without_original(config: &DecoderConfig, text: &TextCodec) -> Map<String, Value> {
    let special = text.special_tokens();
    let rotary = config.main_rotary();
    let object = json!({
        "architectures": [config.family.architecture()],
        "model_type": config.family.model_type(),
        "attention_dropout": 0.0,
        "bos_token_id": special.bos_token,
        "eos_token_id": special.eos_token,
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
        "rope_scaling": rotary.map(|rotary| rotary_settings::scaling_json(&rotary.scaling)),
        "rope_theta": rotary.map(|rotary| rotary.base),
        "tie_word_embeddings": config.tied_head,
        "use_cache": true,
        "vocab_size": config.vocabulary_size,
    });
    let mut object = object.as_object().cloned().unwrap_or_default();
    if let Some(peculiar) = config.family.write_hugging_face(config).as_object_mut() {
        object.append(peculiar);
    }
    object
}

/// The activation in `config.json`.
pub(super) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// The window of each layer, as `layer_types` says it.
pub(super) fn layer_types(config: &DecoderConfig) -> Vec<&'static str> {
    let kind = |window: &Option<usize>| match window {
        Some(_) => "sliding_attention",
        None => "full_attention",
    };
    config.attention_windows.iter().map(kind).collect()
}

/// Undoes the rounding of a square root: these settings are integers in every known model.
pub(super) fn near_integer(value: f64) -> Value {
    let rounded = value.round();
    if (value - rounded).abs() < 1e-9 * value { json!(rounded as i64) } else { json!(value) }
}
