//! The protocol `pairwise`, described by `pairwise.openapi.json`.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::{Protocol, all_valid, own, parse};
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};

pub(super) struct Pairwise;

/// One of the two lists.
#[derive(Deserialize)]
struct Body {
    probabilities: Option<Vec<f64>>,
    logits: Option<Vec<f64>>,
}

impl Protocol for Pairwise {
    fn path(&self) -> &'static str {
        "/compare"
    }

    fn compares(&self) -> bool {
        true
    }

    fn questions_per_request(&self) -> usize {
        32
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        Ok(Part::of(json!({
            "messages": &*question.comparison.prompt,
            "first": question.first_text(),
            "second": question.second_text(),
        })))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        Map::from_iter([("items".into(), own(parts))])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let verdicts = match parse(body)? {
            Body { probabilities: Some(values), logits: None } => {
                all_valid(values.into_iter().map(QuestionVerdict::Probability), count)?
            }
            Body { probabilities: None, logits: Some(values) } => {
                all_valid(values.into_iter().map(QuestionVerdict::Logit), count)?
            }
            _ => return Err(Malformed("it must have either `probabilities` or `logits`".into())),
        };
        Ok(JudgeReply { verdicts, ..JudgeReply::default() })
    }
}
