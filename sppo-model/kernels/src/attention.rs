//! Causal attention over packed segments, forward. Scores exist one block at a time and the softmax
//! is carried from block to block (FlashAttention, arXiv 2205.14135).

use std::ops::Range;

use rayon::prelude::*;
use sppo_model::ops::{AttentionSegment, AttentionShape};

use super::attention_layout::{
    KeyBlock, gather_group, group_size, key_blocks, query_blocks, visible_in_block,
};
use super::block::{ProductSize, Target, Transposed, multiply_block};
use super::log_probs::cap_slice;
use super::tile::{Left, Right};
use super::tile_row::TILE_COLUMNS;
use super::vector::{exponentials, maximum_of, vectorised};

/// The operands of attention, as rows of all heads.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub shape: &'a AttentionShape,
    pub segments: &'a [AttentionSegment],
    pub queries: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
}

impl Operands<'_> {
    /// Features of a query row.
    pub(crate) fn query_features(&self) -> usize {
        self.shape.query_heads * self.shape.head_size
    }

    /// Features of a key or value row.
    pub(crate) fn key_value_features(&self) -> usize {
        self.shape.key_value_heads * self.shape.head_size
    }

    /// Columns of a query row that belong to the heads of one key-value head.
    pub(crate) fn group_columns(&self, head: usize) -> Range<usize> {
        let width = group_size(self.shape) * self.shape.head_size;
        head * width..(head + 1) * width
    }
}

/// The rows of a key block, of one head, in keys or values.
pub(crate) fn block_rows<'a>(
    operands: &Operands,
    tensor: &'a [f32],
    block: &KeyBlock,
    head: usize,
) -> Right<'a> {
    let features = operands.key_value_features();
    let first = block.first_row * features + head * operands.shape.head_size;
    Right { values: &tensor[first..], stride: features }
}

/// Elements between rows of the scores of a key block: whole tiles.
pub(crate) fn score_stride(block: &KeyBlock) -> usize {
    block.positions.len().next_multiple_of(TILE_COLUMNS)
}

/// The largest [`score_stride`].
pub(crate) fn widest_stride(blocks: &[KeyBlock]) -> usize {
    blocks.iter().map(score_stride).max().unwrap_or(0)
}

/// Queries of one block: consecutive tokens of a segment.
struct Task<'a> {
    segment: &'a AttentionSegment,
    tokens: Range<usize>,
    output: &'a mut [f32],
    log_sum_exp: &'a mut [f32],
}

/// Output `[rows, query features]` and log-sum-exp `[rows, query heads]`; `None` when two segments
/// claim the same row. Rows of no segment are zero.
pub fn attention(operands: Operands) -> Option<(Vec<f32>, Vec<f32>)> {
    let rows = operands.queries.len() / operands.query_features().max(1);
    let mut output = vec![0.0; operands.queries.len()];
    let mut log_sum_exp = vec![0.0; rows * operands.shape.query_heads];
    write_attention(operands, &mut output, &mut log_sum_exp)?;
    Some((output, log_sum_exp))
}

/// [`attention`] to memory of those sizes; rows of no segment stay as they are.
pub fn write_attention(
    operands: Operands,
    output: &mut [f32],
    log_sum_exp: &mut [f32],
) -> Option<()> {
    let tasks = divide(&operands, output, log_sum_exp)?;
    let key_rows = operands.keys.len() / operands.key_value_features().max(1);
    let keys = Transposed::new(operands.keys, key_rows, operands.key_value_features());
    tasks.into_par_iter().with_max_len(1).for_each(|task| attend(&operands, &keys, task));
    Some(())
}

fn divide<'a>(
    operands: &Operands<'a>,
    mut output: &'a mut [f32],
    mut log_sum_exp: &'a mut [f32],
) -> Option<Vec<Task<'a>>> {
    let (features, heads) = (operands.query_features(), operands.shape.query_heads);
    let mut blocks: Vec<_> = operands
        .segments
        .iter()
        .flat_map(|segment| {
            query_blocks(operands.shape, segment).map(move |tokens| (segment, tokens))
        })
        .collect();
    blocks.sort_by_key(|(segment, tokens)| segment.queries.start + tokens.start);
    let mut next_row = 0;
    let mut tasks = Vec::with_capacity(blocks.len());
    for (segment, tokens) in blocks {
        let gap = (segment.queries.start + tokens.start).checked_sub(next_row)?;
        next_row += gap + tokens.len();
        tasks.push(Task {
            output: output
                .split_off_mut(..(gap + tokens.len()) * features)?
                .get_mut(gap * features..)?,
            log_sum_exp: log_sum_exp
                .split_off_mut(..(gap + tokens.len()) * heads)?
                .get_mut(gap * heads..)?,
            segment,
            tokens,
        });
    }
    Some(tasks)
}

fn attend(operands: &Operands, keys: &Transposed, mut task: Task) {
    for head in 0..operands.shape.key_value_heads {
        attend_with_head(operands, keys, &mut task, head);
    }
}

/// One key-value head's part of a task: for each block of keys `k` and values `v`, with scaled queries `q`,
///
/// ```text
/// scores = cap(q k^T)        m' = max(m, max(scores))        w = exp(scores - m')
/// s' = s exp(m - m') + sum(w)        a' = a exp(m - m') + w v
/// ```
///
/// and in the end the output `a / s` and the log-sum-exp `m + log(s)`. Rows are tokens x heads of the group.
fn attend_with_head(operands: &Operands, keys: &Transposed, task: &mut Task, head: usize) {
    let Task { segment, tokens, output, log_sum_exp } = task;
    let shape = operands.shape;
    let (group, size) = (group_size(shape), shape.head_size);
    let columns = operands.group_columns(head);
    let token_rows = segment.queries.start + tokens.start..segment.queries.start + tokens.end;
    let queries = gather_group(
        operands.queries,
        operands.query_features(),
        token_rows,
        columns.clone(),
        shape.scale,
    );
    let rows = tokens.len() * group;
    let blocks = key_blocks(shape, segment, tokens);
    let mut scores = vec![0.0; rows * widest_stride(&blocks)];
    let mut sums = vec![RunningSum::default(); rows];
    let mut accumulated = vec![0.0; rows * size];
    for block in &blocks {
        let stride = score_stride(block);
        let scores = &mut scores[..rows * stride];
        let target = Target { values: scores, stride, adds: false };
        let left = Left::Rows { values: &queries, stride: size };
        let keys = keys.from(head * size, block.first_row);
        multiply_block(target, left, keys, ProductSize { rows, depth: size, columns: stride });
        let row_states = scores.chunks_exact_mut(stride).zip(&mut sums);
        for (row, ((scores, sum), accumulated)) in
            row_states.zip(accumulated.chunks_exact_mut(size)).enumerate()
        {
            let position = segment.prefix.len() + tokens.start + row / group;
            let seen = visible_in_block(shape, block, position);
            carry_softmax(scores, seen, shape.soft_cap, sum, accumulated);
        }
        let target = Target { values: &mut accumulated, stride: size, adds: true };
        let left = Left::Rows { values: scores, stride };
        let values = block_rows(operands, operands.values, block, head);
        let depth = block.positions.len();
        multiply_block(target, left, values, ProductSize { rows, depth, columns: size });
    }

    for (row, (sum, accumulated)) in sums.iter().zip(accumulated.chunks_exact(size)).enumerate() {
        let (token, member) = (row / group, row % group);
        let start = token * operands.query_features() + columns.start + member * size;
        let inverse = 1.0 / sum.sum;
        for (out, value) in output[start..start + size].iter_mut().zip(accumulated) {
            *out = value * inverse;
        }
        log_sum_exp[token * shape.query_heads + head * group + member] = sum.maximum + sum.sum.ln();
    }
}

/// The softmax denominator so far: `sum * exp(maximum)`.
#[derive(Clone, Copy)]
struct RunningSum {
    maximum: f32,
    sum: f32,
}

impl Default for RunningSum {
    fn default() -> Self {
        Self { maximum: f32::NEG_INFINITY, sum: 0.0 }
    }
}

vectorised! {
    /// Turns the scores of one query into weights relative to the new maximum, zero outside `seen`, and
    /// rescales the sums so far.
    fn carry_softmax(
        scores: &mut [f32],
        seen: Range<usize>,
        cap: Option<f32>,
        running: &mut RunningSum,
        accumulated: &mut [f32],
    ) {
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let scores = &mut scores[seen];
        if scores.is_empty() {
            return;
        }
        if let Some(cap) = cap {
            cap_slice(scores, cap);
        }
        let maximum = running.maximum.max(maximum_of(scores));
        if running.sum > 0.0 && maximum > running.maximum {
            let factor = (running.maximum - maximum).exp();
            running.sum *= factor;
            accumulated.iter_mut().for_each(|value| *value *= factor);
        }
        running.maximum = maximum;
        running.sum += exponentials::<FUSED>(scores, maximum);
    }
}
