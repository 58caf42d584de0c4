//! A language model behind an OpenAI-compatible API, asked which of two answers is better.

use minijinja::context;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::verdict::{Position, VerdictReader};
use super::{Protocol, only, parse};
use crate::config::JudgeConfig;
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};
use crate::templates::{Template, prompt_values};

pub(super) struct OpenaiJudge {
    config: JudgeConfig,
    template: Template,
    verdicts: VerdictReader,
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    #[serde(default)]
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
    #[serde(default)]
    logprobs: Option<LogProbs>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    content: Option<String>,
}

#[derive(Deserialize)]
struct LogProbs {
    #[serde(default)]
    content: Option<Vec<Position>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl OpenaiJudge {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, PluginError> {
        if !(config.temperature.is_finite() && config.temperature >= 0.0) {
            return Err(PluginError::configuration("judge.temperature: must be 0 or above"));
        }
        if config.max_tokens == 0 {
            return Err(PluginError::configuration("judge.max_tokens: must be at least 1"));
        }
        if !(0.0..=1.0).contains(&config.max_invalid_share) {
            return Err(PluginError::configuration("judge.max_invalid_share: not from 0 to 1"));
        }
        let sample = context! {
            conversation => "the prompt",
            messages => [context! { role => "user", content => "the prompt" }],
            prompt => "the prompt", rendered_prompt => "the prompt",
            first => "the first answer", second => "the second answer",
            label_first => &config.label_first, label_second => &config.label_second,
        };
        let must_show = ["the first answer", "the second answer"];
        Ok(Self {
            template: Template::new("judge.template", &config.template, sample, &must_show)?,
            verdicts: VerdictReader::new(config)?,
            config: config.clone(),
        })
    }
}

impl Protocol for OpenaiJudge {
    fn path(&self) -> &'static str {
        "/v1/chat/completions"
    }

    fn compares(&self) -> bool {
        true
    }

    fn questions_per_request(&self) -> usize {
        1
    }

    fn takes_several(&self) -> bool {
        false
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let JudgeConfig { system, label_first, label_second, .. } = &self.config;
        let text = self.template.render(context! {
            first => question.first_text(),
            second => question.second_text(),
            label_first,
            label_second,
            ..prompt_values(question.comparison)
        })?;
        let user = json!({"role": "user", "content": text});
        Ok(Part::of(match system.as_str() {
            "" => json!([user]),
            system => json!([{"role": "system", "content": system}, user]),
        }))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let JudgeConfig { temperature, max_tokens, max_tokens_field, .. } = &self.config;
        let messages = only(parts);
        let mut body = Map::from_iter([
            ("messages".into(), messages),
            ("temperature".into(), json!(temperature)),
            (max_tokens_field.clone(), json!(max_tokens)),
        ]);
        if self.config.log_probs {
            body.insert("logprobs".into(), json!(true));
            body.insert("top_logprobs".into(), json!(self.config.top_log_probs));
        }
        body
    }

    fn read(&self, body: &[u8], _count: usize) -> Result<JudgeReply, Malformed> {
        let Completion { choices, usage } = parse(body)?;
        let choice = choices.first().ok_or_else(|| Malformed("`choices` is empty".into()))?;
        let positions = choice.logprobs.as_ref().and_then(|log_probs| log_probs.content.as_deref());
        let text = choice.message.content.as_deref().unwrap_or_default();
        let verdict = self.verdicts.read(text, positions.unwrap_or_default());
        let Usage { prompt_tokens, completion_tokens } = usage.unwrap_or_default();
        let verdicts = vec![verdict.map(QuestionVerdict::Probability)];
        Ok(JudgeReply { verdicts, prompt_tokens, completion_tokens })
    }
}
