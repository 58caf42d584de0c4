//! Checks of training.

use std::collections::BTreeMap;

use serde::Deserialize;
use sppo_plugin::{Optimizer, SequenceBatch, StepSettings};

use super::{
    Failures, MakeOps, compare, compare_relative, fixture, load_tiny, read_json, unusable,
};
use crate::error::Result;
use crate::ops::Ops;
use crate::training::DecoderModel;

#[derive(Deserialize)]
struct GoldenTraining {
    pairs: Vec<Pair>,
    f32: GoldenRun,
}

#[derive(Deserialize)]
struct Pair {
    prompt: Vec<u32>,
    chosen: Vec<u32>,
    rejected: Vec<u32>,
    p_win: f64,
    p_lose: f64,
}

#[derive(Deserialize)]
struct GoldenRun {
    steps: Vec<GoldenStep>,
    final_param_l2: BTreeMap<String, f64>,
}

#[derive(Deserialize)]
struct GoldenStep {
    loss: f64,
    grad_norm: f64,
}

const ETA: f64 = 1000.0;
const STEP: StepSettings = StepSettings { learning_rate: 1e-4, max_gradient_norm: None };

/// The pairs as one batch, and the target of each response's log-ratio: `eta (P(win) - 1/2)`.
fn batch_and_targets(pairs: &[Pair]) -> (SequenceBatch, Vec<f64>) {
    let mut batch = SequenceBatch::new();
    let mut targets = Vec::new();
    for pair in pairs {
        let prompt = batch.push_prompt(&pair.prompt);
        for (response, win_rate) in [(&pair.chosen, pair.p_win), (&pair.rejected, pair.p_lose)] {
            batch.push_response(prompt, response);
            targets.push(ETA * (win_rate - 0.5));
        }
    }
    (batch, targets)
}

/// The SPPO loss (eq. 4.4 of the paper, halved as released) averaged over pairs, and its slope with
/// respect to each log-probability.
fn loss_and_slopes(log_probs: &[f64], reference: &[f64], targets: &[f64]) -> (f64, Vec<f64>) {
    let pair_count = targets.len() as f64 / 2.0;
    let residuals: Vec<f64> = (log_probs.iter().zip(reference).zip(targets))
        .map(|((log_prob, reference), target)| log_prob - reference - target)
        .collect();
    let loss = residuals.iter().map(|residual| residual * residual).sum::<f64>() / 2.0 / pair_count;
    (loss, residuals.iter().map(|residual| residual / pair_count).collect())
}

/// Five RMSProp steps on the official loss: losses within 1e-4 relative, gradient norms likewise,
/// final norms of the weights within 1e-5 relative.
pub(super) fn check_training<O: Ops>(make: &MakeOps<'_, O>) -> Failures {
    let golden: GoldenTraining = read_json(&fixture("optim-llama.json"))?;
    let (batch, targets) = batch_and_targets(&golden.pairs);
    let mut model = load_tiny(make()?, "llama")?;
    let reference = model.forward(&batch)?;
    model.begin_training(&Optimizer::default())?;
    let mut failures = Vec::new();
    for (number, expected) in golden.f32.steps.iter().enumerate() {
        let log_probs = model.forward(&batch)?;
        let (loss, slopes) = loss_and_slopes(&log_probs, &reference, &targets);
        let what = format!("loss before step {number}");
        failures.extend(compare_relative(&what, loss, expected.loss, 1e-4));
        if number + 1 < golden.f32.steps.len() {
            model.backward(&slopes)?;
            let report = model.step(&STEP)?;
            let what = format!("gradient norm of step {number}");
            failures.extend(compare_relative(
                &what,
                report.gradient_norm,
                expected.grad_norm,
                1e-4,
            ));
        }
    }
    for tensor in model.tensors() {
        let (name, _, values) = tensor?;
        let norm = values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        let expected = golden.f32.final_param_l2.get(&name).copied().unwrap_or(f64::NAN);
        failures.extend(compare_relative(&format!("final {name}"), norm, expected, 1e-5));
    }
    Ok(failures)
}

fn all_values<O: Ops>(model: &DecoderModel<O>) -> Result<Vec<f64>> {
    let mut all = Vec::new();
    for tensor in model.tensors() {
        all.extend(tensor?.2.iter().map(|&value| f64::from(value)));
    }
    Ok(all)
}

/// Training that is saved, loaded into a new process' model and continued ends with the very weights
/// of training without a break, whatever the optimiser.
pub(super) fn check_resuming<O: Ops>(make: &MakeOps<'_, O>) -> Failures {
    let golden: GoldenTraining = read_json(&fixture("optim-llama.json"))?;
    let (batch, targets) = batch_and_targets(&golden.pairs[..2]);
    let directory =
        tempfile::tempdir().map_err(|error| unusable("a temporary directory".as_ref(), error))?;
    let mut failures = Vec::new();
    for (family, optimizer) in [
        ("llama", Optimizer::default()),
        ("llama", Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.01 }),
        ("llama", Optimizer::Sgd { momentum: 0.9 }),
        // experts, some of which get no rows
        ("qwen3_moe", Optimizer::default()),
    ] {
        let settings = StepSettings { learning_rate: 1e-4, max_gradient_norm: Some(1.0) };
        let step = |model: &mut DecoderModel<O>| -> Result<()> {
            model.forward(&batch)?;
            model.backward(&targets)?;
            model.step(&settings).map(|_| ())
        };
        let mut model = load_tiny(make()?, family)?;
        model.begin_training(&optimizer)?;
        step(&mut model)?;
        step(&mut model)?;
        let file = directory.path().join("optimizer.safetensors");
        model.save_optimizer_state(&file)?;
        let mut tensors: BTreeMap<_, _> = BTreeMap::new();
        for tensor in model.tensors() {
            let (name, shape, values) = tensor?;
            tensors.insert(name, (shape, values));
        }
        step(&mut model)?;
        let mut resumed = DecoderModel::load(make()?, model.config(), &mut |name| {
            Ok(tensors.remove(name).unwrap_or_default())
        })?;
        resumed.begin_training(&optimizer)?;
        resumed.load_optimizer_state(&file)?;
        step(&mut resumed)?;
        let (actual, expected) = (all_values(&resumed)?, all_values(&model)?);
        failures.extend(compare(&format!("{family}: {optimizer:?}"), &actual, &expected, 0.0));
    }
    Ok(failures)
}
