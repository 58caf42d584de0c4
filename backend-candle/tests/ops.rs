//! Every op against plain f64 loops, and every backward pass against finite differences of them.

use std::ops::Range;

use candle_core::Tensor;
use sppo_backend_candle::{CandleOps, Parameter};
use sppo_model::ops::{
    Activation, AttentionSegment, AttentionShape, CachedRow, Ops, Position, RotaryFrequencies,
    UpdateRule,
};
use sppo_plugin::Optimizer;

const UNLIMITED: usize = usize::MAX;

fn ops() -> CandleOps {
    CandleOps::new(2, UNLIMITED).unwrap()
}

/// Reproducible numbers between -1 and 1.
fn random(length: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x2545_f491_4f6c_dd1d;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..length).map(|_| next()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

#[track_caller]
fn assert_close(values: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(values.len(), exact.len());
    for (index, (&value, &exact)) in values.iter().zip(exact).enumerate() {
        assert!(
            (f64::from(value) - exact).abs() <= tolerance * exact.abs().max(1.0),
            "element {index} is {value}, not {exact}"
        );
    }
}

/// Asserts that `gradient` is that of `objective` at `point`, at every `stride`-th element.
#[track_caller]
fn assert_gradient(
    gradient: &[f32],
    point: &[f32],
    stride: usize,
    objective: impl Fn(&[f64]) -> f64,
) {
    const STEP: f64 = 1e-5;
    assert_eq!(gradient.len(), point.len());
    let mut point = wide(point);
    for index in (0..point.len()).step_by(stride) {
        let centre = point[index];
        point[index] = centre + STEP;
        let above = objective(&point);
        point[index] = centre - STEP;
        let below = objective(&point);
        point[index] = centre;
        let exact = (above - below) / (2.0 * STEP);
        let value = f64::from(gradient[index]);
        assert!(
            (value - exact).abs() <= 2e-5 * exact.abs().max(1.0),
            "gradient {index} is {value}, not {exact}"
        );
    }
}

/// Sum of products.
fn weigh(outputs: &[f64], weights: &[f32]) -> f64 {
    assert_eq!(outputs.len(), weights.len());
    outputs.iter().zip(weights).map(|(output, &weight)| output * f64::from(weight)).sum()
}

fn tensor(ops: &CandleOps, values: &[f32], rows: usize) -> Tensor {
    ops.tensor(values.to_vec(), rows, values.len() / rows).unwrap()
}

fn gradient_of(ops: &CandleOps, parameter: &Parameter) -> Vec<f32> {
    ops.parameter_gradient(parameter).unwrap().unwrap()
}

fn exact_linear(x: &[f64], weight: &[f64], inputs: usize, bias: &[f64]) -> Vec<f64> {
    let outputs = bias.len();
    x.chunks(inputs)
        .flat_map(|x| {
            (0..outputs).map(|output| {
                let weight = &weight[output * inputs..][..inputs];
                bias[output] + x.iter().zip(weight).map(|(x, w)| x * w).sum::<f64>()
            })
        })
        .collect()
}

#[test]
fn linear_matches_and_accumulates_gradients_until_cleared() {
    let ops = ops();
    for (rows, inputs, outputs) in [(1, 24, 5), (7, 24, 40), (33, 16, 17)] {
        let (x, weight) = (random(rows * inputs, 1), random(outputs * inputs, 2));
        let (bias, dy) = (random(outputs, 3), random(rows * outputs, 4));
        let mut weight_parameter = ops.parameter(weight.clone(), &[outputs, inputs], true).unwrap();
        let mut bias_parameter = ops.parameter(bias.clone(), &[outputs], true).unwrap();
        let x_tensor = tensor(&ops, &x, rows);
        let y = ops.linear(&x_tensor, &weight_parameter, Some(&bias_parameter)).unwrap();
        let exact = exact_linear(&wide(&x), &wide(&weight), inputs, &wide(&bias));
        assert_close(&ops.values(&y).unwrap(), &exact, 1e-5);

        ops.prepare_for_decoding(&mut weight_parameter).unwrap();
        let prepared = ops.linear(&x_tensor, &weight_parameter, Some(&bias_parameter)).unwrap();
        assert_close(&ops.values(&prepared).unwrap(), &exact, 1e-5);
        ops.end_decoding(&mut weight_parameter).unwrap();

        for pass in 1..=3 {
            let dx = ops
                .linear_backward(
                    &x_tensor,
                    &mut weight_parameter,
                    Some(&mut bias_parameter),
                    &tensor(&ops, &dy, rows),
                )
                .unwrap();
            // The third pass comes after clearing and starts from nothing.
            let passes = if pass == 2 { 2.0 } else { 1.0 };
            let objective = |x: &[f64], weight: &[f64], bias: &[f64]| {
                passes * weigh(&exact_linear(x, weight, inputs, bias), &dy)
            };
            let (wide_x, wide_weight, wide_bias) = (wide(&x), wide(&weight), wide(&bias));
            assert_gradient(&gradient_of(&ops, &weight_parameter), &weight, 1, |weight| {
                objective(&wide_x, weight, &wide_bias)
            });
            assert_gradient(&gradient_of(&ops, &bias_parameter), &bias, 1, |bias| {
                objective(&wide_x, &wide_weight, bias)
            });
            assert_gradient(&ops.values(&dx).unwrap(), &x, 1, |x| {
                objective(x, &wide_weight, &wide_bias) / passes
            });
            if pass == 2 {
                ops.clear_gradient(&mut weight_parameter).unwrap();
                ops.clear_gradient(&mut bias_parameter).unwrap();
                assert_eq!(ops.parameter_gradient(&weight_parameter).unwrap(), None);
                assert_eq!(ops.gradient_square_sum(&weight_parameter).unwrap(), 0.0);
            }
        }
        let squares = gradient_of(&ops, &weight_parameter);
        let squares: f64 = squares.iter().map(|&g| f64::from(g).powi(2)).sum();
        let sum = ops.gradient_square_sum(&weight_parameter).unwrap();
        assert!((sum / squares - 1.0).abs() < 1e-12);
    }
}

#[test]
fn a_frozen_parameter_collects_no_gradient() {
    let ops = ops();
    let mut weight = ops.parameter(random(12, 1), &[3, 4], false).unwrap();
    let (x, dy) = (tensor(&ops, &random(8, 2), 2), tensor(&ops, &random(6, 3), 2));
    ops.linear_backward(&x, &mut weight, None, &dy).unwrap();
    assert_eq!(ops.parameter_gradient(&weight).unwrap(), None);
}

fn exact_rms_norm(x: &[f64], weight: &[f64], epsilon: f64, offset: f64) -> Vec<f64> {
    x.chunks(weight.len())
        .flat_map(|x| {
            let mean_square = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let root = (mean_square + epsilon).sqrt();
            x.iter().zip(weight).map(move |(x, weight)| x / root * (weight + offset))
        })
        .collect()
}

#[test]
fn rms_norm_matches_over_rows_and_over_heads() {
    let ops = ops();
    for (rows, columns, features) in [(1, 40, 40), (5, 48, 16), (70, 576, 576)] {
        let (epsilon, offset) = (1e-5, 1.0);
        let (x, weight) = (random(rows * columns, 5), random(features, 6));
        let dy = random(rows * columns, 7);
        let mut parameter = ops.parameter(weight.clone(), &[features], true).unwrap();
        let x_tensor = tensor(&ops, &x, rows);
        let y = ops.rms_norm(&x_tensor, &parameter, epsilon, offset).unwrap();
        let exact = |x: &[f64], w: &[f64]| exact_rms_norm(x, w, f64::from(epsilon), 1.0);
        assert_close(&ops.values(&y).unwrap(), &exact(&wide(&x), &wide(&weight)), 2e-6);
        let dy_tensor = tensor(&ops, &dy, rows);
        let dx =
            ops.rms_norm_backward(&x_tensor, &mut parameter, epsilon, offset, &dy_tensor).unwrap();
        let (wide_x, wide_weight) = (wide(&x), wide(&weight));
        let stride = 1 + x.len() / 100;
        assert_gradient(&ops.values(&dx).unwrap(), &x, stride, |x| {
            weigh(&exact(x, &wide_weight), &dy)
        });
        let stride = 1 + features / 50;
        assert_gradient(&gradient_of(&ops, &parameter), &weight, stride, |weight| {
            weigh(&exact(&wide_x, weight), &dy)
        });
    }
}

#[test]
fn rotary_turns_pairs_and_its_backward_turns_them_back() {
    let ops = ops();
    let frequencies = RotaryFrequencies::of_heads(vec![1.0, 0.3, 0.01]);
    let positions = [0, 7, 3, 900].map(Position::of);
    let x = random(4 * 12, 8);
    let turned = ops.rotary(&tensor(&ops, &x, 4), &positions, &frequencies).unwrap();
    let mut exact = wide(&x);
    for (head, values) in exact.chunks_mut(6).enumerate() {
        let position = f64::from(positions[head / 2].index);
        for pair in 0..3 {
            let angle = position * f64::from(frequencies.frequencies[pair]);
            let (first, second) = (values[pair], values[pair + 3]);
            values[pair] = first * angle.cos() - second * angle.sin();
            values[pair + 3] = second * angle.cos() + first * angle.sin();
        }
    }
    // Angles are rounded to f32, as transformers does: 900 * 0.3 is off by up to 1.5e-5.
    assert_close(&ops.values(&turned).unwrap(), &exact, 3e-5);
    let back = ops.rotary_backward(&positions, &frequencies, &turned).unwrap();
    assert_close(&ops.values(&back).unwrap(), &wide(&x), 1e-6);
}

fn exact_gated(gate: f64, up: f64, activation: Activation) -> f64 {
    match activation {
        Activation::Silu => gate / (1.0 + (-gate).exp()) * up,
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (gate + 0.044715 * gate.powi(3));
            0.5 * gate * (1.0 + inner.tanh()) * up
        }
    }
}

#[test]
fn gated_activations_match() {
    let ops = ops();
    let count = 20_011;
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let gate: Vec<f32> = random(count, 9).iter().map(|gate| gate * 8.0).collect();
        let (up, dy) = (random(count, 10), random(count, 11));
        let (gate_tensor, up_tensor) = (tensor(&ops, &gate, 1), tensor(&ops, &up, 1));
        let y = ops.gated_activation(&gate_tensor, &up_tensor, activation).unwrap();
        let exact = |gate: &[f64], up: &[f64]| -> Vec<f64> {
            gate.iter().zip(up).map(|(&gate, &up)| exact_gated(gate, up, activation)).collect()
        };
        assert_close(&ops.values(&y).unwrap(), &exact(&wide(&gate), &wide(&up)), 1e-6);
        let [gate_gradient, up_gradient] = ops
            .gated_activation_backward(&gate_tensor, &up_tensor, activation, &tensor(&ops, &dy, 1))
            .unwrap();
        let (wide_gate, wide_up) = (wide(&gate), wide(&up));
        assert_gradient(&ops.values(&gate_gradient).unwrap(), &gate, 97, |gate| {
            weigh(&exact(gate, &wide_up), &dy)
        });
        assert_gradient(&ops.values(&up_gradient).unwrap(), &up, 97, |up| {
            weigh(&exact(&wide_gate, up), &dy)
        });
    }
}

#[test]
fn sums_and_rows_match_and_repeated_rows_collect_all_gradients() {
    let ops = ops();
    let (a, b) = (random(50_000, 12), random(50_000, 13));
    let sum = ops.add(&tensor(&ops, &a, 5), &tensor(&ops, &b, 5)).unwrap();
    let exact: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    assert_eq!(ops.values(&sum).unwrap(), exact);
    let scaled = ops.scale(&tensor(&ops, &a, 5), 0.5).unwrap();
    assert_eq!(ops.values(&scaled).unwrap(), a.iter().map(|a| 0.5 * a).collect::<Vec<_>>());

    let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    let rows = [2, 0, 2, 2];
    let selected = ops.select_rows(&tensor(&ops, &x, 3), &rows).unwrap();
    assert_eq!(ops.values(&selected).unwrap(), [5.0, 6.0, 1.0, 2.0, 5.0, 6.0, 5.0, 6.0]);
    let gradient = ops.select_rows_backward(&rows, 3, &selected).unwrap();
    assert_eq!(ops.values(&gradient).unwrap(), [1.0, 2.0, 0.0, 0.0, 15.0, 18.0]);

    let mut table = ops.parameter(x.to_vec(), &[3, 2], true).unwrap();
    assert_eq!(
        ops.values(&ops.embedding(&table, &rows).unwrap()).unwrap(),
        ops.values(&selected).unwrap()
    );
    for _ in 0..2 {
        ops.embedding_backward(&mut table, &rows, &selected).unwrap();
    }
    assert_eq!(gradient_of(&ops, &table), [2.0, 4.0, 0.0, 0.0, 30.0, 36.0]);
}

struct AttentionCase {
    shape: AttentionShape,
    segments: Vec<AttentionSegment>,
    rows: usize,
}

fn prompt(rows: Range<usize>) -> AttentionSegment {
    AttentionSegment { queries: rows.clone(), prefix: 0..0, own: rows }
}

fn response(prefix: Range<usize>, rows: Range<usize>) -> AttentionSegment {
    AttentionSegment { queries: rows.clone(), prefix, own: rows }
}

fn attention_shape(query_heads: usize, key_value_heads: usize, head_size: usize) -> AttentionShape {
    AttentionShape {
        query_heads,
        key_value_heads,
        head_size,
        scale: 0.6,
        soft_cap: None,
        window: None,
    }
}

fn exact_scores(
    shape: &AttentionShape,
    query: &[f64],
    head: usize,
    keys: &[f64],
    seen: &[usize],
) -> (Vec<f64>, f64) {
    let size = shape.head_size;
    let features = shape.key_value_heads * size;
    let key_head = head / (shape.query_heads / shape.key_value_heads);
    let scores: Vec<f64> = seen
        .iter()
        .map(|row| {
            let key = &keys[row * features + key_head * size..][..size];
            let query = &query[head * size..][..size];
            let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
            let score = f64::from(shape.scale) * dot;
            shape.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
        })
        .collect();
    let log_sum_exp = scores.iter().map(|score| score.exp()).sum::<f64>().ln();
    (scores.iter().map(|score| (score - log_sum_exp).exp()).collect(), log_sum_exp)
}

/// Output and log-sum-exp of one query row that sees the given key rows, before the window.
fn exact_query(
    shape: &AttentionShape,
    query: &[f64],
    keys: &[f64],
    values: &[f64],
    rows: &[usize],
) -> (Vec<f64>, Vec<f64>) {
    let size = shape.head_size;
    let features = shape.key_value_heads * size;
    let seen = &rows[shape.window.map_or(0, |window| rows.len().saturating_sub(window))..];
    let (mut output, mut log_sum_exps) = (Vec::new(), Vec::new());
    for head in 0..shape.query_heads {
        let (weights, log_sum_exp) = exact_scores(shape, query, head, keys, seen);
        let key_head = head / (shape.query_heads / shape.key_value_heads);
        output.extend((0..size).map(|feature| {
            let value = |row: &usize| values[row * features + key_head * size + feature];
            seen.iter().zip(&weights).map(|(row, weight)| weight * value(row)).sum::<f64>()
        }));
        log_sum_exps.push(log_sum_exp);
    }
    (output, log_sum_exps)
}

fn exact_attention(
    case: &AttentionCase,
    queries: &[f64],
    keys: &[f64],
    values: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let features = case.shape.query_heads * case.shape.head_size;
    let mut output = vec![0.0; case.rows * features];
    let mut log_sum_exps = vec![0.0; case.rows * case.shape.query_heads];
    for segment in &case.segments {
        for (index, row) in segment.queries.clone().enumerate() {
            let own = segment.own.start..segment.own.start + index + 1;
            let rows: Vec<usize> = segment.prefix.clone().chain(own).collect();
            let query = &queries[row * features..][..features];
            let (one, sums) = exact_query(&case.shape, query, keys, values, &rows);
            output[row * features..][..features].copy_from_slice(&one);
            log_sum_exps[row * sums.len()..][..sums.len()].copy_from_slice(&sums);
        }
    }
    (output, log_sum_exps)
}

/// Checks forward and backward; gradients at `checks` or so elements of each operand.
fn check_attention(case: &AttentionCase, checks: usize) {
    let ops = ops();
    let shape = &case.shape;
    let key_features = shape.key_value_heads * shape.head_size;
    let features = shape.query_heads * shape.head_size;
    let queries = random(case.rows * features, 20);
    let keys = random(case.rows * key_features, 21);
    let values = random(case.rows * key_features, 22);
    let gradient = random(case.rows * features, 23);
    let [q, k, v] = [&queries, &keys, &values].map(|values| tensor(&ops, values, case.rows));
    let forward = ops.attention(&q, &k, &v, shape, &case.segments).unwrap();
    let (wide_q, wide_k, wide_v) = (wide(&queries), wide(&keys), wide(&values));
    let (output, log_sum_exps) = exact_attention(case, &wide_q, &wide_k, &wide_v);
    assert_close(&ops.values(&forward.output).unwrap(), &output, 3e-6);
    assert_close(&ops.values(&forward.log_sum_exp).unwrap(), &log_sum_exps, 3e-6);

    let gradient_tensor = tensor(&ops, &gradient, case.rows);
    let backward = || {
        ops.attention_backward(&q, &k, &v, &forward, shape, &case.segments, &gradient_tensor)
            .unwrap()
            .map(|gradient| ops.values(&gradient).unwrap())
    };
    let [dq, dk, dv] = backward();
    assert_eq!([dq.clone(), dk.clone(), dv.clone()], backward(), "not reproducible");
    let stride = |count: usize| count / checks + 1;
    assert_gradient(&dq, &queries, stride(dq.len()), |queries| {
        weigh(&exact_attention(case, queries, &wide_k, &wide_v).0, &gradient)
    });
    assert_gradient(&dk, &keys, stride(dk.len()), |keys| {
        weigh(&exact_attention(case, &wide_q, keys, &wide_v).0, &gradient)
    });
    assert_gradient(&dv, &values, stride(dv.len()), |values| {
        weigh(&exact_attention(case, &wide_q, &wide_k, values).0, &gradient)
    });
}

fn two_shared_prompts() -> Vec<AttentionSegment> {
    vec![
        prompt(0..6),
        response(0..6, 6..11),
        response(0..6, 11..12),
        prompt(12..13),
        response(12..13, 13..20),
        response(12..13, 20..23),
    ]
}

#[test]
fn attention_matches_with_shared_prompts_groups_window_and_cap() {
    for (query_heads, key_value_heads) in [(9, 3), (2, 2), (4, 1)] {
        for (soft_cap, window) in [(None, None), (Some(0.7), None), (None, Some(4))] {
            let shape = AttentionShape {
                soft_cap,
                window,
                ..attention_shape(query_heads, key_value_heads, 6)
            };
            let case = AttentionCase { shape, segments: two_shared_prompts(), rows: 23 };
            check_attention(&case, 40);
        }
    }
}

#[test]
fn attention_matches_across_query_and_key_blocks() {
    // Longer than one block of keys (512) in prefix and own rows, and many blocks of queries.
    let segments = vec![prompt(0..530), response(0..530, 530..1100), response(0..530, 1100..1101)];
    let shape = attention_shape(2, 1, 4);
    check_attention(&AttentionCase { shape, segments, rows: 1101 }, 3);
    let segments = vec![prompt(0..530), response(0..530, 530..1100)];
    let shape =
        AttentionShape { window: Some(100), soft_cap: Some(2.0), ..attention_shape(2, 1, 4) };
    check_attention(&AttentionCase { shape, segments, rows: 1100 }, 3);
}

#[test]
fn a_segment_alone_gives_the_same_bits_as_in_a_batch() {
    let ops = ops();
    let shape = attention_shape(9, 3, 64);
    let (queries, keys, values) = (random(90 * 576, 1), random(90 * 192, 2), random(90 * 192, 3));
    let all = ops
        .attention(
            &tensor(&ops, &queries, 90),
            &tensor(&ops, &keys, 90),
            &tensor(&ops, &values, 90),
            &shape,
            &[prompt(0..37), prompt(37..90)],
        )
        .unwrap();
    let alone = ops
        .attention(
            &tensor(&ops, &queries[37 * 576..], 53),
            &tensor(&ops, &keys[37 * 192..], 53),
            &tensor(&ops, &values[37 * 192..], 53),
            &shape,
            &[prompt(0..53)],
        )
        .unwrap();
    let all = ops.values(&all.output).unwrap();
    assert_eq!(ops.values(&alone.output).unwrap(), all[37 * 576..]);
}

#[test]
fn cached_attention_matches_two_spans() {
    let ops = ops();
    for (soft_cap, window) in [(None, None), (Some(0.7), None), (None, Some(4))] {
        let shape = AttentionShape { soft_cap, window, ..attention_shape(6, 2, 20) };
        let (slots, features) = (30, 40);
        let (keys, values) = (random(slots * features, 31), random(slots * features, 32));
        let mut cache = ops.cache(2, slots, features).unwrap();
        // Written in two parts and out of order.
        let order: Vec<u32> = (0..slots as u32).map(|slot| (slot * 7) % slots as u32).collect();
        for part in order.chunks(17) {
            let rows = |values: &[f32]| -> Vec<f32> {
                let row = |&slot: &u32| values[slot as usize * features..][..features].to_vec();
                part.iter().flat_map(row).collect()
            };
            let keys = tensor(&ops, &rows(&keys), part.len());
            let values = tensor(&ops, &rows(&values), part.len());
            ops.cache_write(&mut cache, 1, &keys, &values, part).unwrap();
        }
        let rows = [
            CachedRow { prefix: 3..9, own: vec![20..24, 27..30] },
            CachedRow { prefix: 0..0, own: vec![5..6] },
            CachedRow { prefix: 3..9, own: vec![28..30] },
        ];
        let queries = random(3 * 120, 33);
        let output =
            ops.cached_attention(&tensor(&ops, &queries, 3), &cache, 1, &shape, &rows).unwrap();
        let exact: Vec<f64> = rows
            .iter()
            .zip(queries.chunks(120))
            .flat_map(|(row, query)| {
                let seen: Vec<usize> = row.slots().collect();
                exact_query(&shape, &wide(query), &wide(&keys), &wide(&values), &seen).0
            })
            .collect();
        assert_close(&ops.values(&output).unwrap(), &exact, 3e-6);
    }
}

fn exact_log_probs(
    hidden: &[f64],
    head: &[f64],
    features: usize,
    targets: &[u32],
    cap: Option<f32>,
) -> Vec<f64> {
    let bias = vec![0.0; head.len() / features];
    let logits = exact_linear(hidden, head, features, &bias);
    logits
        .chunks(bias.len())
        .zip(targets)
        .map(|(logits, &target)| {
            let cap = |logit: f64| {
                cap.map_or(logit, |cap| f64::from(cap) * (logit / f64::from(cap)).tanh())
            };
            let sum: f64 = logits.iter().map(|&logit| cap(logit).exp()).sum();
            cap(logits[target as usize]) - sum.ln()
        })
        .collect()
}

#[test]
fn token_log_probs_match_kept_or_not() {
    let features = 12;
    for (rows, vocabulary, cap) in [(1, 7, None), (1100, 37, None), (45, 300, Some(1.5))] {
        let (hidden, head) = (random(rows * features, 41), random(vocabulary * features, 42));
        let targets: Vec<u32> = (0..rows).map(|row| (row * 5 % vocabulary) as u32).collect();
        let coefficients = random(rows, 43);
        let (wide_hidden, wide_head) = (wide(&hidden), wide(&head));
        let mut results = Vec::new();
        for limit in [0, UNLIMITED] {
            let ops = CandleOps::new(2, limit).unwrap();
            let mut parameter = ops.parameter(head.clone(), &[vocabulary, features], true).unwrap();
            let hidden_tensor = tensor(&ops, &hidden, rows);
            let (log_probs, kept) =
                ops.token_log_probs(&hidden_tensor, &parameter, &targets, cap, true).unwrap();
            assert_eq!(kept.is_some(), limit == UNLIMITED);
            let exact = exact_log_probs(&wide_hidden, &wide_head, features, &targets, cap);
            assert_close(&log_probs, &exact, 2e-6);
            let hidden_gradient = ops
                .token_log_probs_backward(
                    &hidden_tensor,
                    &mut parameter,
                    &targets,
                    cap,
                    kept,
                    &coefficients,
                )
                .unwrap();
            let hidden_gradient = ops.values(&hidden_gradient).unwrap();
            let stride = 1 + hidden.len() / 40;
            assert_gradient(&hidden_gradient, &hidden, stride, |hidden| {
                let log_probs = exact_log_probs(hidden, &wide_head, features, &targets, cap);
                weigh(&log_probs, &coefficients)
            });
            let head_gradient = gradient_of(&ops, &parameter);
            assert_gradient(&head_gradient, &head, 1 + head.len() / 40, |head| {
                let log_probs = exact_log_probs(&wide_hidden, head, features, &targets, cap);
                weigh(&log_probs, &coefficients)
            });
            results.push((log_probs, hidden_gradient, head_gradient));
        }
        assert_eq!(results[0], results[1], "keeping the logits changed the result");
    }
}

#[test]
fn logits_are_capped_products() {
    let ops = ops();
    let (hidden, head) = (random(3 * 8, 51), random(20 * 8, 52));
    let parameter = ops.parameter(head.clone(), &[20, 8], false).unwrap();
    let logits = ops.logits(&tensor(&ops, &hidden, 3), &parameter, Some(0.5)).unwrap();
    let exact: Vec<f64> = exact_linear(&wide(&hidden), &wide(&head), 8, &[0.0; 20])
        .iter()
        .map(|logit| 0.5 * (logit / 0.5).tanh())
        .collect();
    assert_close(&ops.values(&logits).unwrap(), &exact, 1e-6);
}

/// One element under `torch.optim`'s rules, in f64.
fn exact_steps(optimizer: &Optimizer, mut value: f64, gradients: &[f64], rate: f64) -> f64 {
    let (mut first, mut second) = (0.0, 0.0);
    for (step, gradient) in (1..).zip(gradients) {
        match *optimizer {
            Optimizer::RmsProp { alpha, epsilon } => {
                second = alpha * second + (1.0 - alpha) * gradient * gradient;
                value -= rate * gradient / (second.sqrt() + epsilon);
            }
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                first = beta1 * first + (1.0 - beta1) * gradient;
                second = beta2 * second + (1.0 - beta2) * gradient * gradient;
                let first = first / (1.0 - beta1.powi(step));
                let second = second / (1.0 - beta2.powi(step));
                value -= rate * weight_decay * value;
                value -= rate * first / (second.sqrt() + epsilon);
            }
            Optimizer::Sgd { momentum } => {
                first = momentum * first + gradient;
                value -= rate * first;
            }
        }
    }
    value
}

#[test]
fn optimisers_follow_torch_and_resume_from_their_state() {
    let ops = ops();
    let optimizers = [
        Optimizer::default(),
        Optimizer::AdamW { beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 },
        Optimizer::Sgd { momentum: 0.0 },
        Optimizer::Sgd { momentum: 0.9 },
    ];
    let count = 20_003;
    let values = random(count, 61);
    let gradients = [62, 63, 64].map(|seed| random(count, seed));
    for optimizer in optimizers {
        let mut parameter = ops.parameter(values.clone(), &[1, count], true).unwrap();
        for (step, gradient) in (1..).zip(&gradients) {
            ops.embedding_backward(&mut parameter, &[0], &tensor(&ops, gradient, 1)).unwrap();
            let rule = UpdateRule {
                optimizer: optimizer.clone(),
                learning_rate: 0.01,
                gradient_scale: 0.5,
                step,
            };
            ops.update(&mut parameter, &rule).unwrap();
            ops.clear_gradient(&mut parameter).unwrap();
            // As a resumed run does: weights and state leave and come back.
            let state = ops.optimizer_state(&parameter).unwrap();
            let weights = ops.parameter_values(&parameter).unwrap();
            parameter = ops.parameter(weights, &[1, count], true).unwrap();
            ops.set_optimizer_state(&mut parameter, state).unwrap();
        }
        let exact: Vec<f64> = (0..count)
            .map(|index| {
                let history: Vec<f64> =
                    gradients.iter().map(|gradient| 0.5 * f64::from(gradient[index])).collect();
                exact_steps(&optimizer, f64::from(values[index]), &history, 0.01)
            })
            .collect();
        assert_close(&ops.parameter_values(&parameter).unwrap(), &exact, 3e-7);
    }
}
