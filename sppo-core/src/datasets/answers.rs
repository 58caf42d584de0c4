//! Ready answers to prompts: `{"prompt"|"messages", "response"}`, the same with several `candidates`, or the
//! rollouts of a run (`held-out.parquet`). Lines with the same prompt are several answers to it.

use std::collections::HashMap;
use std::path::Path;

use arrow_schema::Schema;

use super::columns::{ColumnNames, Columns};
use super::text::not_empty;
use crate::error::Result;
use crate::plugin::{Candidate, Comparison, Conversation, Message};
use crate::records::{Prompt, Response, Rollout};
use crate::tables::{self, Place, Row};

/// A prompt with the answers of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct AnsweredPrompt {
    /// The conversation, ending with the user's turn.
    pub messages: Conversation,
    /// The prompt as the model's chat template renders it, where that is known.
    pub rendered_prompt: Option<String>,
    /// The answers, at least one.
    pub answers: Vec<Candidate<'static>>,
}

impl AnsweredPrompt {
    /// The answers as an oracle sees them.
    #[must_use]
    pub fn comparison(&self) -> Comparison<'_> {
        Comparison {
            prompt: self.messages.as_slice().into(),
            rendered_prompt: self.rendered_prompt.as_deref().map(Into::into),
            candidates: self.answers.as_slice().into(),
        }
    }

    fn from_row(row: &Row, names: &ColumnNames, place: &Place) -> Result<Self> {
        let columns = Columns { row, names, place };
        if let Some(responses) = row.get::<Vec<Response>>("responses", place)? {
            let prompt: Option<Prompt> = row.get("prompt", place)?;
            let prompt = prompt.ok_or_else(|| columns.missing("prompt"))?;
            let messages = columns.answerable(prompt.messages)?;
            let answers = responses.into_iter().map(candidate).collect();
            return Self::new(messages, row.get("rendered_prompt", place)?, answers, place);
        }
        let texts = match columns.get::<String>("response")? {
            Some(text) => vec![text],
            None => columns.candidates()?.ok_or_else(|| columns.missing("response"))?,
        };
        let messages = columns.answerable(columns.conversation()?)?;
        Self::new(messages, None, texts.into_iter().map(Candidate::from_text).collect(), place)
    }

    fn new(
        messages: Conversation,
        rendered_prompt: Option<String>,
        answers: Vec<Candidate<'static>>,
        place: &Place,
    ) -> Result<Self> {
        match answers.is_empty() {
            true => Err(place.error("there is no answer").with_hint("leave the row out")),
            false => Ok(Self { messages, rendered_prompt, answers }),
        }
    }
}

impl From<Rollout> for AnsweredPrompt {
    fn from(rollout: Rollout) -> Self {
        Self {
            messages: rollout.prompt.messages,
            rendered_prompt: Some(rollout.rendered_prompt),
            answers: rollout.responses.into_iter().map(candidate).collect(),
        }
    }
}

fn candidate(response: Response) -> Candidate<'static> {
    Candidate {
        text: response.text.into(),
        finish_reason: Some(response.finish_reason),
        token_count: Some(response.tokens.len()),
    }
}

/// Reads answers from columns of these names, each prompt once, in the order of their first lines.
///
/// # Errors
/// When the file cannot be read, is empty, or a row holds no prompt or no answer; the error names the line.
pub fn read_answers(path: &Path, names: &ColumnNames) -> Result<Vec<AnsweredPrompt>> {
    const COLUMNS: [&str; 4] = ["response", "candidates", "responses", "rendered_prompt"];
    let wanted = |schema: &Schema| names.positions(schema, &COLUMNS);
    let rows =
        tables::read_rows(path, wanted, |row, place| AnsweredPrompt::from_row(&row, names, place))?;
    let mut prompts: Vec<AnsweredPrompt> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for row in not_empty(rows, path)? {
        let place = *places.entry(key(&row.messages)).or_insert(prompts.len());
        match prompts.get_mut(place) {
            Some(prompt) => prompt.answers.extend(row.answers),
            None => prompts.push(row),
        }
    }
    Ok(prompts)
}

/// Those of a model's answers that are to these prompts, in their order, so many to each. An error is the
/// position of a prompt that is not answered, or not so often, and the number of its answers.
///
/// # Errors
/// At the first such prompt.
pub fn answers_to(
    prompts: &[Prompt],
    answered: &[AnsweredPrompt],
    samples: usize,
) -> std::result::Result<Vec<AnsweredPrompt>, (usize, usize)> {
    let by_prompt: HashMap<String, &AnsweredPrompt> =
        answered.iter().map(|answered| (key(&answered.messages), answered)).collect();
    let answers = prompts.iter().enumerate().map(|(position, prompt)| {
        let found = *by_prompt.get(&key(&prompt.messages)).ok_or((position, 0))?;
        let answers = found.answers.get(..samples).ok_or((position, found.answers.len()))?;
        Ok(AnsweredPrompt { answers: answers.to_vec(), ..found.clone() })
    });
    answers.collect()
}

/// A conversation as a text that no other conversation has.
fn key(messages: &[Message<'_>]) -> String {
    let part = |text: &str| format!("{}:{text}", text.len());
    messages.iter().map(|turn| part(&turn.role) + &part(&turn.content)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::FinishReason;

    fn read(name: &str, text: &str) -> Result<Vec<AnsweredPrompt>> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(name);
        std::fs::write(&file, text).unwrap();
        read_answers(&file, &ColumnNames::default())
    }

    fn texts(answered: &AnsweredPrompt) -> Vec<&str> {
        answered.answers.iter().map(|answer| &*answer.text).collect()
    }

    #[test]
    fn lines_with_the_same_prompt_are_answers_to_it() {
        let answered = read(
            "answers.jsonl",
            r#"{"prompt": "a", "response": "1"}
               {"messages": [{"role": "user", "content": "b"}], "candidates": ["2", "3"]}
               {"messages": [{"role": "user", "content": "a"}], "response": "4"}"#,
        )
        .unwrap();
        assert_eq!(answered.iter().map(texts).collect::<Vec<_>>(), [["1", "4"], ["2", "3"]]);
        let prompt = |id, text: &'static str| Prompt { id, messages: vec![Message::user(text)] };
        let asked = answers_to(&[prompt(0, "b"), prompt(1, "a")], &answered, 1).unwrap();
        assert_eq!(asked.iter().map(texts).collect::<Vec<_>>(), [["2"], ["1"]]);
        let missing = answers_to(&[prompt(0, "b"), prompt(1, "c")], &answered, 1);
        assert_eq!(missing.unwrap_err(), (1, 0));
        assert_eq!(answers_to(&[prompt(0, "b")], &answered, 3).unwrap_err(), (0, 2));
    }

    #[test]
    fn a_row_without_an_answer_is_named() {
        let refused = |text: &str| read("answers.jsonl", text).unwrap_err().to_string();
        let without = refused("{\"prompt\": \"a\", \"response\": \"1\"}\n{\"prompt\": \"b\"}");
        assert!(without.contains("answers.jsonl:2: missing column `response`"), "{without}");
        let empty = refused("{\"prompt\": \"a\", \"candidates\": []}");
        assert!(empty.contains("answers.jsonl:1: there is no answer"), "{empty}");
    }

    #[test]
    fn the_rollouts_of_a_run_are_answers_with_all_that_is_known_of_them() {
        use crate::datasets::Stored;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("held-out.parquet");
        let response = Response {
            text: "Four".into(),
            tokens: vec![7, 8],
            log_probs: vec![-0.5, -0.25],
            finish_reason: FinishReason::Stop,
        };
        let rollout = Rollout {
            prompt: Prompt { id: 3, messages: vec![Message::user("2 + 2?")] },
            rendered_prompt: "<user>2 + 2?".into(),
            prompt_tokens: vec![1],
            responses: vec![response],
        };
        Rollout::write(&file, std::slice::from_ref(&rollout)).unwrap();
        let answered = read_answers(&file, &ColumnNames::default()).unwrap();
        assert_eq!(answered, [AnsweredPrompt::from(rollout)]);
        assert_eq!(answered[0].answers[0].token_count, Some(2));
    }
}
