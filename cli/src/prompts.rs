//! The prompts of a run: bundled ones, or files that the user names.

use std::collections::HashSet;
use std::path::Path;

use sppo_core::Result;
use sppo_core::config::PromptsTable;
use sppo_core::datasets::{parse_prompts, read_prompts};
use sppo_core::records::Prompt;
use sppo_core::self_play::PromptSet;

const BUNDLED_TRAINING: &str = include_str!("../data/prompts-train.jsonl");
const BUNDLED_HELD_OUT: &str = include_str!("../data/prompts-held-out.jsonl");

/// How the bundled prompts are called where a file's name would stand.
pub(crate) const BUNDLED: &str = "bundled";

/// The training and held-out prompts that the settings name.
///
/// # Errors
/// When a file cannot be read; the error names the line.
pub(crate) fn load(table: &PromptsTable) -> Result<PromptSet> {
    let mut training = training(table.train.as_deref())?;
    training.truncate(table.limit.unwrap_or(usize::MAX));
    let held_out = held_out(table.held_out.as_deref())?;
    warn_of_overlap(&training, &held_out);
    Ok(PromptSet { training, held_out })
}

/// Prompts to train on: from a file, or the bundled ones.
pub(crate) fn training(file: Option<&Path>) -> Result<Vec<Prompt>> {
    match file {
        Some(path) => read_prompts(path),
        None => parse_prompts("bundled training prompts", BUNDLED_TRAINING),
    }
}

/// Prompts to compare models on: from a file, or the bundled ones.
pub(crate) fn held_out(file: Option<&Path>) -> Result<Vec<Prompt>> {
    match file {
        Some(path) => read_prompts(path),
        None => parse_prompts("bundled held-out prompts", BUNDLED_HELD_OUT),
    }
}

/// How a prompt file is called in reports.
pub(crate) fn source(file: Option<&Path>) -> String {
    file.map_or_else(|| BUNDLED.into(), |path| path.display().to_string())
}

fn warn_of_overlap(training: &[Prompt], held_out: &[Prompt]) {
    let text = |prompt: &Prompt| -> Vec<String> {
        prompt.messages.iter().map(|message| message.content.clone()).collect()
    };
    let seen: HashSet<Vec<String>> = training.iter().map(text).collect();
    let shared = held_out.iter().filter(|prompt| seen.contains(&text(prompt))).count();
    if shared > 0 {
        tracing::warn!(
            "{shared} held-out prompts are trained on too: the win rate will look better than it is"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_prompts_are_many_and_disjoint() {
        let prompts = load(&PromptsTable::default()).unwrap();
        assert_eq!((prompts.training.len(), prompts.held_out.len()), (128, 32));
        let texts: HashSet<&str> = prompts
            .training
            .iter()
            .chain(&prompts.held_out)
            .map(|prompt| prompt.messages[0].content.as_str())
            .collect();
        assert_eq!(texts.len(), 160);
    }
}
