//! Which pairs of answers are shown, and where their logits go.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use sppo_model::serve::judge::Entries;

use crate::config::Orders;

/// A pair that is shown, and the entries of the logit table that its logit fills.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The candidate that is shown first.
    pub(crate) first: usize,
    /// The candidate that is shown second.
    pub(crate) second: usize,
    /// Entries of the row-major table.
    pub(crate) entries: Entries,
}

/// The pairs of one comparison. Candidates of the same tokens look alike to the ranker, so that each
/// pair of different contents is shown once. Entries that no pair fills are 0.
pub(crate) fn pairs(candidates: &[Vec<u32>], orders: Orders) -> Vec<Pair> {
    let size = candidates.len();
    let alike = |candidate: usize| {
        let content = &candidates[candidate];
        candidates.iter().position(|other| other == content).unwrap_or(candidate)
    };
    let mut pairs: BTreeMap<(usize, usize), Pair> = BTreeMap::new();
    for (i, j) in (0..size * size).map(|at| (at / size, at % size)).filter(|(i, j)| i != j) {
        let (first, second) = (alike(i), alike(j));
        let is_shown = match orders {
            Orders::Both => true,
            Orders::One => comes_first(&candidates[first], &candidates[second]),
        };
        if is_shown {
            let pair = pairs.entry((first, second)).or_insert(Pair {
                first,
                second,
                entries: Entries::default(),
            });
            pair.entries.same.push(i * size + j);
            if orders == Orders::One {
                pair.entries.opposite.push(j * size + i);
            }
        }
    }
    pairs.into_values().collect()
}

/// Which of two contents is shown first when only one order is: as good as drawn, yet always the same.
/// Neither of two alike: they draw.
fn comes_first(a: &[u32], b: &[u32]) -> bool {
    let digest = |content: &[u32]| {
        let mut hash = Sha256::new();
        content.iter().for_each(|token| hash.update(token.to_le_bytes()));
        hash.finalize()
    };
    digest(a) < digest(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills the table as if the ranker scored `10 first + second`.
    fn table(candidates: &[Vec<u32>], orders: Orders) -> (usize, Vec<f32>) {
        let mut table = vec![0.0; candidates.len().pow(2)];
        let pairs = pairs(candidates, orders);
        for pair in &pairs {
            let logit = 10 * candidates[pair.first][0] + candidates[pair.second][0];
            pair.entries.fill(&mut table, logit as f32);
        }
        (pairs.len(), table)
    }

    #[test]
    fn both_orders_fill_the_table_and_equal_answers_are_shown_once() {
        let (shown, filled) = table(&[vec![1], vec![2], vec![3]], Orders::Both);
        assert_eq!((shown, filled), (6, vec![0., 12., 13., 21., 0., 23., 31., 32., 0.]));
        let (shown, filled) = table(&[vec![1], vec![2], vec![1]], Orders::Both);
        assert_eq!((shown, filled), (3, vec![0., 12., 11., 21., 0., 21., 11., 12., 0.]));
        assert_eq!(table(&[vec![1]], Orders::Both), (0, vec![0.0]));
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
