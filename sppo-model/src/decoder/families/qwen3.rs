//! Qwen 3 (dense): as Qwen 2, with norms of queries and keys in place of their biases.

use serde_json::{Value, json};

use super::gguf;
use super::hugging_face::{self, Defaults};
use super::qwen2::{DEFAULTS, peculiarities, with_windows};
use crate::decoder::{DecoderConfig, Family, QueryKeyNorm};
use crate::error::Result;
use crate::formats::{GgufFile, GgufKeys, JsonObject};

#[derive(Debug)]
pub(super) struct Qwen3;

impl Family for Qwen3 {
    fn model_type(&self) -> &'static str {
        "qwen3"
    }

    fn architecture(&self) -> &'static str {
        "Qwen3ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Qwen3ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        settings.refuse_unless("attention_bias", &json!(false))?;
        let defaults = Defaults { head_size: Some(128), ..DEFAULTS };
        let config = hugging_face::plain(&Self, settings, &defaults)?;
        let config = with_windows(config, settings)?;
        Ok(DecoderConfig { query_key_norm: QueryKeyNorm::PerHead, ..config })
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        peculiarities(config)
    }

    fn gguf_architecture(&self) -> Option<&'static str> {
        Some("qwen3")
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        keys.refuse_unless("attention.sliding_window", 0)?;
        let config = gguf::plain(&Self, file, keys)?;
        Ok(DecoderConfig { query_key_norm: QueryKeyNorm::PerHead, ..config })
    }
}
