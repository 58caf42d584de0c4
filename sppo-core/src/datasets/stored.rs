//! Records of the stages as tables in the run directory. Nothing is lost, and columns have the names of
//! the official repository where it has one.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::plugin::{Conversation, Message};
use crate::records::{HeldOutDuels, Judgment, Rollout, TrainingExample, TrainingResponse};
use crate::tables;

/// Records with a form on disk, JSON lines or Parquet by the file's extension.
pub trait Stored: Sized {
    /// Reads what [`Self::write`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read or holds something else.
    fn read(path: &Path) -> Result<Vec<Self>>;

    /// Writes records.
    ///
    /// # Errors
    /// When the file cannot be written.
    fn write(path: &Path, records: &[Self]) -> Result<()>;
}

/// Columns: `prompt` (id and messages), `rendered_prompt`, `prompt_tokens`, `responses`.
impl Stored for Rollout {
    fn read(path: &Path) -> Result<Vec<Self>> {
        tables::read(path)
    }

    fn write(path: &Path, records: &[Self]) -> Result<()> {
        tables::write(path, records)
    }
}

/// Columns: `prompt_id`, `probability` (K x K), `rm_scores`; where any judgment has it, `read_first` (K x K),
/// `asked_pairs` and `oracle_probability` (K x K).
impl Stored for Judgment {
    fn read(path: &Path) -> Result<Vec<Self>> {
        tables::read(path)
    }

    fn write(path: &Path, records: &[Self]) -> Result<()> {
        let any = |has: fn(&Self) -> bool| records.iter().any(has);
        let optional = [
            ("read_first", any(|judgment| judgment.read_first.is_some())),
            ("asked_pairs", any(|judgment| judgment.asked_pairs.is_some())),
            ("oracle_probability", any(|judgment| judgment.oracle_matrix.is_some())),
        ];
        tables::write_without(path, records, &absent(&optional))
    }
}

/// The names of optional columns that are not there.
fn absent<'a>(optional: &[(&'a str, bool)]) -> Vec<&'a str> {
    optional.iter().filter(|(_, is_there)| !is_there).map(|(name, _)| *name).collect()
}

/// Columns: `against`, `prompt_id`, `read_first`, `read_second`.
impl Stored for HeldOutDuels {
    fn read(path: &Path) -> Result<Vec<Self>> {
        tables::read(path)
    }

    fn write(path: &Path, records: &[Self]) -> Result<()> {
        tables::write(path, records)
    }
}

/// Columns of pairs: the official ones, then tokens and reference log-probabilities; where any example has them,
/// scores, the values of all answers, and log-probabilities under earlier policies. When any example is not a
/// pair: the fields of [`TrainingExample`].
impl Stored for TrainingExample {
    fn read(path: &Path) -> Result<Vec<Self>> {
        tables::read_with(path, |row: ExampleRow, place| match row {
            ExampleRow::Pair(row) => row
                .into_example()
                .ok_or_else(|| place.error("`chosen` and `rejected` must hold messages")),
            ExampleRow::Any(example) => Ok(example),
        })
    }

    fn write(path: &Path, records: &[Self]) -> Result<()> {
        let pairs: Option<Vec<PairRow>> = records.iter().map(PairRow::new).collect();
        let absent = absent_in(records);
        match pairs {
            Some(rows) => tables::write_without(path, &rows, &absent),
            None => tables::write_without(path, records, &absent),
        }
    }
}

/// The optional columns that no example has, of pairs and of others.
fn absent_in(examples: &[TrainingExample]) -> Vec<&'static str> {
    let responses = || examples.iter().flat_map(|example| &example.responses);
    let has_score = responses().any(|response| response.score.is_some());
    let has_start = responses().any(|response| response.starting_log_prob.is_some());
    let has_earlier = responses().any(|response| response.earlier_log_probs.is_some());
    absent(&[
        ("values_of_all", examples.iter().any(|example| example.values_of_all.is_some())),
        ("score", has_score),
        ("chosen_score", has_score),
        ("rejected_score", has_score),
        ("starting_log_prob", has_start),
        ("starting_chosen_log_prob", has_start),
        ("starting_rejected_log_prob", has_start),
        ("earlier_log_probs", has_earlier),
        ("earlier_chosen_log_probs", has_earlier),
        ("earlier_rejected_log_probs", has_earlier),
    ])
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "neither the columns of a pair nor those of an example with K answers"
)]
enum ExampleRow {
    Pair(Box<PairRow>),
    Any(TrainingExample),
}

/// A training pair on disk.
#[derive(Serialize, Deserialize)]
struct PairRow {
    prompt_id: u64,
    prompt: String,
    chosen: Conversation,
    rejected: Conversation,
    chosen_probs: f64,
    chosen_probs_win: f64,
    chosen_probs_lose: f64,
    prompt_tokens: Vec<u32>,
    chosen_tokens: Vec<u32>,
    rejected_tokens: Vec<u32>,
    chosen_prompt_tokens: Option<Vec<u32>>,
    rejected_prompt_tokens: Option<Vec<u32>>,
    reference_chosen_log_prob: Option<f64>,
    reference_rejected_log_prob: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chosen_score: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected_score: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values_of_all: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starting_chosen_log_prob: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    starting_rejected_log_prob: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier_chosen_log_probs: Option<Vec<f64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    earlier_rejected_log_probs: Option<Vec<f64>>,
}

impl PairRow {
    /// `None` when the example is not a pair.
    fn new(example: &TrainingExample) -> Option<Self> {
        let [chosen, rejected] = example.responses.as_slice() else { return None };
        Some(Self {
            prompt_id: example.prompt_id,
            prompt: last_turn(&example.messages).to_owned(),
            chosen: answered(&example.messages, &chosen.text),
            rejected: answered(&example.messages, &rejected.text),
            chosen_probs: example.chosen_probability?,
            chosen_probs_win: chosen.win_rate,
            chosen_probs_lose: rejected.win_rate,
            prompt_tokens: example.prompt_tokens.clone(),
            chosen_tokens: chosen.tokens.clone(),
            rejected_tokens: rejected.tokens.clone(),
            chosen_prompt_tokens: chosen.prompt_tokens_override.clone(),
            rejected_prompt_tokens: rejected.prompt_tokens_override.clone(),
            reference_chosen_log_prob: chosen.reference_log_prob,
            reference_rejected_log_prob: rejected.reference_log_prob,
            chosen_score: chosen.score,
            rejected_score: rejected.score,
            values_of_all: example.values_of_all.clone(),
            starting_chosen_log_prob: chosen.starting_log_prob,
            starting_rejected_log_prob: rejected.starting_log_prob,
            earlier_chosen_log_probs: chosen.earlier_log_probs.clone(),
            earlier_rejected_log_probs: rejected.earlier_log_probs.clone(),
        })
    }

    fn into_example(mut self) -> Option<TrainingExample> {
        let chosen_text = self.chosen.pop()?.content;
        let rejected_text = self.rejected.pop()?.content;
        let chosen = TrainingResponse {
            text: chosen_text.into(),
            tokens: self.chosen_tokens,
            prompt_tokens_override: self.chosen_prompt_tokens,
            win_rate: self.chosen_probs_win,
            reference_log_prob: self.reference_chosen_log_prob,
            score: self.chosen_score,
            starting_log_prob: self.starting_chosen_log_prob,
            earlier_log_probs: self.earlier_chosen_log_probs,
        };
        let rejected = TrainingResponse {
            text: rejected_text.into(),
            tokens: self.rejected_tokens,
            prompt_tokens_override: self.rejected_prompt_tokens,
            win_rate: self.chosen_probs_lose,
            reference_log_prob: self.reference_rejected_log_prob,
            score: self.rejected_score,
            starting_log_prob: self.starting_rejected_log_prob,
            earlier_log_probs: self.earlier_rejected_log_probs,
        };
        Some(TrainingExample {
            prompt_id: self.prompt_id,
            messages: self.chosen,
            prompt_tokens: self.prompt_tokens,
            responses: vec![chosen, rejected],
            chosen_probability: Some(self.chosen_probs),
            values_of_all: self.values_of_all,
        })
    }
}

/// Writes all answers of an iteration in the form of the official `generated/.../train.parquet`, one row per
/// prompt: `prompt`, `generate_0` ... (each the conversation with that answer),
/// `probability` (K x K) and `rm_scores`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_generated(path: &Path, rollouts: &[Rollout], judgments: &[Judgment]) -> Result<()> {
    let rows: Vec<Map<String, Value>> = rollouts
        .iter()
        .zip(judgments)
        .map(|(rollout, judgment)| generated_row(rollout, judgment))
        .collect();
    tables::write_samples(path, &rows)
}

fn generated_row(rollout: &Rollout, judgment: &Judgment) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("prompt".into(), json!(last_turn(&rollout.prompt.messages)));
    for (index, response) in rollout.responses.iter().enumerate() {
        let answered = answered(&rollout.prompt.messages, &response.text);
        row.insert(format!("generate_{index}"), json!(answered));
    }
    row.insert("probability".into(), json!(judgment.matrix));
    row.insert("rm_scores".into(), json!(judgment.scores));
    row
}

/// The text of the turn that is answered.
fn last_turn<'a>(messages: &'a [Message<'_>]) -> &'a str {
    messages.last().map(|message| &*message.content).unwrap_or_default()
}

/// The conversation with an answer to it.
fn answered(messages: &[Message<'static>], answer: &str) -> Conversation {
    let mut conversation = messages.to_vec();
    conversation.push(Message::assistant(answer.to_owned()));
    conversation
}
