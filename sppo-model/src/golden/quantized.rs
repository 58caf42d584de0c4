//! Checks of frozen weights that stay in the blocks of their file.

use std::path::Path;

use serde_json::json;
use sppo_plugin::{GenerationPrompt, GenerationRequest, SamplingParameters, SilentHost};

use super::lora::{noticeable, settings};
use super::{Failures, MakeOps, batch_of, compare, widen};
use crate::decoder::{DecoderConfig, FrozenWeight, tensor_layout};
use crate::error::Result;
use crate::formats::{GgufType, QuantizedMatrix};
use crate::ops::Ops;
use crate::ops::random::mix;
use crate::training::DecoderModel;

/// Formats, the places of their half-precision numbers in a block, and upper bytes of these that keep weights
/// below a quarter.
const FORMATS: [(GgufType, &[usize], u8); 6] = [
    (GgufType::Q8_0, &[0], 0x14),
    (GgufType::Q4_0, &[0], 0x20),
    (GgufType::Q4_1, &[0, 2], 0x1c),
    (GgufType::Q4_K, &[0, 2], 0x08),
    (GgufType::Q5_K, &[0, 2], 0x08),
    (GgufType::Q6_K, &[208], 0x04),
];

/// Log-probabilities and gradients of adapters beside weights in blocks are those beside the same weights in f32
/// within 1e-5, and responses have the same tokens: of random models in each format, with a tied head and with
/// one of its own. Returns what failed, one line each.
pub fn check_quantized_weights<O: Ops>(make: &MakeOps<'_, O>) -> Vec<String> {
    let mut failures = Vec::new();
    for (format, halves, upper) in FORMATS {
        for tied in [false, true] {
            let blocks = |shape, seed| random_blocks((format, halves, upper), shape, seed);
            let found = check(make, tied, &blocks);
            let found = found.unwrap_or_else(|error| vec![error.to_string()]);
            let head = if tied { "tied head" } else { "own head" };
            failures.extend(found.into_iter().map(|line| format!("{format:?}, {head}: {line}")));
        }
    }
    failures
}

fn check<O: Ops>(
    make: &MakeOps<'_, O>,
    tied: bool,
    blocks: &dyn Fn([usize; 2], u64) -> Result<QuantizedMatrix>,
) -> Failures {
    let config = config(tied)?;
    let names: Vec<String> = tensor_layout(&config).into_iter().map(|tensor| tensor.name).collect();
    let load = |keep_blocks: bool| {
        let weight = &mut |name: &str| {
            let place = names.iter().position(|known| known == name).unwrap_or(0);
            let shape = &tensor_layout(&config)[place].shape;
            let &[rows, columns] = shape.as_slice() else {
                return Ok(FrozenWeight::Dense(shape.clone(), vec![1.0; shape[0]]));
            };
            let matrix = blocks([rows, columns], place as u64)?;
            Ok(match keep_blocks {
                true => FrozenWeight::Quantized(matrix),
                false => FrozenWeight::Dense(shape.clone(), matrix.values()),
            })
        };
        let adapter = &mut |module: &str, shape| Ok(Some(noticeable(module, shape)));
        DecoderModel::load_adapted_frozen(make()?, &config, weight, &settings(), adapter)
    };
    let (mut dense, mut quantized) = (load(false)?, load(true)?);
    let mut failures = Vec::new();
    let [expected, found] = [results(&mut dense)?, results(&mut quantized)?];
    failures.extend(compare("log-probabilities", &found.log_probs, &expected.log_probs, 1e-5));
    for ((name, found), (_, expected)) in found.gradients.iter().zip(&expected.gradients) {
        let largest = expected.iter().copied().map(f64::abs).fold(1.0, f64::max);
        failures.extend(compare(name, found, expected, 1e-5 * largest));
    }
    if found.gradients.len() != 2 * 2 * 7 || found.gradients.iter().any(|(_, of)| of.is_empty()) {
        failures.push("not all adapters have gradients, or others have".into());
    }
    if found.tokens != expected.tokens {
        failures.push(format!("sampled {:?}, not {:?}", found.tokens, expected.tokens));
    }
    Ok(failures)
}

/// Two layers whose rows are whole blocks of 256 values.
fn config(tied: bool) -> Result<DecoderConfig> {
    let json = json!({
        "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 301,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0,
        "tie_word_embeddings": tied,
    });
    DecoderConfig::from_hugging_face(&json, Path::new("config.json"))
}

fn random_blocks(
    (format, halves, upper): (GgufType, &[usize], u8),
    [rows, columns]: [usize; 2],
    seed: u64,
) -> Result<QuantizedMatrix> {
    let count = rows * columns / format.block_values() * format.block_bytes();
    let mut bytes: Vec<u8> = (0..count as u64).map(|place| mix(seed, place) as u8).collect();
    for block in bytes.chunks_exact_mut(format.block_bytes()) {
        for &place in halves {
            // any sign and fraction
            block[place + 1] = upper | block[place + 1] & 0x83;
        }
    }
    QuantizedMatrix::of_blocks(format, bytes, [rows, columns])
}

struct Results {
    log_probs: Vec<f64>,
    gradients: Vec<(String, Vec<f64>)>,
    tokens: Vec<Vec<u32>>,
}

fn results<O: Ops>(model: &mut DecoderModel<O>) -> Result<Results> {
    let tokens = |count: u32, step: u32| (0..count).map(|at| at * step % 301).collect::<Vec<_>>();
    let (prompt, responses) = (tokens(9, 17), [tokens(5, 29), tokens(70, 31)]);
    let batch = batch_of(&prompt, &responses.each_ref().map(Vec::as_slice));
    let log_probs = widen(&model.token_log_probs(&batch)?.concat());
    model.forward(&batch)?;
    model.backward(&[0.3, -0.1])?;
    let mut gradients = Vec::new();
    for entry in model.parameters().entries() {
        if let Some(gradient) = model.ops().parameter_gradient(&entry.value)? {
            gradients.push((entry.name.clone(), widen(&gradient)));
        }
    }
    let request = GenerationRequest {
        prompts: vec![GenerationPrompt { id: 3, tokens: prompt }],
        samples_per_prompt: 5,
        sampling: SamplingParameters { max_new_tokens: 12, ..SamplingParameters::default() },
        seed: 7,
        stream: 0,
    };
    let responses = model.generate(&request, &[], &SilentHost)?;
    let tokens = responses.into_iter().map(|response| response.tokens).collect();
    Ok(Results { log_probs, gradients, tokens })
}
