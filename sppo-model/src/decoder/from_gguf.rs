//! The configuration in the metadata of GGUF files.

use super::{Activation, DecoderConfig, Family, NormPlacement, RotaryScaling};
use crate::checkpoint::{GgufFile, GgufMetadata, GgufValue};
use crate::error::{ModelError, Result};

/// The constants of Llama 3.1 to 3.3, which the converter does not write into the metadata.
const LLAMA3_LOW_FREQUENCY_FACTOR: f64 = 1.0;
const LLAMA3_HIGH_FREQUENCY_FACTOR: f64 = 4.0;
const LLAMA3_ORIGINAL_CONTEXT: f64 = 8192.0;

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
        let config = match architecture {
            "llama" => llama(file)?,
            other => {
                return Err(ModelError::Unsupported(format!(
                    "{}: the GGUF architecture `{other}` is not supported; supported: llama",
                    metadata.path().display()
                )));
            }
        };
        config.check(metadata.path())
    }
}

fn llama(file: &GgufFile) -> Result<DecoderConfig> {
    let metadata = file.metadata();
    for key in ["llama.expert_count", "llama.attention.sliding_window"] {
        refuse_unless(metadata, key, 0)?;
    }
    let hidden_size = required_count(metadata, "llama.embedding_length")?;
    let layer_count = required_count(metadata, "llama.block_count")?;
    let attention_heads = required_count(metadata, "llama.attention.head_count")?;
    let head_size = match metadata.integer("llama.attention.key_length")? {
        Some(size) => small(metadata, "llama.attention.key_length", size)?,
        None => hidden_size.checked_div(attention_heads).unwrap_or_default(),
    };
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        refuse_unless(metadata, key, head_size as u64)?;
    }
    let epsilon_key = "llama.attention.layer_norm_rms_epsilon";
    let vocabulary_size = match file.shape("token_embd.weight") {
        Some([rows, _]) => *rows,
        _ => required_count(metadata, "llama.vocab_size")?,
    };
    let rotary_base = metadata.number("llama.rope.freq_base")?.unwrap_or(10_000.0);
    Ok(DecoderConfig {
        family: Family::Llama,
        vocabulary_size,
        hidden_size,
        intermediate_size: required_count(metadata, "llama.feed_forward_length")?,
        layer_count,
        attention_heads,
        key_value_heads: key_value_heads(metadata)?.unwrap_or(attention_heads),
        head_size,
        context_length: required_count(metadata, "llama.context_length")?,
        norm_epsilon: metadata.number(epsilon_key)?.ok_or_else(|| metadata.missing(epsilon_key))?,
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        rotary_base,
        rotary_scaling: rotary_scaling(file, rotary_base, head_size)?,
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

fn small(metadata: &GgufMetadata, key: &str, value: u64) -> Result<usize> {
    u32::try_from(value).map(|value| value as usize).map_err(|_| {
        ModelError::file(
            metadata.path(),
            format!("metadata key `{key}` is {value}, which no model has"),
        )
    })
}

fn required_count(metadata: &GgufMetadata, key: &str) -> Result<usize> {
    let value = metadata.integer(key)?.ok_or_else(|| metadata.missing(key))?;
    small(metadata, key, value)
}

fn refuse_unless(metadata: &GgufMetadata, key: &str, supported: u64) -> Result<()> {
    match metadata.integer(key)? {
        Some(value) if value != supported => Err(ModelError::Unsupported(format!(
            "{}: `{key}` = {value} is not supported; only {supported} is",
            metadata.path().display()
        ))),
        _ => Ok(()),
    }
}

/// One number, or one per layer, which must then be equal.
fn key_value_heads(metadata: &GgufMetadata) -> Result<Option<usize>> {
    let key = "llama.attention.head_count_kv";
    let Some(GgufValue::Array(values)) = metadata.get(key) else {
        return metadata.integer(key)?.map(|count| small(metadata, key, count)).transpose();
    };
    match values.first() {
        Some(GgufValue::Integer(first))
            if values.iter().all(|value| value == &GgufValue::Integer(*first)) =>
        {
            let count = u64::try_from(*first).unwrap_or(u64::MAX);
            small(metadata, key, count).map(Some)
        }
        _ => Err(ModelError::Unsupported(format!(
            "{}: `{key}` differs between layers, which is not supported",
            metadata.path().display()
        ))),
    }
}

fn rotary_scaling(file: &GgufFile, base: f64, head_size: usize) -> Result<RotaryScaling> {
    let metadata = file.metadata();
    let kind = metadata.text("llama.rope.scaling.type")?.unwrap_or("none");
    let factor = match metadata.number("llama.rope.scaling.factor")? {
        Some(factor) => Some(factor),
        None => metadata.number("llama.rope.scale_linear")?,
    };
    let scaled = factor.filter(|&factor| factor != 1.0 && factor != 0.0);
    match (kind, scaled) {
        ("none" | "linear", None) => llama3_scaling(file, base, head_size),
        ("linear", Some(factor)) if factor > 0.0 => Ok(RotaryScaling::Linear { factor }),
        ("none", Some(factor)) if factor > 0.0 => Ok(RotaryScaling::Linear { factor }),
        _ => Err(ModelError::Unsupported(format!(
            "{}: rope scaling `{kind}` by {} is not supported; supported: none, linear, and Llama 3's",
            metadata.path().display(),
            factor.unwrap_or(1.0)
        ))),
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
