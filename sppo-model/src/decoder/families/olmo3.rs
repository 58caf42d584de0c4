//! OLMo 3: OLMo 2 with windows in three of four layers, whose rotary embedding is never scaled.

use serde_json::{Value, json};

use super::gguf;
use super::gguf_writing::write_windowed_layers;
use super::hugging_face::{self, Defaults, layer_types, windows, with_windowed_rotary};
use super::olmo2::{self, GGUF_PARTS, peculiar, refuse_unsupported};
use super::rotary_settings::{RotaryDefaults, USUAL};
use crate::decoder::{DecoderConfig, Family, GgufWindows, Rotary, RotaryScaling};
use crate::error::Result;
use crate::formats::{ArchitectureEntries, GgufFile, GgufKeys, JsonObject};

const BASE: f64 = 500_000.0;

#[derive(Debug)]
pub(super) struct Olmo3;

impl Family for Olmo3 {
    fn model_type(&self) -> &'static str {
        "olmo3"
    }

    fn architecture(&self) -> &'static str {
        "Olmo3ForCausalLM"
    }

    fn sequence_classifier(&self) -> &'static str {
        "Olmo3ForSequenceClassification"
    }

    fn read_hugging_face(&self, settings: &JsonObject<'_>) -> Result<DecoderConfig> {
        refuse_unsupported(settings)?;
        let windowed = Some(("rope_theta", BASE));
        let rotary = RotaryDefaults { base: BASE, windowed, ..USUAL };
        let defaults = Defaults { rotary, ..olmo2::DEFAULTS };
        let config = hugging_face::plain(&Self, settings, &defaults)?;
        let window = settings.count_or("sliding_window", Some(4096))?;
        let attention_windows = windows(settings, &config, window, slides)?;
        let config = DecoderConfig { attention_windows, ..peculiar(config) };
        with_windowed_rotary(config, settings, &defaults)
    }

    fn write_hugging_face(&self, config: &DecoderConfig) -> Value {
        json!({
            "attention_bias": false,
            "layer_types": layer_types(config),
            "sliding_window": config.attention_windows.iter().copied().flatten().next(),
        })
    }

    /// That of OLMo 2, of whose files those with windows are OLMo 3's.
    fn gguf_architecture(&self) -> Option<&'static str> {
        Some(olmo2::ARCHITECTURE)
    }

    fn reads_gguf(&self, keys: &GgufKeys<'_>) -> Result<bool> {
        Ok(keys.count(WINDOW)?.is_some_and(|window| window > 0))
    }

    fn read_gguf(&self, file: &GgufFile, keys: &GgufKeys<'_>) -> Result<DecoderConfig> {
        let config = peculiar(gguf::plain(&Self, file, keys)?);
        let window = keys.required_count(WINDOW)?;
        let windowed = gguf::windowed_layers(keys, config.rotary.len(), INTERVAL)?;
        let attention_windows: Vec<_> =
            windowed.into_iter().map(|windowed| windowed.then_some(window)).collect();
        let unscaled = |rotary| Rotary { scaling: RotaryScaling::Unscaled, ..rotary };
        let of_layer = |(rotary, window): (Option<Rotary>, &Option<usize>)| match window {
            Some(_) => rotary.map(unscaled),
            None => rotary,
        };
        let rotary = config.rotary.into_iter().zip(&attention_windows).map(of_layer).collect();
        Ok(DecoderConfig { rotary, attention_windows, ..config })
    }

    fn write_gguf(&self, config: &DecoderConfig, entries: &mut ArchitectureEntries<'_>) {
        write_windowed_layers(config, entries);
    }

    fn gguf_windows(&self) -> GgufWindows {
        GgufWindows::Used
    }

    fn gguf_parts(&self) -> &'static [(&'static str, &'static str)] {
        GGUF_PARTS
    }
}

const WINDOW: &str = "attention.sliding_window";

/// Every so many layers there is one without a window.
const INTERVAL: usize = 4;

fn slides(layer: usize) -> bool {
    !(layer + 1).is_multiple_of(INTERVAL)
}
