//! Preference pairs to train on, from any source: `{"prompt"|"messages", "chosen", "rejected",
//! "chosen_probs", "chosen_probs_win", "chosen_probs_lose"}`, where the answers are text or whole
//! conversations, or `prompt_tokens, chosen_tokens, rejected_tokens` in their place.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use arrow_schema::Schema;
use serde::{Deserialize, Serialize};

use super::candidates::CandidateSet;
use super::columns::{ColumnNames, Columns};
use super::text::not_empty;
use crate::error::{Error, Result};
use crate::objective::Objective;
use crate::plugin::Conversation;
use crate::preference::PreferenceMatrix;
use crate::selection::{Selection, SelectionRule, SelectionStrategy, SkipCounts, select};
use crate::stages::JudgedComparison;
use crate::tables;

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
    /// Columns that only a training set of a run has.
    pub targets: PairTargets,
}

/// Optional columns of a pair: scores, the values of all answers to its prompt, and log-probabilities under
/// earlier policies. See [`TrainingResponse`](crate::records::TrainingResponse) and
/// [`TrainingExample`](crate::records::TrainingExample).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PairTargets {
    /// Scores of the better and the worse answer.
    pub scores: [Option<f64>; 2],
    /// Win rates or scores of all answers to the prompt.
    pub values_of_all: Option<Vec<f64>>,
    /// Log-probabilities of the two under the starting model.
    pub starting_log_probs: [Option<f64>; 2],
    /// Those under the policies before the reference policy, the latest first.
    pub earlier_log_probs: [Option<Vec<f64>>; 2],
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

const COLUMNS: [&str; 19] = [
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
    "chosen_score",
    "rejected_score",
    "values_of_all",
    "starting_chosen_log_prob",
    "starting_rejected_log_prob",
    "earlier_chosen_log_probs",
    "earlier_rejected_log_probs",
];

/// Reads pairs; tokens count where a row has both tokens and text.
///
/// # Errors
/// When the file cannot be read, is empty, or a row is incomplete, contradictory or lacks a probability that
/// the objective needs; the error names the line.
pub fn read_pairs(path: &Path, objective: Objective) -> Result<Vec<Pair>> {
    read_pairs_named(path, objective, &ColumnNames::default())
}

/// As [`read_pairs`], from columns of these names.
///
/// # Errors
/// As [`read_pairs`].
pub fn read_pairs_named(
    path: &Path,
    objective: Objective,
    names: &ColumnNames,
) -> Result<Vec<Pair>> {
    let wanted = |schema: &Schema| names.positions(schema, &COLUMNS);
    let pairs = tables::read_rows(path, wanted, |row, place| {
        pair(Columns { row: &row, names, place }, objective)
    })?;
    not_empty(pairs, path)
}

/// Pairs from JSON lines in memory; `name` stands for the file in errors.
///
/// # Errors
/// As [`read_pairs`].
pub fn parse_pairs(name: &str, text: &str, objective: Objective) -> Result<Vec<Pair>> {
    let names = ColumnNames::default();
    let pairs = tables::read_text_rows(name, text, |row, place| {
        pair(Columns { row: &row, names: &names, place }, objective)
    })?;
    not_empty(pairs, Path::new(name))
}

/// The pairs of the best and the worst candidate of each set that has them, and the number of the others.
#[must_use]
pub fn pair_candidates(
    sets: &[CandidateSet],
    judged: &[JudgedComparison],
    keep_degenerate: bool,
) -> (Vec<Pair>, SkipCounts) {
    let rule = SelectionRule { strategy: SelectionStrategy::BestAndWorst, keep_degenerate };
    let mut skipped = SkipCounts::default();
    let mut pairs = Vec::with_capacity(sets.len());
    for (set, JudgedComparison { preferences, .. }) in sets.iter().zip(judged) {
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
            targets: PairTargets::default(),
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

fn pair(columns: Columns<'_>, objective: Objective) -> Result<Pair> {
    let required = objective.requires();
    let win_rates = required.win_rates.then_some(objective);
    let of_pair = required.chosen_probability.then_some(objective);
    Ok(Pair {
        content: content(columns)?,
        chosen_probability: probability(columns, "chosen_probs", of_pair)?,
        chosen_win_rate: probability(columns, "chosen_probs_win", win_rates)?,
        rejected_win_rate: probability(columns, "chosen_probs_lose", win_rates)?,
        reference_chosen_log_prob: columns.get("reference_chosen_log_prob")?,
        reference_rejected_log_prob: columns.get("reference_rejected_log_prob")?,
        targets: targets(columns, required.anchor.then_some(objective))?,
    })
}

fn targets(columns: Columns<'_>, needs_earlier: Option<Objective>) -> Result<PairTargets> {
    const STARTING: [&str; 2] = ["starting_chosen_log_prob", "starting_rejected_log_prob"];
    const EARLIER: [&str; 2] = ["earlier_chosen_log_probs", "earlier_rejected_log_probs"];
    let numbers = |names: [&str; 2]| -> Result<[Option<f64>; 2]> {
        Ok([columns.get(names[0])?, columns.get(names[1])?])
    };
    let found = PairTargets {
        scores: numbers(["chosen_score", "rejected_score"])?,
        values_of_all: columns.get("values_of_all")?,
        starting_log_probs: numbers(STARTING)?,
        earlier_log_probs: [columns.get(EARLIER[0])?, columns.get(EARLIER[1])?],
    };
    let lacks = STARTING.iter().zip(&found.starting_log_probs).find(|(_, value)| value.is_none());
    match (needs_earlier, lacks) {
        (Some(objective), Some((column, _))) => Err(columns
            .place
            .error(format!("missing column `{column}`, which the objective `{objective}` stays near to"))
            .with_hint(
                "train on a training set of a run with this objective; where the model is the starting model, \
                 the objective `ipo` is the same",
            )),
        _ => Ok(found),
    }
}

fn content(columns: Columns<'_>) -> Result<PairContent> {
    let tokens = |name: &str| columns.get::<Vec<u32>>(name);
    let (prompt, chosen, rejected) =
        (tokens("prompt_tokens")?, tokens("chosen_tokens")?, tokens("rejected_tokens")?);
    match (prompt, chosen, rejected) {
        (Some(prompt), Some(chosen), Some(rejected)) => {
            if prompt.is_empty() || chosen.is_empty() || rejected.is_empty() {
                let message = "the prompt and both answers must hold at least one token";
                return Err(columns.place.error(message));
            }
            Ok(PairContent::Tokens {
                prompt,
                chosen,
                rejected,
                chosen_prompt: tokens("chosen_prompt_tokens")?,
                rejected_prompt: tokens("rejected_prompt_tokens")?,
            })
        }
        (None, None, None) => text_content(columns),
        (None, ..) => Err(columns.missing("prompt_tokens")),
        (_, None, _) => Err(columns.missing("chosen_tokens")),
        _ => Err(columns.missing("rejected_tokens")),
    }
}

fn text_content(columns: Columns<'_>) -> Result<PairContent> {
    let (messages, chosen, rejected) = texts(columns)?;
    Ok(PairContent::Text { messages, chosen, rejected })
}

/// The conversation, the better answer and the worse one.
pub(super) fn texts(columns: Columns<'_>) -> Result<(Conversation, String, String)> {
    let answer = |name| columns.answer(name)?.ok_or_else(|| columns.missing(name));
    let (chosen, rejected) = (answer("chosen")?, answer("rejected")?);
    columns.require_same(&chosen, &rejected)?;
    let messages = columns.answerable(columns.answered(chosen.before)?)?;
    Ok((messages, chosen.text, rejected.text))
}

fn probability(
    columns: Columns<'_>,
    column: &str,
    needed_by: Option<Objective>,
) -> Result<Option<f64>> {
    let place = columns.place;
    match (columns.get::<f64>(column)?, needed_by) {
        (Some(value), _) if !(0.0..=1.0).contains(&value) => {
            Err(place.error(format!("`{column}` is {value}, not a probability from 0 to 1")))
        }
        (None, Some(objective)) => Err(place
            .error(format!("missing column `{column}`, which the objective `{objective}` regresses on"))
            .with_hint("add the column, or choose an objective without it, for instance `sppo_hard` or `dpo`")),
        (value, _) => Ok(value),
    }
}

/// The rows (from 0) of pairs that say something twofold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contradictions {
    /// Both answers are the same: neither can be better.
    pub identical: Vec<u64>,
    /// Another row says the opposite: its rejected answer is this chosen one, to the same prompt.
    pub reversed: Vec<u64>,
    /// The rejected answer has the higher win rate, or beats the chosen one with more than 1/2.
    pub worse_chosen: Vec<u64>,
}

impl Contradictions {
    /// Looks through all pairs of a file.
    #[must_use]
    pub fn among(pairs: &[Pair]) -> Self {
        let rows = || (0..).zip(pairs);
        let said: HashSet<u64> = pairs.iter().map(|pair| digest(&pair.content, false)).collect();
        let rows_that = |holds: &dyn Fn(&Pair) -> bool| {
            rows().filter(|(_, pair)| holds(pair)).map(|(row, _)| row).collect()
        };
        Self {
            identical: rows_that(&|pair| is_identical(&pair.content)),
            reversed: rows_that(&|pair| {
                !is_identical(&pair.content) && said.contains(&digest(&pair.content, true))
            }),
            worse_chosen: rows_that(&|pair| {
                let by_win_rate = pair.chosen_win_rate.zip(pair.rejected_win_rate);
                by_win_rate.is_some_and(|(chosen, rejected)| chosen < rejected)
                    || pair.chosen_probability.is_some_and(|probability| probability < 0.5)
            }),
        }
    }
}

fn is_identical(content: &PairContent) -> bool {
    match content {
        PairContent::Text { chosen, rejected, .. } => chosen == rejected,
        PairContent::Tokens { chosen, rejected, chosen_prompt, rejected_prompt, .. } => {
            chosen == rejected && chosen_prompt == rejected_prompt
        }
    }
}

/// A digest of prompt and answers, these in the one order or the other.
fn digest(content: &PairContent, is_reversed: bool) -> u64 {
    let mut hasher = DefaultHasher::new();
    match content {
        PairContent::Text { messages, chosen, rejected } => {
            for message in messages {
                (&message.role, &message.content).hash(&mut hasher);
            }
            in_order(chosen, rejected, is_reversed).hash(&mut hasher);
        }
        PairContent::Tokens { prompt, chosen, rejected, .. } => {
            prompt.hash(&mut hasher);
            in_order(chosen, rejected, is_reversed).hash(&mut hasher);
        }
    }
    hasher.finish()
}

fn in_order<T>(chosen: T, rejected: T, is_reversed: bool) -> (T, T) {
    if is_reversed { (rejected, chosen) } else { (chosen, rejected) }
}
