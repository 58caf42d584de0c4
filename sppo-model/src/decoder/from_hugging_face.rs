//! `config.json` of Hugging Face models, read and written.
//!
//! Defaults are those of transformers' configuration classes. Settings that change the result and
//! are not supported are refused by name; everything else is kept for writing the model back.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{Activation, DecoderConfig, Family, NormPlacement, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::text::TextCodec;

/// What Hugging Face calls a family.
struct FamilyNames {
    family: Family,
    architecture: &'static str,
    model_type: &'static str,
}

const FAMILIES: [FamilyNames; 1] =
    [FamilyNames { family: Family::Llama, architecture: "LlamaForCausalLM", model_type: "llama" }];

impl DecoderConfig {
    /// Reads a `config.json`; `path` names it in errors.
    ///
    /// # Errors
    /// When the architecture or a setting is not supported, or a value is missing or malformed.
    pub fn from_hugging_face(json: &Value, path: &Path) -> Result<Self> {
        let object =
            json.as_object().ok_or_else(|| ModelError::file(path, "is not a JSON object"))?;
        let settings = Settings { object, path };
        let config = match family(&settings)? {
            Family::Llama => llama(&settings)?,
        };
        config.check(path)
    }

    /// The `config.json` of this model. What `original` says beyond these settings is kept.
    #[must_use]
    pub fn to_hugging_face(&self, original: Option<&Value>, text: &TextCodec) -> Value {
        let mut object = match original.and_then(Value::as_object) {
            Some(object) => object.clone(),
            None => match self.family {
                Family::Llama => llama_object(self, text),
            },
        };
        // weights are always written in f32; newer files say `dtype`
        let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        object.insert(key.into(), "float32".into());
        Value::Object(object)
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
    let known = FAMILIES.iter().find(|names| {
        architecture.is_none_or(|name| name == names.architecture)
            && model_type.is_none_or(|name| name == names.model_type)
    });
    match known {
        Some(names) if architecture.is_some() || model_type.is_some() => Ok(names.family),
        _ => {
            let supported: Vec<&str> = FAMILIES.iter().map(|names| names.architecture).collect();
            Err(ModelError::Unsupported(format!(
                "{}: the architecture {} (model_type {}) is not supported; supported: {}",
                settings.path.display(),
                architecture.unwrap_or("that is not named"),
                model_type.unwrap_or("not given"),
                supported.join(", ")
            )))
        }
    }
}

fn llama(settings: &Settings<'_>) -> Result<DecoderConfig> {
    settings.refuse_unless("hidden_act", &json!("silu"))?;
    settings.refuse_unless("attention_bias", &json!(false))?;
    settings.refuse_unless("mlp_bias", &json!(false))?;
    settings.refuse_unless("quantization_config", &Value::Null)?;
    settings.refuse_unless("partial_rotary_factor", &json!(1.0))?;

    let hidden_size = settings.count("hidden_size")?.unwrap_or(4096);
    let layer_count = settings.count("num_hidden_layers")?.unwrap_or(32);
    let attention_heads = settings.count("num_attention_heads")?.unwrap_or(32);
    let head_size = match settings.count("head_dim")? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    let context_length = settings.count("max_position_embeddings")?.unwrap_or(2048);
    let (rotary_base, rotary_scaling) = rotary(settings, context_length)?;
    Ok(DecoderConfig {
        family: Family::Llama,
        vocabulary_size: settings.count("vocab_size")?.unwrap_or(32_000),
        hidden_size,
        intermediate_size: settings.count("intermediate_size")?.unwrap_or(11_008),
        layer_count,
        attention_heads,
        key_value_heads: settings.count("num_key_value_heads")?.unwrap_or(attention_heads),
        head_size,
        context_length,
        norm_epsilon: settings.number("rms_norm_eps")?.unwrap_or(1e-6),
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        rotary_base,
        rotary_scaling,
        tied_head: settings.flag("tie_word_embeddings")?.unwrap_or(false),
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
    let required = |key: &str| {
        parameters
            .number(key)?
            .ok_or_else(|| parameters.wrong(key, "a number, which this rope_type needs"))
    };
    let kind = match parameters.text("rope_type")? {
        Some(kind) => kind,
        None => parameters.text("type")?.unwrap_or("default"),
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

/// A configuration written from nothing, in the layout that transformers 4 and 5 both read.
fn llama_object(config: &DecoderConfig, text: &TextCodec) -> Map<String, Value> {
    let scaling = match config.rotary_scaling {
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
    };
    let names = &FAMILIES[0];
    let special = text.special_tokens();
    let object = json!({
        "architectures": [names.architecture],
        "model_type": names.model_type,
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": special.beginning,
        "eos_token_id": special.end_of_sequence,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.context_length,
        "mlp_bias": false,
        "num_attention_heads": config.attention_heads,
        "num_hidden_layers": config.layer_count,
        "num_key_value_heads": config.key_value_heads,
        "rms_norm_eps": config.norm_epsilon,
        "rope_scaling": scaling,
        "rope_theta": config.rotary_base,
        "tie_word_embeddings": config.tied_head,
        "use_cache": true,
        "vocab_size": config.vocabulary_size,
    });
    object.as_object().cloned().unwrap_or_default()
}

/// Typed access to a JSON object that names the key in errors; `null` counts as absent.
#[derive(Clone, Copy)]
struct Settings<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Settings<'a> {
    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str) -> ModelError {
        let found = self.object.get(key).map_or("nothing".to_string(), Value::to_string);
        ModelError::file(self.path, format!("key `{key}` must be {expected}; it is {found}"))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a positive integer", |value| {
            value.as_u64().filter(|&count| count > 0).and_then(|count| usize::try_from(count).ok())
        })
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "text", Value::as_str)
    }

    fn object(&self, key: &str) -> Result<Option<Settings<'a>>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Settings { object, path: self.path }))
    }

    /// Refuses a setting that changes the result, unless it has the one value that is supported.
    fn refuse_unless(&self, key: &str, supported: &Value) -> Result<()> {
        match self.get(key) {
            Some(value)
                if value != supported
                    && value.as_f64().is_none_or(|number| Some(number) != supported.as_f64()) =>
            {
                Err(ModelError::Unsupported(format!(
                    "{}: `{key}` = {value} is not supported; only {supported} is",
                    self.path.display()
                )))
            }
            _ => Ok(()),
        }
    }
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
                "GPT2LMHeadModel (model_type not given) is not supported; supported: LlamaForCausalLM",
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
            (json!({"num_attention_heads": 0}), "`num_attention_heads`"),
            (json!({"num_key_value_heads": 5}), "evenly"),
            (json!({"head_dim": 15}), "odd"),
            (json!([1]), "not a JSON object"),
        ];
        for (mut json, expected) in cases {
            let bare = json.as_object().is_none_or(|object| object.is_empty());
            if !bare && json.get("architectures").is_none() {
                json["model_type"] = json!("llama");
            }
            let error = parse(&json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
            assert!(error.starts_with("config.json"), "{error}");
        }
    }
}
