//! Judges behind chat APIs that answer with a label: their sampling, and the reading of their replies.

use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::PluginError;
use sppo_plugin::thought::without_thought;

use super::chat_reply::ChatReply;
use super::labels::Labels;
use super::verdict::{Found, VerdictReader};
use crate::config::JudgeConfig;
use crate::question::{Certainty, Ending, JudgeReply, QuestionVerdict};

/// The longest reply, in tokens, whose limit was meant for a label alone: such a reply may end there.
const LABEL_ALONE: u32 = 4;

/// A judge that answers with one of its labels.
pub(super) struct ChatJudge {
    config: JudgeConfig,
    verdicts: VerdictReader,
}

impl ChatJudge {
    pub(super) fn new(config: JudgeConfig) -> Result<Self, PluginError> {
        check_sampling("judge", config.temperature, config.max_tokens)?;
        let verdicts = VerdictReader::new(Labels::new(&config)?, &config.json_field);
        Ok(Self { config, verdicts })
    }

    /// The body of a request with these messages.
    pub(super) fn body(&self, messages: Value) -> Map<String, Value> {
        let JudgeConfig { temperature, max_tokens, max_tokens_field, .. } = &self.config;
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

    /// Reads the reply to one question.
    pub(super) fn read(&self, body: &[u8]) -> Result<JudgeReply, Malformed> {
        let reply = ChatReply::read(body)?;
        let (verdict, certainty) = self.verdict(&reply);
        // Without a verdict it does not matter how sure it would be.
        let certainty = if verdict.is_some() { certainty } else { Certainty::AsAsked };
        let verdict = verdict.map(QuestionVerdict::Probability);
        Ok(JudgeReply { certainty, ..reply.judged(vec![verdict]) })
    }

    /// The probability of the first label, and the fate of the log-probabilities. A thought is no part of the
    /// answer, and an answer that did not come to its end is no verdict, unless it began with one.
    fn verdict(&self, reply: &ChatReply) -> (Option<f64>, Certainty) {
        let thought = without_thought(&reply.text);
        let Some(answer) = thought.answer() else { return (None, Certainty::AsAsked) };
        let is_whole = reply.ending == Ending::Complete;
        let found = self.verdicts.read(answer).filter(|one| is_whole || one.begins(answer));
        let (sure, certainty) = self.by_log_probs(reply, answer, found.as_ref());
        let verdict = match reply.ending {
            Ending::Complete => sure.or(found.map(|found| found.share)),
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
        found: Option<&Found>,
    ) -> (Option<f64>, Certainty) {
        if !self.config.log_probs || found.is_some_and(|found| found.is_graded) {
            return (None, Certainty::AsAsked);
        }
        let least = self.config.min_label_probability;
        match reply.log_probs.probability(self.verdicts.labels(), answer, found, least) {
            Ok(probability) => (Some(probability), Certainty::AsAsked),
            Err(reason) => (None, reason),
        }
    }
}

/// The messages of a question: the system's turn, unless it is empty, and the user's.
pub(super) fn messages(system: &str, text: &str) -> Value {
    let user = json!({"role": "user", "content": text});
    match system {
        "" => json!([user]),
        system => json!([{"role": "system", "content": system}, user]),
    }
}

/// Checks the sampling in a table of the settings.
pub(super) fn check_sampling(
    table: &str,
    temperature: f64,
    max_tokens: u32,
) -> Result<(), PluginError> {
    let refused = |message: &str| Err(PluginError::configuration(format!("{table}.{message}")));
    if !(temperature.is_finite() && temperature >= 0.0) {
        return refused("temperature: must be 0 or above");
    }
    if max_tokens == 0 {
        return refused("max_tokens: must be at least 1");
    }
    Ok(())
}
