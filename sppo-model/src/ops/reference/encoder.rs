//! The ops of encoders, written to be read.

use super::{ReferenceOps, ReferenceParameter, ReferenceTensor, add_scaled, dot, log_sum_exp};
use crate::error::Result;
use crate::ops::encoder::{DisentangledShape, EncoderOps, EncoderSegment, Pointwise};

impl EncoderOps for ReferenceOps {
    /// Keys and queries.
    type RelativeTables = [ReferenceTensor; 2];

    fn relative_tables(
        &self,
        keys: &ReferenceTensor,
        queries: &ReferenceTensor,
        _shape: &DisentangledShape,
    ) -> Result<[ReferenceTensor; 2]> {
        Ok([keys.clone(), queries.clone()])
    }

    fn layer_norm(
        &self,
        x: &ReferenceTensor,
        weight: &ReferenceParameter,
        bias: &ReferenceParameter,
        epsilon: f32,
    ) -> Result<ReferenceTensor> {
        let mut result = x.clone();
        for row in 0..x.rows {
            let values = result.row_mut(row);
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            values.iter_mut().for_each(|value| *value -= mean);
            let variance = dot(values, values) / values.len() as f64;
            let inverse_root = 1.0 / (variance + f64::from(epsilon)).sqrt();
            for ((value, weight), bias) in values.iter_mut().zip(&weight.values).zip(&bias.values) {
                *value = *value * inverse_root * weight + bias;
            }
        }
        Ok(result)
    }

    fn pointwise(&self, x: &ReferenceTensor, function: Pointwise) -> Result<ReferenceTensor> {
        Ok(x.map(|x| match function {
            Pointwise::Gelu => 0.5 * x * erfc(-x / std::f64::consts::SQRT_2),
            Pointwise::Tanh => x.tanh(),
        }))
    }

    fn disentangled_attention(
        &self,
        queries: &ReferenceTensor,
        keys: &ReferenceTensor,
        values: &ReferenceTensor,
        [relative_keys, relative_queries]: &[ReferenceTensor; 2],
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<ReferenceTensor> {
        let mut output = ReferenceTensor::zeros(queries.rows, queries.columns);
        for segment in segments {
            let length = segment.keys.len();
            let by_distance = shape.buckets.rows(length);
            for (query_row, &position) in segment.queries.clone().zip(&*segment.positions) {
                let relative = &by_distance[length - 1 - position as usize..];
                for head in 0..shape.heads {
                    let of_head = head * shape.head_size..(head + 1) * shape.head_size;
                    let query = &queries.row(query_row)[of_head.clone()];
                    let score = |(index, key_row): (usize, usize)| {
                        let relative = relative[index] as usize;
                        let key = &keys.row(key_row)[of_head.clone()];
                        let content = dot(query, key);
                        let to_position = dot(query, &relative_keys.row(relative)[of_head.clone()]);
                        let of_position =
                            dot(key, &relative_queries.row(relative)[of_head.clone()]);
                        f64::from(shape.scale) * (content + to_position + of_position)
                    };
                    let scores: Vec<f64> = segment.keys.clone().enumerate().map(score).collect();
                    let normaliser = log_sum_exp(&scores);
                    let into = &mut output.row_mut(query_row)[of_head.clone()];
                    for (score, key_row) in scores.iter().zip(segment.keys.clone()) {
                        let value = &values.row(key_row)[of_head.clone()];
                        add_scaled(into, (score - normaliser).exp(), value);
                    }
                }
            }
        }
        Ok(output)
    }
}

/// The complementary error function: its series near 0, its continued fraction elsewhere.
fn erfc(x: f64) -> f64 {
    let root_pi = std::f64::consts::PI.sqrt();
    if x < 0.0 {
        2.0 - erfc(-x)
    } else if x < 2.0 {
        // erf(x) = 2 / sqrt(pi) * sum over n of (-1)^n x^(2n + 1) / (n! (2n + 1))
        let mut power = x;
        let mut sum = x;
        for n in 1..60 {
            let n = f64::from(n);
            power *= -x * x / n;
            sum += power / (2.0 * n + 1.0);
        }
        1.0 - 2.0 / root_pi * sum
    } else {
        // erfc(x) = exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + 1 / (x + (3/2) / (x + ...))))
        let fraction = (1..=100).rev().fold(x, |rest, n| x + f64::from(n) / 2.0 / rest);
        (-x * x).exp() / root_pi / fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's `math.erfc`.
    #[test]
    fn the_complementary_error_function_is_accurate() {
        for (x, expected) in [
            (-3.0, 1.9999779095030015),
            (-0.5, 1.5204998778130465),
            (0.0, 1.0),
            (0.3, 0.6713732405408726),
            (1.9, 0.0072095707647425325),
            (2.1, 0.002979466656332984),
            (5.0, 1.5374597944280351e-12),
        ] {
            let relative = (erfc(x) / expected - 1.0).abs();
            assert!(relative < 1e-12, "erfc({x}) is off by {relative:e}");
        }
    }
}
