//! Responses that are being decoded, and the pages that they take.

use std::ops::Range;

use super::pages::{CachePlan, FreePages};
use crate::ops::SampledToken;

/// A response that is being decoded.
pub(super) struct Row {
    pub(super) prompt: usize,
    pub(super) sample: usize,
    /// Number of rows that started before it.
    pub(super) age: u64,
    /// Pages of its own slots, in order.
    pub(super) pages: Vec<usize>,
    /// Slots of its prompt, which it shares with other samples.
    pub(super) prefix: Range<usize>,
    /// Tokens of its prompt in its own pages, if it started again as a long sequence.
    pub(super) own_prompt: usize,
    pub(super) tokens: Vec<u32>,
    pub(super) log_probs: Vec<f32>,
}

impl Row {
    pub(super) fn new(
        prompt: usize,
        sample: usize,
        age: u64,
        pages: Vec<usize>,
        prefix: Range<usize>,
    ) -> Self {
        let (tokens, log_probs) = (Vec::new(), Vec::new());
        Self { prompt, sample, age, pages, prefix, own_prompt: 0, tokens, log_probs }
    }

    /// Remains of a row that gives its place up.
    pub(super) fn interrupted(&self) -> Option<Interrupted> {
        let (&token, &log_prob) = self.tokens.first().zip(self.log_probs.first())?;
        let first = SampledToken { token, log_prob };
        Some(Interrupted { prompt: self.prompt, sample: self.sample, first })
    }

    /// Tokens so far, those of the prompt included.
    pub(super) fn length(&self) -> usize {
        self.prefix.len() + self.own_tokens()
    }

    /// Tokens whose keys and values are, or will be, in its own pages.
    pub(super) fn own_tokens(&self) -> usize {
        self.own_prompt + self.tokens.len()
    }
}

/// A response that gave its place up and waits to begin anew. Its random numbers are its own, so it comes out as
/// it would have.
pub(super) struct Interrupted {
    pub(super) prompt: usize,
    pub(super) sample: usize,
    pub(super) first: SampledToken,
}

/// The pages of rows.
pub(super) struct RowPages {
    plan: CachePlan,
    free: FreePages,
    /// Responses that have ended, and the slots that they took together.
    ended: (usize, usize),
}

impl RowPages {
    pub(super) fn new(plan: CachePlan) -> Self {
        Self { plan, free: plan.free_pages(), ended: (0, 0) }
    }

    /// Rows that may start beside the active ones: as many as will have room if all become as long as is
    /// expected. One may where there is no other.
    pub(super) fn room(&self, active: &[Row]) -> usize {
        let expected = self.expected(active);
        let reserved = active.iter().map(|row| {
            // A row that is longer than expected goes on for a page at least.
            let (held, most) = (row.pages.len(), self.plan.row_pages);
            expected.saturating_sub(held).max(1).min(most.saturating_sub(held))
        });
        let left = self.free.count().saturating_sub(reserved.sum());
        (left / expected).min(self.plan.rows.saturating_sub(active.len()))
    }

    /// Pages that a response is expected to take, from those that have ended and those that have not.
    fn expected(&self, active: &[Row]) -> usize {
        let CachePlan { page_slots, row_pages, .. } = self.plan;
        let first_guess = CachePlan::expected_slots(row_pages * page_slots);
        let so_far = active.iter().map(|row| row.own_tokens().max(first_guess));
        let (ended, sum) = self.ended;
        let (count, sum) = (ended + active.len(), sum + so_far.sum::<usize>());
        let mean = if count == 0 { first_guess } else { sum.div_ceil(count) };
        mean.div_ceil(page_slots).clamp(1, row_pages)
    }

    /// Takes a new row's first page.
    pub(super) fn first(&mut self) -> Option<usize> {
        self.free.take_first()
    }

    /// Whether a row has slots for all its tokens.
    pub(super) fn suffice(&self, row: &Row) -> bool {
        row.pages.len() * self.plan.page_slots >= row.own_tokens()
    }

    /// Gives a row another page, if there is one.
    pub(super) fn grow(&mut self, row: &mut Row) -> bool {
        let last = row.pages.last().copied().unwrap_or(0);
        let page = self.free.take_after(last);
        row.pages.extend(page);
        page.is_some()
    }

    /// Takes the pages of a row back.
    pub(super) fn release(&mut self, row: &Row) {
        row.pages.iter().for_each(|&page| self.free.give_back(page));
    }

    /// Takes the pages of a row back whose response has ended.
    pub(super) fn retire(&mut self, row: &Row) {
        self.release(row);
        self.ended = (self.ended.0 + 1, self.ended.1 + row.own_tokens());
    }

    /// The slots of the tokens in a row's own pages, in runs.
    pub(super) fn slots_of(&self, row: &Row) -> Vec<Range<usize>> {
        self.plan.slots_of(&row.pages, row.own_tokens())
    }

    /// Slots of the pages that rows hold.
    #[cfg(test)]
    pub(super) fn held_slots(&self) -> usize {
        (self.plan.pages - self.free.count()) * self.plan.page_slots
    }

    #[cfg(test)]
    pub(super) fn plan(&self) -> CachePlan {
        self.plan
    }
}
