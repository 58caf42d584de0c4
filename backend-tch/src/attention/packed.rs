//! Attention over a packed batch, forward and backward.
//!
//! A query sees the keys of a shared prompt and those of its own segment: two parts, so that the
//! triangle above the diagonal costs nothing. The first response to a prompt follows it in the batch and
//! is one part with it.
//!
//! ```text
//! rows          | prompt a | response 0 | response 1 | prompt b | response 0 |
//! own parts     |------- causal --------|-- causal --|------- causal --------|
//! prompt parts                          |-- prompt a-|
//! ```
//!
//! CUDA devices with a kernel for it compute all own parts in one call and all prompt parts in another
//! ([`PackedVarlen`]); otherwise each part is computed by itself.

use std::ops::Range;

use sppo_model::ops::{AttentionSegment, AttentionShape};
use tch::{Device, Kind, Tensor};

use super::part::{Heads, Part, PartOutput, band, merge};
use super::varlen::Sequences;
use crate::device::Context;
use crate::tensors::{TorchResult, dimensions, index};

/// The segments, with each prompt and the response whose rows follow it joined: they are one causal
/// sequence, and as one part there is nothing to merge and round.
fn join_prompts(segments: &[AttentionSegment]) -> Vec<AttentionSegment> {
    let mut joined: Vec<AttentionSegment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match joined.last_mut() {
            Some(prompt)
                if prompt.prefix.is_empty()
                    && prompt.queries == prompt.own
                    && segment.queries == segment.own
                    && segment.prefix == prompt.own
                    && segment.own.start == prompt.own.end =>
            {
                prompt.own.end = segment.own.end;
                prompt.queries.end = segment.own.end;
            }
            _ => joined.push(segment.clone()),
        }
    }
    joined
}

/// Consecutive keys that a segment's queries see: one part.
struct SeenKeys {
    rows: Range<usize>,
    /// Whether query `j` sees keys `0..=j` only.
    causal: bool,
    /// Hides more, see [`Part::mask`].
    mask: Option<Tensor>,
}

/// The part of a prefix that some query of the segment sees.
fn visible_prefix(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<Option<SeenKeys>> {
    let mut prefix = segment.prefix.clone();
    if let Some(window) = window {
        // The first query is the one that sees most of it: the last `window - 1` keys.
        prefix.start = prefix.start.max(prefix.end.saturating_sub(window.saturating_sub(1)));
    }
    if prefix.is_empty() {
        return Ok(None);
    }
    let (queries, keys) = (segment.queries.len(), prefix.len());
    let mask = match window {
        Some(window) if queries + keys > window => {
            let window = Some(window as i64);
            Some(mask_of_rank_4(band(queries as i64, keys as i64, keys as i64, window, device)?)?)
        }
        _ => None,
    };
    Ok(Some(SeenKeys { rows: prefix, causal: false, mask }))
}

/// A segment's own keys.
fn own_keys(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<SeenKeys> {
    let queries = segment.queries.len();
    let mask = match window {
        Some(window) if queries > window => {
            let queries = queries as i64;
            Some(mask_of_rank_4(band(queries, queries, 0, Some(window as i64), device)?)?)
        }
        _ => None,
    };
    Ok(SeenKeys { rows: segment.own.clone(), causal: mask.is_none(), mask })
}

fn mask_of_rank_4(mask: Tensor) -> TorchResult<Tensor> {
    Ok(mask.f_unsqueeze(0)?.f_unsqueeze(0)?)
}

/// The keys that a segment's queries see, part by part.
fn parts(
    segment: &AttentionSegment,
    window: Option<usize>,
    device: Device,
) -> TorchResult<Vec<SeenKeys>> {
    let mut parts = vec![own_keys(segment, window, device)?];
    parts.extend(visible_prefix(segment, window, device)?);
    Ok(parts)
}

/// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]`, part by part. Operands are in
/// the compute dtype.
pub(crate) fn attention(
    context: &Context,
    [queries, keys, values]: [&Tensor; 3],
    shape: &AttentionShape,
    segments: &[AttentionSegment],
) -> TorchResult<(Tensor, Tensor)> {
    let heads = Heads::of(shape);
    let (rows, _) = dimensions(queries)?;
    let output = queries.f_zeros_like()?;
    let log_sum_exp = Tensor::f_zeros([rows, shape.query_heads as i64], context.f32_options())?;
    for segment in &join_prompts(segments) {
        let of_segment = heads.of_queries(queries, &segment.queries)?;
        let mut whole: Option<PartOutput> = None;
        for SeenKeys { rows, causal, mask } in parts(segment, shape.window, context.device)? {
            let (keys, values) = (heads.of_keys(keys, &rows)?, heads.of_keys(values, &rows)?);
            let part = Part {
                queries: &of_segment,
                keys: &keys,
                values: &values,
                causal,
                mask,
                scale: f64::from(shape.scale),
                soft_cap: shape.soft_cap.map(f64::from),
            }
            .forward()?;
            whole = Some(match whole {
                Some(whole) => merge(&whole, &part)?,
                None => part,
            });
        }
        if let Some(whole) = whole {
            heads.of_queries(&output, &segment.queries)?.f_copy_(&whole.output)?;
            heads.of_log_sum_exps(&log_sum_exp, &segment.queries)?.f_copy_(&whole.log_sum_exp)?;
        }
    }
    Ok((output, log_sum_exp))
}

/// Gradients of queries, keys and values, part by part.
pub(crate) fn attention_backward(
    context: &Context,
    [queries, keys, values]: [&Tensor; 3],
    [output, log_sum_exp]: [&Tensor; 2],
    gradient: &Tensor,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
) -> TorchResult<[Tensor; 3]> {
    let heads = Heads::of(shape);
    let of_queries = queries.f_zeros_like()?;
    // Several segments add to the keys of a prompt.
    let of_keys = Tensor::f_zeros(keys.size(), context.f32_options())?;
    let of_values = Tensor::f_zeros(keys.size(), context.f32_options())?;
    for segment in &join_prompts(segments) {
        let of_segment = heads.of_queries(queries, &segment.queries)?;
        let whole = PartOutput {
            output: heads.of_queries(output, &segment.queries)?,
            log_sum_exp: heads.of_log_sum_exps(log_sum_exp, &segment.queries)?,
        };
        let gradient = heads.of_queries(gradient, &segment.queries)?;
        for SeenKeys { rows, causal, mask } in parts(segment, shape.window, context.device)? {
            let (keys, values) = (heads.of_keys(keys, &rows)?, heads.of_keys(values, &rows)?);
            let [of_part_queries, of_part_keys, of_part_values] = Part {
                queries: &of_segment,
                keys: &keys,
                values: &values,
                causal,
                mask,
                scale: f64::from(shape.scale),
                soft_cap: shape.soft_cap.map(f64::from),
            }
            .backward(&whole, &gradient)?;
            let mut sum = heads.of_queries(&of_queries, &segment.queries)?;
            let _ = sum.f_add_(&of_part_queries)?;
            for (sum, part) in [(&of_keys, of_part_keys), (&of_values, of_part_values)] {
                let part = part.f_sum_dim_intlist([0].as_slice(), false, Kind::Float)?;
                let _ = heads.of_keys_once(sum, &rows)?.f_add_(&part)?;
            }
        }
    }
    Ok([of_queries, of_keys, of_values])
}

/// A batch's segments as two calls of the varlen kernel; the same for all layers with the same window.
pub(crate) struct PackedVarlen {
    /// Every segment over its own rows.
    own: Sequences,
    prompts: Option<PromptPart>,
}

/// The segments that see a prompt which another segment holds; one sequence per prompt.
struct PromptPart {
    /// Rows of their queries.
    query_rows: Tensor,
    /// Rows of the prompts' keys.
    key_rows: Tensor,
    sequences: Sequences,
}

/// Operands `[rows, heads, size]`, keys and values repeated for the heads that share them.
struct Operands {
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl PackedVarlen {
    /// `None` where the segments do not fill the batch row after row, or a query may not see all that is
    /// before it.
    pub(crate) fn new(
        segments: &[AttentionSegment],
        window: Option<usize>,
        device: Device,
    ) -> TorchResult<Option<Self>> {
        let joined = join_prompts(segments);
        let mut end = 0;
        for segment in &joined {
            let seen = segment.prefix.len() + segment.own.len();
            let follows = segment.queries.start == end && segment.queries == segment.own;
            if !follows || segment.own.is_empty() || window.is_some_and(|window| seen > window) {
                return Ok(None);
            }
            end = segment.queries.end;
        }
        let lengths: Vec<_> =
            joined.iter().map(|segment| (segment.own.len(), segment.own.len())).collect();
        Ok(Some(Self {
            own: Sequences::packed(&lengths, true, device)?,
            prompts: PromptPart::new(&joined, device)?,
        }))
    }

    /// Output `[rows, query heads * size]` and log-sum-exp `[rows, query heads]`.
    pub(crate) fn forward(
        &self,
        operands: [&Tensor; 3],
        shape: &AttentionShape,
    ) -> TorchResult<(Tensor, Tensor)> {
        let scale = f64::from(shape.scale);
        let operands = Operands::new(operands, shape)?;
        let (mut output, mut log_sum_exp) = self.own.forward(operands.all(), scale)?;
        if let Some(prompts) = &self.prompts {
            let rows = &prompts.query_rows;
            let own = PartOutput {
                output: output.f_index_select(0, rows)?,
                log_sum_exp: log_sum_exp.f_index_select(0, rows)?,
            };
            let (of_prompt, of_prompt_log_sum_exp) =
                prompts.sequences.forward(operands.select(prompts)?.all(), scale)?;
            let of_prompt = PartOutput { output: of_prompt, log_sum_exp: of_prompt_log_sum_exp };
            let whole = merge(&own, &of_prompt)?;
            let whole_output = whole.output.f_to_kind(output.f_kind()?)?;
            let _ = output.f_index_copy_(0, rows, &whole_output)?;
            let _ = log_sum_exp.f_index_copy_(0, rows, &whole.log_sum_exp)?;
        }
        Ok((output.f_reshape(flat_size(&output))?, log_sum_exp))
    }

    /// Gradients of queries, keys and values, each `[rows, heads * size]`.
    pub(crate) fn backward(
        &self,
        operands: [&Tensor; 3],
        [output, log_sum_exp]: [&Tensor; 2],
        gradient: &Tensor,
        shape: &AttentionShape,
    ) -> TorchResult<[Tensor; 3]> {
        let scale = f64::from(shape.scale);
        let operands = Operands::new(operands, shape)?;
        let by_heads = |x: &Tensor| x.f_reshape(operands.queries.size());
        let (output, gradient) = (by_heads(output)?, by_heads(gradient)?);
        let [mut of_queries, of_keys, of_values] =
            self.own.backward(operands.all(), [&output, log_sum_exp], &gradient, scale)?;
        // Several segments add to the keys of a prompt.
        let mut of_keys = sum_of_shared(&of_keys, shape)?;
        let mut of_values = sum_of_shared(&of_values, shape)?;
        if let Some(prompts) = &self.prompts {
            let rows = &prompts.query_rows;
            let whole = [&output.f_index_select(0, rows)?, &log_sum_exp.f_index_select(0, rows)?];
            let gradient = gradient.f_index_select(0, rows)?;
            let [of_prompt_queries, of_prompt_keys, of_prompt_values] = prompts
                .sequences
                .backward(operands.select(prompts)?.all(), whole, &gradient, scale)?;
            let _ = of_queries.f_index_add_(0, rows, &of_prompt_queries)?;
            let rows = &prompts.key_rows;
            let _ = of_keys.f_index_add_(0, rows, &sum_of_shared(&of_prompt_keys, shape)?)?;
            let _ = of_values.f_index_add_(0, rows, &sum_of_shared(&of_prompt_values, shape)?)?;
        }
        let of_queries = of_queries.f_reshape(flat_size(&of_queries))?;
        Ok([of_queries, of_keys, of_values])
    }
}

impl PromptPart {
    fn new(segments: &[AttentionSegment], device: Device) -> TorchResult<Option<Self>> {
        let mut lengths: Vec<(usize, usize)> = Vec::new();
        let (mut query_rows, mut key_rows): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        let mut last = 0..0;
        for segment in segments.iter().filter(|segment| !segment.prefix.is_empty()) {
            query_rows.extend(segment.queries.clone().map(|row| row as u32));
            match lengths.last_mut() {
                Some((queries, _)) if segment.prefix == last => *queries += segment.queries.len(),
                _ => {
                    lengths.push((segment.queries.len(), segment.prefix.len()));
                    key_rows.extend(segment.prefix.clone().map(|row| row as u32));
                    last = segment.prefix.clone();
                }
            }
        }
        if lengths.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            query_rows: index(&query_rows, device)?,
            key_rows: index(&key_rows, device)?,
            sequences: Sequences::packed(&lengths, false, device)?,
        }))
    }
}

impl Operands {
    fn new([queries, keys, values]: [&Tensor; 3], shape: &AttentionShape) -> TorchResult<Self> {
        let (heads, size) = (shape.query_heads as i64, shape.head_size as i64);
        let shared = shape.key_value_heads as i64;
        let repeat = |x: &Tensor| -> TorchResult<Tensor> {
            let groups = heads / shared.max(1);
            let x = x.f_view([-1, shared, 1, size])?;
            let x = x.f_expand([x.size()[0], shared, groups, size], false)?;
            Ok(x.f_reshape([-1, heads, size])?)
        };
        Ok(Self {
            queries: queries.f_view([-1, heads, size])?,
            keys: repeat(keys)?,
            values: repeat(values)?,
        })
    }

    fn select(&self, part: &PromptPart) -> TorchResult<Self> {
        Ok(Self {
            queries: self.queries.f_index_select(0, &part.query_rows)?,
            keys: self.keys.f_index_select(0, &part.key_rows)?,
            values: self.values.f_index_select(0, &part.key_rows)?,
        })
    }

    fn all(&self) -> [&Tensor; 3] {
        [&self.queries, &self.keys, &self.values]
    }
}

/// `[rows, heads * size]` of `[rows, heads, size]`.
fn flat_size(x: &Tensor) -> [i64; 2] {
    let size = x.size();
    [size[0], size[1..].iter().product()]
}

/// Gradients of repeated keys or values `[rows, query heads, size]`, added up in f32 over the heads that
/// share them: `[rows, key-value heads * size]`.
fn sum_of_shared(gradient: &Tensor, shape: &AttentionShape) -> TorchResult<Tensor> {
    let (shared, size) = (shape.key_value_heads as i64, shape.head_size as i64);
    let groups = shape.query_heads as i64 / shared.max(1);
    let gradient = gradient.f_view([-1, shared, groups, size])?;
    let sum = gradient.f_sum_dim_intlist([2].as_slice(), false, Kind::Float)?;
    Ok(sum.f_view([-1, shared * size])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_joined_with_the_first_response_alone() {
        let segment = |prefix: Range<usize>, own: Range<usize>| AttentionSegment {
            queries: own.clone(),
            prefix,
            own,
        };
        let batch = [
            segment(0..0, 0..5),
            segment(0..5, 5..8),
            segment(0..5, 8..9),
            segment(0..0, 9..12),
            segment(0..5, 12..13),
        ];
        let expected =
            [segment(0..0, 0..8), segment(0..5, 8..9), segment(0..0, 9..12), segment(0..5, 12..13)];
        assert_eq!(join_prompts(&batch), expected);
    }
}
