//! Packing of sequences for questions about the token after each: beginnings that neighbours share are
//! computed once.
//!
//! Neighbouring sequences are divided into groups, each with the beginning that all of its sequences share, and
//! neighbouring groups into runs, each with the beginning that all of its groups share. Of all divisions the one
//! with the fewest rows is taken.
//!
//! ```text
//! sequences          p a x | p a y | p b x | p b y       prompt p, first responses a b, second responses x y
//! rows               p | a x y | b x y                   one run of two groups
//! keys and values    p | a x y | b x y | p b             a prefix lies in one piece: that of the last x and y is
//!                                                        there once more
//! ```

use std::ops::Range;

use super::packing::{InputLimits, PackedBatch, Packer};
use crate::error::Result;

/// Neighbours, the length of the beginning that is computed once for all of them, and the rows that they take.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Group {
    members: Range<usize>,
    shared: usize,
    rows: usize,
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
        let groups = groups(sequences, limits);
        let runs = runs(&groups, sequences, limits);
        let rows = runs.iter().map(|run| run.rows).sum();
        let mut packer = Packer::of_rows(rows);
        for Group { members, shared, .. } in runs {
            let groups = &groups[members];
            let first = groups.first().map_or(&[][..], |one| &sequences[one.members.start][..]);
            let is_long = limits.is_long(first.len());
            let root = match shared {
                0 => 0..0,
                _ => packer.push(&first[..shared], 0..0, is_long),
            };
            for group in groups {
                pack_group(&mut packer, group, sequences, root.clone(), next_tokens, is_long);
            }
        }
        Ok(packer.finish())
    }
}

/// Adds the rows of a group behind those of its run's beginning.
fn pack_group(
    packer: &mut Packer,
    Group { members, shared, .. }: &Group,
    sequences: &[Vec<u32>],
    root: Range<usize>,
    next_tokens: &[u32],
    is_long: bool,
) {
    let shared = (*shared).max(root.len());
    let rest = &sequences[members.start][root.len()..shared];
    let rows = packer.push(rest, root.clone(), is_long);
    let prefix = packer.joined(root, rows);
    for tokens in &sequences[members.clone()] {
        let rows = packer.push(&tokens[shared..], prefix.clone(), is_long);
        packer.ask(rows.end - 1, next_tokens);
    }
}

/// The division of all sequences into groups.
fn groups(sequences: &[Vec<u32>], limits: InputLimits) -> Vec<Group> {
    let rows: Vec<usize> = sequences.iter().map(Vec::len).collect();
    let shared: Vec<usize> =
        sequences.windows(2).map(|pair| shared_beginning(&pair[0], &pair[1], limits)).collect();
    division(&rows, &shared)
}

/// The division of all groups into runs.
fn runs(groups: &[Group], sequences: &[Vec<u32>], limits: InputLimits) -> Vec<Group> {
    let rows: Vec<usize> = groups.iter().map(|group| group.rows).collect();
    // Of several sequences no more than they share themselves.
    let most = |group: &Group| match group.members.len() {
        1 => usize::MAX,
        _ => group.shared,
    };
    let shared = |pair: &[Group]| {
        let [first, second] = [&pair[0], &pair[1]].map(|group| &sequences[group.members.start]);
        shared_beginning(first, second, limits).min(most(&pair[0])).min(most(&pair[1]))
    };
    let shared: Vec<usize> = groups.windows(2).map(shared).collect();
    division(&rows, &shared)
}

/// The division of neighbours that takes the fewest rows, from the rows that each takes alone and the length of the
/// beginning that each shares with the next. Ties go to the larger groups.
fn division(rows: &[usize], shared: &[usize]) -> Vec<Group> {
    // The fewest rows of the members so far, and the last group of that division.
    let mut best: Vec<(usize, Group)> = vec![(0, Group { members: 0..0, shared: 0, rows: 0 })];
    for end in 1..=rows.len() {
        let mut own = 0;
        let mut least = usize::MAX;
        let mut found = (usize::MAX, Group { members: 0..0, shared: 0, rows: 0 });
        for start in (0..end).rev() {
            let others = end - start - 1;
            own += rows[start];
            if others > 0 {
                least = least.min(shared[start]);
            }
            let shared = if others > 0 { least } else { 0 };
            if others > 0 && shared == 0 {
                break;
            }
            let rows = own - others * shared;
            let total = best[start].0 + rows;
            if total <= found.0 {
                found = (total, Group { members: start..end, shared, rows });
            }
        }
        best.push(found);
    }
    let mut groups = Vec::new();
    let mut end = rows.len();
    while end > 0 {
        let group = best[end].1.clone();
        end = group.members.start;
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
    use crate::ops::{AttentionSegment, Position};

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
        let group = |members, shared, rows| Group { members, shared, rows };
        let expected = [group(0..2, 5, 9), group(2..4, 5, 9)];
        assert_eq!(groups(&sequences, LIMITS), expected);
        // The prompt, two first answers, and four times the rest.
        assert_eq!(runs(&expected, &sequences, LIMITS), [group(0..2, 1, 17)]);
        let equal = vec![vec![1, 2, 3]; 3];
        assert_eq!(groups(&equal, LIMITS), [group(0..3, 2, 5)]);
        assert_eq!(groups(&[], LIMITS), []);
        let apart = InputLimits { longest_short_sequence: Some(3), ..LIMITS };
        let mixed = [vec![1, 2, 3, 4], vec![1, 2, 3]];
        assert!(groups(&mixed, apart).iter().all(|group| group.members.len() == 1));
    }

    #[test]
    fn a_prefix_in_two_pieces_is_there_once_more_behind_all_rows() {
        let sequence = |first: u32, second: u32| vec![1, 2, first, first, first, second];
        let sequences = [(5, 6), (5, 7), (8, 6), (8, 7)].map(|(a, b)| sequence(a, b));
        let packed = PackedBatch::from_questions(&sequences, &[9], LIMITS).unwrap();
        assert_eq!(*packed.tokens, [1, 2, 5, 5, 5, 6, 7, 8, 8, 8, 6, 7]);
        let expected = [
            segment(0..2, 0..0),
            segment(2..5, 0..2),
            segment(5..6, 0..5),
            segment(6..7, 0..5),
            segment(7..10, 0..2),
            segment(10..11, 12..17),
            segment(11..12, 12..17),
        ];
        assert_eq!(*packed.segments, expected);
        let rows = packed.key_value_rows.unwrap();
        assert_eq!(rows[..12], std::array::from_fn::<u32, 12, _>(|row| row as u32));
        assert_eq!(rows[12..], [0, 1, 7, 8, 9]);
        let expected = [0, 1, 2, 3, 4, 5, 5, 2, 3, 4, 5, 5].map(Position::of);
        assert_eq!(*packed.positions, expected);
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
