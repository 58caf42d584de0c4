//! Checks of low-rank adapters.

use sppo_plugin::{LoraSettings, SequenceBatch};

use super::{Failures, MakeOps, compare, golden, load_tiny, load_tiny_adapted, widen, with_tiny};
use crate::decoder::lora::adapted_modules;
use crate::decoder::merge;
use crate::error::Result;
use crate::formats::{AdapterValues, TARGET_MODULES};
use crate::ops::Ops;
use crate::training::DecoderModel;

pub(super) fn settings() -> LoraSettings {
    LoraSettings {
        rank: 3,
        alpha: 6.0,
        dropout: 0.0,
        target_modules: TARGET_MODULES.map(String::from).to_vec(),
        rank_stabilized: false,
        seed: 5,
    }
}

/// Values of an adapter that changes its module noticeably.
pub(super) fn noticeable(module: &str, [output, input]: [usize; 2]) -> AdapterValues {
    let phase = module.bytes().map(f32::from).sum::<f32>();
    let wave = |count: usize| -> Vec<f32> {
        (0..count).map(|place| 0.05 * (phase + 1.7 * place as f32).sin()).collect()
    };
    let rank = settings().rank;
    AdapterValues { a: wave(rank * input), b: wave(output * rank) }
}

fn values<O: Ops>(model: &DecoderModel<O>, batch: &SequenceBatch) -> Result<Vec<f64>> {
    Ok(widen(&model.token_log_probs(batch)?.concat()))
}

/// Fresh adapters and adapters that are off change nothing at all; others change something, and the
/// same as when merged into the weights, within 1e-5 (or twice what float32 is off by, where that is
/// larger); only adapters get gradients.
pub(super) fn check_adapters<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let mut batch = SequenceBatch::new();
    for sequence in &golden.sequences {
        let prompt = batch.push_prompt(&sequence[..1]);
        batch.push_response(prompt, &sequence[1..]);
    }
    let base = values(&load_tiny(make()?, family)?, &batch)?;
    let mut failures = Vec::new();

    let fresh = load_tiny_adapted(make()?, family, &settings(), &mut |_, _| Ok(None))?;
    failures.extend(compare("fresh adapters", &values(&fresh, &batch)?, &base, 0.0));

    let source = &mut |module: &str, shape| Ok(Some(noticeable(module, shape)));
    let mut adapted = load_tiny_adapted(make()?, family, &settings(), source)?;
    let off = widen(&adapted.token_log_probs_without_adapters(&batch)?.concat());
    failures.extend(compare("adapters that are off", &off, &base, 0.0));
    let unmerged = values(&adapted, &batch)?;
    if compare("", &unmerged, &base, 1e-2).is_none() {
        failures.push("the adapters change next to nothing".into());
    }

    let merged = with_tiny(family, |config, tensor| {
        let adapted = adapted_modules(config, &settings())?;
        DecoderModel::load(make()?, config, &mut |name| {
            let (shape, mut values) = tensor(name)?;
            for stored in &adapted {
                let part = stored.weights.iter().find(|part| part.layout.name == name);
                if let (Some(part), Some((module, whole))) = (part, stored.module()) {
                    let AdapterValues { a, b } = noticeable(module, whole);
                    let rank = settings().rank;
                    let b = b[part.rows.start * rank..part.rows.end * rank].to_vec();
                    merge(&mut values, whole[1], &AdapterValues { a, b }, settings().scale());
                }
            }
            Ok((shape, values))
        })
    })?;
    let tolerance = (2.0 * golden.meta.max_abs_logp_diff_f32_vs_f64).max(1e-5);
    failures.extend(compare("merged", &values(&merged, &batch)?, &unmerged, tolerance));

    adapted.forward(&batch)?;
    adapted.backward(&vec![1.0; golden.sequences.len()])?;
    for entry in adapted.parameters().entries() {
        let has_gradient = adapted.ops().gradient_square_sum(&entry.value)? > 0.0;
        if has_gradient != entry.name.contains(".lora_") {
            failures.push(format!("{}: has a gradient: {has_gradient}", entry.name));
        }
    }
    Ok(failures)
}
