//! Layer normalisation (arXiv 1607.06450) of whole rows.

use rayon::prelude::*;

use super::vector::{dot, sum, vectorised};
use super::{Uninitialised, produce, rows_per_task};

/// What a normalisation computes.
#[derive(Clone, Copy)]
pub(crate) struct LayerNorm<'a> {
    /// One factor per feature.
    pub(crate) weight: &'a [f32],
    /// Added to each feature.
    pub(crate) bias: &'a [f32],
    /// Added to the variance.
    pub(crate) epsilon: f32,
}

vectorised! {
    fn normalise(norm: LayerNorm, x: &[f32], out: &mut Uninitialised) {
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
pub(crate) fn layer_norm(norm: LayerNorm, x: &[f32]) -> Vec<f32> {
    let features = norm.weight.len();
    assert_eq!(norm.bias.len(), features, "operands differ in size");
    assert_eq!(x.len() % features, 0, "rows are not whole");
    let task = features * rows_per_task(features);
    produce(x.len(), |out| {
        out.par_chunks_mut(task)
            .zip(x.par_chunks(task))
            .for_each(|(out, x)| normalise(norm, x, out));
    })
}
