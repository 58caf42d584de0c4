//! Blocks of queries and keys, and the keys that a query sees.
//!
//! ```text
//! positions of a segment's keys:  | prefix (rows of the prompt) | own (rows of the segment) |
//! blocks, split at the prefix:    [ at most 512 ][ ............. ][ at most 512 ][ ..........]
//! ```

use std::ops::Range;

use sppo_model::ops::{AttentionSegment, AttentionShape};

/// Query rows (tokens times the heads that share keys) that one block holds.
const QUERY_ROWS: usize = 48;
/// Keys that one block holds: scores of a block then fit the second-level cache.
const KEY_ROWS: usize = 512;

/// Keys at consecutive positions of a sequence that lie in consecutive rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyBlock {
    /// Positions in the sequence, the prefix's first.
    pub(crate) positions: Range<usize>,
    /// The row of the first.
    pub(crate) first_row: usize,
}

/// Number of a segment's keys, prefix included.
pub(crate) fn key_count(segment: &AttentionSegment) -> usize {
    segment.prefix.len() + segment.own.len()
}

/// Heads that share keys.
pub(crate) fn group_size(shape: &AttentionShape) -> usize {
    shape.query_heads / shape.key_value_heads
}

/// Positions that the query at a position sees.
pub(crate) fn visible(shape: &AttentionShape, position: usize) -> Range<usize> {
    let first = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
    first..position + 1
}

/// Tokens of a segment, in blocks of queries.
pub(crate) fn query_blocks(
    shape: &AttentionShape,
    segment: &AttentionSegment,
) -> impl Iterator<Item = Range<usize>> + use<> {
    let tokens = (QUERY_ROWS / group_size(shape)).max(8);
    let count = segment.queries.len();
    (0..count).step_by(tokens).map(move |start| start..(start + tokens).min(count))
}

/// The keys that any of the given tokens of a segment sees, in blocks.
pub(crate) fn key_blocks(
    shape: &AttentionShape,
    segment: &AttentionSegment,
    tokens: &Range<usize>,
) -> Vec<KeyBlock> {
    let prefix = segment.prefix.len();
    let first = visible(shape, prefix + tokens.start).start;
    let end = prefix + tokens.end;
    let mut blocks = Vec::new();
    let mut start = first;
    while start < end {
        let (limit, first_row) = if start < prefix {
            (prefix.min(end), segment.prefix.start + start)
        } else {
            (end, segment.own.start + start - prefix)
        };
        let stop = limit.min(start + KEY_ROWS);
        blocks.push(KeyBlock { positions: start..stop, first_row });
        start = stop;
    }
    blocks
}

/// The part of a key block that a query at `position` sees, counted from the block's first key.
pub(crate) fn visible_in_block(
    shape: &AttentionShape,
    block: &KeyBlock,
    position: usize,
) -> Range<usize> {
    let visible = visible(shape, position);
    let keys = &block.positions;
    let start = visible.start.clamp(keys.start, keys.end) - keys.start;
    let end = visible.end.clamp(keys.start, keys.end) - keys.start;
    start..end.max(start)
}

/// Copies the heads of a group, token after token and head after head, into contiguous rows.
pub(crate) fn gather_group(
    source: &[f32],
    features: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    factor: f32,
) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.len() * columns.len());
    for row in rows {
        let values = &source[row * features..][columns.clone()];
        gathered.extend(values.iter().map(|value| value * factor));
    }
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_blocks_cover_what_is_seen_and_split_at_the_prefix() {
        let mut shape = AttentionShape {
            query_heads: 3,
            key_value_heads: 1,
            head_size: 4,
            scale: 1.0,
            soft_cap: None,
            window: None,
        };
        let segment = AttentionSegment { queries: 700..900, prefix: 10..40, own: 700..900 };
        let block = |positions, first_row| KeyBlock { positions, first_row };
        let blocks = key_blocks(&shape, &segment, &(32..64));
        assert_eq!(blocks, [block(0..30, 10), block(30..94, 700)]);
        shape.window = Some(40);
        let blocks = key_blocks(&shape, &segment, &(32..64));
        assert_eq!(blocks, [block(23..30, 33), block(30..94, 700)]);
        assert_eq!(visible_in_block(&shape, &blocks[0], 62), 0..7);
        assert_eq!(visible_in_block(&shape, &blocks[0], 80), 7..7);
        assert_eq!(visible_in_block(&shape, &blocks[1], 80), 11..51);
    }
}
