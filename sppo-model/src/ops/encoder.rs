//! The ops that encoders need besides [`Ops`], to score text. There are no backward forms: scorers are
//! not trained. An op set without these serves policies only.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Ops;
use crate::error::Result;

/// A function of each element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointwise {
    /// `x * Phi(x)`, `Phi` the standard normal distribution: GELU by the error function.
    Gelu,
    /// The hyperbolic tangent.
    Tanh,
}

/// Choice of a row of the relative-position tables by the distance from a key to a query (DeBERTa v2 and
/// v3): nearby distances have a row each, farther ones share rows on a logarithmic scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistanceBuckets {
    /// Rows for either direction; the tables have twice as many. Half of them are for single distances.
    pub span: usize,
    /// End of the logarithmic scale: this distance and longer ones share the last row.
    pub longest_distance: usize,
}

impl DistanceBuckets {
    /// Rows of a table.
    #[must_use]
    pub fn count(self) -> usize {
        2 * self.span
    }

    /// The row for a query that stands `distance` tokens after the key.
    #[must_use]
    pub fn row(self, distance: i64) -> usize {
        let (span, middle) = (self.span as i64, self.span as i64 / 2);
        let steps = distance.abs();
        let bucket = if steps <= middle {
            steps
        } else {
            let middle = middle as f64;
            let scale = ((self.longest_distance as f64 - 1.0) / middle).ln();
            ((steps as f64 / middle).ln() / scale * (middle - 1.0)).ceil() as i64 + middle as i64
        };
        (bucket * distance.signum() + span).clamp(0, 2 * span - 1) as usize
    }

    /// The rows for all distances within `length` tokens, falling from `length - 1` to `1 - length`:
    /// the query at position `p` has `[length - 1 - p..][..length]` of them for the keys from first to
    /// last.
    #[must_use]
    pub fn rows(self, length: usize) -> Vec<u32> {
        let last = length as i64 - 1;
        (-last..=last).rev().map(|distance| self.row(distance) as u32).collect()
    }
}

/// The heads of disentangled attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DisentangledShape {
    /// Heads; queries, keys and values are `[rows, heads * head_size]`.
    pub heads: usize,
    /// Features of one head.
    pub head_size: usize,
    /// Factor of the sum of the three scores.
    pub scale: f32,
    /// Rows of the tables by distance.
    pub buckets: DistanceBuckets,
}

/// One sequence's rows. Every query sees every key of the sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncoderSegment {
    /// Rows of keys and values, one per position.
    pub keys: Range<usize>,
    /// Rows of the query tensor.
    pub queries: Range<usize>,
    /// The position of each query in the sequence.
    pub positions: Arc<[u32]>,
}

/// A tensor library that can run encoders.
pub trait EncoderOps: Ops {
    /// A layer's relative-position tables, laid out as attention reads them fastest.
    type RelativeTables;

    /// Lays out the tables: relative positions as keys and as queries, each
    /// `[buckets.count(), heads * head_size]`.
    fn relative_tables(
        &self,
        keys: &Self::Tensor,
        queries: &Self::Tensor,
        shape: &DisentangledShape,
    ) -> Result<Self::RelativeTables>;

    /// `(x - mean) / sqrt(variance + epsilon) * weight + bias` of each row.
    fn layer_norm(
        &self,
        x: &Self::Tensor,
        weight: &Self::Parameter,
        bias: &Self::Parameter,
        epsilon: f32,
    ) -> Result<Self::Tensor>;

    /// The function of each element.
    fn pointwise(&self, x: &Self::Tensor, function: Pointwise) -> Result<Self::Tensor>;

    /// Disentangled attention (arXiv 2006.03654): with `r` the row for query and key, their score is
    /// `scale * (query . key + query . relative_keys[r] + key . relative_queries[r])`. Returns one row
    /// per query, in the order of the query tensor.
    fn disentangled_attention(
        &self,
        queries: &Self::Tensor,
        keys: &Self::Tensor,
        values: &Self::Tensor,
        tables: &Self::RelativeTables,
        shape: &DisentangledShape,
        segments: &[EncoderSegment],
    ) -> Result<Self::Tensor>;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of transformers' `make_log_bucket_position` with 256 buckets and 512 positions.
    #[test]
    fn distances_fall_into_the_buckets_of_deberta_v3() {
        let buckets = DistanceBuckets { span: 256, longest_distance: 512 };
        for (distance, bucket) in [
            (0, 0),
            (1, 1),
            (127, 127),
            (128, 128),
            (129, 129),
            (130, 130),
            (140, 137),
            (200, 169),
            (256, 192),
            (300, 207),
            (500, 254),
        ] {
            assert_eq!(buckets.row(distance), 256 + bucket, "{distance}");
            assert_eq!(buckets.row(-distance), 256 - bucket, "-{distance}");
        }
        // 511, 600 and 2047 fall into 255, 270 and 383, and the tables end at 255 and -256.
        assert_eq!([511, 600, 2047].map(|distance| buckets.row(distance)), [511; 3]);
        assert_eq!([-511, -512, -2047].map(|distance| buckets.row(distance)), [1, 0, 0]);
        let rows = buckets.rows(300);
        for (position, key) in [(0, 299), (299, 0), (20, 20), (150, 149)] {
            let expected = buckets.row(position as i64 - key as i64);
            assert_eq!(rows[299 - position..][..300][key] as usize, expected);
        }
    }
}
