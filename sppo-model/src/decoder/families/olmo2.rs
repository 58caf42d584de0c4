//! OLMo 2: norms after each block instead of before, and of queries and keys over all heads together.

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults};
use super::rotary_settings::USUAL;
use crate::decoder::{DecoderConfig, Family, NormPlacement, QueryKeyNorm};
use crate::error::Result;
use crate::formats::{GgufFile, GgufKeys, JsonObject};

#[derive(Debug)]
pub(super) struct Olmo2;

impl Family for Olmo2 {
    fn model_type(&self) -> &'static str {
        "olmo2"
    }

    fn architecture(&self) -> &'static str {
        "Olmo2ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Olmo2ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        refuse_unsupported(settings)?;
        Ok(peculiar(hugging_face::plain(&Self, settings, &DEFAULTS)?))
    }

    fn write_hugging_face(&self, _: &DecoderConfig) -> Value {
        json!({"attention_bias": false})
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some(ARCHITECTURE)
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        Ok(peculiar(gguf::plain(&Self, file, keys)?))
    }

    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        GGUF_PARTS
    }
}

/// The architecture of GGUF files of OLMo 2 and OLMo 3, which alone have windows.
pub(super) const ARCHITECTURE: &str = "olmo2";

pub(super) const GGUF_PARTS: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// Settings that the configuration classes of OLMo 2 and 3 share.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocabulary_size: 50_304,
    hidden_size: 4096,
    intermediate_size: 11_008,
    layer_count: 32,
    attention_heads: 32,
    key_value_heads: None,
    head_size: None,
    context_length: 2048,
    norm_epsilon: 1e-5,
    tied_head: false,
    rotary: USUAL,
};

pub(super) fn refuse_unsupported(settings: &JsonObject<'_>) -> Result<()> {
    settings.refuse_unless("hidden_act", &json!("silu"))?;
    settings.refuse_unless("attention_bias", &json!(false))?;
    settings.refuse_unless("clip_qkv", &Value::Null)
}

/// The settings that no file says, because they are the same for all of OLMo 2 and 3.
pub(super) fn peculiar(plain: DecoderConfig) -> DecoderConfig {
    DecoderConfig {
        norm_placement: NormPlacement::After,
        query_key_norm: QueryKeyNorm::AcrossHeads,
        ..plain
    }
}
