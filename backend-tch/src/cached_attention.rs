//! The key-value cache, and attention of one query per response over it.
//!
//! Responses of one prompt follow each other in a batch, and attend to the prompt's keys together. To
//! its own keys each response attends by itself, but all in one call: the scheduler gives every
//! response a place of the same size, so that places are a dimension of the cache's memory. Where
//! they are not, keys are gathered.

use std::ops::Range;

use sppo_model::ModelError;
use sppo_model::ops::{AttentionShape, CachedRow};
use tch::{Device, Kind, Tensor};

use crate::attention::{HIDDEN, Heads, Part, PartOutput, merge};
use crate::engine::{TchOps, kept_or_made};
use crate::tensors::{TorchResult, index, upload};

/// Keys and values of past tokens, one pair of `[slots, features]` tensors per layer, in the number
/// format of matrix products.
#[derive(Debug)]
pub struct KeyValueCache {
    layers: Vec<[Tensor; 2]>,
}

impl KeyValueCache {
    pub(crate) fn new(
        layers: usize,
        slots: usize,
        features: usize,
        options: (Kind, Device),
    ) -> TorchResult<Self> {
        let empty = || -> TorchResult<Tensor> {
            Ok(Tensor::f_zeros([slots as i64, features as i64], options)?)
        };
        let layers =
            (0..layers).map(|_| Ok([empty()?, empty()?])).collect::<TorchResult<Vec<_>>>()?;
        Ok(Self { layers })
    }

    fn layer(&self, layer: usize) -> TorchResult<&[Tensor; 2]> {
        let missing = || ModelError::Backend(format!("the cache has no layer {layer}"));
        Ok(self.layers.get(layer).ok_or_else(missing)?)
    }

    /// Writes rows to slots.
    pub(crate) fn write(
        &self,
        layer: usize,
        rows: [&Tensor; 2],
        slots: &Tensor,
    ) -> TorchResult<()> {
        for (target, rows) in self.layer(layer)?.iter().zip(rows) {
            let rows = rows.f_to_kind(target.f_kind()?)?;
            let _ = target.shallow_clone().f_index_copy_(0, slots, &rows)?;
        }
        Ok(())
    }
}

/// How a step's rows lie in the cache; the same for all layers with the same window.
pub(crate) struct DecodingPlan {
    rows: Vec<CachedRow>,
    window: Option<usize>,
    /// Rows that follow each other and see the same part of the same prompt.
    prompts: Vec<(Range<usize>, Range<usize>)>,
    /// Whether every row sees some of a prompt.
    all_see_a_prompt: bool,
    own: OwnKeys,
    /// Hides, of every place's keys, those that are not its row's: `[places, 1, 1, keys]`.
    mask: Tensor,
}

/// Where the rows' own keys are.
enum OwnKeys {
    /// Places of one size; place `i` begins at slot `first + i * stride`. Row `i` has the place
    /// `place_of_row[i]`, and a place that no row has takes the query of row `row_of_place[i]` in vain.
    Places { first: i64, stride: i64, count: i64, row_of_place: Tensor, place_of_row: Tensor },
    /// Anywhere: the slots of all keys, row after row.
    Gathered(Tensor),
}

/// Places that are empty may be as many as those that are not.
const MOST_PLACES_PER_ROW: usize = 2;

impl DecodingPlan {
    pub(crate) fn is_for(&self, rows: &[CachedRow], window: Option<usize>) -> bool {
        self.window == window && self.rows == rows
    }

    pub(crate) fn new(
        rows: &[CachedRow],
        window: Option<usize>,
        slots: usize,
        device: Device,
    ) -> TorchResult<Self> {
        let seen: Vec<CachedRow> = rows.iter().map(|row| visible(row, window)).collect();
        let longest = seen.iter().map(|row| row.own.len()).max().unwrap_or(0).max(1);
        let starts: Vec<usize> = rows.iter().map(|row| row.own.start).collect();
        let offsets: Vec<usize> =
            seen.iter().zip(&starts).map(|(row, start)| row.own.start - start).collect();
        // Within a window, all places are read from the same offset on.
        let shift = offsets.iter().copied().min().unwrap_or(0);
        let length = seen
            .iter()
            .zip(&starts)
            .map(|(row, start)| row.own.end - start - shift)
            .max()
            .unwrap_or(longest);
        let places = places(&starts, shift, length, slots);
        let (own, lengths) = match places {
            Some((first, stride, count)) => {
                let place_of = |start: &usize| (start + shift - first) / stride.max(1);
                let mut row_of_place = vec![0; count];
                let mut visible_of_place = vec![0..1; count];
                for (row, start) in starts.iter().enumerate() {
                    let place = place_of(start);
                    row_of_place[place] = row as u32;
                    let own = &seen[row].own;
                    visible_of_place[place] = own.start - start - shift..own.end - start - shift;
                }
                let place_of_row: Vec<u32> =
                    starts.iter().map(|start| place_of(start) as u32).collect();
                let own = OwnKeys::Places {
                    first: first as i64,
                    stride: stride as i64,
                    count: count as i64,
                    row_of_place: index(&row_of_place, device)?,
                    place_of_row: index(&place_of_row, device)?,
                };
                (own, visible_of_place)
            }
            None => {
                let slots_of = |row: &CachedRow| {
                    let own = row.own.clone();
                    let last = own.end.saturating_sub(1);
                    (0..longest).map(move |key| (own.start + key).min(last) as u32)
                };
                let gathered: Vec<u32> = seen.iter().flat_map(slots_of).collect();
                let lengths = seen.iter().map(|row| 0..row.own.len()).collect();
                (OwnKeys::Gathered(index(&gathered, device)?), lengths)
            }
        };
        let keys = if matches!(own, OwnKeys::Places { .. }) { length } else { longest };
        let mut mask = vec![HIDDEN as f32; lengths.len() * keys];
        for (mask, visible) in mask.chunks_exact_mut(keys).zip(&lengths) {
            mask[visible.clone()].fill(0.0);
        }
        let shape = [lengths.len() as i64, 1, 1, keys as i64];
        Ok(Self {
            rows: rows.to_vec(),
            window,
            prompts: prompts(&seen),
            all_see_a_prompt: seen.iter().all(|row| !row.prefix.is_empty()),
            own,
            mask: upload(&mask, &shape, device)?,
        })
    }
}

/// The row without what lies beyond the window.
pub(crate) fn visible(row: &CachedRow, window: Option<usize>) -> CachedRow {
    let Some(window) = window else { return row.clone() };
    let (prefix, own) = (row.prefix.clone(), row.own.clone());
    let left = window.saturating_sub(own.len());
    CachedRow {
        own: own.start.max(own.end.saturating_sub(window))..own.end,
        prefix: prefix.start.max(prefix.end.saturating_sub(left))..prefix.end,
    }
}

/// Runs of rows with the same prefix, and that prefix, where there is one.
pub(crate) fn prompts(rows: &[CachedRow]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut runs: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| !row.prefix.is_empty()) {
        match runs.last_mut() {
            Some((run, prefix)) if run.end == number && *prefix == row.prefix => run.end += 1,
            _ => runs.push((number..number + 1, row.prefix.clone())),
        }
    }
    runs
}

/// First slot, stride and number of places of `length` slots that hold all rows' keys from `shift` on;
/// `None` if they do not lie that way or there are too many.
fn places(
    starts: &[usize],
    shift: usize,
    length: usize,
    slots: usize,
) -> Option<(usize, usize, usize)> {
    let (lowest, highest) = (*starts.iter().min()?, *starts.iter().max()?);
    let stride =
        starts.iter().fold(0, |divisor, start| greatest_common_divisor(divisor, start - lowest));
    let first = lowest + shift;
    if stride == 0 {
        // One place, unless several rows claim it.
        return (starts.len() == 1).then_some((first, length, 1));
    }
    let count = (highest - lowest) / stride + 1;
    let mut sorted = starts.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let fits = length <= stride
        && sorted.len() == starts.len()
        && highest + shift + length <= slots
        && count <= MOST_PLACES_PER_ROW * starts.len();
    fits.then_some((first, stride, count))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// Attention of one query per row over a layer of the cache, `[rows, query heads * size]`.
pub(crate) fn cached_attention(
    ops: &TchOps,
    queries: &Tensor,
    cache: &KeyValueCache,
    layer: usize,
    shape: &AttentionShape,
    rows: &[CachedRow],
) -> TorchResult<Tensor> {
    let [keys, values] = cache.layer(layer)?;
    let plan = ops.ragged_decoding_plan(rows, shape)?;
    if let Some(parts) = plan.as_ref().and_then(|plan| plan.parts()) {
        return parts.attend(&ops.operand(queries)?, [keys, values], shape);
    }
    let plan = kept_or_made(
        &ops.shared.decoding,
        |plan| plan.is_for(rows, shape.window),
        || DecodingPlan::new(rows, shape.window, keys.size()[0] as usize, ops.device),
    )?;
    let heads = Heads::of(shape);
    let queries = ops.operand(queries)?;
    let own = own_part(&plan, heads, [&queries, keys, values], shape)?;
    let whole = if plan.prompts.is_empty() {
        own
    } else {
        merge(&own, &prompt_part(ops, &plan, heads, [&queries, keys, values], shape)?)?
    };
    Ok(whole.output.f_reshape(queries.size())?)
}

/// Every row over its own keys: `[rows, shared heads, groups, size]`.
fn own_part(
    plan: &DecodingPlan,
    heads: Heads,
    [queries, keys, values]: [&Tensor; 3],
    shape: &AttentionShape,
) -> TorchResult<PartOutput> {
    let Heads { groups, shared, size } = heads;
    let length = plan.mask.size()[3];
    let view = |x: &Tensor| -> TorchResult<Tensor> {
        Ok(match &plan.own {
            OwnKeys::Places { first, stride, count, .. } => {
                let row = shared * size;
                x.f_as_strided(
                    [*count, shared, length, size],
                    [stride * row, size, row, 1],
                    first * row,
                )?
            }
            OwnKeys::Gathered(slots) => x
                .f_index_select(0, slots)?
                .f_view([-1, length, shared, size])?
                .f_permute([0, 2, 1, 3])?,
        })
    };
    let of_places = match &plan.own {
        OwnKeys::Places { row_of_place, .. } => queries.f_index_select(0, row_of_place)?,
        OwnKeys::Gathered(_) => queries.shallow_clone(),
    };
    let part = Part {
        queries: &of_places.f_view([-1, shared, groups, size])?,
        keys: &view(keys)?,
        values: &view(values)?,
        causal: false,
        mask: Some(plan.mask.shallow_clone()),
        scale: f64::from(shape.scale),
        soft_cap: shape.soft_cap.map(f64::from),
    }
    .forward()?;
    Ok(match &plan.own {
        OwnKeys::Places { place_of_row, .. } => PartOutput {
            output: part.output.f_index_select(0, place_of_row)?,
            log_sum_exp: part.log_sum_exp.f_index_select(0, place_of_row)?,
        },
        OwnKeys::Gathered(_) => part,
    })
}

/// Every row over its prompt's keys: `[rows, shared heads, groups, size]`. Rows without a prompt have
/// no weight.
fn prompt_part(
    ops: &TchOps,
    plan: &DecodingPlan,
    heads: Heads,
    [queries, keys, values]: [&Tensor; 3],
    shape: &AttentionShape,
) -> TorchResult<PartOutput> {
    let output = match plan.all_see_a_prompt {
        true => queries.f_empty_like()?,
        false => queries.f_zeros_like()?,
    };
    let rows = plan.rows.len() as i64;
    let log_sum_exp = Tensor::f_full([rows, shape.query_heads as i64], HIDDEN, ops.wide())?;
    for (run, prefix) in &plan.prompts {
        let part = Part {
            queries: &heads.of_queries(queries, run)?,
            keys: &heads.of_keys(keys, prefix)?,
            values: &heads.of_keys(values, prefix)?,
            causal: false,
            mask: None,
            scale: f64::from(shape.scale),
            soft_cap: shape.soft_cap.map(f64::from),
        }
        .forward()?;
        heads.of_queries(&output, run)?.f_copy_(&part.output)?;
        heads.of_log_sum_exps(&log_sum_exp, run)?.f_copy_(&part.log_sum_exp)?;
    }
    let Heads { groups, shared, size } = heads;
    Ok(PartOutput {
        output: output.f_view([rows, shared, groups, size])?,
        log_sum_exp: log_sum_exp.f_view([rows, shared, groups])?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_found_where_there_are_any() {
        // Stride 10, places 0, 2 and 3 taken.
        assert_eq!(places(&[20, 0, 30], 0, 7, 100), Some((0, 10, 4)));
        assert_eq!(places(&[5], 2, 7, 100), Some((7, 7, 1)));
        // Longer than the stride, beyond the end, claimed twice, too sparse.
        assert_eq!(places(&[20, 0, 30], 0, 11, 100), None);
        assert_eq!(places(&[20, 0, 30], 0, 7, 36), None);
        assert_eq!(places(&[20, 20], 0, 7, 100), None);
        assert_eq!(places(&[0, 10, 90], 0, 7, 100), None);
    }

    #[test]
    fn a_window_cuts_the_prompt_before_the_row_itself() {
        let row = CachedRow { prefix: 3..9, own: 20..24 };
        assert_eq!(visible(&row, None), row);
        assert_eq!(visible(&row, Some(6)), CachedRow { prefix: 7..9, own: 20..24 });
        assert_eq!(visible(&row, Some(3)), CachedRow { prefix: 9..9, own: 21..24 });
    }
}
