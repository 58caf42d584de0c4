//! The shape of a DeBERTa v3 encoder, from the `config.json` of transformers or from the weights.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::{ModelError, Result};
use crate::formats::{JsonObject, WeightFile};
use crate::ops::encoder::DistanceBuckets;

/// The size of a head in every released DeBERTa v3.
const RELEASED_HEAD_SIZE: usize = 64;

/// The shape of an encoder. What is not here is the same for all DeBERTa v3: no absolute positions, no
/// token types, no convolution, GELU, and relative positions as keys and as queries, whose embeddings
/// are normalised and projected by the layer's own matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EncoderConfig {
    /// Rows of the embedding table.
    pub vocabulary_size: usize,
    /// Features of a token.
    pub hidden_size: usize,
    /// Features inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layer_count: usize,
    /// Attention heads.
    pub heads: usize,
    /// Added to the variance in every normalisation.
    pub norm_epsilon: f64,
    /// Sharing of the rows of the relative-position table among distances.
    pub buckets: DistanceBuckets,
}

impl EncoderConfig {
    /// Reads the settings of `DebertaV2Config`, and refuses those that would change the result and are
    /// not supported.
    pub(crate) fn from_hugging_face(settings: &JsonObject<'_>) -> Result<Self> {
        let required = |key: &str| {
            settings.count(key)?.ok_or_else(|| settings.wrong(key, "a positive integer"))
        };
        // The defaults of the configuration class are those of DeBERTa v2, not of v3.
        for (key, supported) in [
            ("relative_attention", json!(true)),
            ("share_att_key", json!(true)),
            ("position_biased_input", json!(false)),
            ("norm_rel_ebd", json!("layer_norm")),
        ] {
            if settings.get(key) != Some(&supported) {
                return Err(unsupported(settings, key, &supported));
            }
        }
        for (key, supported) in [
            ("hidden_act", json!("gelu")),
            ("type_vocab_size", json!(0)),
            ("conv_kernel_size", json!(0)),
        ] {
            settings.refuse_unless(key, &supported)?;
        }
        check_position_attention(settings)?;
        let (hidden_size, heads) = (required("hidden_size")?, required("num_attention_heads")?);
        if !hidden_size.is_multiple_of(heads) {
            return Err(settings.wrong("num_attention_heads", "a divisor of `hidden_size`"));
        }
        settings.refuse_unless("embedding_size", &json!(hidden_size))?;
        settings.refuse_unless("attention_head_size", &json!(hidden_size / heads))?;
        let longest_distance = match settings.get("max_relative_positions").map(Value::as_i64) {
            None | Some(Some(..1)) => required("max_position_embeddings")?,
            Some(_) => required("max_relative_positions")?,
        };
        let config = Self {
            vocabulary_size: required("vocab_size")?,
            hidden_size,
            intermediate_size: required("intermediate_size")?,
            layer_count: required("num_hidden_layers")?,
            heads,
            norm_epsilon: settings.number("layer_norm_eps")?.unwrap_or(1e-7),
            buckets: DistanceBuckets { span: required("position_buckets")?, longest_distance },
        };
        if config.buckets.span < 4 || longest_distance <= config.buckets.span / 2 + 1 {
            return Err(settings.wrong("position_buckets", "from 4 to twice the longest distance"));
        }
        Ok(config)
    }

    /// A released DeBERTa v3, whose sizes are read off its weights.
    pub(crate) fn from_released(files: &dyn WeightFile, prefix: &str) -> Result<Self> {
        let shape = |name: &str| match files.shape(&format!("{prefix}{name}")) {
            Some(&[rows, columns]) => Ok((rows, columns)),
            _ => Err(ModelError::Input(format!("the model has no matrix `{prefix}{name}`"))),
        };
        let (vocabulary_size, hidden_size) = shape("embeddings.word_embeddings.weight")?;
        let (intermediate_size, _) = shape("encoder.layer.0.intermediate.dense.weight")?;
        let (relative_rows, _) = shape("encoder.rel_embeddings.weight")?;
        let has_layer = |layer: &usize| {
            shape(&format!("encoder.layer.{layer}.attention.self.query_proj.weight")).is_ok()
        };
        Ok(Self {
            vocabulary_size,
            hidden_size,
            intermediate_size,
            layer_count: (0..).take_while(has_layer).count(),
            heads: hidden_size / RELEASED_HEAD_SIZE,
            norm_epsilon: 1e-7,
            buckets: DistanceBuckets { span: relative_rows / 2, longest_distance: 512 },
        })
    }
}

/// `pos_att_type` is a list, or a text with bars.
fn check_position_attention(settings: &JsonObject<'_>) -> Result<()> {
    let mut kinds: Vec<&str> = match settings.get("pos_att_type") {
        Some(Value::String(text)) => text.split('|').map(str::trim).collect(),
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    kinds.sort_unstable();
    match kinds[..] {
        ["c2p", "p2c"] => Ok(()),
        _ => Err(unsupported(settings, "pos_att_type", &json!(["p2c", "c2p"]))),
    }
}

fn unsupported(settings: &JsonObject<'_>, key: &str, supported: &Value) -> ModelError {
    let found = settings.get(key).map_or("not given".to_string(), Value::to_string);
    ModelError::Unsupported(format!(
        "{}: `{key}` is {found}; only {supported}, as in DeBERTa v3, is supported",
        settings.path().display()
    ))
}
