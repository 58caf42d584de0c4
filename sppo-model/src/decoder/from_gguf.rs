//! The configuration in the metadata of GGUF files.

use super::{DecoderConfig, Family, NormPlacement, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::{GgufFile, GgufMetadata, GgufValue};
use crate::ops::Activation;

/// The constants of Llama 3.1 to 3.3, which the converter does not write into the metadata.
const LLAMA3_LOW_FREQUENCY_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY_FACTOR: f64 = 4.0;
const LLAMA3_ORIGINAL_CONTEXT: f64 = 8192.0;

/// What llama.cpp takes for Gemma 2 where the file does not say.
const GEMMA2_WINDOW: usize = 4096;
const GEMMA2_ATTENTION_SOFT_CAP: f64 = 50.0;
const GEMMA2_LOGIT_SOFT_CAP: f64 = 30.0;
/// Layers of the 27B model, whose query scale differs from the smaller ones' and is not in the file.
const GEMMA2_27B_LAYERS: usize = 46;

impl DecoderConfig {
    /// Reads the metadata of a GGUF file.
    ///
    /// # Errors
    /// When the architecture or a setting is not supported, or a value is missing or malformed.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let metadata = file.metadata();
        let architecture = metadata
            .text("general.architecture")?
            .ok_or_else(|| metadata.missing("general.architecture"))?;
        let keys = ArchitectureKeys { metadata, architecture };
        let config = match architecture {
            // Mistral as well, which llama.cpp does not tell apart
            "llama" => llama(file, &keys)?,
            "gemma2" => gemma2(file, &keys)?,
            "qwen2" => DecoderConfig { attention_bias: true, ..qwen(Family::Qwen2, file, &keys)? },
            "qwen3" => DecoderConfig { query_key_norm: true, ..qwen(Family::Qwen3, file, &keys)? },
            other => {
                return Err(ModelError::Unsupported(format!(
                    "{}: the GGUF architecture `{other}` is not supported; supported: llama \
                     (Mistral included), gemma2, qwen2, qwen3",
                    metadata.path().display()
                )));
            }
        };
        config.check(metadata.path())
    }
}

fn llama(file: &GgufFile, keys: &ArchitectureKeys<'_>) -> Result<DecoderConfig> {
    keys.refuse_unless("attention.sliding_window", 0)?;
    let config = plain(Family::Llama, file, keys)?;
    let rotary_scaling = match config.rotary_scaling {
        RotaryScaling::Unscaled => llama3_scaling(file, config.rotary_base, config.head_size)?,
        scaling => scaling,
    };
    Ok(DecoderConfig { rotary_scaling, ..config })
}

fn gemma2(file: &GgufFile, keys: &ArchitectureKeys<'_>) -> Result<DecoderConfig> {
    let plain = plain(Family::Gemma2, file, keys)?;
    let window = keys.count("attention.sliding_window")?.unwrap_or(GEMMA2_WINDOW);
    let window_of = |layer: usize| layer.is_multiple_of(2).then_some(window);
    let scaled_by = match plain.layer_count {
        GEMMA2_27B_LAYERS => plain.hidden_size as f64 / plain.attention_heads as f64,
        _ => plain.head_size as f64,
    };
    let cap = |key, default| Ok(keys.number(key)?.unwrap_or(default));
    Ok(DecoderConfig {
        norm_weight_offset: true,
        norm_placement: NormPlacement::BeforeAndAfter,
        activation: Activation::GeluTanh,
        attention_scale: scaled_by.powf(-0.5),
        attention_soft_cap: Some(cap("attn_logit_softcapping", GEMMA2_ATTENTION_SOFT_CAP)?),
        logit_soft_cap: Some(cap("final_logit_softcapping", GEMMA2_LOGIT_SOFT_CAP)?),
        embedding_scale: Some((plain.hidden_size as f64).sqrt()),
        attention_windows: (0..plain.attention_windows.len()).map(window_of).collect(),
        ..plain
    })
}

fn qwen(family: Family, file: &GgufFile, keys: &ArchitectureKeys<'_>) -> Result<DecoderConfig> {
    keys.refuse_unless("attention.sliding_window", 0)?;
    plain(family, file, keys)
}

/// The settings that all architectures share, without any one's peculiarities.
fn plain(family: Family, file: &GgufFile, keys: &ArchitectureKeys<'_>) -> Result<DecoderConfig> {
    keys.refuse_unless("expert_count", 0)?;
    let hidden_size = keys.required_count("embedding_length")?;
    let layer_count = keys.required_count("block_count")?;
    let attention_heads = keys.required_count("attention.head_count")?;
    let head_size = match keys.count("attention.key_length")? {
        Some(size) => size,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    for key in ["rope.dimension_count", "attention.value_length"] {
        keys.refuse_unless(key, head_size as u64)?;
    }
    let vocabulary_size = match file.shape("token_embd.weight") {
        Some([rows, _]) => *rows,
        _ => keys.required_count("vocab_size")?,
    };
    let epsilon = "attention.layer_norm_rms_epsilon";
    Ok(DecoderConfig {
        family,
        vocabulary_size,
        hidden_size,
        intermediate_size: keys.required_count("feed_forward_length")?,
        layer_count,
        attention_heads,
        key_value_heads: keys.key_value_heads()?.unwrap_or(attention_heads),
        head_size,
        context_length: keys.required_count("context_length")?,
        norm_epsilon: keys.number(epsilon)?.ok_or_else(|| keys.missing(epsilon))?,
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        rotary_base: keys.number("rope.freq_base")?.unwrap_or(10_000.0),
        rotary_scaling: keys.rotary_scaling()?,
        tied_head: file.shape("output.weight").is_none(),
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

/// The metadata keys of an architecture, which begin with its name.
struct ArchitectureKeys<'a> {
    metadata: &'a GgufMetadata,
    architecture: &'a str,
}

impl ArchitectureKeys<'_> {
    fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn missing(&self, key: &str) -> ModelError {
        self.metadata.missing(&self.full(key))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.full(key))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        let value = self.metadata.integer(&self.full(key))?;
        value.map(|value| self.small(key, value)).transpose()
    }

    fn required_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn small(&self, key: &str, value: u64) -> Result<usize> {
        u32::try_from(value).map(|value| value as usize).map_err(|_| {
            ModelError::file(
                self.metadata.path(),
                format!("metadata key `{}` is {value}, which no model has", self.full(key)),
            )
        })
    }

    fn refuse_unless(&self, key: &str, supported: u64) -> Result<()> {
        match self.metadata.integer(&self.full(key))? {
            Some(value) if value != supported => Err(ModelError::Unsupported(format!(
                "{}: `{}` = {value} is not supported; only {supported} is",
                self.metadata.path().display(),
                self.full(key)
            ))),
            _ => Ok(()),
        }
    }

    /// One number, or one per layer, which must then be equal.
    fn key_value_heads(&self) -> Result<Option<usize>> {
        let key = "attention.head_count_kv";
        let Some(GgufValue::Array(values)) = self.metadata.get(&self.full(key)) else {
            return self.count(key);
        };
        match values.first() {
            Some(GgufValue::Integer(first))
                if values.iter().all(|value| value == &GgufValue::Integer(*first)) =>
            {
                self.small(key, u64::try_from(*first).unwrap_or(u64::MAX)).map(Some)
            }
            _ => Err(ModelError::Unsupported(format!(
                "{}: `{}` differs between layers, which is not supported",
                self.metadata.path().display(),
                self.full(key)
            ))),
        }
    }

    fn rotary_scaling(&self) -> Result<RotaryScaling> {
        let kind = self.metadata.text(&self.full("rope.scaling.type"))?.unwrap_or("none");
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.number("rope.scale_linear")?,
        };
        let scaled = factor.filter(|&factor| factor != 1.0 && factor != 0.0);
        match (kind, scaled) {
            ("none" | "linear", None) => Ok(RotaryScaling::Unscaled),
            ("none" | "linear", Some(factor)) if factor > 0.0 => {
                Ok(RotaryScaling::Linear { factor })
            }
            _ => Err(ModelError::Unsupported(format!(
                "{}: rope scaling `{kind}` by {} is not supported; supported: none, linear, and \
                 Llama 3's",
                self.metadata.path().display(),
                factor.unwrap_or(1.0)
            ))),
        }
    }
}

/// Llama 3's scaling is written as one divisor per frequency, `rope_freqs.weight`.
fn llama3_scaling(file: &GgufFile, base: f64, head_size: usize) -> Result<RotaryScaling> {
    const NAME: &str = "rope_freqs.weight";
    if file.shape(NAME).is_none() {
        return Ok(RotaryScaling::Unscaled);
    }
    let divisors = file.values(NAME)?;
    let factor = f64::from(divisors.iter().copied().fold(1.0_f32, f32::max));
    let agree = divisors.len() == head_size / 2
        && divisors.iter().enumerate().all(|(pair, &divisor)| {
            let expected = llama3_divisor(factor, base, pair, head_size);
            (f64::from(divisor) - expected).abs() <= 1e-3 * expected
        });
    if !agree {
        return Err(ModelError::Unsupported(format!(
            "{}: the rotary divisors in `{NAME}` are not those of Llama 3, which alone are supported",
            file.metadata().path().display()
        )));
    }
    if factor == 1.0 {
        return Ok(RotaryScaling::Unscaled);
    }
    Ok(RotaryScaling::Llama3 {
        factor,
        low_frequency_factor: LLAMA3_LOW_FREQUENCY_FACTOR,
        high_frequency_factor: LLAMA3_HIGH_FREQUENCY_FACTOR,
        original_context: LLAMA3_ORIGINAL_CONTEXT,
    })
}

/// What Llama 3 divides the frequency of a feature pair by.
fn llama3_divisor(factor: f64, base: f64, pair: usize, head_size: usize) -> f64 {
    let wavelength = std::f64::consts::TAU * base.powf(2.0 * pair as f64 / head_size as f64);
    if wavelength < LLAMA3_ORIGINAL_CONTEXT / LLAMA3_HIGH_FREQUENCY_FACTOR {
        1.0
    } else if wavelength > LLAMA3_ORIGINAL_CONTEXT / LLAMA3_LOW_FREQUENCY_FACTOR {
        factor
    } else {
        let smooth = (LLAMA3_ORIGINAL_CONTEXT / wavelength - LLAMA3_LOW_FREQUENCY_FACTOR)
            / (LLAMA3_HIGH_FREQUENCY_FACTOR - LLAMA3_LOW_FREQUENCY_FACTOR);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}
