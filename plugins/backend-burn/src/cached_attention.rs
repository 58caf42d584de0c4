//! The key-value cache, and attention of one query per response over it.
//!
//! The keys that each row sees are gathered, as many for each as for the row that sees most:
//!
//! ```text
//! row 0   | prompt | own     |          slots [rows, keys], flat
//! row 1   | prompt | own | hidden |     mask  [rows, 1, 1, keys]
//! ```

use burn_tensor::{Device, IndexingUpdateOp, Int, Tensor};
use sppo_model::ops::{AttentionShape, CachedRow};
use sppo_model::{ModelError, Result};

use crate::attention::{HIDDEN, Heads, softmax};
use crate::tensors::{index, soft_cap, upload};

/// Keys and values of past tokens, one pair of `[slots, features]` tensors per layer.
#[derive(Debug)]
pub struct KeyValueCache {
    layers: Vec<[Tensor<2>; 2]>,
}

impl KeyValueCache {
    pub(crate) fn new(layers: usize, slots: usize, features: usize, device: &Device) -> Self {
        let empty = || Tensor::zeros([slots, features], device);
        Self { layers: (0..layers).map(|_| [empty(), empty()]).collect() }
    }

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> Result<&[Tensor<2>; 2]> {
        self.layers.get(layer).ok_or_else(|| no_layer(layer))
    }

    /// Writes rows to slots.
    pub(crate) fn write(
        &mut self,
        layer: usize,
        rows: [&Tensor<2>; 2],
        slots: &Tensor<1, Int>,
    ) -> Result<()> {
        let layer = self.layers.get_mut(layer).ok_or_else(|| no_layer(layer))?;
        for (tensor, rows) in layer.iter_mut().zip(rows) {
            let (slots, rows) = (slots.clone(), rows.clone());
            tensor.inplace(|tensor| tensor.select_assign(0, slots, rows, IndexingUpdateOp::Assign));
        }
        Ok(())
    }
}

fn no_layer(layer: usize) -> ModelError {
    ModelError::Backend(format!("the cache has no layer {layer}"))
}

/// A decoding step's rows in the cache; the same for all layers with the same window.
pub(crate) struct DecodingPlan {
    /// The slots that the rows see, row after row.
    slots: Tensor<1, Int>,
    /// Hides the slots that only fill a row up, `[rows, 1, 1, keys]`.
    mask: Tensor<4>,
}

impl DecodingPlan {
    pub(crate) fn new(rows: &[CachedRow], window: Option<usize>, device: &Device) -> Result<Self> {
        let seen: Vec<CachedRow> = rows.iter().map(|row| row.within(window)).collect();
        let length = |row: &CachedRow| row.prefix.len() + row.own_count();
        let longest = seen.iter().map(length).max().unwrap_or(0).max(1);
        let mut slots = Vec::with_capacity(rows.len() * longest);
        let mut mask = vec![HIDDEN; rows.len() * longest];
        for (seen, mask) in seen.iter().zip(mask.chunks_exact_mut(longest)) {
            let filling = seen.own.first().map_or(0, |run| run.start);
            let all = seen.slots().chain(std::iter::repeat(filling));
            slots.extend(all.take(longest).map(|slot| slot as u32));
            mask[..length(seen)].fill(0.0);
        }
        Ok(Self {
            slots: index(slots, device),
            mask: upload(mask, [rows.len(), 1, 1, longest], device)?,
        })
    }
    /// Attention of one query per row over a layer of the cache, `[rows, query heads * size]`.
    pub(crate) fn attend(
        &self,
        queries: &Tensor<2>,
        [keys, values]: &[Tensor<2>; 2],
        shape: &AttentionShape,
    ) -> Tensor<2> {
        let Heads { groups, shared, size } = Heads::of(shape);
        let [rows, _, _, length] = self.mask.dims();
        let gathered = |x: &Tensor<2>| {
            let gathered = x.clone().select(0, self.slots.clone());
            gathered.reshape([rows, length, shared, size]).swap_dims(1, 2)
        };
        let grouped = queries.clone().reshape([rows, shared, groups, size]);
        let scores = grouped.matmul(gathered(keys).swap_dims(2, 3)) * shape.scale;
        let (weights, _) = softmax(soft_cap(scores, shape.soft_cap) + self.mask.clone());
        weights.matmul(gathered(values)).reshape(queries.dims())
    }
}
