//! Low-rank adapters (LoRA, arXiv 2106.09685): their places in a decoder, first values, and merging.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use sppo_plugin::LoraSettings;

use super::DecoderConfig;
use super::stored::{StoredTensor, stored_tensors};
use crate::error::{ModelError, Result};
use crate::formats::peft::{AdapterValues, TARGET_MODULES, adapter_names, check_lora_settings};
use crate::ops::ParameterId;

/// The two matrices that adapt one projection, and how they enter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adapter {
    /// `[rank, input]`.
    pub(crate) a: ParameterId,
    /// `[output, rank]`.
    pub(crate) b: ParameterId,
    pub(crate) scale: f32,
    pub(crate) dropout: f32,
    /// Tells the adapters of a model apart.
    pub(crate) number: u64,
}

/// Gives the adapter of a module (for instance `model.layers.0.self_attn.q_proj`) of the shape
/// `[output, input]` its values, or nothing for a fresh one.
pub type AdapterSource<'a> = dyn FnMut(&str, [usize; 2]) -> Result<Option<AdapterValues>> + 'a;

/// The last part of a module's or weight's path.
fn target(name: &str) -> &str {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    module.rsplit('.').next().unwrap_or_default()
}

/// The stored modules that the settings name: by their own names, or by those of all their parts.
///
/// # Errors
/// When the settings are invalid, or name a part of a module alone, or a module that no layer has.
pub(crate) fn adapted_modules(
    config: &DecoderConfig,
    settings: &LoraSettings,
) -> Result<Vec<StoredTensor>> {
    check_lora_settings(settings)?;
    let is_named = |name: &str| settings.target_modules.iter().any(|target| target == name);
    let mut adapted = Vec::new();
    let mut known: Vec<String> = Vec::new();
    // experts have no adapters
    let is_of_expert = |stored: &StoredTensor| stored.layout.name.contains(".experts.");
    for stored in stored_tensors(config).into_iter().filter(|stored| !is_of_expert(stored)) {
        let own = target(&stored.layout.name).to_string();
        let parts: Vec<_> = stored.weights.iter().map(|part| target(&part.layout.name)).collect();
        let named = parts.iter().filter(|part| is_named(part)).count();
        let is_adapted = is_named(&own) || named == parts.len();
        if named > 0 && !is_adapted {
            return Err(ModelError::Unsupported(format!(
                "LoRA: in this model {} are one matrix, `{own}`; name that as the target module",
                parts.join(", ")
            )));
        }
        known.extend(parts.into_iter().map(String::from).chain([own]));
        adapted.extend(Some(stored).filter(|_| is_adapted));
    }
    // the seven usual ones are named in all cases, also where experts take the place of some
    let is_unknown =
        |name: &&String| !known.contains(name) && !TARGET_MODULES.contains(&name.as_str());
    match settings.target_modules.iter().find(is_unknown) {
        Some(name) => Err(ModelError::Unsupported(format!(
            "LoRA: there is no target module `{name}` in this model"
        ))),
        None => Ok(adapted),
    }
}

/// The settings with the names of the modules that they adapt in a model.
///
/// # Errors
/// As [`adapted_modules`].
pub(crate) fn own_targets(config: &DecoderConfig, settings: &LoraSettings) -> Result<LoraSettings> {
    let mut targets: Vec<String> = Vec::new();
    for stored in adapted_modules(config, settings)? {
        let own = target(&stored.layout.name);
        if !targets.iter().any(|known| known == own) {
            targets.push(own.into());
        }
    }
    Ok(LoraSettings { target_modules: targets, ..settings.clone() })
}

/// The shapes `[rank, input]` and `[output, rank]` of every adapter that a decoder gets.
pub(crate) fn adapter_shapes(
    config: &DecoderConfig,
    settings: &LoraSettings,
) -> Vec<[[usize; 2]; 2]> {
    let modules = adapted_modules(config, settings).unwrap_or_default();
    let shapes = modules.iter().filter_map(StoredTensor::module);
    shapes.map(|(_, [output, input])| [[settings.rank, input], [output, settings.rank]]).collect()
}

/// A trained matrix: name, shape and row-major values.
type Matrix = (String, Vec<usize>, Vec<f32>);

/// Adapters as they are stored: the rows of `B` of the parts of a module, which follow one another in
/// `matrices`, are one matrix.
pub(crate) fn stored_adapters(
    config: &DecoderConfig,
    matrices: impl IntoIterator<Item = Result<Matrix>>,
) -> Result<Vec<Matrix>> {
    let mut stored: Vec<Matrix> = Vec::new();
    for matrix in matrices {
        let (name, shape, values) = matrix?;
        let source = name
            .strip_suffix(".lora_B.weight")
            .map(|module| config.family.source(config, &format!("{module}.weight")).tensor);
        let own = source.map(|tensor| adapter_names(tensor.trim_end_matches(".weight"))[1].clone());
        let name = own.unwrap_or(name);
        match stored.last_mut().filter(|(last, _, _)| *last == name) {
            Some((_, all, all_values)) => {
                all[0] += shape[0];
                all_values.extend(values);
            }
            None => stored.push((name, shape, values)),
        }
    }
    Ok(stored)
}

/// A fresh adapter as PEFT initialises it: `A` uniform within `1 / sqrt(input)`, `B` zero.
pub(crate) fn fresh(
    settings: &LoraSettings,
    number: u64,
    [output, input]: [usize; 2],
) -> AdapterValues {
    let mut generator = ChaCha8Rng::seed_from_u64(settings.seed);
    generator.set_stream(number);
    let bound = 1.0 / (input.max(1) as f32).sqrt();
    let mut draw = || {
        let uniform = (generator.next_u32() >> 8) as f32 / (1_u32 << 24) as f32;
        bound * (2.0 * uniform - 1.0)
    };
    AdapterValues {
        a: (0..settings.rank * input).map(|_| draw()).collect(),
        b: vec![0.0; output * settings.rank],
    }
}

/// Adds `scale * B A` to a weight of rows of `input` values.
pub fn merge(weight: &mut [f32], input: usize, adapter: &AdapterValues, scale: f64) {
    let rank = adapter.a.len() / input.max(1);
    let rows = weight.par_chunks_mut(input.max(1)).zip(adapter.b.par_chunks(rank.max(1)));
    rows.for_each_init(
        || vec![0.0_f64; input],
        |change, (row, factors)| {
            change.fill(0.0);
            for (&factor, direction) in factors.iter().zip(adapter.a.chunks(input)) {
                let factor = scale * f64::from(factor);
                change
                    .iter_mut()
                    .zip(direction)
                    .for_each(|(sum, &value)| *sum += factor * f64::from(value));
            }
            row.iter_mut()
                .zip(change.iter())
                .for_each(|(value, &change)| *value = (f64::from(*value) + change) as f32);
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> LoraSettings {
        LoraSettings {
            rank: 2,
            alpha: 6.0,
            dropout: 0.0,
            target_modules: vec!["q_proj".into()],
            rank_stabilized: false,
            seed: 3,
        }
    }

    #[test]
    fn the_scale_is_alpha_over_the_rank_or_its_root() {
        let plain = LoraSettings { rank: 4, ..settings() };
        assert_eq!(plain.scale(), 1.5);
        assert_eq!(LoraSettings { rank_stabilized: true, ..plain }.scale(), 3.0);
    }

    #[test]
    fn a_fresh_adapter_is_drawn_from_its_seed_and_changes_nothing() {
        let adapter = fresh(&settings(), 0, [3, 100]);
        assert_eq!(adapter.b, [0.0; 6]);
        assert!(adapter.a.iter().all(|value| value.abs() <= 0.1));
        let mean = adapter.a.iter().sum::<f32>() / 200.0;
        assert!(mean.abs() < 0.02 && adapter.a.iter().any(|value| value.abs() > 0.09));
        assert_eq!(adapter, fresh(&settings(), 0, [3, 100]));
        assert_ne!(adapter, fresh(&settings(), 1, [3, 100]));
    }

    #[test]
    fn merging_adds_the_scaled_product() {
        let mut weight = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        // B = [[1, 0], [2, 1]], A = [[1, 2, 3], [0, 1, 0]]
        let adapter =
            AdapterValues { a: vec![1.0, 2.0, 3.0, 0.0, 1.0, 0.0], b: vec![1.0, 0.0, 2.0, 1.0] };
        merge(&mut weight, 3, &adapter, 0.5);
        assert_eq!(weight, [1.5, 3.0, 4.5, 5.0, 7.5, 9.0]);
    }
}
