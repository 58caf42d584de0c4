//! The key-value cache, and attention of one query per response over it.
//!
//! Responses to one prompt follow each other in a batch, and attend to the prompt's keys together. To its
//! own keys each response attends by itself, but all in one call. The layout of the cache is drawn in
//! [`super`]: where the pages of each row follow each other, rows begin at equal distances, so that they can be
//! a dimension of a view. Where a row's pages are scattered, keys are gathered, or the row's runs of pages are
//! attended to one by one and merged.

use std::ops::Range;

use sppo_model::ModelError;
use sppo_model::ops::{AttentionShape, CachedRow};
use tch::{Device, Kind, Tensor};

use super::part::{HIDDEN, Heads, Part, PartOutput, merge};
use super::slots::{prompts, spans};
use super::varlen::Sequences;
use crate::device::Context;
use crate::tensors::{TorchResult, index, upload};

/// Keys and values of past tokens, one pair of `[slots, features]` tensors per layer, in the compute
/// dtype.
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

    /// Keys and values of a layer.
    pub(crate) fn layer(&self, layer: usize) -> TorchResult<[&Tensor; 2]> {
        let missing = || ModelError::Backend(format!("the cache has no layer {layer}"));
        Ok(self.layers.get(layer).ok_or_else(missing)?.each_ref())
    }

    /// Writes rows to slots.
    pub(crate) fn write(
        &self,
        layer: usize,
        rows: [&Tensor; 2],
        slots: &Tensor,
    ) -> TorchResult<()> {
        for (target, rows) in self.layer(layer)?.into_iter().zip(rows) {
            let rows = rows.f_to_kind(target.f_kind()?)?;
            let _ = target.shallow_clone().f_index_copy_(0, slots, &rows)?;
        }
        Ok(())
    }
}

/// A decoding step's rows in the cache; the same for all layers with the same window.
pub(crate) struct DecodingPlan {
    row_count: i64,
    /// Rows that follow each other and see the same part of the same prompt.
    prompts: Vec<(Range<usize>, Range<usize>)>,
    /// Whether every row sees some of a prompt.
    all_see_a_prompt: bool,
    own: OwnKeys,
    /// Hides, of the keys of each span or gathered row, those that its row does not see:
    /// `[spans or rows, 1, 1, keys]`.
    mask: Tensor,
}

/// Slots of the rows' own keys.
enum OwnKeys {
    /// Spans of one size, of which span `i` begins at slot `first + i * stride`. Row `r` has the span
    /// `span_of_row[r]`. Unused spans are computed with the query of row `row_of_span[i]`; their output is
    /// discarded.
    Spans { first: i64, stride: i64, count: i64, row_of_span: Tensor, span_of_row: Tensor },
    /// Anywhere: the slots of all keys, row after row.
    Gathered(Tensor),
}

/// The keys that attention over own keys reads of each span or gathered row, and which of them are
/// visible.
struct Visible {
    keys: usize,
    ranges: Vec<Range<usize>>,
}

impl DecodingPlan {
    /// A plan for a cache of `slots` slots.
    pub(crate) fn new(
        rows: &[CachedRow],
        window: Option<usize>,
        slots: usize,
        device: Device,
    ) -> TorchResult<Self> {
        let seen: Vec<CachedRow> = rows.iter().map(|row| row.within(window)).collect();
        let in_spans = match (only_runs(rows), only_runs(&seen)) {
            (Some(whole), Some(seen)) => {
                let starts: Vec<usize> = whole.iter().map(|run| run.start).collect();
                OwnKeys::in_spans(&starts, &seen, slots, device)?
            }
            _ => None,
        };
        let (own, visible) = match in_spans {
            Some(found) => found,
            None => OwnKeys::gathered(&seen, device)?,
        };
        let Visible { keys, ranges } = visible;
        let mut mask = vec![HIDDEN as f32; ranges.len() * keys];
        for (mask, visible) in mask.chunks_exact_mut(keys).zip(&ranges) {
            mask[visible.clone()].fill(0.0);
        }
        let shape = [ranges.len() as i64, 1, 1, keys as i64];
        Ok(Self {
            row_count: rows.len() as i64,
            prompts: prompts(&seen),
            all_see_a_prompt: seen.iter().all(|row| !row.prefix.is_empty()),
            own,
            mask: upload(&mask, &shape, device)?,
        })
    }
}

/// The slots of each row, where they all follow each other.
fn only_runs(rows: &[CachedRow]) -> Option<Vec<Range<usize>>> {
    let only = |row: &CachedRow| match &row.own[..] {
        [run] => Some(run.clone()),
        _ => None,
    };
    rows.iter().map(only).collect()
}

impl OwnKeys {
    /// Keys read in place, as spans of one size. `starts` are the first slots of the rows' spans, of which
    /// each row sees `seen[row]`; within a window, all spans are read from the same offset:
    ///
    /// ```text
    ///  start       start + shift   seen.start        seen.end
    ///  |           |               |                 |
    ///  | beyond the window ------> | visible ------> | free ...
    ///              | read: `length` keys, the most that any row needs |
    /// ```
    fn in_spans(
        starts: &[usize],
        seen: &[Range<usize>],
        slots: usize,
        device: Device,
    ) -> TorchResult<Option<(Self, Visible)>> {
        let rows = || starts.iter().zip(seen);
        let shift = rows().map(|(start, own)| own.start - start).min().unwrap_or(0);
        let length = rows().map(|(start, own)| own.end - start - shift).max().unwrap_or(1);
        let Some((first, stride, count)) = spans(starts, shift, length, slots) else {
            return Ok(None);
        };
        let span_of = |start: &usize| (start + shift - first) / stride.max(1);
        let mut row_of_span = vec![0; count];
        let mut ranges = vec![0..1; count];
        for (row, (start, own)) in rows().enumerate() {
            let span = span_of(start);
            row_of_span[span] = row as u32;
            ranges[span] = own.start - start - shift..own.end - start - shift;
        }
        let span_of_row: Vec<u32> = starts.iter().map(|start| span_of(start) as u32).collect();
        let own = Self::Spans {
            first: first as i64,
            stride: stride as i64,
            count: count as i64,
            row_of_span: index(&row_of_span, device)?,
            span_of_row: index(&span_of_row, device)?,
        };
        Ok(Some((own, Visible { keys: length, ranges })))
    }

    /// Keys gathered from wherever they are; shorter rows repeat their last key.
    fn gathered(seen: &[CachedRow], device: Device) -> TorchResult<(Self, Visible)> {
        let longest = seen.iter().map(CachedRow::own_count).max().unwrap_or(0).max(1);
        let mut slots = Vec::with_capacity(seen.len() * longest);
        for row in seen {
            let last = row.own.last().map_or(0, |run| run.end.saturating_sub(1));
            let own = row.own.iter().cloned().flatten().chain(std::iter::repeat(last));
            slots.extend(own.take(longest).map(|slot| slot as u32));
        }
        let ranges = seen.iter().map(|row| 0..row.own_count()).collect();
        Ok((Self::Gathered(index(&slots, device)?), Visible { keys: longest, ranges }))
    }
}

impl DecodingPlan {
    /// Attention of one query per row over a layer of the cache, `[rows, query heads * size]`. Queries are
    /// in the compute dtype.
    pub(crate) fn attend(
        &self,
        context: &Context,
        queries: &Tensor,
        [keys, values]: [&Tensor; 2],
        shape: &AttentionShape,
    ) -> TorchResult<Tensor> {
        let heads = Heads::of(shape);
        let operands = [queries, keys, values];
        let own = self.own_part(heads, operands, shape)?;
        let whole = match self.prompts.is_empty() {
            true => own,
            false => merge(&own, &self.prompt_part(context, heads, operands, shape)?)?,
        };
        Ok(whole.output.f_reshape(queries.size())?)
    }

    /// Every row over its own keys: `[rows, shared heads, groups, size]`.
    fn own_part(
        &self,
        heads: Heads,
        [queries, keys, values]: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> TorchResult<PartOutput> {
        let Heads { groups, shared, size } = heads;
        let length = self.mask.size()[3];
        let view = |x: &Tensor| -> TorchResult<Tensor> {
            Ok(match &self.own {
                OwnKeys::Spans { first, stride, count, .. } => {
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
        let of_spans = match &self.own {
            OwnKeys::Spans { row_of_span, .. } => queries.f_index_select(0, row_of_span)?,
            OwnKeys::Gathered(_) => queries.shallow_clone(),
        };
        let part = Part {
            queries: &of_spans.f_view([-1, shared, groups, size])?,
            keys: &view(keys)?,
            values: &view(values)?,
            causal: false,
            mask: Some(self.mask.shallow_clone()),
            scale: f64::from(shape.scale),
            soft_cap: shape.soft_cap.map(f64::from),
        }
        .forward()?;
        Ok(match &self.own {
            OwnKeys::Spans { span_of_row, .. } => PartOutput {
                output: part.output.f_index_select(0, span_of_row)?,
                log_sum_exp: part.log_sum_exp.f_index_select(0, span_of_row)?,
            },
            OwnKeys::Gathered(_) => part,
        })
    }

    /// Every row over its prompt's keys: `[rows, shared heads, groups, size]`. Rows without a prompt get a
    /// log-sum-exp that gives them no weight.
    fn prompt_part(
        &self,
        context: &Context,
        heads: Heads,
        [queries, keys, values]: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> TorchResult<PartOutput> {
        let output = match self.all_see_a_prompt {
            true => queries.f_empty_like()?,
            false => queries.f_zeros_like()?,
        };
        let rows = self.row_count;
        let log_sum_exp =
            Tensor::f_full([rows, shape.query_heads as i64], HIDDEN, context.f32_options())?;
        for (run, prefix) in &self.prompts {
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
}

/// A decoding step as two calls of the varlen kernel; the same for all layers with the same window.
///
/// The query heads that share keys stand in the kernel as queries of one sequence: so keys are read once
/// for all of them, in place in the cache. A row whose pages are scattered is a sequence for each run of pages.
pub(crate) struct DecodingVarlen {
    own: Sequences,
    /// Absent where each row is one run.
    runs: Option<Runs>,
    prompts: Option<Sequences>,
}

/// The runs of slots that rows consist of.
struct Runs {
    /// The row of each run.
    rows: Tensor,
    /// The runs of each row, `[rows * runs of the longest]`; shorter rows repeat the first.
    of_rows: Tensor,
    /// Hides what only fills rows up, f32, `[rows, runs of the longest, 1, 1]`.
    mask: Tensor,
}

impl Runs {
    /// The runs of rows of which some have several; `None` where none has.
    fn of(rows: &[CachedRow], device: Device) -> TorchResult<Option<Self>> {
        let longest = rows.iter().map(|row| row.own.len()).max().unwrap_or(0);
        if longest <= 1 {
            return Ok(None);
        }
        let (mut rows_of_runs, mut of_rows, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for (number, row) in rows.iter().enumerate() {
            let first = rows_of_runs.len();
            rows_of_runs.extend(std::iter::repeat_n(number as u32, row.own.len()));
            for run in 0..longest {
                let is_there = run < row.own.len();
                of_rows.push((first + if is_there { run } else { 0 }) as u32);
                mask.push(if is_there { 0.0 } else { HIDDEN as f32 });
            }
        }
        let shape = [rows.len() as i64, longest as i64, 1, 1];
        Ok(Some(Self {
            rows: index(&rows_of_runs, device)?,
            of_rows: index(&of_rows, device)?,
            mask: upload(&mask, &shape, device)?,
        }))
    }

    /// Joins what each run gave: outputs `[runs, groups, shared heads, size]` and log-sum-exps
    /// `[runs, groups, shared heads]` become those of rows.
    fn joined(&self, output: &Tensor, log_sum_exp: &Tensor) -> TorchResult<(Tensor, Tensor)> {
        let [rows, runs, ..] = self.mask.size()[..] else {
            return Err(ModelError::Backend("runs without rows".into()).into());
        };
        let by_row = |x: &Tensor| -> TorchResult<Tensor> {
            let shape = [&[rows, runs][..], &x.size()[1..]].concat();
            Ok(x.f_index_select(0, &self.of_rows)?.f_view(&shape[..])?)
        };
        let parts = by_row(log_sum_exp)?.f_add(&self.mask)?;
        let whole = parts.f_logsumexp([1], true)?;
        let weights = parts.f_sub(&whole)?.f_exp_()?.f_unsqueeze(-1)?;
        let sum = by_row(output)?.f_mul(&weights)?.f_sum_dim_intlist(
            [1].as_slice(),
            false,
            Kind::Float,
        )?;
        Ok((sum.f_to_kind(output.f_kind()?)?, whole.f_squeeze_dim(1)?))
    }
}

impl DecodingVarlen {
    /// A plan for this many query heads per key-value head (`groups`); `None` where some rows see a prompt
    /// and others do not.
    pub(crate) fn new(
        rows: &[CachedRow],
        window: Option<usize>,
        groups: usize,
        device: Device,
    ) -> TorchResult<Option<Self>> {
        let seen: Vec<CachedRow> = rows.iter().map(|row| row.within(window)).collect();
        let prompted = prompts(&seen);
        let in_runs: usize = prompted.iter().map(|(rows, _)| rows.len()).sum();
        if seen.is_empty() || (in_runs != 0 && in_runs != seen.len()) {
            return Ok(None);
        }
        let own: Vec<Range<usize>> = seen.iter().flat_map(|row| row.own.iter().cloned()).collect();
        let of_prompts = || {
            let (queries, prefixes): (Vec<_>, Vec<_>) =
                prompted.iter().map(|(rows, prefix)| (rows.len() * groups, prefix.clone())).unzip();
            Sequences::scattered(&queries, &prefixes, device)
        };
        Ok(Some(Self {
            own: Sequences::scattered(&vec![groups; own.len()], &own, device)?,
            runs: Runs::of(&seen, device)?,
            prompts: (in_runs > 0).then(of_prompts).transpose()?,
        }))
    }

    /// `[rows, query heads * size]`; keys and values are a layer of the cache.
    pub(crate) fn attend(
        &self,
        queries: &Tensor,
        [keys, values]: [&Tensor; 2],
        shape: &AttentionShape,
    ) -> TorchResult<Tensor> {
        let heads = Heads::of(shape);
        let Heads { groups, shared, size } = heads;
        let scale = f64::from(shape.scale);
        let by_heads = |x: &Tensor| x.f_view([-1, shared, size]);
        let (keys, values) = (by_heads(keys)?, by_heads(values)?);
        let by_groups = queries.f_view([-1, shared, groups, size])?.f_permute([0, 2, 1, 3])?;
        let (own, of_own) = self.own_part(heads, &by_groups, [&keys, &values], scale)?;
        let whole = match &self.prompts {
            Some(prompts) => {
                let queries = by_groups.f_reshape([-1, shared, size])?;
                let (of_prompt, log_sum_exp) =
                    prompts.forward([&queries, &keys, &values], scale)?;
                let of_both = of_own.f_sub(&log_sum_exp.f_view([-1, groups, shared])?)?;
                // exp(own) / (exp(own) + exp(prompt)): the weight of the own part.
                let share =
                    of_both.f_sigmoid()?.f_to_kind(own.f_kind()?)?.f_reshape([-1, shared, 1])?;
                of_prompt.f_lerp_tensor(&own, &share)?
            }
            None => own,
        };
        let by_row = whole.f_view([-1, groups, shared, size])?.f_permute([0, 2, 1, 3])?;
        Ok(by_row.f_reshape(queries.size())?)
    }

    /// Every row over its own keys: `[rows * groups, shared heads, size]`, and log-sum-exps
    /// `[rows, groups, shared heads]`.
    fn own_part(
        &self,
        Heads { groups, shared, size }: Heads,
        by_groups: &Tensor,
        [keys, values]: [&Tensor; 2],
        scale: f64,
    ) -> TorchResult<(Tensor, Tensor)> {
        let queries = match &self.runs {
            Some(runs) => by_groups.f_index_select(0, &runs.rows)?,
            None => by_groups.shallow_clone(),
        };
        let queries = queries.f_reshape([-1, shared, size])?;
        let (output, padded) = self.own.forward_padded([&queries, keys, values], scale)?;
        let log_sum_exp = padded.f_narrow(2, 0, groups)?.f_permute([0, 2, 1])?;
        let Some(runs) = &self.runs else { return Ok((output, log_sum_exp)) };
        let by_run = output.f_view([-1, groups, shared, size])?;
        let (output, log_sum_exp) = runs.joined(&by_run, &log_sum_exp)?;
        Ok((output.f_reshape([-1, shared, size])?, log_sum_exp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_a_row_join_to_what_all_its_keys_give() {
        let cpu = (Kind::Float, Device::Cpu);
        let (groups, shared, size) = (2_i64, 3_i64, 8_i64);
        tch::manual_seed(3);
        let [keys, values] = [(); 2].map(|()| Tensor::randn([60, shared, size], cpu));
        let queries = Tensor::randn([3, groups, shared, size], cpu);
        let attend = |row: i64, slots: Vec<i64>| {
            let slots = Tensor::from_slice(&slots);
            let of_heads = |x: &Tensor| x.index_select(0, &slots).permute([1, 0, 2]).unsqueeze(0);
            // [groups, shared, 1, size]
            let query = queries.narrow(0, row, 1).squeeze_dim(0).unsqueeze(2);
            let scores = query.matmul(&of_heads(&keys).transpose(-2, -1));
            let output = scores.softmax(-1, Kind::Float).matmul(&of_heads(&values)).squeeze_dim(2);
            (output, scores.logsumexp([-1], false).squeeze_dim(2))
        };
        let rows = [
            CachedRow { prefix: 0..0, own: vec![0..8, 30..38, 8..11] },
            CachedRow { prefix: 0..0, own: vec![20..25] },
            CachedRow { prefix: 0..0, own: vec![50..58, 40..42] },
        ];
        let of_slots = |row: usize, runs: &[Range<usize>]| {
            attend(row as i64, runs.iter().cloned().flatten().map(|slot| slot as i64).collect())
        };
        let each: Vec<_> = rows
            .iter()
            .enumerate()
            .flat_map(|(number, row)| row.own.iter().map(move |run| (number, run.clone())))
            .map(|(row, run)| of_slots(row, &[run]))
            .collect();
        let whole: Vec<_> =
            rows.iter().enumerate().map(|(number, row)| of_slots(number, &row.own)).collect();
        let stack = |parts: &[(Tensor, Tensor)]| {
            let (outputs, sums): (Vec<_>, Vec<_>) =
                parts.iter().map(|(output, sum)| (output, sum)).unzip();
            (Tensor::stack(&outputs, 0), Tensor::stack(&sums, 0))
        };
        let (output, log_sum_exp) = stack(&each);
        let runs = Runs::of(&rows, Device::Cpu).unwrap().unwrap();
        let (output, log_sum_exp) = runs.joined(&output, &log_sum_exp).unwrap();
        let (expected, of_expected) = stack(&whole);
        assert!(output.allclose(&expected, 1e-5, 1e-6, false));
        assert!(log_sum_exp.allclose(&of_expected, 1e-5, 1e-6, false));
        assert!(Runs::of(&rows[1..2], Device::Cpu).unwrap().is_none());
    }
}
