//! Division of examples into micro-batches, and of these among replicas.

use std::borrow::Borrow;
use std::cmp::Reverse;

use crate::plugin::SequenceBatch;
use crate::records::TrainingExample;

/// Packs examples, each prompt once unless the answers disagree about its tokens.
pub(super) fn pack<E: Borrow<TrainingExample>>(part: &[E]) -> SequenceBatch {
    let mut packed = SequenceBatch::new();
    for example in part {
        let example = example.borrow();
        let shared = packed.push_prompt(&example.prompt_tokens);
        for response in &example.responses {
            let prompt = match &response.prompt_tokens_override {
                Some(own) => packed.push_prompt(own),
                None => shared,
            };
            packed.push_response(prompt, &response.tokens);
        }
    }
    packed
}

fn token_count(example: &TrainingExample) -> usize {
    let own: usize = example
        .responses
        .iter()
        .map(|response| {
            response.tokens.len() + response.prompt_tokens_override.as_ref().map_or(0, Vec::len)
        })
        .sum();
    example.prompt_tokens.len() + own
}

/// Lengths of consecutive groups whose tokens stay within the budget, at least one example each.
pub(in crate::stages) fn group_lengths(
    token_counts: impl Iterator<Item = usize>,
    budget: usize,
) -> Vec<usize> {
    let mut lengths: Vec<usize> = Vec::new();
    let mut used = 0;
    for tokens in token_counts {
        match lengths.last_mut() {
            Some(length) if used + tokens <= budget => {
                *length += 1;
                used += tokens;
            }
            _ => {
                lengths.push(1);
                used = tokens;
            }
        }
    }
    lengths
}

/// Micro-batches of one round, which replicas compute at the same time.
pub(super) type Round<'a> = Vec<Vec<&'a TrainingExample>>;

/// Micro-batches within the budget, in rounds of one for each replica: consecutive examples for one replica. Several
/// replicas wait for the largest micro-batch of a round, so theirs are made even, of examples in any order.
pub(super) fn rounds<E: Borrow<TrainingExample>>(
    examples: &[E],
    budget: usize,
    replicas: usize,
) -> Vec<Round<'_>> {
    let examples: Vec<&TrainingExample> = examples.iter().map(Borrow::borrow).collect();
    let tokens: Vec<usize> = examples.iter().copied().map(token_count).collect();
    let groups = match replicas {
        0 | 1 => consecutive_groups(&tokens, budget),
        _ => even_groups(&tokens, budget, replicas),
    };
    let micro_batch = |group: &Vec<usize>| group.iter().map(|&index| examples[index]).collect();
    groups.chunks(replicas.max(1)).map(|round| round.iter().map(micro_batch).collect()).collect()
}

fn consecutive_groups(tokens: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut next = 0;
    let group = |length| {
        next += length;
        (next - length..next).collect()
    };
    group_lengths(tokens.iter().copied(), budget).into_iter().map(group).collect()
}

/// Groups of about as many tokens each, within the budget unless one example is beyond it, as few as replicas can
/// share evenly: the longest example that is left goes to the group that has the fewest tokens.
fn even_groups(tokens: &[usize], budget: usize, replicas: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..tokens.len()).collect();
    longest_first.sort_by_key(|&index| Reverse(tokens[index]));
    let least = tokens.iter().sum::<usize>().div_ceil(budget.max(1));
    let mut count = least.max(1).next_multiple_of(replicas);
    loop {
        let mut groups = vec![(0, Vec::new()); count];
        for &index in &longest_first {
            let fewest = groups.iter_mut().min_by_key(|(sum, _)| *sum);
            let Some((sum, group)) = fewest else { break };
            *sum += tokens[index];
            group.push(index);
        }
        let is_within = |(sum, group): &(usize, Vec<usize>)| *sum <= budget || group.len() <= 1;
        if groups.iter().all(is_within) {
            groups.retain(|(_, group)| !group.is_empty());
            // The micro-batches of a round are alike.
            groups.sort_by_key(|(sum, _)| Reverse(*sum));
            return groups.into_iter().map(|(_, group)| group).collect();
        }
        count += replicas;
    }
}

/// Micro-batches of consecutive examples within the budget. They are the same for any number of replicas; for several,
/// those of about as many tokens follow each other.
pub(super) fn micro_batches_mut(
    examples: &mut [TrainingExample],
    budget: usize,
    replicas: usize,
) -> Vec<&mut [TrainingExample]> {
    let lengths = group_lengths(examples.iter().map(token_count), budget);
    let mut rest = examples;
    let mut micro_batches: Vec<&mut [TrainingExample]> = lengths
        .into_iter()
        .map(|length| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(length);
            rest = after;
            part
        })
        .collect();
    if replicas > 1 {
        micro_batches.sort_by_key(|part| Reverse(part.iter().map(token_count).sum::<usize>()));
    }
    micro_batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn replicas_share_all_examples_evenly_within_the_budget(
            tokens in prop::collection::vec(1_usize..300, 1..40),
            budget in 1_usize..900,
            replicas in 2_usize..5,
        ) {
            let groups = even_groups(&tokens, budget, replicas);
            let mut all: Vec<usize> = groups.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
            let sums = groups.iter().map(|group| group.iter().map(|&index| tokens[index]).sum());
            let sums: Vec<usize> = sums.collect();
            let longest = tokens.iter().copied().max().unwrap_or(0);
            for (group, &sum) in groups.iter().zip(&sums) {
                prop_assert!(sum <= budget || group.len() == 1);
            }
            // Where there is a group for each replica, none is ahead of another by more than an example.
            if groups.len().is_multiple_of(replicas) {
                for round in sums.chunks(replicas) {
                    prop_assert!(round[0] - round[replicas - 1] <= longest);
                }
            }
        }
    }
}
