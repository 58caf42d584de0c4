//! A language model behind an OpenAI-compatible API, asked which of two answers is better.

use minijinja::context;
use serde_json::{Map, Value};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::chat_judge::{ChatJudge, messages};
use super::{CHAT_PATH, Protocol, only};
use crate::config::JudgeConfig;
use crate::question::{JudgeReply, Part, Question};
use crate::templates::{Template, prompt_values, sample_prompt};

pub(super) struct OpenaiJudge {
    config: JudgeConfig,
    template: Template,
    judge: ChatJudge,
}

impl OpenaiJudge {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, PluginError> {
        let judge = ChatJudge::new(config.clone())?;
        let sample = context! {
            first => "the first answer", second => "the second answer",
            label_first => &config.label_first, label_second => &config.label_second,
            ..sample_prompt()
        };
        let must_show = ["the first answer", "the second answer"];
        let template = Template::new("judge.template", &config.template, sample, &must_show)?;
        Ok(Self { config: config.clone(), template, judge })
    }
}

impl Protocol for OpenaiJudge {
    fn path(&self) -> &'static str {
        CHAT_PATH
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
        Ok(Part::of(messages(system, &text)))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        self.judge.body(only(parts))
    }

    fn read(&self, body: &[u8], _count: usize) -> Result<JudgeReply, Malformed> {
        self.judge.read(body)
    }
}
