//! Disentangled attention (arXiv 2006.03654): scores of content with content, content with the relative
//! position, and the relative position with content.
//!
//! ```text
//! score(query, key) = scale (q k + q K[d] + Q[d] k)        d = distance bucket of query and key
//! ```
//!
//! A task is one head of one sequence. The products with all relative positions that occur are small
//! matrix products; each score then picks its two numbers by the distance of query and key.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;
use sppo_model::ops::encoder::{DisentangledShape, EncoderSegment};

use super::block::{ProductSize, Target, multiply_block};
use super::panels;
use super::tile::{Left, Right};
use super::tile_row::TILE_COLUMNS;
use super::vector::{exponentials, maximum_of, vectorised};

/// Queries whose scores are computed together.
const QUERY_ROWS: usize = 48;
/// Keys whose scores with all positions stay in the first-level cache while queries pick from them.
const KEY_ROWS: usize = 48;

/// The operands: rows of all heads, and the packed tables of relative positions.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    pub shape: &'a DisentangledShape,
    pub segments: &'a [EncoderSegment],
    pub queries: &'a [f32],
    pub keys: &'a [f32],
    pub values: &'a [f32],
    pub relative_keys: &'a [f32],
    pub relative_queries: &'a [f32],
}

/// Data that all heads of a sequence share.
struct Sequence<'a> {
    segment: &'a EncoderSegment,
    /// The keys of all heads in panels.
    keys: Vec<f32>,
    /// The table rows of all distances, falling; see `DistanceBuckets::rows`.
    rows: Vec<u32>,
}

impl Sequence<'_> {
    fn length(&self) -> usize {
        self.segment.keys.len()
    }

    /// The table rows of the query at a position, for each key.
    fn rows_of_query(&self, position: u32) -> &[u32] {
        &self.rows[self.length() - 1 - position as usize..][..self.length()]
    }

    /// The table rows that queries at these positions need for any key.
    fn rows_of_queries(&self, positions: &[u32]) -> Range<usize> {
        let (first, last) = positions.iter().fold((u32::MAX, 0), |(first, last), &position| {
            (first.min(position), last.max(position))
        });
        // Distances fall with the key, and rows with the distance.
        let lowest = self.rows_of_query(first).last().copied().unwrap_or(0);
        let highest = self.rows_of_query(last).first().copied().unwrap_or(0);
        whole_tiles(lowest..highest + 1)
    }

    /// The table rows that the keys need for any query.
    fn rows_of_keys(&self, keys: Range<usize>) -> Range<usize> {
        // Key `k` meets the distances `-k` to `length - 1 - k`.
        let last = self.length() - 1;
        whole_tiles(self.rows[last + keys.end - 1]..self.rows[keys.start] + 1)
    }
}

/// Whole tiles of table rows.
fn whole_tiles(rows: Range<u32>) -> Range<usize> {
    let tile = TILE_COLUMNS;
    rows.start as usize / tile * tile..(rows.end as usize).next_multiple_of(tile)
}

/// One row per query; `None` when two segments claim the same row. Rows of no segment are zero.
pub fn disentangled_attention(operands: Operands) -> Option<Vec<f32>> {
    let Operands { shape, segments, queries, keys, .. } = operands;
    let (heads, size) = (shape.heads, shape.head_size);
    let features = heads * size;
    let sequences: Vec<Sequence> = segments
        .iter()
        .filter(|segment| !segment.keys.is_empty())
        .map(|segment| {
            let length = segment.keys.len();
            let own = &keys[segment.keys.start * features..segment.keys.end * features];
            let rows = shape.buckets.rows(length);
            Sequence { segment, keys: panels::pack(own, length, features), rows }
        })
        .collect();
    let attended: Vec<Vec<f32>> = (0..sequences.len() * heads)
        .into_par_iter()
        .with_max_len(1)
        .map(|task| attend(&operands, &sequences[task / heads], task % heads))
        .collect();
    let mut output = vec![0.0; queries.len()];
    let sources = sources(&sequences, queries.len() / features.max(1))?;
    output.par_chunks_exact_mut(features).zip(sources).for_each(|(output, source)| {
        let Some((sequence, row)) = source else { return };
        let of_heads = &attended[sequence * heads..][..heads];
        for (output, attended) in output.chunks_exact_mut(size).zip(of_heads) {
            output.copy_from_slice(&attended[row * size..][..size]);
        }
    });
    Some(output)
}

/// The sequence of each query row, and its number among that sequence's queries.
fn sources(sequences: &[Sequence], rows: usize) -> Option<Vec<Option<(usize, usize)>>> {
    let mut sources = vec![None; rows];
    for (number, sequence) in sequences.iter().enumerate() {
        for (query, row) in sequence.segment.queries.clone().enumerate() {
            let source = sources.get_mut(row)?;
            if source.replace((number, query)).is_some() {
                return None;
            }
        }
    }
    Some(sources)
}

/// The output of one head, `[queries, head size]`.
fn attend(operands: &Operands, sequence: &Sequence, head: usize) -> Vec<f32> {
    SCRATCH.with_borrow_mut(|scratch| {
        let head = Head::new(operands, sequence, head, scratch);
        let positions = sequence.segment.positions.chunks(QUERY_ROWS);
        let mut output = vec![0.0; sequence.segment.queries.len() * head.size];
        let blocks = positions.zip(output.chunks_mut(QUERY_ROWS * head.size));
        for (block, (positions, output)) in blocks.enumerate() {
            let first = sequence.segment.queries.start + block * QUERY_ROWS;
            head.attend(positions, first, scratch, output);
        }
        output
    })
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Memory that the tasks of a thread use one after the other. Its values are old.
#[derive(Default)]
struct Scratch {
    /// Keys with relative positions as queries, `[keys, table_stride]`.
    key_scores: Vec<f32>,
    /// A block of queries with relative positions as keys, `[queries, table_stride]`.
    query_scores: Vec<f32>,
    /// A block of queries with all keys, `[queries, score_stride]`.
    scores: Vec<f32>,
}

/// One head of one sequence.
struct Head<'a> {
    operands: &'a Operands<'a>,
    sequence: &'a Sequence<'a>,
    /// Its first column in a row of all heads.
    first_column: usize,
    size: usize,
    values: Vec<f32>,
    table_stride: usize,
    score_stride: usize,
}

impl<'a> Head<'a> {
    /// Also computes the key scores, into `scratch`.
    fn new(
        operands: &'a Operands,
        sequence: &'a Sequence,
        head: usize,
        scratch: &mut Scratch,
    ) -> Self {
        let (shape, length) = (operands.shape, sequence.length());
        // Rows a little apart from powers of two, which would all meet in the same cache sets.
        let table_stride = shape.buckets.count().next_multiple_of(TILE_COLUMNS) + TILE_COLUMNS;
        let score_stride = length.next_multiple_of(TILE_COLUMNS);
        scratch.key_scores.resize(length * table_stride, 0.0);
        scratch.query_scores.resize(QUERY_ROWS * table_stride, 0.0);
        scratch.scores.resize(QUERY_ROWS * score_stride, 0.0);
        let mut head = Self {
            operands,
            sequence,
            first_column: head * shape.head_size,
            size: shape.head_size,
            values: Vec::new(),
            table_stride,
            score_stride,
        };
        head.values = head.gather(operands.values, sequence.segment.keys.clone(), 1.0);
        let keys = head.gather(operands.keys, sequence.segment.keys.clone(), shape.scale);
        let blocks = keys.chunks(KEY_ROWS * head.size);
        let targets = scratch.key_scores.chunks_mut(KEY_ROWS * table_stride);
        for (block, (keys, target)) in blocks.zip(targets).enumerate() {
            let rows = block * KEY_ROWS..length.min((block + 1) * KEY_ROWS);
            let columns = sequence.rows_of_keys(rows);
            head.multiply(keys, operands.relative_queries, columns, target, table_stride);
        }
        head
    }

    /// The head's columns of the given rows.
    fn gather(&self, values: &[f32], rows: Range<usize>, factor: f32) -> Vec<f32> {
        let features = self.features();
        let columns = self.first_column..self.first_column + self.size;
        let mut gathered = Vec::with_capacity(rows.len() * self.size);
        for row in values[rows.start * features..rows.end * features].chunks_exact(features) {
            gathered.extend(row[columns.clone()].iter().map(|value| value * factor));
        }
        gathered
    }

    fn features(&self) -> usize {
        self.operands.shape.heads * self.size
    }

    /// `target[rows, columns] = left[rows, size] panels[size, columns]`, where a panel holds 16 columns of
    /// all heads.
    fn multiply(
        &self,
        left: &[f32],
        panels: &[f32],
        columns: Range<usize>,
        target: &mut [f32],
        stride: usize,
    ) {
        let rows = left.len() / self.size;
        let size = ProductSize { rows, depth: self.size, columns: TILE_COLUMNS };
        for column in columns.step_by(TILE_COLUMNS) {
            let panel = &panels[column * self.features() + self.first_column * TILE_COLUMNS..];
            let target = Target { values: &mut target[column..], stride, adds: false };
            let left = Left::Rows { values: left, stride: self.size };
            multiply_block(target, left, Right { values: panel, stride: TILE_COLUMNS }, size);
        }
    }

    /// A block of queries at these positions, the first in row `first`.
    fn attend(&self, positions: &[u32], first: usize, scratch: &mut Scratch, output: &mut [f32]) {
        let Scratch { key_scores, query_scores, scores } = scratch;
        let (operands, sequence) = (self.operands, self.sequence);
        let (rows, length) = (positions.len(), sequence.length());
        let queries = self.gather(operands.queries, first..first + rows, operands.shape.scale);
        let scores = &mut scores[..rows * self.score_stride];
        self.multiply(&queries, &sequence.keys, 0..length, scores, self.score_stride);
        let columns = sequence.rows_of_queries(positions);
        self.multiply(&queries, operands.relative_keys, columns, query_scores, self.table_stride);
        for start in (0..length).step_by(KEY_ROWS) {
            let keys = start..length.min(start + KEY_ROWS);
            let key_scores =
                &key_scores[keys.start * self.table_stride..keys.end * self.table_stride];
            let query_scores = query_scores.chunks_exact(self.table_stride);
            let queries = scores.chunks_exact_mut(self.score_stride).zip(query_scores);
            for (&position, (scores, query_scores)) in positions.iter().zip(queries) {
                let rows = &sequence.rows_of_query(position)[keys.clone()];
                add_relative(&mut scores[keys.clone()], rows, query_scores, key_scores);
            }
        }
        let scores_of_queries = scores.chunks_exact_mut(self.score_stride);
        let sums: Vec<f32> =
            scores_of_queries.map(|scores| softmax(&mut scores[..length])).collect();
        let target = Target { values: &mut *output, stride: self.size, adds: false };
        let left = Left::Rows { values: scores, stride: self.score_stride };
        let right = Right { values: &self.values, stride: self.size };
        let size = ProductSize { rows, depth: length, columns: self.size };
        multiply_block(target, left, right, size);
        for (output, sum) in output.chunks_exact_mut(self.size).zip(sums) {
            let inverse = 1.0 / sum;
            output.iter_mut().for_each(|value| *value *= inverse);
        }
    }
}

/// Adds the relative terms to a query's scores with some keys. `rows` holds the table row of the distance
/// to each key: one term is the query's score with that row, the other the key's.
fn add_relative(scores: &mut [f32], rows: &[u32], query_scores: &[f32], key_scores: &[f32]) {
    let keys = key_scores.chunks_exact(query_scores.len());
    for ((score, &row), key_scores) in scores.iter_mut().zip(rows).zip(keys) {
        let row = row as usize;
        *score += query_scores[row] + key_scores[row];
    }
}

vectorised! {
    /// Replaces scores by weights relative to the largest and returns their sum.
    fn softmax(scores: &mut [f32]) -> f32 {
        let maximum = maximum_of(scores);
        exponentials::<FUSED>(scores, maximum)
    }
}
