//! The prompts of a run: bundled ones, or files that the user names.

use std::collections::HashSet;
use std::path::Path;

use sppo_core::datasets::{
    ColumnNames, PromptSet, PromptSettings, parse_prompts, read_prompts_named,
};
use sppo_core::records::Prompt;
use sppo_core::tables::line_of_row;
use sppo_core::{Error, Result};

const BUNDLED_TRAINING: &str = include_str!("../data/prompts-train.jsonl");
const BUNDLED_HELD_OUT: &str = include_str!("../data/prompts-held-out.jsonl");

/// Name of the bundled prompts in place of a file's name.
pub(crate) const BUNDLED: &str = "bundled";

/// The training and held-out prompts that the settings name.
///
/// # Errors
/// When a file cannot be read; the error names the line.
pub(crate) fn load(settings: &PromptSettings) -> Result<PromptSet> {
    let names = &settings.columns;
    let mut training = training(settings.train.as_deref(), names)?;
    training.truncate(settings.limit.unwrap_or(usize::MAX));
    let held_out = held_out(settings.held_out.as_deref(), names)?;
    warn_of_overlap(&training, &held_out);
    Ok(PromptSet { training, held_out })
}

/// Prompts to train on: from a file, or the bundled ones.
pub(crate) fn training(file: Option<&Path>, names: &ColumnNames) -> Result<Vec<Prompt>> {
    match file {
        Some(path) => read_prompts_named(path, names),
        None => parse_prompts("bundled training prompts", BUNDLED_TRAINING),
    }
}

/// Prompts to compare models on: from a file, or the bundled ones.
pub(crate) fn held_out(file: Option<&Path>, names: &ColumnNames) -> Result<Vec<Prompt>> {
    match file {
        Some(path) => read_prompts_named(path, names),
        None => parse_prompts("bundled held-out prompts", BUNDLED_HELD_OUT),
    }
}

/// Name of a prompt file in reports.
pub(crate) fn source(file: Option<&Path>) -> String {
    file.map_or_else(|| BUNDLED.into(), |path| path.display().to_string())
}

/// An error about the prompt of this number (from 0), at its line where it has one.
pub(crate) fn error_about(file: Option<&Path>, id: u64, message: String) -> Error {
    let Some(path) = file else {
        return Error::input(format!("bundled prompt {}", id + 1), message);
    };
    match line_of_row(path, id) {
        Some(line) => Error::Input { path: path.into(), line: Some(line), message, hint: None },
        None => Error::input(path, format!("row {}: {message}", id + 1)),
    }
}

/// The place of a row (from 0) in a file, for messages.
pub(crate) fn place_of(file: &Path, row: u64) -> String {
    match line_of_row(file, row) {
        Some(line) => format!("line {line}"),
        None => format!("row {}", row + 1),
    }
}

/// Says which row (from 0) of which file an error of a plugin is about. Other errors know better.
pub(crate) fn locate(file: &Path, row: u64, error: Error) -> Error {
    match error {
        Error::Plugin { source, .. } => {
            let located = error_about(Some(file), row, source.message);
            match source.hint {
                Some(hint) => located.with_hint(hint),
                None => located,
            }
        }
        other => other,
    }
}

fn warn_of_overlap(training: &[Prompt], held_out: &[Prompt]) {
    let asked: HashSet<Vec<&str>> = held_out.iter().map(texts).collect();
    let trained: HashSet<Vec<&str>> =
        training.iter().map(texts).filter(|texts| asked.contains(texts)).collect();
    let shared = held_out.iter().filter(|prompt| trained.contains(&texts(prompt))).count();
    if shared > 0 {
        tracing::warn!(
            "{shared} held-out prompts are trained on too: the win rate will look better than it is"
        );
    }
}

fn texts(prompt: &Prompt) -> Vec<&str> {
    prompt.messages.iter().map(|message| &*message.content).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_prompts_are_many_and_disjoint() {
        let prompts = load(&PromptSettings::default()).unwrap();
        assert_eq!((prompts.training.len(), prompts.held_out.len()), (128, 32));
        let texts: HashSet<&str> = prompts
            .training
            .iter()
            .chain(&prompts.held_out)
            .map(|prompt| &*prompt.messages[0].content)
            .collect();
        assert_eq!(texts.len(), 160);
    }
}
