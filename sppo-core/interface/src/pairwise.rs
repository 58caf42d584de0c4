//! Pairwise asking, for oracles that compare two responses at a time: the pairs to show, and the K x K
//! matrix of their answers.
//!
//! ```
//! use sppo_plugin::Verdict;
//! use sppo_plugin::pairwise::{self, Orders};
//!
//! let responses = ["Yes.", "No.", "Perhaps."];
//! let pairs = pairwise::pairs(&responses, Orders::Both);
//! assert_eq!(pairs.len(), 6);
//! // The probability that the response shown first is better; this judge likes the longer one.
//! let judge = |first: usize, second: usize| match responses[first].len() > responses[second].len() {
//!     true => 0.9,
//!     false => 0.2,
//! };
//! let matrix = pairwise::probabilities(3, |first, second| Some(judge(first, second)));
//! assert!((matrix.values[2] - 0.15).abs() < 1e-12);
//! let verdict = Verdict::Probabilities(matrix.values);
//! ```

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Orders in which the two responses of a pair are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Orders {
    /// Both: K (K - 1) questions about K responses. A judge that favours a position favours nobody.
    #[default]
    Both,
    /// One, at half the cost; the other is taken to be its opposite. The order follows from the texts,
    /// each as often as the other.
    One,
}

/// The pairs to show of K responses, as indices (first shown, second shown). Identical contents are a tie
/// and are not shown. Pairs are sorted by their lower index, then by their higher one; of both orders the
/// one that shows the lower index first comes first.
#[must_use]
pub fn pairs<C: AsRef<[u8]>>(contents: &[C], orders: Orders) -> Vec<(usize, usize)> {
    let mut pairs = Vec::with_capacity(contents.len() * contents.len());
    for (low, high) in index_pairs(contents.len()) {
        let [a, b] = [low, high].map(|index| contents[index].as_ref());
        if a == b {
            continue;
        }
        let (forward, backward) = match orders {
            Orders::Both => (true, true),
            Orders::One => {
                let low_first = comes_first(a, b);
                (low_first, !low_first)
            }
        };
        pairs.extend(forward.then_some((low, high)));
        pairs.extend(backward.then_some((high, low)));
    }
    pairs
}

/// The row-major K x K matrix of the answers to pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct PairMatrix<T> {
    /// The entry `i * K + j` is about response `i` against response `j`.
    pub values: Vec<T>,
    /// Pairs without an answer in either order, the lower index first: they are ties. Pairs that were
    /// never asked about are among them.
    pub undecided: Vec<(usize, usize)>,
}

/// The matrix of `P(i beats j)`, both orders averaged, from `answer(first, second)`: the probability that
/// the response shown first is better, or `None` without an answer.
///
/// With one answer of two, the other is taken to be its opposite. `P[i][j] + P[j][i] = 1`; the diagonal
/// and ties are 1/2.
#[must_use]
pub fn probabilities(size: usize, answer: impl Fn(usize, usize) -> Option<f64>) -> PairMatrix<f64> {
    let mut matrix = PairMatrix { values: vec![0.5; size * size], undecided: Vec::new() };
    for (low, high) in index_pairs(size) {
        match both_orders(answer(low, high), answer(high, low), |probability| 1.0 - probability) {
            Some((forward, backward)) => {
                let probability = f64::midpoint(forward, 1.0 - backward);
                matrix.values[low * size + high] = probability;
                matrix.values[high * size + low] = 1.0 - probability;
            }
            None => matrix.undecided.push((low, high)),
        }
    }
    matrix
}

/// The matrix of logits, the response of the row shown first, from `answer(first, second)`: the log-odds
/// that the response shown first is better, or `None` without an answer.
///
/// With one answer of two, the other is taken to be its opposite. The diagonal and ties are 0.
#[must_use]
pub fn logits(size: usize, answer: impl Fn(usize, usize) -> Option<f32>) -> PairMatrix<f32> {
    let mut matrix = PairMatrix { values: vec![0.0; size * size], undecided: Vec::new() };
    for (low, high) in index_pairs(size) {
        match both_orders(answer(low, high), answer(high, low), |logit| -logit) {
            Some((forward, backward)) => {
                matrix.values[low * size + high] = forward;
                matrix.values[high * size + low] = backward;
            }
            None => matrix.undecided.push((low, high)),
        }
    }
    matrix
}

/// All `(low, high)` with `low < high < size`, sorted.
fn index_pairs(size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..size).flat_map(move |low| (low + 1..size).map(move |high| (low, high)))
}

/// The answers in both orders; a missing one is the opposite of the other.
fn both_orders<T: Copy>(
    forward: Option<T>,
    backward: Option<T>,
    opposite: impl Fn(T) -> T,
) -> Option<(T, T)> {
    let first = forward.or(backward.map(&opposite))?;
    let second = backward.or(forward.map(&opposite))?;
    Some((first, second))
}

/// Picks the order when each pair is shown once: pseudo-random by SHA-256, but deterministic.
fn comes_first(a: &[u8], b: &[u8]) -> bool {
    Sha256::digest(a) < Sha256::digest(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_are_averaged_and_a_position_bias_cancels() {
        // The judge favours the first position by 0.3, and sees no other difference.
        let matrix = probabilities(3, |_, _| Some(0.8));
        assert!(matrix.values.iter().all(|value| (value - 0.5).abs() < 1e-15), "{matrix:?}");
        assert_eq!(matrix.undecided, []);
    }

    #[test]
    fn one_answer_stands_for_both_and_none_is_undecided() {
        let half = |first: usize, second: usize| (first < second).then_some(0.75);
        let expected = [0.5, 0.75, 0.75, 0.25, 0.5, 0.75, 0.25, 0.25, 0.5];
        assert_eq!(probabilities(3, half).values, expected);
        let nothing = probabilities(3, |_, _| None);
        assert_eq!(nothing.undecided, [(0, 1), (0, 2), (1, 2)]);
        assert_eq!(nothing.values, [0.5; 9]);
    }

    #[test]
    fn logits_keep_their_orders_apart() {
        let logit = |first: usize, second: usize| Some(first as f32 - 2.0 * second as f32);
        let both = [0.0, -2.0, -4.0, 1.0, 0.0, -3.0, 2.0, 0.0, 0.0];
        assert_eq!(logits(3, logit).values, both);
        let one = logits(2, |first, second| (first > second).then_some(3.0));
        assert_eq!(one, PairMatrix { values: vec![0.0, -3.0, 3.0, 0.0], undecided: Vec::new() });
    }

    #[test]
    fn identical_contents_are_not_shown_and_both_orders_stand_together() {
        let contents = ["x", "y", "x"];
        assert_eq!(pairs(&contents, Orders::Both), [(0, 1), (1, 0), (1, 2), (2, 1)]);
        assert_eq!(pairs(&contents, Orders::One).len(), 2);
    }

    #[test]
    fn the_order_does_not_depend_on_the_indices_and_is_even() {
        let texts: Vec<String> = (0..40).map(|index| format!("answer {index}")).collect();
        let backward: Vec<&String> = texts.iter().rev().collect();
        let forward: Vec<&String> = texts.iter().collect();
        let shown = |texts: &[&String]| {
            let mut shown: Vec<(String, String)> = pairs(texts, Orders::One)
                .into_iter()
                .map(|(first, second)| (texts[first].clone(), texts[second].clone()))
                .collect();
            shown.sort();
            shown
        };
        assert_eq!(shown(&forward), shown(&backward));
        let low_first =
            pairs(&texts, Orders::One).iter().filter(|(first, second)| first < second).count();
        assert!((280..=500).contains(&low_first), "{low_first} of 780");
        // SHA-256("a") = ca97..., SHA-256("b") = 3e23...
        assert_eq!(pairs(&["a", "b"], Orders::One), [(1, 0)]);
    }
}
