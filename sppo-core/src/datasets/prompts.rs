//! Prompts: `{"prompt": text}` or `{"messages": [{role, content}, ...]}` in files, and those of a run.

use std::path::{Path, PathBuf};

use arrow_schema::Schema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::columns::{ColumnNames, Columns};
use super::text::not_empty;
use crate::config::zero_is_none;
use crate::error::Result;
use crate::plugin::Conversation;
use crate::records::Prompt;
use crate::tables::{self, Place, Row};

/// Reads prompts; their ids are their positions, from 0. Where a row has both columns, `prompt` counts, and
/// must be what `messages` asks. Where it has neither, `chosen` and `rejected` may hold the conversation.
///
/// # Errors
/// When the file cannot be read, is empty, or a row holds no prompt; the error names the line.
pub fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    read_prompts_named(path, &ColumnNames::default())
}

/// As [`read_prompts`], from columns of these names.
///
/// # Errors
/// As [`read_prompts`].
pub fn read_prompts_named(path: &Path, names: &ColumnNames) -> Result<Vec<Prompt>> {
    let wanted = |schema: &Schema| {
        let of_prompt = names.positions(schema, &[]);
        match of_prompt.is_empty() {
            true => names.positions(schema, &ANSWERS),
            false => of_prompt,
        }
    };
    let rows = tables::read_rows(path, wanted, |row, place| prompt(&row, names, place))?;
    Ok(numbered(not_empty(rows, path)?))
}

/// Prompts from JSON lines in memory; `name` stands for the file in errors.
///
/// # Errors
/// As [`read_prompts`].
pub fn parse_prompts(name: &str, text: &str) -> Result<Vec<Prompt>> {
    let names = ColumnNames::default();
    let rows = tables::read_text_rows(name, text, |row, place| prompt(&row, &names, place))?;
    Ok(numbered(not_empty(rows, Path::new(name))?))
}

const ANSWERS: [&str; 2] = ["chosen", "rejected"];

fn prompt(row: &Row, names: &ColumnNames, place: &Place) -> Result<Conversation> {
    let columns = Columns { row, names, place };
    let messages = match columns.stated()? {
        Some(stated) => columns.with_system(stated)?,
        None => columns.implied()?.ok_or_else(|| columns.missing_prompt())?,
    };
    columns.answerable(messages)
}

fn numbered(conversations: Vec<Conversation>) -> Vec<Prompt> {
    (0..).zip(conversations).map(|(id, messages)| Prompt { id, messages }).collect()
}

/// Writes prompts with the column `messages`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_prompts(path: &Path, prompts: &[Prompt]) -> Result<()> {
    #[derive(Serialize, Deserialize)]
    struct Written {
        messages: Conversation,
    }
    let rows: Vec<Written> =
        prompts.iter().map(|prompt| Written { messages: prompt.messages.clone() }).collect();
    tables::write(path, &rows)
}

/// Settings of the section `[prompts]`: the files, and each iteration's part of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PromptSettings {
    /// A JSONL or Parquet file with `prompt` or `messages`; the bundled prompts when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// Prompts that are never trained on, to compare models; the bundled ones when left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<PathBuf>,
    /// The prompts of one iteration.
    pub per_iteration: PromptsPerIteration,
    /// Largest number of training prompts; 0 uses all.
    #[serde(with = "zero_is_none")]
    #[schemars(with = "usize")]
    pub limit: Option<usize>,
    /// Names of the columns of a file, where they are others.
    #[serde(skip_serializing_if = "ColumnNames::is_default")]
    pub columns: ColumnNames,
}

/// The prompts of one iteration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptsPerIteration {
    /// All of them, every time.
    #[default]
    All,
    /// Each iteration its own portion, as equal as possible (the released recipe: three portions of
    /// UltraFeedback).
    Portions,
}

impl PromptSettings {
    /// The prompts of an iteration (from 1) out of `iterations`.
    #[must_use]
    pub fn of_iteration<'a>(
        &self,
        prompts: &'a [Prompt],
        iteration: u32,
        iterations: u32,
    ) -> &'a [Prompt] {
        let boundary = |portion: u32| {
            let share = prompts.len() as u128 * u128::from(portion);
            (share / u128::from(iterations.max(1))) as usize
        };
        match self.per_iteration {
            PromptsPerIteration::All => prompts,
            PromptsPerIteration::Portions => prompts
                .get(boundary(iteration.saturating_sub(1))..boundary(iteration))
                .unwrap_or_default(),
        }
    }
}

/// Prompts of a run.
#[derive(Clone, Debug)]
pub struct PromptSet {
    /// Sampled from and trained on.
    pub training: Vec<Prompt>,
    /// Only sampled from, to compare models.
    pub held_out: Vec<Prompt>,
}

impl PromptSet {
    /// SHA-256 over the roles and texts of all prompts in order, in hexadecimal.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.training, &self.held_out] {
            hash.update((part.len() as u64).to_le_bytes());
            for message in part.iter().flat_map(|prompt| &prompt.messages) {
                for text in [&message.role, &message.content] {
                    hash.update((text.len() as u64).to_le_bytes());
                    hash.update(text.as_bytes());
                }
            }
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
