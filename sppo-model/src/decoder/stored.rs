//! The tensors in which a family stores the weights of a decoder: one for each, or several in one.

use std::ops::Range;

use super::DecoderConfig;
use super::weights::{TensorLayout, tensor_layout};
use crate::formats::WeightSource;

/// A tensor as it is stored, and the weights whose rows it holds, in the order of loading.
#[derive(Clone, Debug)]
pub(crate) struct StoredTensor {
    pub(crate) layout: TensorLayout,
    pub(crate) weights: Vec<StoredWeight>,
}

/// A weight in a stored tensor.
#[derive(Clone, Debug)]
pub(crate) struct StoredWeight {
    pub(crate) layout: TensorLayout,
    /// Its rows in the tensor.
    pub(crate) rows: Range<usize>,
}

impl StoredTensor {
    /// The name without its end `.weight`, and the shape, of a tensor that is a linear map's.
    pub(crate) fn module(&self) -> Option<(&str, [usize; 2])> {
        let shape = <[usize; 2]>::try_from(self.layout.shape.as_slice()).ok()?;
        Some((self.layout.name.strip_suffix(".weight")?, shape))
    }
}

/// The tensors of a Hugging Face model, in the order of their first weights.
pub(crate) fn stored_tensors(config: &DecoderConfig) -> Vec<StoredTensor> {
    let mut stored: Vec<StoredTensor> = Vec::new();
    for layout in tensor_layout(config) {
        let WeightSource { tensor, rows } = config.family.source(config, &layout.name);
        let rows = rows.unwrap_or(0..layout.shape[0]);
        match stored.last_mut().filter(|stored| stored.layout.name == tensor) {
            Some(stored) => {
                stored.layout.shape[0] = stored.layout.shape[0].max(rows.end);
                stored.weights.push(StoredWeight { layout, rows });
            }
            None => {
                let shape = [&[rows.end], &layout.shape[1..]].concat();
                let weights = vec![StoredWeight { layout, rows }];
                stored.push(StoredTensor { layout: TensorLayout { name: tensor, shape }, weights });
            }
        }
    }
    stored
}
