//! Selection of the responses to train on.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Strategies of selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SelectionStrategy {
    /// The responses with the highest and the lowest score; of equals, the first (the released
    /// code).
    #[default]
    BestAndWorst,
    /// All K responses, best first, each toward its own win rate (Algorithm 1 as written).
    All,
}

/// Settings of the selection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SelectionRule {
    /// The responses to train on.
    pub strategy: SelectionStrategy,
    /// Keeps prompts whose responses all score the same, or whose chosen and rejected responses have
    /// the same text, as the released code does. They only pull the policy towards the reference.
    pub keep_degenerate: bool,
}

/// Reasons to skip a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// Chosen and rejected response have the same text.
    IdenticalTexts,
    /// Every response has the same score.
    EqualScores,
}

/// Outcome of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// The selected responses, the best first and the worst last.
    Chosen {
        /// Their indices among the K responses.
        indices: Vec<usize>,
    },
    /// The prompt is skipped.
    Skipped(SkipReason),
}

/// Numbers of skipped prompts by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkipCounts {
    /// For [`SkipReason::IdenticalTexts`].
    pub identical_texts: usize,
    /// For [`SkipReason::EqualScores`].
    pub equal_scores: usize,
}

impl SkipCounts {
    /// Counts one skipped prompt.
    pub fn add(&mut self, reason: SkipReason) {
        match reason {
            SkipReason::IdenticalTexts => self.identical_texts += 1,
            SkipReason::EqualScores => self.equal_scores += 1,
        }
    }
}

impl fmt::Display for SkipCounts {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "prompts were skipped, {} whose best and worst answers read the same and {} whose answers are \
             judged equal",
            self.identical_texts, self.equal_scores
        )
    }
}

/// Selects responses by their scores; `scores` and `texts` are of the same, non-zero length.
#[must_use]
pub fn select(scores: &[f64], texts: &[&str], rule: &SelectionRule) -> Selection {
    let best = first_extreme(scores, |score, best| score > best);
    let worst = first_extreme(scores, |score, worst| score < worst);
    if !rule.keep_degenerate {
        if texts.iter().all(|text| *text == texts[best])
            || texts[best] == texts[worst] && best != worst
        {
            return Selection::Skipped(SkipReason::IdenticalTexts);
        }
        if best == worst {
            return Selection::Skipped(SkipReason::EqualScores);
        }
    }
    let indices = match rule.strategy {
        SelectionStrategy::BestAndWorst => vec![best, worst],
        SelectionStrategy::All => {
            let mut indices: Vec<usize> = (0..scores.len()).collect();
            indices.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            indices
        }
    };
    Selection::Chosen { indices }
}

fn first_extreme(scores: &[f64], beats: impl Fn(f64, f64) -> bool) -> usize {
    (1..scores.len())
        .fold(0, |best, index| if beats(scores[index], scores[best]) { index } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXTS: [&str; 5] = ["a", "b", "c", "d", "e"];

    #[test]
    fn the_first_of_equals_is_chosen_at_both_ends() {
        let scores = [0.0, 2.0, -1.0, 2.0, -1.0];
        let chosen = Selection::Chosen { indices: vec![1, 2] };
        assert_eq!(select(&scores, &TEXTS, &SelectionRule::default()), chosen);
    }

    #[test]
    fn degenerate_prompts_are_skipped_unless_kept_as_officially() {
        let rule = SelectionRule::default();
        let keep = SelectionRule { keep_degenerate: true, ..rule };
        let equal = [0.5; 5];
        assert_eq!(select(&equal, &TEXTS, &rule), Selection::Skipped(SkipReason::EqualScores));
        assert_eq!(select(&equal, &TEXTS, &keep), Selection::Chosen { indices: vec![0, 0] });
        let same = ["a", "a", "b", "b", "b"];
        let scores = [1.0, -1.0, 0.0, 0.0, 0.0];
        assert_eq!(select(&scores, &same, &rule), Selection::Skipped(SkipReason::IdenticalTexts));
    }

    #[test]
    fn all_answers_are_chosen_the_best_first() {
        let rule = SelectionRule { strategy: SelectionStrategy::All, keep_degenerate: false };
        let chosen = Selection::Chosen { indices: vec![3, 0, 4, 2, 1] };
        assert_eq!(select(&[3.0, 1.0, 2.0, 5.0, 3.0], &TEXTS, &rule), chosen);
    }
}
