//! Hugging Face text-embeddings-inference. Raw scores are asked for.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::{Common, Protocol, all_valid, in_order, lenient, own, parse, shared};
use crate::config::ScoringConfig;
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};
use crate::templates::{
    Template, conversation, prompt_values, render_response, sample_prompt, scoring_template,
};

/// Inputs that a server takes at once, unless it was started otherwise.
const CLIENT_BATCH: usize = 32;

/// The prompt where it is sent beside the answer.
pub(super) struct Query {
    template: Option<Template>,
}

impl Query {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        let compiled = config.query_template.as_deref().map(|source| {
            let must_show = ["the prompt"];
            Template::new("scoring.query_template", source, sample_prompt(), &must_show)
        });
        Ok(Self { template: compiled.transpose()? })
    }

    pub(super) fn of(&self, question: Question<'_>) -> Result<String, PluginError> {
        match &self.template {
            Some(template) => template.render(prompt_values(question.comparison)),
            None => Ok(conversation(&question.comparison.prompt)),
        }
    }
}

/// `/predict`: pairs of prompt and answer, or texts that hold both.
pub(super) struct Predict {
    template: Option<Template>,
    query: Query,
    class: Option<String>,
}

#[derive(Deserialize)]
struct Class {
    #[serde(deserialize_with = "lenient::one_number")]
    score: f64,
    #[serde(default)]
    label: Value,
}

impl Predict {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        Ok(Self {
            template: config.template.as_deref().map(scoring_template).transpose()?,
            query: Query::new(config)?,
            class: config.class.clone(),
        })
    }

    fn score(&self, classes: &[Class]) -> Result<QuestionVerdict, Malformed> {
        match (&self.class, classes) {
            (None, [only]) => Ok(QuestionVerdict::Score(only.score)),
            (Some(wanted), classes) => {
                let found = classes.iter().find(|class| class.label == wanted.as_str());
                let score = found.map(|class| QuestionVerdict::Score(class.score));
                score.ok_or_else(|| Malformed(format!("there is no class `{wanted}`")))
            }
            (None, classes) => Err(Malformed(format!(
                "{} classes; set scoring.class to the label that counts",
                classes.len()
            ))),
        }
    }
}

impl Protocol for Predict {
    fn path(&self) -> &'static str {
        "/predict"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        CLIENT_BATCH
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        // A list of one text is that text, a list of two a pair; always within a list of inputs, for
        // `["a", "b"]` alone would be a pair too.
        Ok(Part::of(match &self.template {
            Some(template) => json!([render_response(template, question)?]),
            None => json!([self.query.of(question)?, question.first_text()]),
        }))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let inputs = own(parts);
        Map::from_iter([("inputs".into(), inputs), ("raw_scores".into(), json!(true))])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let inputs: Vec<Vec<Class>> = parse(body)?;
        let scores = inputs
            .iter()
            .map(|classes| self.score(classes))
            .collect::<Result<Vec<_>, Malformed>>()?;
        Ok(JudgeReply { verdicts: all_valid(scores.into_iter(), count)?, ..JudgeReply::default() })
    }
}

/// `/rerank`: one prompt against several answers.
pub(super) struct Rerank {
    query: Query,
}

#[derive(Deserialize)]
struct Rank {
    #[serde(default, deserialize_with = "lenient::index")]
    index: Option<usize>,
    #[serde(deserialize_with = "lenient::one_number")]
    score: f64,
}

impl Rerank {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        Ok(Self { query: Query::new(config)? })
    }
}

impl Protocol for Rerank {
    fn path(&self) -> &'static str {
        "/rerank"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        CLIENT_BATCH
    }

    fn common(&self) -> Common {
        Common::Prompt
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        Ok(Part { shared: json!(self.query.of(question)?), own: json!(question.first_text()) })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        Map::from_iter([
            ("query".into(), shared(&parts)),
            ("texts".into(), own(parts)),
            ("raw_scores".into(), json!(true)),
        ])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let ranks: Vec<Rank> = parse(body)?;
        let scores = ranks.into_iter().map(|rank| (rank.index, QuestionVerdict::Score(rank.score)));
        let verdicts = all_valid(in_order(scores.collect(), count)?.into_iter(), count)?;
        Ok(JudgeReply { verdicts, ..JudgeReply::default() })
    }
}
