//! Finite differences: every backward op against the slope of its forward op, in f64.

use super::*;
use crate::ops::Routing;
use crate::ops::random::Noise;

const STEP: f64 = 1e-5;

fn tensor(noise: &mut Noise, rows: usize, columns: usize) -> ReferenceTensor {
    ReferenceTensor { values: widen(&noise.values(rows * columns)), rows, columns }
}

fn parameter(noise: &mut Noise, shape: &[usize]) -> ReferenceParameter {
    ReferenceOps.parameter(noise.values(shape.iter().product()), shape, true).unwrap()
}

/// The slope of `loss` along every value that `select` points at.
fn slopes<T: Clone>(
    input: &T,
    select: fn(&mut T) -> &mut Vec<f64>,
    loss: impl Fn(&T) -> f64,
) -> Vec<f64> {
    let count = select(&mut input.clone()).len();
    let at = |index: usize, shift: f64| {
        let mut shifted = input.clone();
        select(&mut shifted)[index] += shift;
        loss(&shifted)
    };
    (0..count).map(|index| (at(index, STEP) - at(index, -STEP)) / (2.0 * STEP)).collect()
}

fn tensor_slopes(input: &ReferenceTensor, loss: impl Fn(&ReferenceTensor) -> f64) -> Vec<f64> {
    slopes(input, |tensor| &mut tensor.values, loss)
}

fn parameter_slopes(
    input: &ReferenceParameter,
    loss: impl Fn(&ReferenceParameter) -> f64,
) -> Vec<f64> {
    slopes(input, |parameter| &mut parameter.values, loss)
}

fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (actual, expected) in actual.iter().zip(expected) {
        assert!((actual - expected).abs() < 1e-8 * (1.0 + expected.abs()), "{actual} {expected}");
    }
}

#[test]
fn linear_and_embedding() {
    let noise = &mut Noise(1);
    let (x, weighting) = (tensor(noise, 3, 4), tensor(noise, 3, 5));
    let (weight, bias) = (parameter(noise, &[5, 4]), parameter(noise, &[5]));
    let loss = |x: &_, weight: &_, bias: &_| {
        dot(&ReferenceOps.linear(x, weight, Some(bias)).unwrap().values, &weighting.values)
    };
    let (mut trained, mut trained_bias) = (weight.clone(), bias.clone());
    let of_x = ReferenceOps
        .linear_backward(&x, &mut trained, Some(&mut trained_bias), &weighting)
        .unwrap();
    assert_close(&of_x.values, &tensor_slopes(&x, |x| loss(x, &weight, &bias)));
    let of_weight = parameter_slopes(&weight, |weight| loss(&x, weight, &bias));
    assert_close(&trained.gradient.unwrap(), &of_weight);
    let of_bias = parameter_slopes(&bias, |bias| loss(&x, &weight, bias));
    assert_close(&trained_bias.gradient.unwrap(), &of_bias);

    let (mut table, tokens) = (parameter(noise, &[4, 5]), [2, 0, 2]);
    let expected = parameter_slopes(&table, |table| {
        dot(&ReferenceOps.embedding(table, &tokens).unwrap().values, &weighting.values)
    });
    ReferenceOps.embedding_backward(&mut table, &tokens, &weighting).unwrap();
    assert_close(&table.gradient.unwrap(), &expected);
}

#[test]
fn rms_norm_per_head_with_offset() {
    let noise = &mut Noise(2);
    let (x, weighting, weight) = (tensor(noise, 3, 8), tensor(noise, 3, 8), parameter(noise, &[4]));
    let loss = |x: &_, weight: &_| {
        dot(&ReferenceOps.rms_norm(x, weight, 1e-3, 1.0).unwrap().values, &weighting.values)
    };
    let mut trained = weight.clone();
    let of_x = ReferenceOps.rms_norm_backward(&x, &mut trained, 1e-3, 1.0, &weighting).unwrap();
    assert_close(&of_x.values, &tensor_slopes(&x, |x| loss(x, &weight)));
    let of_weight = parameter_slopes(&weight, |weight| loss(&x, weight));
    assert_close(&trained.gradient.unwrap(), &of_weight);
}

#[test]
fn rotary_turns_back() {
    let noise = &mut Noise(3);
    let (x, weighting) = (tensor(noise, 3, 8), tensor(noise, 3, 8));
    let frequencies = RotaryFrequencies {
        head_size: 4,
        frequencies: vec![0.3],
        long_frequencies: Some(vec![0.01]),
        scale: 1.3,
    };
    let long = Position { index: 91, is_in_long_sequence: true };
    let positions = [Position::of(0), Position::of(5), long];
    let expected = tensor_slopes(&x, |x| {
        let output = ReferenceOps.rotary(x, &positions, &frequencies).unwrap();
        dot(&output.values, &weighting.values)
    });
    let actual = ReferenceOps.rotary_backward(&positions, &frequencies, &weighting).unwrap();
    assert_close(&actual.values, &expected);
}

#[test]
fn attention_with_prefix_window_and_soft_cap() {
    let noise = &mut Noise(4);
    let segments = [
        AttentionSegment { queries: 0..3, prefix: 0..0, own: 0..3 },
        AttentionSegment { queries: 3..5, prefix: 0..3, own: 3..5 },
        AttentionSegment { queries: 5..8, prefix: 0..3, own: 5..8 },
    ];
    for (soft_cap, window) in [(None, None), (Some(0.8), None), (Some(0.8), Some(3))] {
        let shape = AttentionShape {
            query_heads: 4,
            key_value_heads: 2,
            head_size: 3,
            scale: 0.7,
            soft_cap,
            window,
        };
        let (queries, weighting) = (tensor(noise, 8, 12), tensor(noise, 8, 12));
        let (keys, values) = (tensor(noise, 8, 6), tensor(noise, 8, 6));
        let loss = |queries: &_, keys: &_, values: &_| {
            let forward = ReferenceOps.attention(queries, keys, values, &shape, &segments).unwrap();
            dot(&forward.output.values, &weighting.values)
        };
        let forward = ReferenceOps.attention(&queries, &keys, &values, &shape, &segments).unwrap();
        let [of_queries, of_keys, of_values] = ReferenceOps
            .attention_backward(&queries, &keys, &values, &forward, &shape, &segments, &weighting)
            .unwrap();
        let expected = tensor_slopes(&queries, |queries| loss(queries, &keys, &values));
        assert_close(&of_queries.values, &expected);
        assert_close(&of_keys.values, &tensor_slopes(&keys, |keys| loss(&queries, keys, &values)));
        let expected = tensor_slopes(&values, |values| loss(&queries, &keys, values));
        assert_close(&of_values.values, &expected);
    }
}

#[test]
fn gated_activations_and_selected_rows() {
    let noise = &mut Noise(5);
    let (gate, up, weighting) = (tensor(noise, 3, 4), tensor(noise, 3, 4), tensor(noise, 3, 4));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let loss = |gate: &_, up: &_| {
            let output = ReferenceOps.gated_activation(gate, up, activation).unwrap();
            dot(&output.values, &weighting.values)
        };
        let [of_gate, of_up] =
            ReferenceOps.gated_activation_backward(&gate, &up, activation, &weighting).unwrap();
        assert_close(&of_gate.values, &tensor_slopes(&gate, |gate| loss(gate, &up)));
        assert_close(&of_up.values, &tensor_slopes(&up, |up| loss(&gate, up)));
    }
    let rows = [1, 1, 0];
    let expected = tensor_slopes(&gate, |x| {
        dot(&ReferenceOps.select_rows(x, &rows).unwrap().values, &weighting.values)
    });
    let actual = ReferenceOps.select_rows_backward(&rows, 3, &weighting).unwrap();
    assert_close(&actual.values, &expected);
}

#[test]
fn token_log_probs_with_and_without_kept_logits() {
    let noise = &mut Noise(6);
    let (hidden, head) = (tensor(noise, 3, 4), parameter(noise, &[6, 4]));
    let (targets, coefficients) = ([5, 0, 5], [0.5_f32, -2.0, 1.5]);
    for cap in [None, Some(0.9)] {
        let loss = |hidden: &_, head: &_| -> f64 {
            let logits = ReferenceOps.logits(hidden, head, cap).unwrap();
            let term = |row: usize| {
                let log_prob =
                    logits.row(row)[targets[row] as usize] - log_sum_exp(logits.row(row));
                f64::from(coefficients[row]) * log_prob
            };
            (0..3).map(term).sum()
        };
        for keep in [false, true] {
            let (_, kept) =
                ReferenceOps.token_log_probs(&hidden, &head, &targets, cap, keep).unwrap();
            assert_eq!(kept.is_some(), keep);
            let mut trained = head.clone();
            let of_hidden = ReferenceOps
                .token_log_probs_backward(&hidden, &mut trained, &targets, cap, kept, &coefficients)
                .unwrap();
            assert_close(&of_hidden.values, &tensor_slopes(&hidden, |hidden| loss(hidden, &head)));
            let of_head = parameter_slopes(&head, |head| loss(&hidden, head));
            assert_close(&trained.gradient.unwrap(), &of_head);
        }
    }
}

#[test]
fn mixtures_of_experts() {
    let noise = &mut Noise(8);
    let routing = Routing { expert_count: 3, chosen: 2, is_normalised: true };
    let routes = Routes::choose(&noise.values(12), routing, true);
    let mut parts: Vec<ReferenceTensor> =
        routes.experts.iter().map(|expert| tensor(noise, expert.rows.len(), 5)).collect();
    let weighting = tensor(noise, 4, 5);
    let loss = |parts: &[ReferenceTensor], routes: &Routes| {
        let parts: Vec<_> = parts.iter().collect();
        dot(&ReferenceOps.mixture(&parts, routes).unwrap().values, &weighting.values)
    };
    let every: Vec<_> = parts.iter().collect();
    let found = ReferenceOps.mixture_backward(&every, &routes, &weighting).unwrap();
    for expert in 0..parts.len() {
        let mut changed = routes.clone();
        let weights = routes.experts[expert].weights.clone();
        for (place, of_weight) in found.of_weights[expert].iter().enumerate() {
            // the output is linear in a weight
            let mut at = |weight: f32| {
                changed.experts[expert].weights = weights.clone();
                changed.experts[expert].weights[place] = weight;
                loss(&parts, &changed)
            };
            assert!((at(1.0) - at(0.0) - f64::from(*of_weight)).abs() < 1e-6);
        }
        let own = parts[expert].clone();
        let expected = tensor_slopes(&own, |part| {
            let mut parts = parts.clone();
            parts[expert] = part.clone();
            loss(&parts, &routes)
        });
        assert_close(&found.of_parts[expert].values, &expected);
        parts[expert] = own;
    }
}
