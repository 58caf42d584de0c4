//! Compares an op set with [`ReferenceOps`], op by op, forward and backward.
//!
//! For the tests of op sets: `assert_eq!(check_ops(&ops, 1e-5), [])`.

use std::fmt::Debug;

use sppo_plugin::Optimizer;

use super::random::Noise;
use super::reference::ReferenceOps;
use super::{
    Activation, AttentionSegment, AttentionShape, CachedRow, Ops, Position, RotaryFrequencies,
    Routes, Routing, UpdateRule,
};
use crate::error::Result;

/// Runs every op on random inputs and edge shapes, and describes each result that differs from the
/// reference by more than `tolerance * max(1, largest reference value)`. f32 op sets hold `1e-5`.
pub fn check_ops<O: Ops>(ops: &O, tolerance: f64) -> Vec<String> {
    cases().iter().flat_map(|case| case.compare(ops, tolerance)).collect()
}

/// One op and the shapes to run it on.
#[derive(Debug)]
enum Case {
    Embedding { tokens: usize, vocabulary: usize, features: usize },
    Linear { rows: usize, input: usize, output: usize, bias: bool, trainable: bool },
    RmsNorm { rows: usize, groups: usize, size: usize, offset: f32 },
    Rotary { rows: usize, heads: usize, head_size: usize, pairs: usize, is_long: bool },
    Attention { shape: AttentionShape, segments: Vec<AttentionSegment>, rows: usize },
    RepeatedPrefix { shape: AttentionShape },
    CachedAttention { shape: AttentionShape, rows: Vec<CachedRow>, slots: usize },
    Elementwise { rows: usize, columns: usize, activation: Activation },
    Mixture { rows: usize, columns: usize, routing: Routing },
    SelectRows { row_count: usize, columns: usize, selected: usize },
    Head { rows: usize, features: usize, vocabulary: usize, soft_cap: Option<f32>, keep: bool },
    Update { optimizer: Optimizer, length: usize },
}

/// Named results of a case.
pub(super) type Outcome = Vec<(&'static str, Vec<f32>)>;

impl Case {
    fn compare<O: Ops>(&self, ops: &O, tolerance: f64) -> Vec<String> {
        differences(self, self.run(&ReferenceOps), self.run(ops), tolerance)
    }

    fn run<O: Ops>(&self, ops: &O) -> Result<Outcome> {
        let noise = &mut Noise(7);
        match self {
            &Self::Embedding { tokens, vocabulary, features } => {
                embedding(ops, noise, tokens, [vocabulary, features])
            }
            &Self::Linear { rows, input, output, bias, trainable } => {
                linear(ops, noise, rows, [output, input], bias, trainable)
            }
            &Self::RmsNorm { rows, groups, size, offset } => {
                rms_norm(ops, noise, rows, groups, size, offset)
            }
            &Self::Rotary { rows, heads, head_size, pairs, is_long } => {
                rotary(ops, noise, [rows, heads, head_size], pairs, is_long)
            }
            Self::Attention { shape, segments, rows } => {
                attention(ops, noise, shape, segments, *rows)
            }
            Self::RepeatedPrefix { shape } => repeated_prefix(ops, noise, shape),
            Self::CachedAttention { shape, rows, slots } => {
                cached_attention(ops, noise, shape, rows, *slots)
            }
            &Self::Elementwise { rows, columns, activation } => {
                elementwise(ops, noise, rows, columns, activation)
            }
            &Self::Mixture { rows, columns, routing } => {
                mixture(ops, noise, rows, columns, routing)
            }
            &Self::SelectRows { row_count, columns, selected } => {
                select_rows(ops, noise, row_count, columns, selected)
            }
            &Self::Head { rows, features, vocabulary, soft_cap, keep } => {
                head(ops, noise, rows, [vocabulary, features], soft_cap, keep)
            }
            Self::Update { optimizer, length } => update(ops, noise, optimizer, *length),
        }
    }
}

/// Describes where a case's outcome differs from the reference's.
pub(super) fn differences(
    case: &dyn Debug,
    expected: Result<Outcome>,
    actual: Result<Outcome>,
    tolerance: f64,
) -> Vec<String> {
    let (expected, actual) = match (expected, actual) {
        (Ok(expected), Ok(actual)) => (expected, actual),
        (Err(error), _) => return vec![format!("{case:?}: the reference failed: {error}")],
        (_, Err(error)) => return vec![format!("{case:?}: {error}")],
    };
    (expected.iter().zip(&actual))
        .filter_map(|((name, expected), (_, actual))| {
            difference(expected, actual, tolerance)
                .map(|difference| format!("{case:?}: {name}: {difference}"))
        })
        .collect()
}

/// Describes the worst difference beyond the tolerance, if there is one.
fn difference(expected: &[f32], actual: &[f32], tolerance: f64) -> Option<String> {
    if expected.len() != actual.len() {
        return Some(format!("{} values instead of {}", actual.len(), expected.len()));
    }
    let largest =
        expected.iter().fold(1.0_f64, |largest, &value| largest.max(f64::from(value).abs()));
    let (index, error) = (expected.iter().zip(actual))
        .map(|(&expected, &actual)| (f64::from(expected) - f64::from(actual)).abs())
        .map(|error| if error.is_nan() { f64::INFINITY } else { error })
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (error > tolerance * largest).then(|| {
        let (expected, actual) = (expected[index], actual[index]);
        format!("value {index} is {actual:?} instead of {expected:?} (off by {error:e})")
    })
}

fn embedding<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    tokens: usize,
    [vocabulary, features]: [usize; 2],
) -> Result<Outcome> {
    let values = noise.values(vocabulary * features);
    let mut table = ops.table(values, &[vocabulary, features], true)?;
    let tokens = noise.indices(tokens, vocabulary);
    let output = ops.embedding(&table, &tokens)?;
    ops.prepare_for_decoding(&mut table)?;
    let prepared = ops.embedding(&table, &tokens)?;
    ops.end_decoding(&mut table)?;
    let gradient = ops.tensor(noise.values(tokens.len() * features), tokens.len(), features)?;
    ops.embedding_backward(&mut table, &tokens, &gradient)?;
    Ok(vec![
        ("output", ops.values(&output)?),
        ("output while decoding", ops.values(&prepared)?),
        ("gradient of the table", gradient_of(ops, &table)?),
        ("gradient's square sum", vec![ops.gradient_square_sum(&table)? as f32]),
    ])
}

fn linear<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    shape: [usize; 2],
    with_bias: bool,
    trainable: bool,
) -> Result<Outcome> {
    let [output, input] = shape;
    let x = ops.tensor(noise.values(rows * input), rows, input)?;
    let mut weight = ops.parameter(noise.values(output * input), &shape, trainable)?;
    let mut bias = match with_bias {
        true => Some(ops.parameter(noise.values(output), &[output], trainable)?),
        false => None,
    };
    let y = ops.linear(&x, &weight, bias.as_ref())?;
    let mut other = ops.parameter(noise.values(24 * input), &[24, input], trainable)?;
    let beside_other = differing_beside(ops, &x, (&weight, bias.as_ref()), &other)?;
    ops.prepare_for_decoding(&mut weight)?;
    ops.prepare_for_decoding(&mut other)?;
    let prepared = ops.linear(&x, &weight, bias.as_ref())?;
    let prepared_beside_other = differing_beside(ops, &x, (&weight, bias.as_ref()), &other)?;
    ops.end_decoding(&mut weight)?;
    let gradient = ops.tensor(noise.values(rows * output), rows, output)?;
    ops.linear_backward(&x, &mut weight, bias.as_mut(), &gradient)?;
    let accumulated = ops.linear_backward(&x, &mut weight, bias.as_mut(), &gradient)?;
    let mut outcome = vec![
        ("output", ops.values(&y)?),
        ("shape", vec![ops.shape(&y).0 as f32, ops.shape(&y).1 as f32]),
        ("output while decoding", ops.values(&prepared)?),
        ("numbers that differ beside another weight", vec![beside_other as f32]),
        ("the same while decoding", vec![prepared_beside_other as f32]),
        ("gradient of x", ops.values(&accumulated)?),
        ("gradient of the weight, twice", gradient_of(ops, &weight)?),
    ];
    if let Some(bias) = &bias {
        outcome.push(("gradient of the bias, twice", gradient_of(ops, bias)?));
    }
    ops.clear_gradient(&mut weight)?;
    outcome.push(("gradient after clearing", gradient_of(ops, &weight)?));
    outcome.push(("square sum after clearing", vec![ops.gradient_square_sum(&weight)? as f32]));
    ops.linear_backward(&x, &mut weight, bias.as_mut(), &gradient)?;
    outcome.push(("gradient of the weight after clearing", gradient_of(ops, &weight)?));
    Ok(outcome)
}

/// The number of outputs that are not the same to the bit when products with two weights are asked for at once.
fn differing_beside<O: Ops>(
    ops: &O,
    x: &O::Tensor,
    (weight, bias): (&O::Parameter, Option<&O::Parameter>),
    other: &O::Parameter,
) -> Result<usize> {
    let together = ops.linears(x, &[(weight, bias), (other, None)])?;
    let alone = [ops.linear(x, weight, bias)?, ops.linear(x, other, None)?];
    let mut differing = together.len().abs_diff(alone.len());
    for (together, alone) in together.iter().zip(&alone) {
        let (together, alone) = (ops.values(together)?, ops.values(alone)?);
        differing += together.len().abs_diff(alone.len());
        differing +=
            together.iter().zip(&alone).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    }
    Ok(differing)
}

fn rms_norm<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    groups: usize,
    size: usize,
    offset: f32,
) -> Result<Outcome> {
    let columns = groups * size;
    let x = ops.tensor(noise.values(rows * columns), rows, columns)?;
    let mut weight = ops.parameter(noise.values(size), &[size], true)?;
    let y = ops.rms_norm(&x, &weight, 1e-3, offset)?;
    let gradient = ops.tensor(noise.values(rows * columns), rows, columns)?;
    let of_x = ops.rms_norm_backward(&x, &mut weight, 1e-3, offset, &gradient)?;
    Ok(vec![
        ("output", ops.values(&y)?),
        ("gradient of x", ops.values(&of_x)?),
        ("gradient of the weight", gradient_of(ops, &weight)?),
    ])
}

fn rotary<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    [rows, heads, head_size]: [usize; 3],
    pairs: usize,
    is_long: bool,
) -> Result<Outcome> {
    let columns = heads * head_size;
    let x = ops.tensor(noise.values(rows * columns), rows, columns)?;
    let gradient = ops.tensor(noise.values(rows * columns), rows, columns)?;
    // Every third row is of a long sequence.
    let place = |(row, index)| Position { index, is_in_long_sequence: is_long && row % 3 == 0 };
    let positions: Vec<Position> =
        noise.indices(rows, 200).into_iter().enumerate().map(place).collect();
    let powers = |base: f32| (0..pairs as i32).map(|pair| base.powi(pair)).collect();
    let frequencies = RotaryFrequencies {
        head_size,
        frequencies: powers(0.5),
        long_frequencies: is_long.then(|| powers(0.25)),
        scale: if is_long { 1.2 } else { 1.0 },
    };
    Ok(vec![
        ("output", ops.values(&ops.rotary(&x, &positions, &frequencies)?)?),
        ("gradient of x", ops.values(&ops.rotary_backward(&positions, &frequencies, &gradient)?)?),
    ])
}

fn attention<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    shape: &AttentionShape,
    segments: &[AttentionSegment],
    rows: usize,
) -> Result<Outcome> {
    let columns = shape.query_heads * shape.head_size;
    let shared_columns = shape.key_value_heads * shape.head_size;
    let mut tensor = |columns: usize| ops.tensor(noise.values(rows * columns), rows, columns);
    let (queries, gradient) = (tensor(columns)?, tensor(columns)?);
    let (keys, values) = (tensor(shared_columns)?, tensor(shared_columns)?);
    let forward = ops.attention(&queries, &keys, &values, shape, segments)?;
    let [of_queries, of_keys, of_values] =
        ops.attention_backward(&queries, &keys, &values, &forward, shape, segments, &gradient)?;
    Ok(vec![
        ("output", ops.values(&forward.output)?),
        ("gradient of queries", ops.values(&of_queries)?),
        ("gradient of keys", ops.values(&of_keys)?),
        ("gradient of values", ops.values(&of_values)?),
    ])
}

/// Keys and values that are there once more behind the rows of the batch, as a prefix in one piece. There is no
/// backward pass through these.
fn repeated_prefix<O: Ops>(ops: &O, noise: &mut Noise, shape: &AttentionShape) -> Result<Outcome> {
    let segment = |rows: std::ops::Range<usize>, prefix| AttentionSegment {
        queries: rows.clone(),
        prefix,
        own: rows,
    };
    let segments = [
        segment(0..20, 0..0),
        segment(20..26, 0..20),
        segment(26..29, 0..26),
        segment(29..34, 0..20),
        segment(34..40, 40..65),
    ];
    let (rows, repeated) = (40, (0..20).chain(29..34));
    let key_rows: Vec<u32> = (0..rows).chain(repeated).collect();
    let mut tensor = |heads: usize| {
        let columns = heads * shape.head_size;
        ops.tensor(noise.values(rows as usize * columns), rows as usize, columns)
    };
    let queries = tensor(shape.query_heads)?;
    let (keys, values) = (tensor(shape.key_value_heads)?, tensor(shape.key_value_heads)?);
    let (keys, values) = (ops.select_rows(&keys, &key_rows)?, ops.select_rows(&values, &key_rows)?);
    let forward = ops.attention(&queries, &keys, &values, shape, &segments)?;
    Ok(vec![("output", ops.values(&forward.output)?)])
}

fn cached_attention<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    shape: &AttentionShape,
    rows: &[CachedRow],
    slots: usize,
) -> Result<Outcome> {
    let shared_columns = shape.key_value_heads * shape.head_size;
    let mut cache = ops.cache(2, slots, shared_columns)?;
    // Every slot of both layers is written out of order, then some are overwritten.
    let all: Vec<u32> = (0..slots as u32).rev().collect();
    let some: Vec<u32> = (0..slots as u32).step_by(3).collect();
    for (layer, targets) in [(0, &all), (1, &all), (1, &some)] {
        let mut tensor = || {
            ops.tensor(noise.values(targets.len() * shared_columns), targets.len(), shared_columns)
        };
        let (keys, values) = (tensor()?, tensor()?);
        ops.cache_write(&mut cache, layer, &keys, &values, targets)?;
    }
    let columns = shape.query_heads * shape.head_size;
    let queries = ops.tensor(noise.values(rows.len() * columns), rows.len(), columns)?;
    let layer_output =
        |layer| ops.values(&ops.cached_attention(&queries, &cache, layer, shape, rows)?);
    Ok(vec![("output of layer 0", layer_output(0)?), ("output of layer 1", layer_output(1)?)])
}

fn elementwise<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    columns: usize,
    activation: Activation,
) -> Result<Outcome> {
    let mut tensor = |factor: f32| {
        let values = noise.values(rows * columns).iter().map(|value| value * factor).collect();
        ops.tensor(values, rows, columns)
    };
    let (gate, up, gradient) = (tensor(12.0)?, tensor(1.0)?, tensor(1.0)?);
    let output = ops.gated_activation(&gate, &up, activation)?;
    let [of_gate, of_up] = ops.gated_activation_backward(&gate, &up, activation, &gradient)?;
    Ok(vec![
        ("gated activation", ops.values(&output)?),
        ("gradient of the gate", ops.values(&of_gate)?),
        ("gradient of up", ops.values(&of_up)?),
        ("sum", ops.values(&ops.add(&gate, &up)?)?),
        ("multiple", ops.values(&ops.scale(&up, -2.5)?)?),
    ])
}

fn mixture<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    columns: usize,
    routing: Routing,
) -> Result<Outcome> {
    let routes = Routes::choose(&noise.values(rows * routing.expert_count), routing, true);
    let mut parts = Vec::new();
    for expert in &routes.experts {
        let rows = expert.rows.len();
        parts.push(ops.tensor(noise.values(rows * columns), rows, columns)?);
    }
    let parts: Vec<_> = parts.iter().collect();
    let gradient = ops.tensor(noise.values(rows * columns), rows, columns)?;
    let found = ops.mixture_backward(&parts, &routes, &gradient)?;
    let mut of_parts = Vec::new();
    for part in &found.of_parts {
        of_parts.extend(ops.values(part)?);
    }
    Ok(vec![
        ("output", ops.values(&ops.mixture(&parts, &routes)?)?),
        ("gradients of parts", of_parts),
        ("gradients of weights", found.of_weights.concat()),
    ])
}

fn select_rows<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    row_count: usize,
    columns: usize,
    selected: usize,
) -> Result<Outcome> {
    let x = ops.tensor(noise.values(row_count * columns), row_count, columns)?;
    let rows = noise.indices(selected, row_count);
    let gradient = ops.tensor(noise.values(selected * columns), selected, columns)?;
    Ok(vec![
        ("output", ops.values(&ops.select_rows(&x, &rows)?)?),
        ("gradient of x", ops.values(&ops.select_rows_backward(&rows, row_count, &gradient)?)?),
    ])
}

fn head<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    rows: usize,
    shape: [usize; 2],
    soft_cap: Option<f32>,
    keep: bool,
) -> Result<Outcome> {
    let [vocabulary, features] = shape;
    let hidden = noise.values(rows * features).iter().map(|value| 2.0 * value).collect();
    let hidden = ops.tensor(hidden, rows, features)?;
    let mut head = ops.parameter(noise.values(vocabulary * features), &shape, true)?;
    let targets = noise.indices(rows, vocabulary);
    let coefficients = noise.values(rows);
    let logits = ops.logits(&hidden, &head, soft_cap)?;
    ops.prepare_for_decoding(&mut head)?;
    let prepared = ops.logits(&hidden, &head, soft_cap)?;
    ops.end_decoding(&mut head)?;
    let (log_probs, kept) = ops.token_log_probs(&hidden, &head, &targets, soft_cap, keep)?;
    let of_hidden =
        ops.token_log_probs_backward(&hidden, &mut head, &targets, soft_cap, kept, &coefficients)?;
    Ok(vec![
        ("logits", ops.values(&logits)?),
        ("logits while decoding", ops.values(&prepared)?),
        ("log-probabilities", log_probs),
        ("gradient of hidden", ops.values(&of_hidden)?),
        ("gradient of the head", gradient_of(ops, &head)?),
    ])
}

fn update<O: Ops>(
    ops: &O,
    noise: &mut Noise,
    optimizer: &Optimizer,
    length: usize,
) -> Result<Outcome> {
    let mut parameter = ops.parameter(noise.values(length), &[1, length], true)?;
    let mut resumed = ops.parameter(ops.parameter_values(&parameter)?, &[1, length], true)?;
    let mut step = |parameter: &mut O::Parameter, step: u64| -> Result<()> {
        // As a table of one row, the parameter receives this gradient unchanged.
        let gradient = ops.tensor(noise.values(length), 1, length)?;
        ops.embedding_backward(parameter, &[0], &gradient)?;
        let optimizer = optimizer.clone();
        let rule = UpdateRule { optimizer, learning_rate: 0.01, gradient_scale: 0.5, step };
        ops.update(parameter, &rule)?;
        ops.clear_gradient(parameter)
    };
    for number in 1..=3 {
        step(&mut parameter, number)?;
    }
    let values = ops.parameter_values(&parameter)?;
    let state = ops.optimizer_state(&parameter)?;
    ops.set_optimizer_state(&mut resumed, state.clone())?;
    step(&mut resumed, 4)?;
    Ok(vec![
        ("parameter after three steps", values),
        ("optimiser state", state.concat()),
        ("parameter after a step from a given state", ops.parameter_values(&resumed)?),
    ])
}

fn gradient_of<O: Ops>(ops: &O, parameter: &O::Parameter) -> Result<Vec<f32>> {
    Ok(ops.parameter_gradient(parameter)?.unwrap_or_default())
}

fn shape(query_heads: usize, key_value_heads: usize, head_size: usize) -> AttentionShape {
    let scale = 1.0 / (head_size as f32).sqrt();
    AttentionShape { query_heads, key_value_heads, head_size, scale, soft_cap: None, window: None }
}

/// Two prompts; the first continued by two responses, the second by none but followed by a prompt
/// of one token.
fn shared_prompts() -> (Vec<AttentionSegment>, usize) {
    let prompt = |rows: std::ops::Range<usize>| AttentionSegment {
        queries: rows.clone(),
        prefix: 0..0,
        own: rows,
    };
    let segments = vec![
        prompt(0..7),
        AttentionSegment { queries: 7..12, prefix: 0..7, own: 7..12 },
        AttentionSegment { queries: 12..13, prefix: 0..7, own: 12..13 },
        prompt(13..48),
        prompt(48..49),
        AttentionSegment { queries: 49..70, prefix: 48..49, own: 49..70 },
    ];
    (segments, 70)
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::Embedding { tokens: 1, vocabulary: 3, features: 5 },
        Case::Embedding { tokens: 67, vocabulary: 31, features: 64 },
        Case::RmsNorm { rows: 1, groups: 1, size: 3, offset: 0.0 },
        Case::RmsNorm { rows: 37, groups: 1, size: 67, offset: 0.0 },
        Case::RmsNorm { rows: 9, groups: 4, size: 24, offset: 1.0 },
        Case::Rotary { rows: 1, heads: 1, head_size: 2, pairs: 1, is_long: false },
        Case::Rotary { rows: 35, heads: 3, head_size: 24, pairs: 12, is_long: false },
        Case::Rotary { rows: 35, heads: 3, head_size: 24, pairs: 9, is_long: true },
        Case::Rotary { rows: 5, heads: 2, head_size: 16, pairs: 8, is_long: true },
        Case::Mixture {
            rows: 1,
            columns: 3,
            routing: Routing { expert_count: 2, chosen: 1, is_normalised: false },
        },
        Case::Mixture {
            rows: 45,
            columns: 67,
            routing: Routing { expert_count: 9, chosen: 3, is_normalised: true },
        },
        Case::SelectRows { row_count: 1, columns: 3, selected: 1 },
        Case::SelectRows { row_count: 9, columns: 65, selected: 40 },
    ];
    for (rows, input, output) in [(1, 5, 3), (1, 192, 130), (3, 64, 64), (45, 67, 131)] {
        for (bias, trainable) in [(false, true), (true, true), (false, false)] {
            cases.push(Case::Linear { rows, input, output, bias, trainable });
        }
    }
    for activation in [Activation::Silu, Activation::GeluTanh] {
        cases.push(Case::Elementwise { rows: 1, columns: 1, activation });
        cases.push(Case::Elementwise { rows: 37, columns: 113, activation });
    }
    for (rows, features, vocabulary) in [(1, 3, 2), (5, 64, 517), (70, 24, 1501), (2, 8, 70_001)] {
        for (soft_cap, keep) in [(None, false), (None, true), (Some(1.5), false), (Some(1.5), true)]
        {
            cases.push(Case::Head { rows, features, vocabulary, soft_cap, keep });
        }
    }
    cases.extend(attention_cases());
    for optimizer in [
        Optimizer::default(),
        Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 },
        Optimizer::Sgd { momentum: 0.0 },
        Optimizer::Sgd { momentum: 0.9 },
    ] {
        cases.push(Case::Update { optimizer: optimizer.clone(), length: 1 });
        cases.push(Case::Update { optimizer, length: 1003 });
    }
    cases
}

fn attention_cases() -> Vec<Case> {
    let (segments, rows) = shared_prompts();
    let cached = |prefix: std::ops::Range<usize>, own: std::ops::Range<usize>| CachedRow {
        prefix,
        own: vec![own],
    };
    let cached_rows = vec![
        cached(3..20, 40..41),
        cached(3..20, 50..61),
        cached(20..21, 70..99),
        cached(0..0, 30..33),
    ];
    let mut shapes = vec![shape(1, 1, 2), shape(4, 4, 16), shape(9, 3, 64), shape(6, 2, 24)];
    shapes.push(AttentionShape { window: Some(1), ..shape(2, 1, 8) });
    shapes.push(AttentionShape { window: Some(8), soft_cap: Some(0.7), ..shape(4, 2, 24) });
    shapes.push(AttentionShape { scale: 3.0, soft_cap: Some(2.0), ..shape(4, 1, 16) });
    // All of them see a prompt, or none does.
    let prompted_rows = cached_rows[..3].to_vec();
    let lone_rows = vec![cached(0..0, 30..33), cached(0..0, 5..28)];
    // In pages that do not all follow each other.
    let paged_rows = vec![
        CachedRow { prefix: 3..20, own: vec![40..48, 88..91] },
        cached(3..20, 50..61),
        CachedRow { prefix: 3..20, own: vec![80..88, 72..80, 64..65] },
    ];
    let of_shape = |shape: AttentionShape| {
        let cached = [&cached_rows, &prompted_rows, &lone_rows, &paged_rows].map(|rows| {
            Case::CachedAttention { shape: shape.clone(), rows: rows.clone(), slots: 99 }
        });
        let repeated = Case::RepeatedPrefix { shape: shape.clone() };
        let packed = Case::Attention { shape, segments: segments.clone(), rows };
        [repeated, packed].into_iter().chain(cached)
    };
    shapes.into_iter().flat_map(of_shape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_beyond_the_tolerance_are_described() {
        assert_eq!(difference(&[1.0, 100.0], &[1.0, 100.05], 1e-3), None);
        assert!(difference(&[1.0, 100.0], &[1.0, 100.2], 1e-3).unwrap().contains("value 1"));
        assert!(difference(&[1.0], &[f32::NAN], 1e-3).is_some());
        assert!(difference(&[1.0], &[], 1e-3).is_some());
    }

    #[test]
    fn the_reference_conforms_to_itself() {
        assert_eq!(check_ops(&ReferenceOps, 0.0), Vec::<String>::new());
    }
}
