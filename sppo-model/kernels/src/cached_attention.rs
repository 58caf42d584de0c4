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

/// Queries of a group whose averages are computed at the same time: as many as registers hold, with four of values.
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
    let outputs = output.par_chunks_mut(features).zip(queries.par_chunks(features)).zip(rows);
    outputs.with_max_len(1).for_each(|((output, queries), row)| {
        let slots: Vec<usize> = row.within(shape.window).slots().collect();
        let mut weights = vec![0.0; slots.len() * group_size(shape)];
        let heads = output.chunks_exact_mut(width).zip(queries.chunks_exact(width));
        for (head, (output, queries)) in heads.enumerate() {
            let place =
                Place { features: shape.key_value_heads * shape.head_size, head, slots: &slots };
            attend(queries, cache, shape, place, &mut weights, output);
        }
    });
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
        (0..self.slots.len()).map(move |slot| self.of_slot(cache, size, slot))
    }

    #[inline(always)]
    fn of_slot(self, cache: &[f32], size: usize, slot: usize) -> &[f32] {
        &cache[self.slots[slot] * self.features + self.head * size..][..size]
    }

    /// Asks for the numbers of a slot and a head that are read later, if there are any. The processor does not see
    /// them coming, since each slot holds other heads, too.
    #[inline(always)]
    fn fetch(self, cache: &[f32], size: usize, slot: usize, head: usize) {
        /// Numbers of a cache line.
        const LINE: usize = 16;
        let Some(slot) = self.slots.get(slot) else { return };
        if (head + 1) * size > self.features {
            return;
        }
        let first = cache.as_ptr().wrapping_add(slot * self.features + head * size);
        for offset in (0..size).step_by(LINE) {
            prefetch(first.wrapping_add(offset));
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
        with_lanes!(FUSED, scores::<_>(queries, cache, size, place, weights));
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
                1 => with_lanes!(FUSED, averages::<_, 1>(weights, cache, size, place, output)),
                2 => with_lanes!(FUSED, averages::<_, 2>(weights, cache, size, place, output)),
                _ => with_lanes!(FUSED, averages::<_, TILE_QUERIES>(weights, cache, size, place, output)),
            }
        }
    }
}

/// `queries keys^T`, `[queries, slots]`, of eight slots at a time. Meanwhile fetches the values of the head.
#[inline(always)]
fn scores<L: Lanes>(
    queries: &[f32],
    cache: LayerCache,
    size: usize,
    place: Place,
    scores: &mut [f32],
) {
    let count = place.slots.len();
    let query_count = queries.len() / size;
    let whole = size - size % LANES;
    for first in (0..count).step_by(LANES) {
        // The last slot again where there are fewer than eight. A loop, since the compiler does not inline a closure
        // that `from_fn` calls here.
        let mut keys: [&[f32]; LANES] = [&[]; LANES];
        for (lane, key) in keys.iter_mut().enumerate() {
            *key = place.of_slot(cache.keys, size, (first + lane).min(count - 1));
        }
        for (number, query) in queries.chunks_exact(size).enumerate() {
            for lane in (number..LANES).step_by(query_count) {
                place.fetch(cache.values, size, first + lane, place.head);
                if place.head == 0 {
                    // Those of other heads were fetched with the averages of the head before.
                    place.fetch(cache.keys, size, first + LANES + lane, 0);
                }
            }
            let mut sums = [L::zero(); LANES];
            if whole < size {
                for (sum, key) in sums.iter_mut().zip(keys) {
                    *sum = rest_products(&query[whole..], &key[whole..]);
                }
            }
            for start in (0..whole).step_by(LANES) {
                // SAFETY: eight numbers follow the start in each slice, which has `size` of them.
                let query = unsafe { L::load(query.as_ptr().add(start)) };
                for (sum, key) in sums.iter_mut().zip(keys) {
                    // SAFETY: as above.
                    let key = unsafe { L::load(key.as_ptr().add(start)) };
                    *sum = query.multiply_add(key, *sum);
                }
            }
            let [mut sum, rest @ ..] = L::transpose(sums);
            for lane in rest {
                sum = sum.add(lane);
            }
            let sums = stored(sum);
            let scores = &mut scores[number * count + first..(number + 1) * count];
            scores.iter_mut().zip(sums).for_each(|(score, sum)| *score = sum);
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

/// `weights values`, `[R, size]`. Meanwhile fetches the keys of the next head.
#[inline(always)]
fn averages<L: Lanes, const R: usize>(
    weights: &[f32],
    cache: LayerCache,
    size: usize,
    place: Place,
    output: &mut [f32],
) {
    let mut feature = 0;
    while feature + LANES <= size {
        feature += match (size - feature) / LANES {
            4.. => average::<L, R, 4>(weights, cache, size, place, feature, output),
            _ => average::<L, R, 1>(weights, cache, size, place, feature, output),
        };
    }
    for feature in feature..size {
        let rows = output.chunks_exact_mut(size).zip(weights.chunks_exact(place.slots.len()));
        for (output, weights) in rows {
            let mut sum = L::zero();
            for (&weight, value) in weights.iter().zip(place.of(cache.values, size)) {
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
    cache: LayerCache,
    size: usize,
    place: Place,
    feature: usize,
    output: &mut [f32],
) -> usize {
    let count = place.slots.len();
    let rows: [&[f32]; R] = std::array::from_fn(|query| &weights[query * count..][..count]);
    let mut sums = [[L::zero(); R]; N];
    for (slot, value) in place.of(cache.values, size).enumerate() {
        if feature == 0 {
            place.fetch(cache.keys, size, slot, place.head + 1);
        }
        let value = &value[feature..][..N * LANES];
        let mut factors = [L::zero(); R];
        for (factor, weights) in factors.iter_mut().zip(rows) {
            *factor = L::splat(weights[slot]);
        }
        // With three queries, sums, weights and one register of values are all that the processor has.
        for (n, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the slice has `8 N` numbers.
            let value = unsafe { L::load(value.as_ptr().add(n * LANES)) };
            for (sum, factor) in sums.iter_mut().zip(factors) {
                *sum = factor.multiply_add(value, *sum);
            }
        }
    }
    for (n, sums) in sums.into_iter().enumerate() {
        for (r, sum) in sums.into_iter().enumerate() {
            let first = r * size + feature + n * LANES;
            output[first..][..LANES].copy_from_slice(&stored(sum));
        }
    }
    N * LANES
}
