//! Attention of single query rows over a cache of keys and values.

use rayon::prelude::*;
use sppo_model::ops::{AttentionShape, CachedRow};

use super::attention_layout::group_size;
use super::lanes::{LANES, Lanes, with_lanes};
use super::log_probs::cap_slice;
use super::tile::prefetch;
use super::vector::{exponentials, maximum_of, vectorised};

/// One layer's cache, as rows of all key-value heads.
#[derive(Clone, Copy)]
pub struct LayerCache<'a> {
    pub keys: &'a [f32],
    pub values: &'a [f32],
}

/// Queries of a group that are read against keys and values at the same time.
const TILE_QUERIES: usize = 3;

/// One output row per entry of `rows`.
pub fn cached_attention(
    queries: &[f32],
    cache: LayerCache,
    shape: &AttentionShape,
    rows: &[CachedRow],
) -> Vec<f32> {
    let features = shape.query_heads * shape.head_size;
    let width = group_size(shape) * shape.head_size;
    let mut output = vec![0.0; queries.len()];
    output.par_chunks_mut(features).zip(queries.par_chunks(features)).zip(rows).for_each(
        |((output, queries), row)| {
            let slots: Vec<usize> = row.within(shape.window).slots().collect();
            let mut weights = vec![0.0; slots.len() * group_size(shape)];
            let heads = output.chunks_exact_mut(width).zip(queries.chunks_exact(width));
            for (head, (output, queries)) in heads.enumerate() {
                let place = Place {
                    features: shape.key_value_heads * shape.head_size,
                    head,
                    slots: &slots,
                };
                attend(queries, cache, shape, place, &mut weights, output);
            }
        },
    );
    output
}

/// The keys, or the values, of one head that a row sees, in a cache of `[slots, heads, size]`.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Numbers of one slot, all heads together.
    features: usize,
    head: usize,
    slots: &'a [usize],
}

impl<'a> Place<'a> {
    /// The `size` numbers of each slot, in the order of the slots.
    #[inline(always)]
    fn of<'c>(
        self,
        cache: &'c [f32],
        size: usize,
    ) -> impl Iterator<Item = &'c [f32]> + use<'a, 'c> {
        let start = self.head * size;
        self.slots.iter().map(move |slot| &cache[slot * self.features + start..][..size])
    }

    /// Asks for the numbers that are read later: the keys of a slot further on, and the values of this one. The
    /// processor does not see them coming, since each slot holds other heads, too.
    #[inline(always)]
    fn fetch_ahead(self, slot: usize, cache: LayerCache, size: usize) {
        /// Slots between the one that is read and the one that is asked for.
        const DISTANCE: usize = 8;
        /// Numbers of a cache line.
        const LINE: usize = 16;
        let later = self.slots.get(slot + DISTANCE);
        for (numbers, slot) in [(cache.keys, later), (cache.values, self.slots.get(slot))] {
            let Some(slot) = slot else { continue };
            let first = numbers.as_ptr().wrapping_add(slot * self.features + self.head * size);
            for offset in (0..size).step_by(LINE) {
                prefetch(first.wrapping_add(offset));
            }
        }
    }
}

vectorised! {
    /// The queries of one head of the cache, a row each: `softmax(cap(scale query keys^T)) values` over the
    /// slots. `weights` is scratch, `[queries, slots]`.
    fn attend(
        queries: &[f32],
        cache: LayerCache,
        shape: &AttentionShape,
        place: Place,
        weights: &mut [f32],
        output: &mut [f32],
    ) {
        let size = shape.head_size;
        let count = place.slots.len();
        if count == 0 {
            return;
        }
        let tiles = queries.chunks(size * TILE_QUERIES).zip(weights.chunks_mut(count * TILE_QUERIES));
        for (queries, weights) in tiles {
            match queries.len() / size {
                1 => with_lanes!(FUSED, scores::<_, 1>(queries, cache, size, place, weights)),
                2 => with_lanes!(FUSED, scores::<_, 2>(queries, cache, size, place, weights)),
                _ => with_lanes!(FUSED, scores::<_, TILE_QUERIES>(queries, cache, size, place, weights)),
            }
        }
        for weights in weights.chunks_exact_mut(count) {
            for weight in weights.iter_mut() {
                *weight *= shape.scale;
            }
            if let Some(cap) = shape.soft_cap {
                cap_slice(weights, cap);
            }
            let maximum = maximum_of(weights);
            let inverse = 1.0 / exponentials::<FUSED>(weights, maximum);
            for weight in weights {
                *weight *= inverse;
            }
        }
        let tiles = output.chunks_mut(size * TILE_QUERIES).zip(weights.chunks(count * TILE_QUERIES));
        for (output, weights) in tiles {
            match output.len() / size {
                1 => with_lanes!(FUSED, averages::<_, 1>(weights, cache.values, size, place, output)),
                2 => with_lanes!(FUSED, averages::<_, 2>(weights, cache.values, size, place, output)),
                _ => with_lanes!(FUSED, averages::<_, TILE_QUERIES>(weights, cache.values, size, place, output)),
            }
        }
    }
}

/// `queries keys^T`, `[R, slots]`.
#[inline(always)]
fn scores<L: Lanes, const R: usize>(
    queries: &[f32],
    cache: LayerCache,
    size: usize,
    place: Place,
    scores: &mut [f32],
) {
    let count = place.slots.len();
    let rows: [&[f32]; R] = std::array::from_fn(|query| &queries[query * size..][..size]);
    let whole = size - size % LANES;
    for (slot, key) in place.of(cache.keys, size).enumerate() {
        place.fetch_ahead(slot, cache, size);
        let mut sums = [L::zero(); R];
        if whole < size {
            sums = rows.map(|row| rest_products(&row[whole..], &key[whole..]));
        }
        for start in (0..whole).step_by(LANES) {
            // SAFETY: eight numbers follow the start in each slice, which has `size` of them.
            let key = unsafe { L::load(key.as_ptr().add(start)) };
            for (sum, row) in sums.iter_mut().zip(rows) {
                // SAFETY: as above.
                let query = unsafe { L::load(row.as_ptr().add(start)) };
                *sum = query.multiply_add(key, *sum);
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            scores[r * count + slot] = stored(sum).iter().sum::<f32>();
        }
    }
}

/// The products of fewer than eight numbers, and zeros.
#[inline(always)]
fn rest_products<L: Lanes>(a: &[f32], b: &[f32]) -> L {
    let mut products = [0.0; LANES];
    for ((product, &a), &b) in products.iter_mut().zip(a).zip(b) {
        *product = a * b;
    }
    // SAFETY: the array has eight numbers.
    unsafe { L::load(products.as_ptr()) }
}

#[inline(always)]
fn stored<L: Lanes>(lanes: L) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    // SAFETY: the array has room for eight numbers.
    unsafe { lanes.store(values.as_mut_ptr()) };
    values
}

/// `weights values`, `[R, size]`.
#[inline(always)]
fn averages<L: Lanes, const R: usize>(
    weights: &[f32],
    values: &[f32],
    size: usize,
    place: Place,
    output: &mut [f32],
) {
    let mut feature = 0;
    while feature + LANES <= size {
        feature += match (size - feature) / LANES {
            4.. => average::<L, R, 4>(weights, values, size, place, feature, output),
            _ => average::<L, R, 1>(weights, values, size, place, feature, output),
        };
    }
    for feature in feature..size {
        let rows = output.chunks_exact_mut(size).zip(weights.chunks_exact(place.slots.len()));
        for (output, weights) in rows {
            let mut sum = L::zero();
            for (&weight, value) in weights.iter().zip(place.of(values, size)) {
                sum = L::splat(weight).multiply_add(L::splat(value[feature]), sum);
            }
            output[feature] = stored(sum)[0];
        }
    }
}

/// `8 N` features of `weights values`, from one feature on; returns their number.
#[inline(always)]
fn average<L: Lanes, const R: usize, const N: usize>(
    weights: &[f32],
    values: &[f32],
    size: usize,
    place: Place,
    feature: usize,
    output: &mut [f32],
) -> usize {
    let count = place.slots.len();
    let rows: [&[f32]; R] = std::array::from_fn(|query| &weights[query * count..][..count]);
    let mut sums = [[L::zero(); N]; R];
    for (slot, value) in place.of(values, size).enumerate() {
        let value = &value[feature..][..N * LANES];
        // SAFETY: the slice has `8 N` numbers.
        let value: [L; N] =
            std::array::from_fn(|n| unsafe { L::load(value.as_ptr().add(n * LANES)) });
        for (sums, weights) in sums.iter_mut().zip(rows) {
            let weight = L::splat(weights[slot]);
            for (sum, value) in sums.iter_mut().zip(value) {
                *sum = weight.multiply_add(value, *sum);
            }
        }
    }
    for (r, sums) in sums.into_iter().enumerate() {
        let output = &mut output[r * size + feature..][..N * LANES];
        for (output, sum) in output.chunks_exact_mut(LANES).zip(sums) {
            output.copy_from_slice(&stored(sum));
        }
    }
    N * LANES
}
