//! Slots of the key-value cache that the rows of a decoding step see: arithmetic without tensors.

use std::ops::Range;

use sppo_model::ops::CachedRow;

/// Most spans per row: a span without a row is computed in vain.
const MOST_SPANS_PER_ROW: usize = 2;

/// Runs of rows with the same prefix, and that prefix; rows without a prefix are in no run.
pub(super) fn prompts(rows: &[CachedRow]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut runs: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for (number, row) in rows.iter().enumerate().filter(|(_, row)| !row.prefix.is_empty()) {
        match runs.last_mut() {
            Some((run, prefix)) if run.end == number && *prefix == row.prefix => run.end += 1,
            _ => runs.push((number..number + 1, row.prefix.clone())),
        }
    }
    runs
}

/// First slot, stride and number of spans of `length` slots that hold all rows' keys from `shift` on;
/// `None` if the rows do not lie that way or there are too many spans.
pub(super) fn spans(
    starts: &[usize],
    shift: usize,
    length: usize,
    slots: usize,
) -> Option<(usize, usize, usize)> {
    let (lowest, highest) = (*starts.iter().min()?, *starts.iter().max()?);
    let stride =
        starts.iter().fold(0, |divisor, start| greatest_common_divisor(divisor, start - lowest));
    let first = lowest + shift;
    if stride == 0 {
        // One span, unless several rows claim it.
        return (starts.len() == 1).then_some((first, length, 1));
    }
    let count = (highest - lowest) / stride + 1;
    let mut sorted = starts.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let fits = length <= stride
        && sorted.len() == starts.len()
        && highest + shift + length <= slots
        && count <= MOST_SPANS_PER_ROW * starts.len();
    fits.then_some((first, stride, count))
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_found_where_there_are_any() {
        // Stride 10, spans 0, 2 and 3 taken.
        assert_eq!(spans(&[20, 0, 30], 0, 7, 100), Some((0, 10, 4)));
        assert_eq!(spans(&[5], 2, 7, 100), Some((7, 7, 1)));
        // Longer than the stride, beyond the end, claimed twice, too sparse.
        assert_eq!(spans(&[20, 0, 30], 0, 11, 100), None);
        assert_eq!(spans(&[20, 0, 30], 0, 7, 36), None);
        assert_eq!(spans(&[20, 20], 0, 7, 100), None);
        assert_eq!(spans(&[0, 10, 90], 0, 7, 100), None);
    }
}
