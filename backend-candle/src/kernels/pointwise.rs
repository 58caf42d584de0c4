//! Functions of each element.

use rayon::prelude::*;
use sppo_model::ops::encoder::Pointwise;

use super::vector::{gelu, tanh, vectorised};
use super::{TASK_ELEMENTS, Uninitialised, produce};

vectorised! {
    fn gelu_slice(x: &[f32], out: &mut Uninitialised) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(gelu::<FUSED>(x));
        }
    }
}

vectorised! {
    fn tanh_slice(x: &[f32], out: &mut Uninitialised) {
        for (out, &x) in out.iter_mut().zip(x) {
            out.write(tanh::<FUSED>(x));
        }
    }
}

/// The function of each element.
pub(crate) fn pointwise(x: &[f32], function: Pointwise) -> Vec<f32> {
    let kernel = match function {
        Pointwise::Gelu => gelu_slice,
        Pointwise::Tanh => tanh_slice,
    };
    produce(x.len(), |out| {
        out.par_chunks_mut(TASK_ELEMENTS)
            .zip(x.par_chunks(TASK_ELEMENTS))
            .for_each(|(out, x)| kernel(x, out));
    })
}
