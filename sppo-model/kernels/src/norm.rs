//! Root-mean-square normalisation (arXiv 1910.07467) over whole rows or over heads, and layer
//! normalisation (arXiv 1607.06450) of whole rows.

use rayon::prelude::*;

use super::elementwise::add_to;
use super::vector::{dot, sum, vectorised};
use super::{Uninitialised, produce, rows_per_task};

/// Constants of a root-mean-square normalisation.
#[derive(Clone, Copy)]
pub struct RmsNorm<'a> {
    /// One factor per feature of a group.
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub epsilon: f32,
    /// Added to each factor.
    pub offset: f32,
}

vectorised! {
    fn rms_norm_rows(norm: RmsNorm, x: &[f32], out: &mut Uninitialised) {
        let features = norm.weight.len();
        for (x, out) in x.chunks_exact(features).zip(out.chunks_exact_mut(features)) {
            let inverse = inverse_root::<FUSED>(x, norm.epsilon);
            for ((out, &x), &weight) in out.iter_mut().zip(x).zip(norm.weight) {
                out.write(x * inverse * (weight + norm.offset));
            }
        }
    }
}

vectorised! {
    /// With `n = x / sqrt(mean(x^2) + epsilon)` and `h = gradient * (weight + offset)`:
    /// `x_gradient = (h - n mean(h n)) / sqrt(..)`, `weight_gradient += gradient * n`.
    fn rms_norm_backward_rows(
        norm: RmsNorm,
        x: &[f32],
        gradient: &[f32],
        out: &mut Uninitialised,
        weight_gradient: &mut [f32],
    ) {
        let features = norm.weight.len();
        let rows = x.chunks_exact(features).zip(gradient.chunks_exact(features));
        let mut weighted = vec![0.0; features];
        for ((x, gradient), out) in rows.zip(out.chunks_exact_mut(features)) {
            let inverse = inverse_root::<FUSED>(x, norm.epsilon);
            for ((weighted, &gradient), &weight) in
                weighted.iter_mut().zip(gradient).zip(norm.weight)
            {
                *weighted = gradient * (weight + norm.offset);
            }
            let projection = dot::<FUSED>(&weighted, x) * inverse * inverse / features as f32;
            for ((out, &weighted), &x) in out.iter_mut().zip(&weighted).zip(x) {
                out.write(inverse * (weighted - x * projection));
            }
            for ((sum, &gradient), &x) in weight_gradient.iter_mut().zip(gradient).zip(x) {
                *sum += gradient * (x * inverse);
            }
        }
    }
}

#[inline(always)]
fn inverse_root<const FUSED: bool>(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (dot::<FUSED>(x, x) / x.len() as f32 + epsilon).sqrt()
}

/// `x / sqrt(mean(x^2) + epsilon) * (weight + offset)` over groups of `weight.len()` features.
pub fn rms_norm(norm: RmsNorm, x: &[f32]) -> Vec<f32> {
    produce(x.len(), |out| write_rms_norm(norm, x, out))
}

/// [`rms_norm`] to memory as long as `x`, all of which it writes.
pub fn write_rms_norm(norm: RmsNorm, x: &[f32], out: &mut Uninitialised) {
    let task = task_elements(&norm);
    assert_eq!(x.len(), out.len(), "operands differ in size");
    assert_eq!(x.len() % norm.weight.len(), 0, "rows are not whole groups");
    out.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .for_each(|(out, x)| rms_norm_rows(norm, x, out));
}

/// Gradients of `x` and of the weight.
pub fn rms_norm_backward(norm: RmsNorm, x: &[f32], gradient: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let mut of_weight = Vec::new();
    let of_x = produce(x.len(), |of_x| {
        of_weight = write_rms_norm_backward(norm, x, gradient, of_x);
    });
    (of_x, of_weight)
}

/// The gradient of the weight; writes that of `x`, all of it.
pub fn write_rms_norm_backward(
    norm: RmsNorm,
    x: &[f32],
    gradient: &[f32],
    of_x: &mut Uninitialised,
) -> Vec<f32> {
    let task = task_elements(&norm);
    assert_eq!([x.len(); 2], [gradient.len(), of_x.len()], "operands differ in size");
    assert_eq!(x.len() % norm.weight.len(), 0, "rows are not whole groups");
    let partial_sums: Vec<Vec<f32>> = of_x
        .par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .zip(gradient.par_chunks(task))
        .map(|((of_x, x), gradient)| {
            let mut sum = vec![0.0; norm.weight.len()];
            rms_norm_backward_rows(norm, x, gradient, of_x, &mut sum);
            sum
        })
        .collect();
    let mut of_weight = vec![0.0; norm.weight.len()];
    partial_sums.iter().for_each(|sum| add_to(sum, &mut of_weight));
    of_weight
}

fn task_elements(norm: &RmsNorm) -> usize {
    norm.weight.len() * rows_per_task(norm.weight.len())
}

/// Constants of a layer normalisation.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// One factor per feature.
    pub weight: &'a [f32],
    /// Added to each feature.
    pub bias: &'a [f32],
    /// Added to the variance.
    pub epsilon: f32,
}

vectorised! {
    fn layer_norm_rows(norm: LayerNorm, x: &[f32], out: &mut Uninitialised) {
        let features = norm.weight.len();
        let mut centred = vec![0.0; features];
        for (x, out) in x.chunks_exact(features).zip(out.chunks_exact_mut(features)) {
            let mean = sum(x) / features as f32;
            for (centred, &x) in centred.iter_mut().zip(x) {
                *centred = x - mean;
            }
            let variance = dot::<FUSED>(&centred, &centred) / features as f32;
            let inverse = 1.0 / (variance + norm.epsilon).sqrt();
            let factors = norm.weight.iter().zip(norm.bias);
            for ((out, &centred), (&weight, &bias)) in out.iter_mut().zip(&centred).zip(factors) {
                out.write(centred * inverse * weight + bias);
            }
        }
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` of each row.
pub fn layer_norm(norm: LayerNorm, x: &[f32]) -> Vec<f32> {
    let features = norm.weight.len();
    assert_eq!(norm.bias.len(), features, "operands differ in size");
    assert_eq!(x.len() % features, 0, "rows are not whole");
    let task = features * rows_per_task(features);
    produce(x.len(), |out| {
        out.par_chunks_mut(task)
            .zip(x.par_chunks(task))
            .for_each(|(out, x)| layer_norm_rows(norm, x, out));
    })
}
