//! Slots of the key-value cache.
//!
//! ```text
//! | span of row 0 | span of row 1 | ... | prompts, by first fit |
//! |<- row_slots ->|<- row_slots ->|     |<---- prompt_slots --->|
//! ```
//!
//! Each decoding row owns a span of fixed length, so a free row can always start. Prompts, whose
//! lengths differ, share the rest.

use std::ops::Range;

/// Division of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachePlan {
    /// Responses that decode together.
    pub(crate) rows: usize,
    /// Slots of each row's own tokens.
    pub(super) row_slots: usize,
    /// Slots for prompts.
    pub(super) prompt_slots: usize,
}

impl CachePlan {
    /// Divides at most `budget` slots, but always makes room for one row and the longest prompt.
    /// `prompt_lengths` are those of all prompts that are still to come.
    pub(super) fn new(
        budget: usize,
        max_batch_size: usize,
        row_slots: usize,
        prompt_lengths: &[usize],
        samples_per_prompt: usize,
    ) -> Self {
        let longest = prompt_lengths.iter().copied().max().unwrap_or(0);
        let wanted_rows =
            max_batch_size.max(1).min(prompt_lengths.len() * samples_per_prompt).max(1);
        let affordable = budget.saturating_sub(longest) / row_slots.max(1);
        let rows = wanted_rows.min(affordable.max(1));
        // A prompt's last samples may linger while those of the next ones have begun.
        let prompts = rows.div_ceil(samples_per_prompt.max(1)) + 1;
        let mut longest_first = prompt_lengths.to_vec();
        longest_first.sort_unstable_by(|a, b| b.cmp(a));
        let wanted: usize = longest_first.iter().take(prompts).sum();
        let left = budget.saturating_sub(rows * row_slots);
        Self { rows, row_slots, prompt_slots: wanted.min(left).max(longest) }
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.rows * self.row_slots + self.prompt_slots
    }

    /// The region of prompts.
    pub(super) fn prompt_region(&self) -> FreeSpans {
        FreeSpans { free: std::iter::once(self.rows * self.row_slots..self.slots()).collect() }
    }
}

/// The free parts of a region, in order, never adjacent to one another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FreeSpans {
    free: Vec<Range<usize>>,
}

impl FreeSpans {
    /// Takes the first span that is long enough.
    pub(super) fn take(&mut self, length: usize) -> Option<Range<usize>> {
        let index = self.free.iter().position(|span| span.len() >= length)?;
        let span = &mut self.free[index];
        let taken = span.start..span.start + length;
        span.start = taken.end;
        if span.start == span.end {
            self.free.remove(index);
        }
        Some(taken)
    }

    /// Gives a span back and joins it with its neighbours.
    pub(super) fn give_back(&mut self, mut span: Range<usize>) {
        let mut index = self.free.partition_point(|free| free.start < span.start);
        if let Some(next) = self.free.get(index).filter(|next| next.start == span.end) {
            span.end = next.end;
            self.free.remove(index);
        }
        if let Some(previous) = index.checked_sub(1)
            && self.free[previous].end == span.start
        {
            span.start = self.free[previous].start;
            self.free.remove(previous);
            index = previous;
        }
        if !span.is_empty() {
            self.free.insert(index, span);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_given_back_in_any_order_join_again() {
        let plan = CachePlan { rows: 2, row_slots: 10, prompt_slots: 30 };
        let whole = plan.prompt_region();
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut spans = whole.clone();
            let taken: Vec<_> =
                [7, 12, 11].iter().map(|&length| spans.take(length).unwrap()).collect();
            assert_eq!(taken, [20..27, 27..39, 39..50]);
            assert_eq!(spans.take(1), None);
            for index in order {
                spans.give_back(taken[index].clone());
            }
            assert_eq!(spans, whole);
        }
    }

    #[test]
    fn the_plan_keeps_the_budget_but_always_allows_one_row() {
        let plan = CachePlan::new(1000, 64, 100, &[50, 20, 30], 5);
        assert_eq!(plan, CachePlan { rows: 9, row_slots: 100, prompt_slots: 100 });
        let tight = CachePlan::new(10, 64, 100, &[50, 20, 30], 5);
        assert_eq!(tight, CachePlan { rows: 1, row_slots: 100, prompt_slots: 50 });
        assert_eq!(CachePlan::new(10_000, 64, 100, &[50, 20, 30], 5).rows, 15);
    }
}
