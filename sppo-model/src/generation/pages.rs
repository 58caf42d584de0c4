//! Slots of the key-value cache, in pages.
//!
//! ```text
//! | page | page | page | page | ... | prompts, by first fit |
//! |<- of row 0 ->|<- of row 1 ...   |<---- prompt_slots --->|
//! ```
//!
//! A decoding row takes a page when it needs one. Prompts, whose lengths differ and do not grow, share the rest.
//! Rows begin as far from each other as there is room for, so that the pages of most follow each other: some
//! kernels read keys in place only where they do.

use std::ops::Range;

/// Slots of a page, or as many as a row can need where these are fewer.
const PAGE_SLOTS: usize = 64;
/// Part of the longest response that responses are taken to reach until some have ended.
const EXPECTED_SHARE: usize = 4;

/// Size of a request, as far as the cache is concerned.
pub(super) struct Demand<'a> {
    /// Most responses that decode together.
    pub(super) max_batch_size: usize,
    /// Most slots that a row needs.
    pub(super) row_slots: usize,
    /// Tokens of each prompt.
    pub(super) prompt_lengths: &'a [usize],
    /// Responses to each prompt.
    pub(super) samples_per_prompt: usize,
}

/// Division of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachePlan {
    /// Most responses that decode together.
    pub(crate) rows: usize,
    /// Slots of a page.
    pub(super) page_slots: usize,
    /// Pages of all rows.
    pub(super) pages: usize,
    /// Most pages that a row needs.
    pub(super) row_pages: usize,
    /// Pages between the first pages of two rows, as long as these are free.
    stride: usize,
    /// Slots for prompts.
    prompt_slots: usize,
}

impl CachePlan {
    /// Divides at most `budget` slots, but always makes room for one row and the longest prompt.
    pub(super) fn new(budget: usize, demand: &Demand<'_>) -> Self {
        let page_slots = PAGE_SLOTS.min(demand.row_slots).max(1);
        let row_pages = demand.row_slots.div_ceil(page_slots).max(1);
        let prompts = PromptDemand::new(demand);
        let samples = demand.samples_per_prompt.max(1);
        let wanted = demand.max_batch_size.max(1).min(demand.prompt_lengths.len() * samples).max(1);
        let fits =
            |rows: usize, pages: usize| rows * pages * page_slots + prompts.of_rows(rows) <= budget;
        let expected = match fits(wanted, row_pages) {
            true => row_pages,
            false => Self::expected_slots(row_pages),
        };
        // Rows that are expected to fit together; more need no prompts of their own.
        let together = (1..=wanted).rev().find(|&rows| fits(rows, expected)).unwrap_or(1);
        let left = budget.saturating_sub(row_pages * page_slots);
        let prompt_slots = prompts.of_rows(together).min(left).max(prompts.longest());
        let affordable = budget.saturating_sub(prompt_slots) / page_slots;
        let pages = affordable.clamp(row_pages, (wanted * row_pages).max(row_pages));
        let stride = (pages / together).clamp(1, row_pages);
        Self { rows: wanted.min(pages), page_slots, pages, row_pages, stride, prompt_slots }
    }

    /// Slots that a response is taken to need of the most that it can, until some have ended.
    pub(super) fn expected_slots(most: usize) -> usize {
        most.div_ceil(EXPECTED_SHARE)
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.pages * self.page_slots + self.prompt_slots
    }

    /// The region of prompts.
    pub(super) fn prompt_region(&self) -> FreeSpans {
        let start = self.pages * self.page_slots;
        FreeSpans { free: std::iter::once(start..self.slots()).collect() }
    }

    /// The pages of rows, all of them free.
    pub(super) fn free_pages(&self) -> FreePages {
        FreePages { is_free: vec![true; self.pages], count: self.pages, stride: self.stride }
    }

    /// The slots of the first `length` tokens in pages, in runs that follow each other.
    pub(super) fn slots_of(&self, pages: &[usize], length: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut left = length;
        for page in pages {
            let taken = left.min(self.page_slots);
            let start = page * self.page_slots;
            match runs.last_mut() {
                Some(run) if run.end == start => run.end += taken,
                _ if taken > 0 => runs.push(start..start + taken),
                _ => break,
            }
            left -= taken;
        }
        runs
    }
}

/// Slots that the prompts of rows take.
struct PromptDemand {
    samples: usize,
    /// Slots of the longest prompt, of the two longest, and so on.
    sums: Vec<usize>,
}

impl PromptDemand {
    fn new(demand: &Demand<'_>) -> Self {
        let mut longest_first = demand.prompt_lengths.to_vec();
        longest_first.sort_unstable_by(|a, b| b.cmp(a));
        let sums = longest_first.iter().scan(0, |sum, length| {
            *sum += length;
            Some(*sum)
        });
        Self { samples: demand.samples_per_prompt.max(1), sums: sums.collect() }
    }

    fn longest(&self) -> usize {
        self.sums.first().copied().unwrap_or(0)
    }

    fn of_rows(&self, rows: usize) -> usize {
        // A prompt's last samples may linger while those of the next ones have begun.
        let prompts = (rows.div_ceil(self.samples) + 1).min(self.sums.len());
        prompts.checked_sub(1).and_then(|last| self.sums.get(last)).copied().unwrap_or(0)
    }
}

/// The free pages of the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FreePages {
    is_free: Vec<bool>,
    count: usize,
    stride: usize,
}

impl FreePages {
    /// Number of free pages.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Takes a row's first page: one with free pages behind it.
    pub(super) fn take_first(&mut self) -> Option<usize> {
        let starts = (0..self.is_free.len()).step_by(self.stride);
        let room = |start: usize| {
            let behind = self.is_free.iter().skip(start).take(self.stride);
            behind.take_while(|is_free| **is_free).count()
        };
        let best = starts.map(|start| (room(start), start)).filter(|(room, _)| *room > 0);
        // Of several with as much room, the first.
        let best = best.max_by_key(|(room, start)| (*room, std::cmp::Reverse(*start)));
        let page = best.map(|(_, start)| start).or_else(|| self.last_of_longest_run())?;
        Some(self.take(page))
    }

    /// Takes a row's next page: the one after its last if that is free.
    pub(super) fn take_after(&mut self, last: usize) -> Option<usize> {
        let next = Some(last + 1).filter(|next| self.is_free.get(*next) == Some(&true));
        let page = next.or_else(|| self.last_of_longest_run())?;
        Some(self.take(page))
    }

    /// Gives a page back.
    pub(super) fn give_back(&mut self, page: usize) {
        if let Some(is_free) = self.is_free.get_mut(page) {
            self.count += usize::from(!*is_free);
            *is_free = true;
        }
    }

    fn take(&mut self, page: usize) -> usize {
        self.is_free[page] = false;
        self.count -= 1;
        page
    }

    /// The page whose row would miss it last.
    fn last_of_longest_run(&self) -> Option<usize> {
        let (mut run, mut longest) = (0, (0, None));
        for (page, is_free) in self.is_free.iter().enumerate() {
            run = if *is_free { run + 1 } else { 0 };
            if run > longest.0 {
                longest = (run, Some(page));
            }
        }
        longest.1
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

    fn demand(row_slots: usize, prompt_lengths: &[usize]) -> Demand<'_> {
        Demand { max_batch_size: 64, row_slots, prompt_lengths, samples_per_prompt: 5 }
    }

    #[test]
    fn spans_given_back_in_any_order_join_again() {
        let whole = FreeSpans { free: std::iter::once(20..50).collect() };
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
        let lengths = [50, 20, 30];
        let roomy = CachePlan::new(10_000, &demand(100, &lengths));
        assert_eq!((roomy.rows, roomy.pages, roomy.stride), (15, 30, 2));
        assert_eq!(roomy.slots(), 30 * 64 + 100);
        let short = CachePlan::new(1000, &demand(100, &lengths));
        assert_eq!((short.rows, short.pages), (14, 14));
        assert!(short.slots() <= 1000);
        let tight = CachePlan::new(10, &demand(100, &lengths));
        assert_eq!((tight.rows, tight.pages, tight.slots()), (2, 2, 2 * 64 + 50));
        // A row that needs less than a page has a page of that size.
        let brief = CachePlan::new(10_000, &demand(7, &lengths));
        assert_eq!((brief.page_slots, brief.row_pages, brief.pages), (7, 1, 15));
    }

    #[test]
    fn two_thousand_new_tokens_of_8b_leave_room_for_hundreds_of_rows() {
        // 8 GiB at 131,072 bytes a slot, in bf16.
        let lengths = [256; 128];
        let wanted = Demand { max_batch_size: 512, ..demand(2047, &lengths) };
        let plan = CachePlan::new(65_536, &wanted);
        assert!(plan.slots() <= 65_536 && plan.rows == 512, "{plan:?}");
        // Responses of 256 tokens.
        assert!(plan.pages / 4 > 200, "{plan:?}");
    }

    #[test]
    fn rows_grow_in_place_while_there_is_room_and_then_anywhere() {
        let lengths = [50, 20, 30];
        let plan = CachePlan::new(10_000, &demand(130, &lengths));
        let mut free = plan.free_pages();
        let first: Vec<usize> = (0..15).map(|_| free.take_first().unwrap()).collect();
        assert_eq!(first, (0..15).map(|row| 3 * row).collect::<Vec<_>>());
        assert_eq!([free.take_after(0), free.take_after(1)], [Some(1), Some(2)]);
        // The next is another row's.
        assert_eq!(plan.slots_of(&[0, 1, 2, 44], 200), [0..192, 44 * 64..44 * 64 + 8]);
        assert_eq!(plan.slots_of(&[0, 1], 64), std::iter::once(0..64).collect::<Vec<_>>());
        let mut taken = 0;
        while let Some(page) = free.take_after(2) {
            assert!(!first.contains(&page));
            taken += 1;
        }
        assert_eq!((taken, free.count()), (45 - 17, 0));
        free.give_back(7);
        free.give_back(7);
        assert_eq!((free.count(), free.take_first()), (1, Some(7)));
    }
}
