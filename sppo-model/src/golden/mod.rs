//! Checks a whole model on an op set against what transformers and PyTorch computed.
//!
//! For the tests of op sets: `assert_eq!(check_model(&|| Ok(ops())), [])`. The numbers come from a tiny
//! random Llama in `tests/fixtures`; each check states its tolerance, which f32 op sets hold.

mod generation;
mod training;

use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sppo_core::plugin::SequenceBatch;

use crate::decoder::{
    Activation, DecoderConfig, Family, NormPlacement, RotaryScaling, TensorSource,
};
use crate::error::{ModelError, Result};
use crate::model::DecoderModel;
use crate::ops::Ops;

/// Makes an op set for each check.
pub type MakeOps<'a, O> = dyn Fn() -> Result<O> + 'a;

/// What went wrong in a check, one line each.
type Failures = Result<Vec<String>>;

type Check<'a, O> = fn(&MakeOps<'a, O>) -> Failures;

/// Runs every check and describes what failed.
pub fn check_model<O: Ops>(make: &MakeOps<'_, O>) -> Vec<String> {
    let checks: [(&str, Check<'_, O>); 7] = [
        ("log-probabilities", check_log_probs),
        ("gradient norms", check_gradient_norms),
        ("packing", check_packing),
        ("greedy continuations", generation::check_greedy),
        ("sampling", generation::check_sampling),
        ("training", training::check_training),
        ("resuming", training::check_resuming),
    ];
    let mut failures = Vec::new();
    for (name, check) in checks {
        let found = check(make).unwrap_or_else(|error| vec![error.to_string()]);
        failures.extend(found.into_iter().map(|failure| format!("{name}: {failure}")));
    }
    failures
}

/// The tiny Llama of the fixtures.
///
/// # Errors
/// When the fixtures cannot be read or the op set cannot hold the model.
pub fn load_llama<O: Ops>(ops: O) -> Result<DecoderModel<O>> {
    let path = fixture("lm/llama/model.safetensors");
    let bytes = fs_err::read(&path).map_err(|error| unusable(&path, error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unusable(&path, error))?;
    let source: &mut TensorSource<'_> = &mut |name| {
        let view = tensors.tensor(name).map_err(|error| unusable(&path, error))?;
        let value = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).unwrap_or(f32::NAN);
        Ok((view.shape().to_vec(), view.data().chunks_exact(4).map(value).collect()))
    };
    DecoderModel::load(ops, &llama_config(), source)
}

/// The configuration of the tiny Llama.
#[must_use]
pub fn llama_config() -> DecoderConfig {
    DecoderConfig {
        family: Family::Llama,
        vocabulary_size: 512,
        hidden_size: 64,
        intermediate_size: 112,
        layer_count: 3,
        attention_heads: 4,
        key_value_heads: 2,
        head_size: 16,
        context_length: 256,
        norm_epsilon: 1e-5,
        norm_weight_offset: false,
        norm_placement: NormPlacement::Before,
        activation: Activation::Silu,
        rotary_base: 500_000.0,
        rotary_scaling: RotaryScaling::Llama3 {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_context: 32.0,
        },
        tied_head: false,
        attention_bias: false,
        query_key_norm: false,
        attention_scale: 0.25,
        attention_soft_cap: None,
        logit_soft_cap: None,
        embedding_scale: None,
        attention_windows: vec![None; 3],
    }
}

#[derive(Deserialize)]
struct Golden {
    sequences: Vec<Vec<u32>>,
    logps: Vec<Vec<f64>>,
    grad_norms_seq0: BTreeMap<String, f64>,
    grad_norms_seq4: BTreeMap<String, f64>,
    greedy: Vec<GoldenGreedy>,
}

#[derive(Deserialize)]
struct GoldenGreedy {
    prompt_index: usize,
    tokens: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", name].iter().collect()
}

fn unusable(path: &std::path::Path, error: impl std::fmt::Display) -> ModelError {
    ModelError::file(path, error.to_string())
}

fn read_json<T: DeserializeOwned>(name: &str) -> Result<T> {
    let path = fixture(name);
    let text = fs_err::read_to_string(&path).map_err(|error| unusable(&path, error))?;
    serde_json::from_str(&text).map_err(|error| unusable(&path, error))
}

fn golden() -> Result<Golden> {
    read_json("lm/llama/golden.json")
}

/// A batch of one prompt and the responses to it.
fn batch_of(prompt: &[u32], responses: &[&[u32]]) -> SequenceBatch {
    let mut batch = SequenceBatch::new();
    let prompt = batch.push_prompt(prompt);
    for response in responses {
        batch.push_response(prompt, response);
    }
    batch
}

/// Describes the first value that is off by more than `tolerance`, or a wrong number of values.
fn compare(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) -> Option<String> {
    if actual.len() != expected.len() {
        return Some(format!("{what}: {} values instead of {}", actual.len(), expected.len()));
    }
    let off = |(actual, expected): (&f64, &f64)| {
        let difference = (actual - expected).abs();
        difference.is_nan() || difference > tolerance
    };
    let index = actual.iter().zip(expected).position(off)?;
    let (actual, expected) = (actual[index], expected[index]);
    Some(format!("{what}: value {index} is {actual} instead of {expected}"))
}

/// As [`compare`], for one value and a tolerance relative to it.
fn compare_relative(what: &str, actual: f64, expected: f64, tolerance: f64) -> Option<String> {
    compare(what, &[actual], &[expected], tolerance * expected.abs())
}

fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Per-token log-probabilities of six sequences, within 2e-5.
fn check_log_probs<O: Ops>(make: &MakeOps<'_, O>) -> Failures {
    let (golden, model) = (golden()?, load_llama(make()?)?);
    let mut batch = SequenceBatch::new();
    for sequence in &golden.sequences {
        let prompt = batch.push_prompt(&sequence[..1]);
        batch.push_response(prompt, &sequence[1..]);
    }
    let actual = model.token_log_probs(&batch)?;
    let lists = actual.iter().zip(&golden.logps).enumerate();
    Ok(lists
        .filter_map(|(index, (actual, expected))| {
            compare(&format!("sequence {index}"), &widen(actual), expected, 2e-5)
        })
        .collect())
}

/// Norms of the gradient of a sequence's log-probability for every weight, within 1e-4 relative.
fn check_gradient_norms<O: Ops>(make: &MakeOps<'_, O>) -> Failures {
    let golden = golden()?;
    let mut failures = Vec::new();
    for (sequence, norms) in [(0, &golden.grad_norms_seq0), (4, &golden.grad_norms_seq4)] {
        let mut model = load_llama(make()?)?;
        let tokens = &golden.sequences[sequence];
        model.forward(&batch_of(&tokens[..1], &[&tokens[1..]]))?;
        model.backward(&[1.0])?;
        let entries = model.parameters().entries();
        if entries.len() != norms.len() {
            failures.push(format!("{} weights instead of {}", entries.len(), norms.len()));
        }
        for entry in entries {
            let norm = model.ops().gradient_square_sum(&entry.value)?.sqrt();
            let expected = norms.get(&entry.name).copied().unwrap_or(f64::NAN);
            failures.extend(compare_relative(&entry.name, norm, expected, 1e-4));
        }
    }
    Ok(failures)
}

/// Sharing a prompt, the order within a batch and its division change no log-probability by more than
/// 2e-5 and no gradient norm by more than 1e-4 relative.
fn check_packing<O: Ops>(make: &MakeOps<'_, O>) -> Failures {
    let golden = golden()?;
    let prompts = [&golden.sequences[2], &golden.sequences[1]];
    let responses: Vec<&[u32]> = golden.sequences.iter().map(Vec::as_slice).collect();
    let mut alone = load_llama(make()?)?;
    let mut expected = Vec::new();
    for prompt in prompts {
        for response in &responses {
            let batch = batch_of(prompt, &[response]);
            expected.push(widen(&alone.token_log_probs(&batch)?.concat()));
            alone.forward(&batch)?;
            alone.backward(&[0.5])?;
        }
    }
    // All together, prompts shared, the responses of both prompts taking turns from the last.
    let mut batch = SequenceBatch::new();
    let places = prompts.map(|prompt| batch.push_prompt(prompt));
    for response in responses.iter().rev() {
        places.iter().for_each(|&place| batch.push_response(place, response));
    }
    let mut shared = load_llama(make()?)?;
    let actual = shared.token_log_probs(&batch)?;
    let mut failures = Vec::new();
    for (index, actual) in actual.iter().enumerate() {
        let (prompt, response) = (index % 2, responses.len() - 1 - index / 2);
        let expected = &expected[prompt * responses.len() + response];
        let what = format!("response {response} to prompt {prompt}");
        failures.extend(compare(&what, &widen(actual), expected, 2e-5));
    }
    let sums = shared.forward(&batch)?;
    let summed: Vec<f64> = actual.iter().map(|list| widen(list).iter().sum()).collect();
    failures.extend(compare("recorded sums", &sums, &summed, 1e-3));
    shared.backward(&vec![0.5; sums.len()])?;
    for (shared_entry, entry) in
        shared.parameters().entries().iter().zip(alone.parameters().entries())
    {
        let norm = shared.ops().gradient_square_sum(&shared_entry.value)?.sqrt();
        let expected = alone.ops().gradient_square_sum(&entry.value)?.sqrt();
        failures.extend(compare_relative(&entry.name, norm, expected, 1e-4));
    }
    Ok(failures)
}
