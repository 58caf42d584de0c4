//! Rotary settings in `config.json`, in the layout of transformers 5 (`rope_parameters`) or 4
//! (`rope_theta` and `rope_scaling`, which wins where both are given, as in transformers).

use serde_json::{Value, json};

use crate::decoder::{Rotary, RotaryScaling};
use crate::error::{ModelError, Result};
use crate::formats::JsonObject;

/// Known keys; any other could change the result.
const KNOWN_KEYS: [&str; 16] = [
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "short_factor",
    "long_factor",
];

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";
const CONTEXT: &str = "original_max_position_embeddings";
const PARTIAL: &str = "partial_rotary_factor";

/// Rotary settings of a family's configuration class in transformers.
#[derive(Clone, Copy)]
pub(super) struct RotaryDefaults {
    /// The base where `config.json` names none.
    pub(super) base: f64,
    /// The values of `rope_type` that are supported.
    pub(super) kinds: &'static [&'static str],
    /// Whether a part of each head may be rotated alone.
    pub(super) partial: bool,
    /// The original context where `config.json` names none at its top level: what the scaling says
    /// does not count then. `None`: the scaling says it, or it is the context.
    pub(super) original_context: Option<f64>,
    /// Of families whose layers with a window have an embedding of their own: the key of its base in
    /// transformers 4, and its default.
    pub(super) windowed: Option<(&'static str, f64)>,
}

/// Those of most families.
pub(super) const USUAL: RotaryDefaults = RotaryDefaults {
    base: 10_000.0,
    kinds: &["default", "linear", "llama3", "yarn"],
    partial: false,
    original_context: None,
    windowed: None,
};

/// The rotary embedding of layers that see all positions, and that of layers with a window.
pub(super) fn read(
    settings: &JsonObject<'_>,
    defaults: &RotaryDefaults,
    head_size: usize,
    context_length: usize,
) -> Result<[Rotary; 2]> {
    let scaling = settings.object("rope_scaling")?.filter(|scaling| !is_empty(scaling));
    let parameters = settings.object("rope_parameters")?;
    let reader = Reader { settings, defaults, head_size, context_length };
    let Some((windowed_base_key, windowed_base)) = defaults.windowed else {
        let source: Vec<_> = scaling.or(parameters).into_iter().collect();
        let rotary = reader.rotary(&source, ("rope_theta", defaults.base))?;
        return Ok([rotary.clone(), rotary]);
    };
    let mut nested = [None, None];
    if let Some(parameters) = parameters.filter(|parameters| !is_empty(parameters)) {
        nested = [parameters.object(FULL)?, parameters.object(SLIDING)?];
        for key in parameters.keys().filter(|key| ![FULL, SLIDING, "rope_theta"].contains(key)) {
            let harmless = if key == "rope_type" { json!("default") } else { Value::Null };
            parameters.refuse_unless(key, &harmless)?;
        }
    }
    // `truncate` counts where transformers looks for it, outside of these two
    for object in nested.iter().flatten().chain(&scaling) {
        object.refuse_unless("truncate", &json!(true))?;
    }
    let full: Vec<_> = [scaling, nested[0]].into_iter().flatten().collect();
    let windowed: Vec<_> = nested[1].into_iter().collect();
    let both = [
        reader.rotary(&full, ("rope_theta", defaults.base))?,
        reader.rotary(&windowed, (windowed_base_key, windowed_base))?,
    ];
    if let Some(base) = parameters.map_or(Ok(None), |parameters| parameters.number("rope_theta"))?
        && nested.iter().any(Option::is_none)
        && both.iter().any(|rotary| rotary.base != base)
    {
        return Err(
            settings.wrong("rope_parameters", &format!("an object with `{FULL}` and `{SLIDING}`"))
        );
    }
    Ok(both)
}

fn is_empty(object: &JsonObject<'_>) -> bool {
    object.keys().next().is_none()
}

struct Reader<'a> {
    settings: &'a JsonObject<'a>,
    defaults: &'a RotaryDefaults,
    head_size: usize,
    context_length: usize,
}

/// A number from the first object that has it.
fn number(source: &[JsonObject<'_>], key: &str) -> Result<Option<f64>> {
    for object in source {
        if let Some(value) = object.number(key)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn text<'a>(source: &[JsonObject<'a>], key: &str) -> Result<Option<&'a str>> {
    for object in source {
        if let Some(value) = object.text(key)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl Reader<'_> {
    /// The embedding that the objects of `source` describe, the first of which wins; `base` is the key
    /// of the base at the top level, and its default.
    fn rotary(
        &self,
        source: &[JsonObject<'_>],
        (base_key, default_base): (&str, f64),
    ) -> Result<Rotary> {
        for (object, key) in
            source.iter().flat_map(|object| object.keys().map(move |key| (object, key)))
        {
            if !KNOWN_KEYS.contains(&key) {
                object.refuse_unless(key, &Value::Null)?;
            }
        }
        let top_level_base = self.settings.number(base_key)?;
        let base = number(source, "rope_theta")?.or(top_level_base).unwrap_or(default_base);
        let features = self.features(source)?;
        Ok(Rotary { base, features, scaling: self.scaling(source)? })
    }

    /// Features of each head that are rotated.
    fn features(&self, source: &[JsonObject<'_>]) -> Result<usize> {
        if !self.defaults.partial {
            for object in source.iter().chain([self.settings]) {
                object.refuse_unless(PARTIAL, &json!(1.0))?;
            }
            return Ok(self.head_size);
        }
        let part = number(source, PARTIAL)?.or(self.settings.number(PARTIAL)?).unwrap_or(1.0);
        if !(0.0..=1.0).contains(&part) {
            return Err(self.settings.wrong(PARTIAL, "a number from 0 to 1"));
        }
        Ok((self.head_size as f64 * part) as usize)
    }

    fn scaling(&self, source: &[JsonObject<'_>]) -> Result<RotaryScaling> {
        let kind = match text(source, "rope_type")? {
            Some(kind) => Some(kind),
            None => text(source, "type")?,
        };
        if let (None, Some(object)) = (kind, source.first())
            && object.number("factor")?.is_some_and(|factor| factor != 1.0)
        {
            return Err(object.wrong("rope_type", "given where there is a `factor`"));
        }
        let kind = kind.unwrap_or("default");
        if !self.defaults.kinds.contains(&kind) {
            return Err(ModelError::Unsupported(format!(
                "{}: rope_type `{kind}` is not supported; supported: {}",
                self.settings.path().display(),
                self.defaults.kinds.join(", ")
            )));
        }
        let required = |key: &str| {
            let first = source.first().unwrap_or(self.settings);
            number(source, key)?
                .ok_or_else(|| first.wrong(key, "a number, which this rope_type needs"))
        };
        Ok(match kind {
            "linear" => RotaryScaling::Linear { factor: required("factor")? },
            "llama3" => RotaryScaling::Llama3 {
                factor: required("factor")?,
                low_frequency_factor: required("low_freq_factor")?,
                high_frequency_factor: required("high_freq_factor")?,
                original_context: self.original_context(source)?,
            },
            "yarn" => self.yarn(source, required("factor")?)?,
            "longrope" | "su" => self.long_rope(source)?,
            _ => RotaryScaling::Unscaled,
        })
    }

    fn original_context(&self, source: &[JsonObject<'_>]) -> Result<f64> {
        let top_level = self.settings.number(CONTEXT)?.or(self.defaults.original_context);
        let own = number(source, CONTEXT)?;
        Ok(top_level.or(own).unwrap_or(self.context_length as f64))
    }

    fn yarn(&self, source: &[JsonObject<'_>], factor: f64) -> Result<RotaryScaling> {
        let scale = |weight: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * weight * factor.ln() + 1.0,
        };
        let used = |value: Option<f64>| value.filter(|&value| value != 0.0);
        let weights = (used(number(source, "mscale")?), used(number(source, "mscale_all_dim")?));
        let attention_factor = match (number(source, "attention_factor")?, weights) {
            (Some(given), _) => given,
            (None, (Some(weight), Some(weight_of_all))) => scale(weight) / scale(weight_of_all),
            (None, _) => scale(1.0),
        };
        let truncate = source.first().map_or(Ok(None), |object| object.flag("truncate"))?;
        Ok(RotaryScaling::Yarn {
            factor,
            fast_rotations: used(number(source, "beta_fast")?).unwrap_or(32.0),
            slow_rotations: used(number(source, "beta_slow")?).unwrap_or(1.0),
            original_context: self.original_context(source)?,
            rounds_range: truncate.unwrap_or(true),
            attention_factor,
        })
    }

    fn long_rope(&self, source: &[JsonObject<'_>]) -> Result<RotaryScaling> {
        let divisors = |key: &str| {
            let object = source.first().unwrap_or(self.settings);
            let numbers = object.typed(key, "a list of numbers", |value| {
                value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>()
            })?;
            numbers
                .ok_or_else(|| object.wrong(key, "a list of numbers, which this rope_type needs"))
        };
        let original_context = self.original_context(source)?;
        let stretched = self.context_length as f64 / original_context;
        let factor = number(source, "factor")?.unwrap_or(stretched);
        let usual = match factor <= 1.0 {
            true => 1.0,
            false => (1.0 + factor.ln() / original_context.ln()).sqrt(),
        };
        Ok(RotaryScaling::LongRope {
            short: divisors("short_factor")?,
            long: divisors("long_factor")?,
            original_context,
            attention_factor: number(source, "attention_factor")?.unwrap_or(usual),
        })
    }
}

/// The scaling as `rope_scaling` says it.
pub(super) fn scaling_json(scaling: &RotaryScaling) -> Value {
    match scaling {
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
            (CONTEXT): *original_context as u64,
        }),
        RotaryScaling::Yarn {
            factor,
            fast_rotations,
            slow_rotations,
            original_context,
            rounds_range,
            attention_factor,
        } => json!({
            "rope_type": "yarn",
            "factor": factor,
            "beta_fast": fast_rotations,
            "beta_slow": slow_rotations,
            (CONTEXT): *original_context as u64,
            "truncate": rounds_range,
            "attention_factor": attention_factor,
        }),
        RotaryScaling::LongRope { short, long, original_context, attention_factor } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            (CONTEXT): *original_context as u64,
            "attention_factor": attention_factor,
        }),
    }
}
