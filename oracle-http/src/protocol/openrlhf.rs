//! OpenRLHF's remote reward model: `query` (prompt and answer in one text), `prompts` and `labels` in,
//! `rewards` out.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::{Protocol, all_valid, lenient, parse};
use crate::config::ScoringConfig;
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};
use crate::templates::{Template, conversation, render_response, scoring_template};

const DEFAULT_TEMPLATE: &str = "\
{% if rendered_prompt %}{{ rendered_prompt }}{{ response }}\
{% else %}{{ conversation }}\n\n{{ response }}{% endif %}";

pub(super) struct OpenRlhf {
    template: Template,
}

#[derive(Deserialize)]
struct Body {
    #[serde(deserialize_with = "lenient::numbers")]
    rewards: Vec<f64>,
}

impl OpenRlhf {
    pub(super) fn new(config: &ScoringConfig) -> Result<Self, PluginError> {
        let source = config.template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        Ok(Self { template: scoring_template(source)? })
    }
}

impl Protocol for OpenRlhf {
    fn path(&self) -> &'static str {
        "/get_reward"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        32
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let comparison = question.comparison;
        let prompt = match &comparison.rendered_prompt {
            Some(rendered) => rendered.clone(),
            None => conversation(&comparison.prompt).into(),
        };
        let query = render_response(&self.template, question)?;
        Ok(Part::of(json!({"query": query, "prompt": prompt})))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let all = |field: &str| Value::from_iter(parts.iter().map(|part| part.own[field].clone()));
        let labels = vec![""; parts.len()];
        Map::from_iter([
            ("query".into(), all("query")),
            ("prompts".into(), all("prompt")),
            ("labels".into(), json!(labels)),
        ])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let Body { rewards } = parse(body)?;
        let verdicts = all_valid(rewards.into_iter().map(QuestionVerdict::Score), count)?;
        Ok(JudgeReply { verdicts, ..JudgeReply::default() })
    }
}
