//! vLLM's pooling models. Raw values are asked for (`use_activation` false), which is what a
//! Bradley-Terry model is made of.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::{Message, PluginError};

use super::tei::Query;
use super::{Common, Protocol, all_valid, in_order, lenient, only, own, parse, shared};
use crate::config::ScoringConfig;
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};
use crate::templates::{Template, render_response, scoring_template};

/// `/classify`: one conversation, or several texts.
pub(super) struct Classify {
    template: Option<Template>,
    class: Option<usize>,
}

#[derive(Deserialize)]
struct Classes {
    data: Vec<ClassesOfOne>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct ClassesOfOne {
    #[serde(default, deserialize_with = "lenient::index")]
    index: Option<usize>,
    #[serde(deserialize_with = "lenient::numbers")]
    probs: Vec<f64>,
}

impl Classify {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        let class = config.class.as_ref().map(|class| {
            class.parse().map_err(|_| {
                PluginError::configuration(format!("scoring.class: `{class}` is not an index"))
                    .with_hint("vLLM numbers its classes from 0")
            })
        });
        Ok(Self {
            template: config.template.as_deref().map(scoring_template).transpose()?,
            class: class.transpose()?,
        })
    }

    fn score(&self, probs: &[f64]) -> Result<QuestionVerdict, Malformed> {
        match (self.class, probs) {
            (None, [only]) => Ok(QuestionVerdict::Score(*only)),
            (Some(class), probs) if class < probs.len() => Ok(QuestionVerdict::Score(probs[class])),
            (Some(class), probs) => {
                Err(Malformed(format!("{} classes, but scoring.class is {class}", probs.len())))
            }
            (None, probs) => Err(Malformed(format!(
                "{} classes; set scoring.class to the one that counts",
                probs.len()
            ))),
        }
    }
}

impl Protocol for Classify {
    fn path(&self) -> &'static str {
        "/classify"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        if self.takes_several() { 32 } else { 1 }
    }

    fn takes_several(&self) -> bool {
        self.template.is_some()
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        Ok(Part::of(match &self.template {
            Some(template) => json!(render_response(template, question)?),
            None => {
                let mut messages = question.comparison.prompt.to_vec();
                messages.push(Message::assistant(question.first_text()));
                json!(messages)
            }
        }))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let (field, content) = match self.template {
            None if parts.len() == 1 => ("messages", only(parts)),
            _ => ("input", own(parts)),
        };
        Map::from_iter([(field.into(), content), ("use_activation".into(), json!(false))])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let Classes { data, usage } = parse(body)?;
        let scores = data
            .into_iter()
            .map(|one| Ok((one.index, self.score(&one.probs)?)))
            .collect::<Result<Vec<_>, Malformed>>()?;
        let verdicts = all_valid(in_order(scores, count)?.into_iter(), count)?;
        let prompt_tokens = lenient::count(&usage, &["prompt_tokens", "input_tokens"]);
        Ok(JudgeReply { verdicts, prompt_tokens, ..JudgeReply::default() })
    }
}

/// `/v1/score`: one prompt against several answers. Unlike `/score`, it is guarded by vLLM's key.
pub(super) struct Score {
    query: Query,
}

#[derive(Deserialize)]
struct Scores {
    data: Vec<ScoreOfOne>,
    #[serde(default)]
    usage: Value,
}

#[derive(Deserialize)]
struct ScoreOfOne {
    #[serde(default, deserialize_with = "lenient::index")]
    index: Option<usize>,
    #[serde(deserialize_with = "lenient::one_number")]
    score: f64,
}

impl Score {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        Ok(Self { query: Query::new(config)? })
    }
}

impl Protocol for Score {
    fn path(&self) -> &'static str {
        "/v1/score"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        32
    }

    fn common(&self) -> Common {
        Common::Prompt
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        Ok(Part { shared: json!(self.query.of(question)?), own: json!(question.first_text()) })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        Map::from_iter([
            ("text_1".into(), shared(&parts)),
            ("text_2".into(), own(parts)),
            ("use_activation".into(), json!(false)),
        ])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let Scores { data, usage } = parse(body)?;
        let scores =
            data.into_iter().map(|one| (one.index, QuestionVerdict::Score(one.score))).collect();
        let verdicts = all_valid(in_order(scores, count)?.into_iter(), count)?;
        let prompt_tokens = lenient::count(&usage, &["prompt_tokens", "input_tokens"]);
        Ok(JudgeReply { verdicts, prompt_tokens, ..JudgeReply::default() })
    }
}
