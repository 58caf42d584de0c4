//! NVIDIA's generative reward model: two answers in turns of their own roles, a ranking of them in the reply.

use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;

use super::chat_judge::check_sampling;
use super::chat_reply::ChatReply;
use super::{CHAT_PATH, Protocol, json_in_text, lenient, only};
use crate::config::GenrmConfig;
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};

/// The field with the verdict: 1 where the first answer is much better, to 6 where the second is.
const RANKING: &str = "ranking";

pub(super) struct Genrm {
    config: GenrmConfig,
}

impl Genrm {
    pub(super) fn new(config: &GenrmConfig) -> Result<Self, PluginError> {
        check_sampling("genrm", config.temperature, config.max_tokens)?;
        if !(config.top_p > 0.0 && config.top_p <= 1.0) {
            return Err(PluginError::configuration("genrm.top_p: not above 0 and up to 1"));
        }
        let are_probabilities = config.probabilities.iter().all(|one| (0.0..=1.0).contains(one));
        if !are_probabilities || !config.probabilities.is_sorted_by(|a, b| a >= b) {
            return Err(PluginError::configuration(
                "genrm.probabilities: not six numbers from 1 to 0, none above the one before it",
            )
            .with_hint("the first is for an answer that is much better than the second"));
        }
        Ok(Self { config: config.clone() })
    }

    /// The probability that the ranking in an answer stands for.
    fn probability(&self, answer: &str) -> Option<f64> {
        let objects = json_in_text::objects(answer);
        let in_objects =
            objects.iter().rev().find_map(|one| json_in_text::field(&one.fields, RANKING));
        let ranking = match in_objects {
            Some(value) => lenient::number(value),
            None => {
                let loose = json_in_text::loose_field(answer, RANKING)?;
                loose.trim_matches(|letter: char| " \r\t\"'`*_".contains(letter)).parse().ok()
            }
        }?;
        let rankings = (1..=6_u8).map(f64::from);
        let place = rankings.zip(self.config.probabilities).find(|(one, _)| *one == ranking);
        place.map(|(_, probability)| probability)
    }
}

impl Protocol for Genrm {
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
        let mut messages: Vec<Value> =
            question.comparison.prompt.iter().map(|message| json!(message)).collect();
        let mut add =
            |role: &str, text: &str| messages.push(json!({"role": role, "content": text}));
        add("response_1", question.first_text());
        add("response_2", question.second_text());
        if let Some(principle) = &self.config.principle {
            add("principle", principle);
        }
        Ok(Part::of(Value::Array(messages)))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let GenrmConfig { temperature, top_p, max_tokens, .. } = self.config;
        Map::from_iter([
            ("messages".into(), only(parts)),
            ("temperature".into(), json!(temperature)),
            ("top_p".into(), json!(top_p)),
            ("max_tokens".into(), json!(max_tokens)),
        ])
    }

    fn read(&self, body: &[u8], _count: usize) -> Result<JudgeReply, Malformed> {
        let reply = ChatReply::read(body)?;
        let whole = reply.whole_answer();
        let answer = whole.as_ref().and_then(|thought| thought.answer());
        let probability = answer.and_then(|answer| self.probability(answer));
        Ok(reply.judged(vec![probability.map(QuestionVerdict::Probability)]))
    }
}
