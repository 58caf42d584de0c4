//! Preference pairs to train on, from any source: `{"prompt"|"messages", "chosen", "rejected",
//! "chosen_probs", "chosen_probs_win", "chosen_probs_lose"}`, where the answers are text or whole
//! conversations, or `prompt_tokens, chosen_tokens, rejected_tokens` in their place.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::candidates::CandidateSet;
use super::roles::in_known_roles;
use super::text::{TextOrMessages, answerable, conversation, not_empty};
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::plugin::Conversation;
use crate::preference::PreferenceMatrix;
use crate::selection::{Selection, SelectionRule, SelectionStrategy, SkipCounts, select};
use crate::tables::{self, Place};
use crate::win_rate::Preferences;

/// A better and a worse answer to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The answers.
    pub content: PairContent,
    /// P(chosen beats rejected) (official: `chosen_probs`).
    pub chosen_probability: Option<f64>,
    /// P(chosen beats the policy) (official: `chosen_probs_win`).
    pub chosen_win_rate: Option<f64>,
    /// P(rejected beats the policy) (official: `chosen_probs_lose`).
    pub rejected_win_rate: Option<f64>,
    /// log pi_ref(chosen | prompt), where it is known.
    pub reference_chosen_log_prob: Option<f64>,
    /// log pi_ref(rejected | prompt), where it is known.
    pub reference_rejected_log_prob: Option<f64>,
}

/// A pair's answers.
#[derive(Clone, Debug, PartialEq)]
pub enum PairContent {
    /// As text.
    Text {
        /// The conversation, ending with the user's turn.
        messages: Conversation,
        /// The better answer.
        chosen: String,
        /// The worse answer.
        rejected: String,
    },
    /// As token ids, at least one of each.
    Tokens {
        /// The prompt.
        prompt: Vec<u32>,
        /// The better answer.
        chosen: Vec<u32>,
        /// The worse answer.
        rejected: Vec<u32>,
        /// The prompt for the better answer alone, where it differs.
        chosen_prompt: Option<Vec<u32>>,
        /// The prompt for the worse answer alone, where it differs.
        rejected_prompt: Option<Vec<u32>>,
    },
}

const COLUMNS: [&str; 14] = [
    "prompt",
    "messages",
    "chosen",
    "rejected",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
    "chosen_prompt_tokens",
    "rejected_prompt_tokens",
    "chosen_probs",
    "chosen_probs_win",
    "chosen_probs_lose",
    "reference_chosen_log_prob",
    "reference_rejected_log_prob",
];

#[derive(Deserialize)]
struct Row {
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
    chosen: Option<TextOrMessages>,
    rejected: Option<TextOrMessages>,
    prompt_tokens: Option<Vec<u32>>,
    chosen_tokens: Option<Vec<u32>>,
    rejected_tokens: Option<Vec<u32>>,
    chosen_prompt_tokens: Option<Vec<u32>>,
    rejected_prompt_tokens: Option<Vec<u32>>,
    chosen_probs: Option<f64>,
    chosen_probs_win: Option<f64>,
    chosen_probs_lose: Option<f64>,
    reference_chosen_log_prob: Option<f64>,
    reference_rejected_log_prob: Option<f64>,
}

/// Reads pairs; tokens count where a row has both tokens and text.
///
/// # Errors
/// When the file cannot be read, is empty, or a row is incomplete, contradictory or lacks a probability that
/// the objective needs; the error names the line.
pub fn read_pairs(path: &Path, objective: Objective) -> Result<Vec<Pair>> {
    let wanted = |column: &arrow_schema::Field| COLUMNS.contains(&column.name().as_str());
    let pairs = tables::read_with(path, wanted, |row: Row, place| row.into_pair(objective, place))?;
    not_empty(pairs, path)
}

/// Pairs from JSON lines in memory; `name` stands for the file in errors.
///
/// # Errors
/// As [`read_pairs`].
pub fn parse_pairs(name: &str, text: &str, objective: Objective) -> Result<Vec<Pair>> {
    let pairs =
        tables::read_text_with(name, text, |row: Row, place| row.into_pair(objective, place))?;
    not_empty(pairs, Path::new(name))
}

/// The pairs of the best and the worst candidate of each set that has them, and the number of the others.
#[must_use]
pub fn pair_candidates(
    sets: &[CandidateSet],
    preferences: &[Preferences],
    keep_degenerate: bool,
) -> (Vec<Pair>, SkipCounts) {
    let rule = SelectionRule { strategy: SelectionStrategy::BestAndWorst, keep_degenerate };
    let mut skipped = SkipCounts::default();
    let mut pairs = Vec::with_capacity(sets.len());
    for (set, preferences) in sets.iter().zip(preferences) {
        let texts: Vec<&str> = set.candidates.iter().map(String::as_str).collect();
        match select(&preferences.scores, &texts, &rule) {
            Selection::Skipped(reason) => skipped.add(reason),
            Selection::Chosen { indices } => {
                if let (Some(&best), Some(&worst)) = (indices.first(), indices.last()) {
                    pairs.push(Pair::of_candidates(set, &preferences.matrix, best, worst));
                }
            }
        }
    }
    (pairs, skipped)
}

/// Columns of a pair of texts, with the official names.
#[derive(Serialize, Deserialize)]
struct TextRow {
    messages: Conversation,
    chosen: String,
    rejected: String,
    chosen_probs: f64,
    chosen_probs_win: f64,
    chosen_probs_lose: f64,
}

/// Writes pairs of texts.
///
/// # Errors
/// When a pair holds tokens or lacks a probability, or the file cannot be written.
pub fn write_pairs(path: &Path, pairs: Vec<Pair>) -> Result<()> {
    let rows: Option<Vec<TextRow>> = pairs.into_iter().map(Pair::into_row).collect();
    match rows {
        Some(rows) => tables::write(path, &rows),
        None => Err(Error::input(path, "holds pairs of texts with all of their probabilities")),
    }
}

impl Pair {
    fn of_candidates(
        set: &CandidateSet,
        matrix: &PreferenceMatrix,
        best: usize,
        worst: usize,
    ) -> Self {
        Self {
            content: PairContent::Text {
                messages: set.messages.clone(),
                chosen: set.candidates[best].clone(),
                rejected: set.candidates[worst].clone(),
            },
            chosen_probability: Some(matrix.get(best, worst)),
            chosen_win_rate: Some(matrix.win_rate(best)),
            rejected_win_rate: Some(matrix.win_rate(worst)),
            reference_chosen_log_prob: None,
            reference_rejected_log_prob: None,
        }
    }

    /// `None` for tokens, and where a probability is not known.
    fn into_row(self) -> Option<TextRow> {
        let PairContent::Text { messages, chosen, rejected } = self.content else { return None };
        Some(TextRow {
            messages,
            chosen,
            rejected,
            chosen_probs: self.chosen_probability?,
            chosen_probs_win: self.chosen_win_rate?,
            chosen_probs_lose: self.rejected_win_rate?,
        })
    }
}

impl Row {
    fn into_pair(self, objective: Objective, place: &Place) -> Result<Pair> {
        let required = objective.requires();
        let win_rates = required.win_rates.then_some(objective);
        let pair = Pair {
            chosen_probability: probability(
                self.chosen_probs,
                "chosen_probs",
                required.chosen_probability.then_some(objective),
                place,
            )?,
            chosen_win_rate: probability(
                self.chosen_probs_win,
                "chosen_probs_win",
                win_rates,
                place,
            )?,
            rejected_win_rate: probability(
                self.chosen_probs_lose,
                "chosen_probs_lose",
                win_rates,
                place,
            )?,
            reference_chosen_log_prob: self.reference_chosen_log_prob,
            reference_rejected_log_prob: self.reference_rejected_log_prob,
            content: self.content(place)?,
        };
        Ok(pair)
    }

    fn content(self, place: &Place) -> Result<PairContent> {
        match (self.prompt_tokens, self.chosen_tokens, self.rejected_tokens) {
            (Some(prompt), Some(chosen), Some(rejected)) => {
                if prompt.is_empty() || chosen.is_empty() || rejected.is_empty() {
                    return Err(
                        place.error("the prompt and both answers must hold at least one token")
                    );
                }
                Ok(PairContent::Tokens {
                    prompt,
                    chosen,
                    rejected,
                    chosen_prompt: self.chosen_prompt_tokens,
                    rejected_prompt: self.rejected_prompt_tokens,
                })
            }
            (None, None, None) => {
                text_content(self.prompt, self.messages, self.chosen, self.rejected, place)
            }
            (prompt, chosen, _) => {
                let missing = match (prompt, chosen) {
                    (None, _) => "prompt_tokens",
                    (_, None) => "chosen_tokens",
                    _ => "rejected_tokens",
                };
                Err(place.error(format!("missing column `{missing}`")))
            }
        }
    }
}

fn text_content(
    prompt: Option<TextOrMessages>,
    messages: Option<Conversation>,
    chosen: Option<TextOrMessages>,
    rejected: Option<TextOrMessages>,
    place: &Place,
) -> Result<PairContent> {
    let (mut before_chosen, chosen) = answer(chosen, "chosen", place)?;
    let (before_rejected, rejected) = answer(rejected, "rejected", place)?;
    if before_chosen != before_rejected {
        return Err(place.error("`chosen` and `rejected` do not answer the same conversation"));
    }
    if before_chosen.is_empty() {
        before_chosen = conversation(prompt, messages, place)?;
    }
    Ok(PairContent::Text { messages: answerable(before_chosen, place)?, chosen, rejected })
}

/// An answer and, where the column holds a whole conversation, what precedes it.
fn answer(
    column: Option<TextOrMessages>,
    name: &str,
    place: &Place,
) -> Result<(Conversation, String)> {
    match column {
        None => Err(place.error(format!("missing column `{name}`"))),
        Some(TextOrMessages::Text(text)) => Ok((Vec::new(), text)),
        Some(TextOrMessages::Messages(messages)) => {
            let mut messages = in_known_roles(messages, place)?;
            match messages.pop() {
                Some(last) if last.role == "assistant" => Ok((messages, last.content.into())),
                _ => {
                    Err(place.error(format!("`{name}` does not end with the assistant's message")))
                }
            }
        }
    }
}

fn probability(
    value: Option<f64>,
    column: &str,
    needed_by: Option<Objective>,
    place: &Place,
) -> Result<Option<f64>> {
    match (value, needed_by) {
        (Some(value), _) if !(0.0..=1.0).contains(&value) => {
            Err(place.error(format!("`{column}` is {value}, not a probability from 0 to 1")))
        }
        (None, Some(objective)) => Err(place
            .error(format!("missing column `{column}`, which the objective `{objective}` regresses on"))
            .with_hint("add the column, or choose an objective without it, for instance `sppo_hard` or `dpo`")),
        _ => Ok(value),
    }
}
