//! Memory of the language-model head: logits are kept for the backward pass, or exist chunk by chunk.

use std::ops::Range;

/// Fewest rows of a chunk, however large the vocabulary: products of fewer are slow.
const FEWEST_ROWS: usize = 32;

/// Limits on the f32 logits `[rows, vocabulary]` that exist at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogitsLimits {
    /// Most bytes that training keeps from the forward to the backward pass. More are computed twice.
    pub kept_bytes: usize,
    /// Bytes of a chunk where logits are not kept.
    pub chunk_bytes: usize,
    /// Most rows of a chunk, however small the vocabulary.
    pub chunk_rows: usize,
}

impl LogitsLimits {
    /// Ranges of rows whose logits are computed together: as few chunks as the limits allow, of equal
    /// size.
    pub fn chunks(
        &self,
        rows: usize,
        vocabulary: usize,
    ) -> impl Iterator<Item = Range<usize>> + use<> {
        let most = (self.chunk_bytes / (size_of::<f32>() * vocabulary.max(1)))
            .clamp(FEWEST_ROWS, self.chunk_rows);
        let chunk = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
        (0..rows).step_by(chunk).map(move |start| start..(start + chunk).min(rows))
    }

    /// The forward pass of the head: the log-probabilities of all rows, and their logits if a backward
    /// pass wants to `keep` them and they are within the limit. `logits` computes the logits of some
    /// rows, and `log_probs` the log-probabilities of the same rows from them.
    ///
    /// # Errors
    /// Those of `logits` and `log_probs`.
    pub fn log_probs<T, E>(
        &self,
        [rows, vocabulary]: [usize; 2],
        keep: bool,
        logits: impl Fn(Range<usize>) -> Result<T, E>,
        log_probs: impl Fn(&T, Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<(Vec<f32>, Option<T>), E> {
        let bytes = rows * vocabulary * size_of::<f32>();
        if keep && rows > 0 && bytes <= self.kept_bytes {
            let kept = logits(0..rows)?;
            return Ok((log_probs(&kept, 0..rows)?, Some(kept)));
        }
        let mut result = Vec::with_capacity(rows);
        for part in self.chunks(rows, vocabulary) {
            result.extend(log_probs(&logits(part.clone())?, part)?);
        }
        Ok((result, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LogitsLimits =
        LogitsLimits { kept_bytes: 4000, chunk_bytes: 160_000, chunk_rows: 50 };

    #[test]
    fn chunks_cover_all_rows_and_are_of_equal_size() {
        let sizes = |rows, vocabulary| -> Vec<usize> {
            let chunks: Vec<_> = LIMITS.chunks(rows, vocabulary).collect();
            assert!(chunks.windows(2).all(|pair| pair[0].end == pair[1].start));
            chunks.iter().map(ExactSizeIterator::len).collect()
        };
        assert_eq!(sizes(100, 1000), [34, 34, 32]);
        assert_eq!(sizes(100, 10), [50, 50]);
        assert_eq!(sizes(64, 1_000_000), [32, 32]);
        assert_eq!(sizes(0, 1000), [0; 0]);
    }

    #[test]
    fn logits_are_kept_where_they_are_wanted_and_fit() {
        let kept = |rows, keep| {
            let logits = |part: Range<usize>| Ok::<_, ()>(part.len());
            let log_probs = |logits: &usize, part: Range<usize>| {
                assert_eq!(*logits, part.len());
                Ok(part.map(|row| row as f32).collect())
            };
            let (values, kept) = LIMITS.log_probs([rows, 10], keep, logits, log_probs).unwrap();
            assert!(values.into_iter().eq((0..rows).map(|row| row as f32)));
            kept
        };
        assert_eq!([kept(100, true), kept(100, false), kept(101, true)], [Some(100), None, None]);
        assert_eq!(kept(0, true), None);
    }
}
