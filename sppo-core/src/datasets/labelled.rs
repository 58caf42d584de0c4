//! Pairs whose better answer is known, as in RewardBench: `{"prompt"|"messages", "chosen", "rejected"}`, where
//! the answers are text or whole conversations, and `subset`, where the file has parts.

use std::path::Path;

use arrow_schema::Schema;
use serde_json::Value;

use super::columns::{ColumnNames, Columns};
use super::pairs::texts;
use super::text::not_empty;
use crate::error::Result;
use crate::plugin::{Candidate, Comparison, Conversation};
use crate::tables;

/// A prompt with two answers, of which it is known which one is better.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledPair {
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
    /// The better answer.
    pub chosen: String,
    /// The worse answer.
    pub rejected: String,
    /// Part of the data that the pair belongs to.
    pub subset: Option<String>,
}

impl LabelledPair {
    /// The pair as an oracle sees it, the better answer first or second.
    #[must_use]
    pub fn comparison(&self, chosen_first: bool) -> Comparison<'_> {
        let [chosen, rejected] =
            [&self.chosen, &self.rejected].map(|text| Candidate::from_text(text.as_str()));
        Comparison {
            prompt: self.messages.as_slice().into(),
            rendered_prompt: None,
            candidates: match chosen_first {
                true => [chosen, rejected].into(),
                false => [rejected, chosen].into(),
            },
        }
    }
}

/// Reads labelled pairs from columns of these names.
///
/// # Errors
/// When the file cannot be read, is empty, or a row is incomplete or contradictory; the error names the line.
pub fn read_labelled_pairs(path: &Path, names: &ColumnNames) -> Result<Vec<LabelledPair>> {
    const COLUMNS: [&str; 3] = ["chosen", "rejected", "subset"];
    let wanted = |schema: &Schema| names.positions(schema, &COLUMNS);
    let pairs = tables::read_rows(path, wanted, |row, place| {
        let (messages, chosen, rejected) = texts(Columns { row: &row, names, place })?;
        let subset = row.get::<Value>("subset", place)?.map(|value| match value {
            Value::String(name) => name,
            other => other.to_string(),
        });
        Ok(LabelledPair { messages, chosen, rejected, subset })
    })?;
    not_empty(pairs, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_rewardbench_and_of_conversations_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pairs.jsonl");
        let rows = concat!(
            "{\"prompt\":\"2+2?\",\"chosen\":\"4\",\"rejected\":\"5\",\"chosen_model\":\"a\",\"subset\":\"math\",\"id\":7}\n",
            "{\"chosen\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"Hello\"}],",
            "\"rejected\":[{\"role\":\"user\",\"content\":\"Hi\"},{\"role\":\"assistant\",\"content\":\"No\"}]}\n",
        );
        std::fs::write(&file, rows).unwrap();
        let pairs = read_labelled_pairs(&file, &ColumnNames::default()).unwrap();
        assert_eq!((pairs[0].chosen.as_str(), pairs[0].subset.as_deref()), ("4", Some("math")));
        assert_eq!((pairs[1].rejected.as_str(), &*pairs[1].messages[0].content), ("No", "Hi"));
        assert_eq!(&*pairs[0].comparison(false).candidates[1].text, "4");
    }
}
