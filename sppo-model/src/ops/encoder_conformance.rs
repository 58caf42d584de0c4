//! Compares an op set's encoder ops with [`ReferenceOps`].
//!
//! For the tests of op sets: `assert_eq!(check_encoder_ops(&ops, 1e-5), [])`.

use super::conformance::{Outcome, differences};
use super::encoder::{DisentangledShape, DistanceBuckets, EncoderOps, EncoderSegment, Pointwise};
use super::random::Noise;
use super::reference::ReferenceOps;
use crate::error::Result;

/// Runs every encoder op on random inputs and edge shapes, and describes each result that differs from
/// the reference by more than `tolerance * max(1, largest reference value)`. f32 op sets hold `1e-5`.
pub fn check_encoder_ops<O: EncoderOps>(ops: &O, tolerance: f64) -> Vec<String> {
    let compare =
        |case: &Case| differences(case, case.run(&ReferenceOps), case.run(ops), tolerance);
    cases().iter().flat_map(compare).collect()
}

/// One op and the shapes to run it on.
#[derive(Debug)]
enum Case {
    LayerNorm { rows: usize, columns: usize },
    Pointwise { rows: usize, columns: usize, function: Pointwise },
    Attention { shape: DisentangledShape, segments: Vec<EncoderSegment> },
}

impl Case {
    fn run<O: EncoderOps>(&self, ops: &O) -> Result<Outcome> {
        let noise = &mut Noise(11);
        match self {
            &Self::LayerNorm { rows, columns } => layer_norm(ops, noise, rows, columns),
            &Self::Pointwise { rows, columns, function } => {
                let values = noise.values(rows * columns).iter().map(|value| 9.0 * value).collect();
                let x = ops.tensor(values, rows, columns)?;
                Ok(vec![("output", ops.values(&ops.pointwise(&x, function)?)?)])
            }
            Self::Attention { shape, segments } => attention(ops, noise, shape, segments),
        }
    }
}

fn layer_norm<O: EncoderOps>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    columns: usize,
) -> Result<Outcome> {
    // Far from zero, so that a careless variance shows.
    let values = noise.values(rows * columns).iter().map(|value| value + 3.0).collect();
    let x = ops.tensor(values, rows, columns)?;
    let weight = ops.parameter(noise.values(columns), &[columns], false)?;
    let bias = ops.parameter(noise.values(columns), &[columns], false)?;
    Ok(vec![("output", ops.values(&ops.layer_norm(&x, &weight, &bias, 1e-3)?)?)])
}

fn attention<O: EncoderOps>(
    ops: &O,
    noise: &mut Noise,
    shape: &DisentangledShape,
    segments: &[EncoderSegment],
) -> Result<Outcome> {
    let columns = shape.heads * shape.head_size;
    let rows = |end: fn(&EncoderSegment) -> usize| segments.iter().map(end).max().unwrap_or(0);
    let (query_rows, key_rows) =
        (rows(|segment| segment.queries.end), rows(|segment| segment.keys.end));
    let mut tensor = |rows: usize| ops.tensor(noise.values(rows * columns), rows, columns);
    let queries = tensor(query_rows)?;
    let (keys, values) = (tensor(key_rows)?, tensor(key_rows)?);
    let (relative_keys, relative_queries) =
        (tensor(shape.buckets.count())?, tensor(shape.buckets.count())?);
    let tables = ops.relative_tables(&relative_keys, &relative_queries, shape)?;
    let output = ops.disentangled_attention(&queries, &keys, &values, &tables, shape, segments)?;
    Ok(vec![("output", ops.values(&output)?)])
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rows, columns) in [(1, 3), (37, 67), (5, 1024)] {
        cases.push(Case::LayerNorm { rows, columns });
        for function in [Pointwise::Gelu, Pointwise::Tanh] {
            cases.push(Case::Pointwise { rows, columns, function });
        }
    }
    let shape = |heads: usize, head_size: usize, span: usize, longest_distance: usize| {
        let buckets = DistanceBuckets { span, longest_distance };
        DisentangledShape {
            heads,
            head_size,
            scale: 1.0 / (3.0 * head_size as f32).sqrt(),
            buckets,
        }
    };
    for shape in [shape(1, 2, 4, 9), shape(3, 16, 10, 64), shape(2, 24, 32, 64)] {
        cases.push(Case::Attention { shape, segments: whole_sequences(&[7, 1, 40, 113]) });
        cases.push(Case::Attention { shape, segments: selected_queries() });
    }
    let shape = shape(2, 64, 256, 512);
    cases.push(Case::Attention { shape, segments: whole_sequences(&[30, 330]) });
    cases
}

/// Sequences of these lengths, one after the other, all of whose tokens query.
fn whole_sequences(lengths: &[usize]) -> Vec<EncoderSegment> {
    let mut start = 0;
    let mut segment = |&length: &usize| {
        let rows = start..start + length;
        start += length;
        let positions = (0..length as u32).collect();
        EncoderSegment { keys: rows.clone(), queries: rows, positions }
    };
    lengths.iter().map(&mut segment).collect()
}

/// Three sequences, of which a few tokens query, not in the order of their keys.
fn selected_queries() -> Vec<EncoderSegment> {
    vec![
        EncoderSegment { keys: 0..50, queries: 3..6, positions: [49, 0, 17].into() },
        EncoderSegment { keys: 50..52, queries: 0..1, positions: [1].into() },
        EncoderSegment { keys: 52..150, queries: 1..3, positions: [3, 96].into() },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_conforms_to_itself() {
        assert_eq!(check_encoder_ops(&ReferenceOps, 0.0), Vec::<String>::new());
    }
}
