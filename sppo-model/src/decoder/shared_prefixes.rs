//! Packing of sequences for questions about the token after each: beginnings that neighbours share are
//! computed once.
//!
//! Attention knows one prefix per segment, so neighbouring sequences are divided into groups, each with the
//! beginning that all of its sequences share. Of all divisions the one with the fewest rows is taken.

use std::ops::Range;

use super::packing::{InputLimits, PackedBatch, Packer};
use crate::error::Result;

/// Neighbouring sequences, and the length of the beginning that is computed once for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    sequences: Range<usize>,
    shared: usize,
}

impl PackedBatch {
    /// Packs sequences whose last rows each predict all of `next_tokens`: the targets of the first sequence,
    /// then those of the second, ...
    ///
    /// # Errors
    /// Names the sequence that is empty, too long or holds an unknown token, or the unknown token that is
    /// asked for.
    pub fn from_questions(
        sequences: &[Vec<u32>],
        next_tokens: &[u32],
        limits: InputLimits,
    ) -> Result<Self> {
        if !next_tokens.is_empty() {
            limits.check(next_tokens, &|| "the list of next tokens".into())?;
        }
        for (number, tokens) in sequences.iter().enumerate() {
            limits.check_sequence(tokens, &|| format!("sequence {number}"))?;
        }
        let mut packer = Packer::default();
        for Group { sequences: members, shared } in groups(sequences, limits) {
            let is_long = limits.is_long(sequences[members.start].len());
            let prefix = match shared {
                0 => 0..0,
                _ => packer.push(&sequences[members.start][..shared], 0..0, is_long),
            };
            for tokens in &sequences[members] {
                let rows = packer.push(&tokens[shared..], prefix.clone(), is_long);
                packer.ask(rows.end - 1, next_tokens);
            }
        }
        Ok(packer.finish())
    }
}

/// The division of all sequences into groups that takes the fewest rows. Ties go to the larger groups.
fn groups(sequences: &[Vec<u32>], limits: InputLimits) -> Vec<Group> {
    let shared: Vec<usize> =
        sequences.windows(2).map(|pair| shared_beginning(&pair[0], &pair[1], limits)).collect();
    // The fewest rows of the sequences so far, and the last group of that division.
    let mut best: Vec<(usize, Group)> = vec![(0, Group { sequences: 0..0, shared: 0 })];
    for end in 1..=sequences.len() {
        let mut own = 0;
        let mut least = usize::MAX;
        let mut found = (usize::MAX, Group { sequences: 0..0, shared: 0 });
        for start in (0..end).rev() {
            let others = end - start - 1;
            own += sequences[start].len();
            if others > 0 {
                least = least.min(shared[start]);
            }
            let shared = if others > 0 { least } else { 0 };
            if others > 0 && shared == 0 {
                break;
            }
            let rows = best[start].0 + own - others * shared;
            if rows <= found.0 {
                found = (rows, Group { sequences: start..end, shared });
            }
        }
        best.push(found);
    }
    let mut groups = Vec::new();
    let mut end = sequences.len();
    while end > 0 {
        let group = best[end].1.clone();
        end = group.sequences.start;
        groups.push(group);
    }
    groups.reverse();
    groups
}

/// Number of tokens at the beginning that both have. The last token of a sequence has a row of its own, and
/// a long sequence shares nothing with a short one.
fn shared_beginning(first: &[u32], second: &[u32], limits: InputLimits) -> usize {
    if limits.is_long(first.len()) != limits.is_long(second.len()) {
        return 0;
    }
    let most = first.len().min(second.len()) - 1;
    let is_same = |(first, second): &(&u32, &u32)| first == second;
    first[..most].iter().zip(second).take_while(is_same).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::AttentionSegment;

    const LIMITS: InputLimits =
        InputLimits { vocabulary_size: 100, context_length: 8, longest_short_sequence: None };

    fn segment(rows: Range<usize>, prefix: Range<usize>) -> AttentionSegment {
        AttentionSegment { queries: rows.clone(), prefix, own: rows }
    }

    #[test]
    fn neighbours_share_their_beginning_and_every_question_its_own_end() {
        let sequences = [vec![1, 2, 3, 4], vec![1, 2, 3, 5], vec![1, 2, 3], vec![9, 8]];
        let packed = PackedBatch::from_questions(&sequences, &[7, 6], LIMITS).unwrap();
        assert_eq!(*packed.tokens, [1, 2, 3, 4, 3, 5, 3, 9, 8]);
        let expected = [
            segment(0..2, 0..0),
            segment(2..4, 0..2),
            segment(4..6, 0..2),
            segment(6..7, 0..2),
            segment(7..9, 0..0),
        ];
        assert_eq!(*packed.segments, expected);
        assert_eq!(*packed.predicting_rows, [3, 3, 5, 5, 6, 6, 8, 8]);
        assert_eq!(*packed.targets, [7, 6, 7, 6, 7, 6, 7, 6]);
    }

    #[test]
    fn groups_take_the_fewest_rows() {
        // Four questions of two first answers: the prompt alone in common is less than twice the answer.
        let sequence = |first: u32, second: u32| vec![1, first, first, first, 2, second, 3];
        let sequences: Vec<Vec<u32>> =
            [(10, 20), (10, 21), (11, 20), (11, 21)].map(|(a, b)| sequence(a, b)).into();
        let expected = [Group { sequences: 0..2, shared: 5 }, Group { sequences: 2..4, shared: 5 }];
        assert_eq!(groups(&sequences, LIMITS), expected);
        let equal = vec![vec![1, 2, 3]; 3];
        assert_eq!(groups(&equal, LIMITS), [Group { sequences: 0..3, shared: 2 }]);
        assert_eq!(groups(&[], LIMITS), []);
        let apart = InputLimits { longest_short_sequence: Some(3), ..LIMITS };
        let mixed = [vec![1, 2, 3, 4], vec![1, 2, 3]];
        assert!(groups(&mixed, apart).iter().all(|group| group.sequences.len() == 1));
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let error = |sequence: &[u32], tokens: &[u32]| {
            PackedBatch::from_questions(&[sequence.to_vec()], tokens, LIMITS)
                .unwrap_err()
                .to_string()
        };
        assert!(error(&[], &[1]).contains("sequence 0 has no tokens"));
        assert!(error(&[1; 9], &[1]).contains("9 tokens long"));
        assert!(error(&[1], &[100]).contains("next tokens holds token 100"));
    }
}
