//! A language model behind an OpenAI-compatible API, asked which of two answers is better.

use minijinja::context;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;
use sppo_plugin::thought::{Thought, without_thought};

use super::chat_reply::ChatReply;
use super::labels::Labels;
use super::verdict::VerdictReader;
use super::{Protocol, only};
use crate::config::JudgeConfig;
use crate::question::{
    Certainty, Ending, InvalidVerdict, JudgeReply, Part, Question, QuestionVerdict,
};
use crate::templates::{Template, prompt_values};

/// Characters of an invalid reply that are shown.
const EXCERPT: usize = 120;
/// The longest reply, in tokens, whose limit was meant for a label alone: such a reply may end there.
const LABEL_ALONE: u32 = 4;

pub(super) struct OpenaiJudge {
    config: JudgeConfig,
    template: Template,
    verdicts: VerdictReader,
}

impl OpenaiJudge {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, PluginError> {
        check(config)?;
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
            verdicts: VerdictReader::new(Labels::new(config)?, &config.json_field),
            config: config.clone(),
        })
    }

    /// The probability that the response shown first is better, and the fate of the log-probabilities. A
    /// thought is no part of the answer, and an answer that did not come to its end is no verdict, unless it
    /// began with one.
    fn verdict(&self, reply: &ChatReply) -> (Option<f64>, Certainty) {
        let thought = without_thought(&reply.text);
        let Some(answer) = thought.answer() else { return (None, Certainty::AsAsked) };
        let said = self.verdicts.read(answer);
        let (sure, certainty) = match self.config.log_probs {
            true => self.by_log_probs(reply, answer, said),
            false => (None, Certainty::AsAsked),
        };
        let verdict = match reply.ending {
            Ending::Complete => sure.or(said),
            Ending::CutOff => sure.or_else(|| {
                let meant = self.config.max_tokens <= LABEL_ALONE;
                self.verdicts.bare(answer).filter(|_| meant)
            }),
            _ => None,
        };
        (verdict, certainty)
    }

    fn by_log_probs(
        &self,
        reply: &ChatReply,
        answer: &str,
        said: Option<f64>,
    ) -> (Option<f64>, Certainty) {
        let least = self.config.min_label_probability;
        match reply.log_probs.probability(self.verdicts.labels(), answer, said, least) {
            Ok(probability) => (Some(probability), Certainty::AsAsked),
            Err(reason) => (None, reason),
        }
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
        let reply = ChatReply::read(body)?;
        let (verdict, certainty) = self.verdict(&reply);
        // Without a verdict it does not matter how sure it would be.
        let certainty = if verdict.is_some() { certainty } else { Certainty::AsAsked };
        let verdict = verdict.map(QuestionVerdict::Probability);
        Ok(JudgeReply {
            verdicts: vec![verdict.ok_or_else(|| InvalidVerdict(excerpt(&reply.text)))],
            prompt_tokens: reply.prompt_tokens,
            completion_tokens: reply.completion_tokens,
            ending: ending(&reply),
            certainty,
            refusal: None,
        })
    }
}

/// The end of a reply; one that has nothing but a thought did not come to it.
fn ending(reply: &ChatReply) -> Ending {
    let nothing = match without_thought(&reply.text) {
        Thought::Open => true,
        Thought::Absent(answer) => answer.trim().is_empty() && reply.has_thought,
        Thought::Closed(answer) => answer.is_empty(),
    };
    match reply.ending {
        Ending::Complete if nothing => Ending::ThoughtAlone,
        ending => ending,
    }
}

fn check(config: &JudgeConfig) -> Result<(), PluginError> {
    let refused = |message: &str| Err(PluginError::configuration(message));
    if !(config.temperature.is_finite() && config.temperature >= 0.0) {
        return refused("judge.temperature: must be 0 or above");
    }
    if config.max_tokens == 0 {
        return refused("judge.max_tokens: must be at least 1");
    }
    if !(0.0..=1.0).contains(&config.max_invalid_share) {
        return refused("judge.max_invalid_share: not from 0 to 1");
    }
    match (0.0..=1.0).contains(&config.min_label_probability) {
        true => Ok(()),
        false => Err(PluginError::configuration("judge.min_label_probability: not from 0 to 1")
            .with_hint("for instance 0.1")),
    }
}

/// The beginning of a reply, or words for its lack.
fn excerpt(text: &str) -> String {
    let thought = without_thought(text);
    let said = thought.answer().filter(|answer| !answer.is_empty()).unwrap_or(text).trim();
    let excerpt: String = said.chars().take(EXCERPT).collect();
    if excerpt.is_empty() { "an empty reply".into() } else { excerpt }
}
