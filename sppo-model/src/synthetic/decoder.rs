//! Decoders.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::checkpoint::{WeightFiles, WeightFormat, write_checkpoint};
use crate::decoder::{DecoderConfig, TensorLayout, tensor_layout};
use crate::error::Result;
use crate::formats::files::write_file;
use crate::ops::random::mix;
use crate::text::TextCodec;

/// The shape of a well-known model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// SmolLM2-135M.
    SmolLm135M,
    /// Llama-3.2-1B.
    Llama1B,
    /// Llama-3.1-8B.
    Llama8B,
    /// SmolLM3-3B.
    SmolLm3B,
    /// gemma-3-270m.
    Gemma270M,
    /// gemma-3-1b.
    Gemma1B,
    /// OLMo-2-0425-1B.
    Olmo1B,
    /// Olmo-3-7B.
    Olmo7B,
    /// Phi-4-mini.
    Phi4Mini,
    /// Qwen3-30B-A3B.
    Qwen30B,
}

impl Shape {
    /// The model that has this shape.
    #[must_use]
    pub fn model(self) -> &'static str {
        match self {
            Self::SmolLm135M => "SmolLM2-135M",
            Self::Llama1B => "Llama-3.2-1B",
            Self::Llama8B => "Llama-3.1-8B",
            Self::SmolLm3B => "SmolLM3-3B",
            Self::Gemma270M => "gemma-3-270m",
            Self::Gemma1B => "gemma-3-1b",
            Self::Olmo1B => "OLMo-2-0425-1B",
            Self::Olmo7B => "Olmo-3-7B",
            Self::Phi4Mini => "Phi-4-mini",
            Self::Qwen30B => "Qwen3-30B-A3B",
        }
    }

    /// The decoder of this shape.
    pub(crate) fn config(self) -> Result<DecoderConfig> {
        DecoderConfig::from_hugging_face(&self.config_json(), Path::new("config.json"))
    }

    /// Size of the weights that [`write_synthetic_model`] writes, in bytes.
    ///
    /// # Errors
    /// When the shape is not one that a model can have, which would be a fault of this program.
    pub fn file_bytes(self) -> Result<u64> {
        let config = self.config()?;
        let values =
            |tensor: TensorLayout| tensor.shape.iter().map(|&size| size as u64).product::<u64>();
        Ok(2 * tensor_layout(&config).into_iter().map(values).sum::<u64>())
    }

    /// Features of the residual stream and of the feed-forward block, layers, heads, key-value heads, and
    /// tokens.
    fn sizes(self) -> [usize; 6] {
        match self {
            Self::SmolLm135M => [576, 1536, 30, 9, 3, 49_152],
            Self::Llama1B => [2048, 8192, 16, 32, 8, 128_256],
            Self::Llama8B => [4096, 14_336, 32, 32, 8, 128_256],
            Self::SmolLm3B => [2048, 11_008, 36, 16, 4, 128_256],
            Self::Gemma270M => [640, 2048, 18, 4, 1, 262_144],
            Self::Gemma1B => [1152, 6912, 26, 4, 1, 262_144],
            Self::Olmo1B => [2048, 8192, 16, 16, 16, 100_352],
            Self::Olmo7B => [4096, 11_008, 32, 32, 32, 100_278],
            Self::Phi4Mini => [3072, 8192, 32, 24, 8, 200_064],
            Self::Qwen30B => [2048, 6144, 48, 32, 4, 151_936],
        }
    }

    /// The family and what its configuration has beside the sizes.
    fn peculiarities(self) -> Value {
        match self {
            Self::SmolLm135M | Self::Llama1B => {
                json!({"model_type": "llama", "tie_word_embeddings": true})
            }
            Self::Llama8B => json!({"model_type": "llama", "tie_word_embeddings": false}),
            Self::SmolLm3B => json!({"model_type": "smollm3", "rope_theta": 5_000_000.0}),
            Self::Gemma270M | Self::Gemma1B => json!({
                "model_type": "gemma3_text",
                "head_dim": 256,
                "rope_theta": 1_000_000.0,
                "sliding_window": 512,
            }),
            Self::Olmo1B => json!({"model_type": "olmo2"}),
            Self::Olmo7B => json!({"model_type": "olmo3", "sliding_window": 4096}),
            Self::Phi4Mini => json!({
                "model_type": "phi3",
                "max_position_embeddings": 131_072,
                "original_max_position_embeddings": 4096,
                "partial_rotary_factor": 0.75,
                "rope_scaling": {"type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![4.0; 48]},
                "rope_theta": 10_000.0,
                "tie_word_embeddings": true,
            }),
            Self::Qwen30B => json!({
                "model_type": "qwen3_moe",
                "head_dim": 128,
                "moe_intermediate_size": 768,
                "norm_topk_prob": true,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "rope_theta": 1_000_000.0,
            }),
        }
    }

    fn config_json(self) -> Value {
        let [hidden, inner, layers, heads, key_value_heads, vocabulary] = self.sizes();
        let json = json!({
            "hidden_size": hidden,
            "intermediate_size": inner,
            "max_position_embeddings": 8192,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": key_value_heads,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500_000.0,
            "vocab_size": vocabulary,
        });
        let mut object = json.as_object().cloned().unwrap_or_default();
        object.extend(self.peculiarities().as_object().cloned().unwrap_or_default());
        Value::Object(object)
    }
}

/// Writes a model directory of this shape in bf16: two bytes of disk for each parameter. Its tokens are
/// the words `w0`, `w1`, and so on, and its chat template joins the messages.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_synthetic_model(directory: &Path, shape: Shape, seed: u64) -> Result<()> {
    let json = shape.config_json();
    let config = DecoderConfig::from_hugging_face(&json, &directory.join("config.json"))?;
    write_words(directory, config.vocabulary_size)?;
    let text = TextCodec::from_directory(directory)?;
    let tensors = tensor_layout(&config).into_iter().enumerate().map(|(index, tensor)| {
        let values = values(&tensor.shape, mix(seed, index as u64));
        Ok((tensor.name, tensor.shape, values))
    });
    let files = WeightFiles { format: WeightFormat::Bf16, ..WeightFiles::default() };
    write_checkpoint(directory, &config, &text, Some(&json), tensors, files)
}

/// Matrices are uniform with the usual deviation of 0.02, norms are one.
fn values(shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product::<usize>();
    if shape.len() < 2 {
        return vec![1.0; count];
    }
    let bound = 0.02 * 3.0_f32.sqrt();
    let uniform = |index: u64| (mix(seed, index) >> 40) as f32 / (1_u64 << 24) as f32;
    (0..count as u64).into_par_iter().map(|index| bound * (2.0 * uniform(index) - 1.0)).collect()
}

fn write_words(directory: &Path, vocabulary_size: usize) -> Result<()> {
    let words: Map<String, Value> =
        (0..vocabulary_size).map(|id| (format!("w{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    });
    let config = json!({
        "eos_token": "w0",
        "chat_template": "{% for message in messages %}{{ message['content'] }} {% endfor %}",
    });
    write_file(&directory.join("tokenizer.json"), tokenizer.to_string().as_bytes())?;
    write_file(&directory.join("tokenizer_config.json"), config.to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;

    #[test]
    fn shapes_have_as_many_parameters_as_their_models() {
        for (shape, millions) in [
            (Shape::SmolLm135M, 134.5),
            (Shape::Llama1B, 1235.8),
            (Shape::Llama8B, 8030.3),
            (Shape::SmolLm3B, 3075.1),
            (Shape::Gemma270M, 268.1),
            (Shape::Gemma1B, 999.9),
            (Shape::Olmo1B, 1484.9),
            (Shape::Olmo7B, 7298.0),
            (Shape::Phi4Mini, 3836.0),
            (Shape::Qwen30B, 30_532.1),
        ] {
            let json = shape.config_json();
            let config = DecoderConfig::from_hugging_face(&json, Path::new("config.json")).unwrap();
            let numbers: u64 = tensor_layout(&config)
                .iter()
                .map(|tensor| tensor.shape.iter().map(|&size| size as u64).product::<u64>())
                .sum();
            assert!((numbers as f64 / 1e6 - millions).abs() < 0.1, "{shape:?}: {numbers}");
        }
    }

    #[test]
    fn words_are_tokens() {
        let directory = tempfile::tempdir().unwrap();
        write_words(directory.path(), 300).unwrap();
        let text = TextCodec::from_directory(directory.path()).unwrap();
        assert_eq!(text.encode("w17 w299 w4", false).unwrap(), [17, 299, 4]);
        assert_eq!(text.decode(&[17, 299]).unwrap(), "w17 w299");
        assert_eq!(text.special_tokens().stop_tokens, [0]);
        // It holds no weights, so it is no model.
        assert!(Checkpoint::open(directory.path()).is_err());
        let drawn = values(&[100, 100], 3);
        let square = drawn.iter().map(|value| f64::from(value * value)).sum::<f64>() / 1e4;
        assert!((square.sqrt() - 0.02).abs() < 5e-4, "{square}");
    }
}
