//! The pairs of responses that are shown, and the logit table that their logits fill.

use std::collections::BTreeMap;

use sppo_plugin::pairwise::{self, Orders};

/// The pairs of one comparison. Candidates of the same tokens look alike to the ranker, so that each
/// pair of different contents is shown once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pairs {
    /// For each candidate the first one with the same content.
    representatives: Vec<usize>,
    /// Pairs of representatives (first shown, second shown), sorted.
    shown: Vec<(usize, usize)>,
}

impl Pairs {
    pub(crate) fn new(candidates: &[Vec<u32>], orders: Orders) -> Self {
        let representatives: Vec<usize> = candidates
            .iter()
            .map(|content| candidates.iter().take_while(|other| *other != content).count())
            .collect();
        let is_first = |&candidate: &usize| representatives[candidate] == candidate;
        let distinct: Vec<usize> = (0..candidates.len()).filter(is_first).collect();
        let contents: Vec<Vec<u8>> = distinct.iter().map(|&one| bytes(&candidates[one])).collect();
        let mut shown: Vec<(usize, usize)> = pairwise::pairs(&contents, orders)
            .into_iter()
            .map(|(first, second)| (distinct[first], distinct[second]))
            .collect();
        if orders == Orders::Both {
            // As the released code does, alike candidates are shown against each other.
            let alike = (0..candidates.len()).filter(|candidate| !is_first(candidate));
            shown.extend(alike.map(|one| (representatives[one], representatives[one])));
        }
        shown.sort_unstable();
        shown.dedup();
        Self { representatives, shown }
    }

    /// The pairs to show, as indices of candidates (first shown, second shown).
    pub(crate) fn shown(&self) -> &[(usize, usize)] {
        &self.shown
    }

    /// The row-major table of logits, from one logit per pair that was shown. Entries that no pair fills
    /// are 0.
    pub(crate) fn table(&self, logits: &[f32]) -> Vec<f32> {
        let logits: BTreeMap<(usize, usize), f32> =
            self.shown.iter().copied().zip(logits.iter().copied()).collect();
        let answer = |first: usize, second: usize| {
            logits.get(&(self.representatives[first], self.representatives[second])).copied()
        };
        pairwise::logits(self.representatives.len(), answer).values
    }
}

/// The bytes by which [`pairwise`] tells contents apart.
fn bytes(content: &[u32]) -> Vec<u8> {
    content.iter().flat_map(|token| token.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills the table as if the ranker scored `10 first + second`.
    fn table(candidates: &[Vec<u32>], orders: Orders) -> (usize, Vec<f32>) {
        let pairs = Pairs::new(candidates, orders);
        let logit = |&(first, second): &(usize, usize)| {
            (10 * candidates[first][0] + candidates[second][0]) as f32
        };
        let logits: Vec<f32> = pairs.shown().iter().map(logit).collect();
        (logits.len(), pairs.table(&logits))
    }

    #[test]
    fn both_orders_fill_the_table_and_equal_responses_are_shown_once() {
        let (shown, filled) = table(&[vec![1], vec![2], vec![3]], Orders::Both);
        assert_eq!((shown, filled), (6, vec![0., 12., 13., 21., 0., 23., 31., 32., 0.]));
        let (shown, filled) = table(&[vec![1], vec![2], vec![1]], Orders::Both);
        assert_eq!((shown, filled), (3, vec![0., 12., 11., 21., 0., 21., 11., 12., 0.]));
        assert_eq!(table(&[vec![1]], Orders::Both), (0, vec![0.0]));
    }

    #[test]
    fn pairs_are_shown_in_the_order_of_their_first_candidates() {
        let pairs = Pairs::new(&[vec![1], vec![2], vec![1], vec![3], vec![2]], Orders::Both);
        let expected = [(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 3), (3, 0), (3, 1)];
        assert_eq!(pairs.shown(), expected);
    }

    #[test]
    fn one_order_is_half_the_work_and_does_not_depend_on_places() {
        let contents = |order: [u32; 4]| order.map(|content| vec![content]).to_vec();
        let (shown, straight) = table(&contents([1, 2, 3, 4]), Orders::One);
        let (_, turned) = table(&contents([3, 1, 4, 2]), Orders::One);
        assert_eq!(shown, 6);
        let at = |table: &[f32], i: usize, j: usize| table[4 * i + j];
        for (i, j) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            assert_eq!(at(&straight, i, j), -at(&straight, j, i));
            assert!(at(&straight, i, j) != 0.0);
            let place = |content: usize| [1, 3, 0, 2][content];
            assert_eq!(at(&straight, i, j), at(&turned, place(i), place(j)));
        }
        assert_eq!(table(&[vec![5], vec![5]], Orders::One), (0, vec![0.0; 4]));
    }
}
