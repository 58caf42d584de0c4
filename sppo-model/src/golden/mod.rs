//! Checks of a whole model on an op set against the results of transformers and PyTorch.
//!
//! For the tests of op sets: `assert_eq!(check_model(&|| Ok(ops())), [])`. The numbers come from tiny
//! random models of every family in `tests/fixtures`; each check states its tolerance, which f32 op sets hold.

mod generation;
mod lora;
mod quantized;
mod scorers;
mod training;

pub use quantized::check_quantized_weights;
pub use scorers::{check_preferring_models, check_ranker, check_reward_models};

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sppo_plugin::{LoraSettings, SequenceBatch};

use crate::decoder::{AdapterSource, DecoderConfig, FAMILIES, TensorSource};
use crate::error::{ModelError, Result};
use crate::formats::WeightSource;
use crate::ops::Ops;
use crate::training::DecoderModel;

/// Makes an op set for each check.
pub type MakeOps<'a, O> = dyn Fn() -> Result<O> + 'a;

/// Failures of a check, one line each.
type Failures = Result<Vec<String>>;

type Check<'a, O> = fn(&MakeOps<'a, O>) -> Failures;
type FamilyCheck<'a, O> = fn(&MakeOps<'a, O>, &str) -> Failures;

/// Runs every check and describes what failed.
pub fn check_model<O: Ops>(make: &MakeOps<'_, O>) -> Vec<String> {
    let checks: [(&str, FamilyCheck<'_, O>); 7] = [
        ("log-probabilities", check_log_probs),
        ("gradient norms", check_gradient_norms),
        ("packing", check_packing),
        ("greedy continuations", generation::check_greedy),
        ("sampling", generation::check_sampling),
        ("adapters", lora::check_adapters),
        ("recomputation", check_recomputation),
    ];
    let mut failures = Vec::new();
    let families = FAMILIES.iter().map(|family| family.model_type());
    for family in families.chain(VARIANTS) {
        for (name, check) in checks {
            let found = check(make, family).unwrap_or_else(|error| vec![error.to_string()]);
            failures.extend(found.into_iter().map(|line| format!("{family}: {name}: {line}")));
        }
    }
    let checks: [(&str, Check<'_, O>); 2] =
        [("training", training::check_training), ("resuming", training::check_resuming)];
    for (name, check) in checks {
        let found = check(make).unwrap_or_else(|error| vec![error.to_string()]);
        failures.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    failures
}

/// Fixtures of families that have one of their own already.
const VARIANTS: [&str; 1] = ["phi3_longrope"];

/// The tiny model of a family, given by its `model_type`, in the fixtures.
///
/// # Errors
/// When the fixtures cannot be read or the op set cannot hold the model.
pub fn load_tiny<O: Ops>(ops: O, family: &str) -> Result<DecoderModel<O>> {
    with_tiny(family, |config, tensor| DecoderModel::load(ops, config, tensor))
}

/// The tiny model of a family with adapters.
///
/// # Errors
/// As [`load_tiny`], or when the adapters do not fit.
pub fn load_tiny_adapted<O: Ops>(
    ops: O,
    family: &str,
    settings: &LoraSettings,
    adapters: &mut AdapterSource<'_>,
) -> Result<DecoderModel<O>> {
    with_tiny(family, |config, tensor| {
        DecoderModel::load_adapted(ops, config, tensor, settings, adapters)
    })
}

/// Calls `load` with the configuration and the weights of a tiny model.
fn with_tiny<T>(
    family: &str,
    load: impl FnOnce(&DecoderConfig, &mut TensorSource<'_>) -> Result<T>,
) -> Result<T> {
    let path = fixture(&format!("lm/{family}/config.json"));
    let config = DecoderConfig::from_hugging_face(&read_json(&path)?, &path)?;
    let path = path.with_file_name("model.safetensors");
    let bytes = fs_err::read(&path).map_err(|error| unusable(&path, error))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|error| unusable(&path, error))?;
    let source: &mut TensorSource<'_> = &mut |name| {
        let WeightSource { tensor, rows } = config.family.source(&config, name);
        let view = tensors.tensor(&tensor).map_err(|error| unusable(&path, error))?;
        let value = |bytes: &[u8]| bytes.try_into().map(f32::from_le_bytes).unwrap_or(f32::NAN);
        let values: Vec<f32> = view.data().chunks_exact(4).map(value).collect();
        let Some(rows) = rows else { return Ok((view.shape().to_vec(), values)) };
        let row = values.len() / view.shape()[0].max(1);
        let shape = [&[rows.len()], &view.shape()[1..]].concat();
        Ok((shape, values[rows.start * row..rows.end * row].to_vec()))
    };
    load(&config, source)
}

#[derive(Deserialize)]
struct Golden {
    meta: GoldenMeta,
    sequences: Vec<Vec<u32>>,
    logps: Vec<Vec<f64>>,
    grad_norms_seq0: BTreeMap<String, f64>,
    grad_norms_seq4: BTreeMap<String, f64>,
    greedy: Vec<GoldenGreedy>,
}

#[derive(Deserialize)]
struct GoldenMeta {
    max_abs_logp_diff_f32_vs_f64: f64,
}

#[derive(Deserialize)]
struct GoldenGreedy {
    prompt_index: usize,
    tokens: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "tests", "fixtures", name].iter().collect()
}

fn unusable(path: &Path, error: impl std::fmt::Display) -> ModelError {
    ModelError::file(path, error.to_string())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs_err::read_to_string(path).map_err(|error| unusable(path, error))?;
    serde_json::from_str(&text).map_err(|error| unusable(path, error))
}

fn golden(family: &str) -> Result<Golden> {
    read_json(&fixture(&format!("lm/{family}/golden.json")))
}

impl Golden {
    /// Largest error of a log-probability: 2e-5, or twice that of float32 against float64.
    fn log_prob_tolerance(&self) -> f64 {
        (2.0 * self.meta.max_abs_logp_diff_f32_vs_f64).max(2e-5)
    }
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

/// Per-token log-probabilities of six sequences.
fn check_log_probs<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let (golden, model) = (golden(family)?, load_tiny(make()?, family)?);
    let mut batch = SequenceBatch::new();
    for sequence in &golden.sequences {
        let prompt = batch.push_prompt(&sequence[..1]);
        batch.push_response(prompt, &sequence[1..]);
    }
    let (actual, tolerance) = (model.token_log_probs(&batch)?, golden.log_prob_tolerance());
    let lists = actual.iter().zip(&golden.logps).enumerate();
    Ok(lists
        .filter_map(|(index, (actual, expected))| {
            compare(&format!("sequence {index}"), &widen(actual), expected, tolerance)
        })
        .collect())
}

/// Norms of the gradient of a sequence's log-probability for every weight, within 1e-4 relative.
fn check_gradient_norms<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let mut failures = Vec::new();
    for (sequence, norms) in [(0, &golden.grad_norms_seq0), (4, &golden.grad_norms_seq4)] {
        let mut model = load_tiny(make()?, family)?;
        let tokens = &golden.sequences[sequence];
        model.forward(&batch_of(&tokens[..1], &[&tokens[1..]]))?;
        model.backward(&[1.0])?;
        let mut square_sums: BTreeMap<String, f64> = BTreeMap::new();
        for entry in model.parameters().entries() {
            let source = model.config().family.source(model.config(), &entry.name);
            let of_entry = model.ops().gradient_square_sum(&entry.value)?;
            *square_sums.entry(parameter_name(&source.tensor)).or_default() += of_entry;
        }
        if square_sums.len() != norms.len() {
            failures.push(format!("{} weights instead of {}", square_sums.len(), norms.len()));
        }
        for (name, square_sum) in square_sums {
            let expected = norms.get(&name).copied().unwrap_or(f64::NAN);
            failures.extend(compare_relative(&name, square_sum.sqrt(), expected, 1e-4));
        }
    }
    Ok(failures)
}

/// The name in transformers of the parameter that holds a stored tensor: experts of a layer are in two.
fn parameter_name(tensor: &str) -> String {
    let Some((layer, expert)) = tensor.split_once(".experts.") else { return tensor.into() };
    let part = if expert.contains("down_proj") { "down_proj" } else { "gate_up_proj" };
    format!("{layer}.experts.{part}")
}

/// Recomputing layers changes no log-probability and no gradient, not by a single bit.
fn check_recomputation<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let responses: Vec<&[u32]> = golden.sequences.iter().map(Vec::as_slice).collect();
    let batch = batch_of(&golden.sequences[1], &responses);
    let coefficients: Vec<f64> = (0..responses.len()).map(|place| place as f64 - 2.5).collect();
    let settings = lora::settings();
    let run = |recompute: bool, adapted: bool| -> Result<(Vec<f64>, Vec<f64>)> {
        let mut model = match adapted {
            true => load_tiny_adapted(make()?, family, &settings, &mut |_, _| Ok(None))?,
            false => load_tiny(make()?, family)?,
        };
        model.recompute_activations(recompute);
        let log_probs = model.forward(&batch)?;
        model.backward(&coefficients)?;
        let mut gradients = Vec::new();
        for entry in model.parameters().entries() {
            let gradient = model.ops().parameter_gradient(&entry.value)?;
            gradients.extend(widen(&gradient.unwrap_or_default()));
        }
        Ok((log_probs, gradients))
    };
    // A GPU adds up in no fixed order.
    let relative = if make()?.describe().0 == "cpu" { 0.0 } else { 1e-5 };
    let within =
        |values: &[f64]| relative * values.iter().copied().map(f64::abs).fold(1.0, f64::max);
    let mut failures = Vec::new();
    for adapted in [false, true] {
        let (kept, recomputed) = (run(false, adapted)?, run(true, adapted)?);
        let (log_probs, gradients) = (within(&kept.0), within(&kept.1));
        failures.extend(compare("log-probabilities", &recomputed.0, &kept.0, log_probs));
        failures.extend(compare("gradients", &recomputed.1, &kept.1, gradients));
    }
    Ok(failures)
}

/// Sharing a prompt, the order within a batch and its division change no log-probability beyond
/// the tolerance and no gradient norm by more than 1e-4 relative.
fn check_packing<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let prompts = [&golden.sequences[2], &golden.sequences[1]];
    let responses: Vec<&[u32]> = golden.sequences.iter().map(Vec::as_slice).collect();
    let mut alone = load_tiny(make()?, family)?;
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
    let mut shared = load_tiny(make()?, family)?;
    let actual = shared.token_log_probs(&batch)?;
    let mut failures = Vec::new();
    for (index, actual) in actual.iter().enumerate() {
        let (prompt, response) = (index % 2, responses.len() - 1 - index / 2);
        let expected = &expected[prompt * responses.len() + response];
        let what = format!("response {response} to prompt {prompt}");
        failures.extend(compare(&what, &widen(actual), expected, golden.log_prob_tolerance()));
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
