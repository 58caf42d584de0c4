//! A server of NeMo Gym that has a generative reward model compare all answers to a prompt, and makes a reward of
//! each.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::{Comparison, PluginError};

use super::decisions::shuffled;
use super::groupwise::{number, questions_in_order};
use super::{Common, Protocol, all_valid, lenient, parse, shared};
use crate::config::GenrmConfig;
use crate::question::{InvalidVerdict, JudgeReply, Part, Question, QuestionVerdict};

/// The text in place of a verdict that the server made up.
const MADE_UP: &str = "the server took a tie for a reply of its model that it could not read";

pub(super) struct NemoGym {
    principle: Option<String>,
}

#[derive(Deserialize)]
struct Compared {
    #[serde(deserialize_with = "lenient::numbers")]
    rewards: Vec<f64>,
    #[serde(default)]
    comparison_results: Value,
}

impl NemoGym {
    pub(super) fn new(config: &GenrmConfig) -> Self {
        Self { principle: config.principle.clone() }
    }
}

impl Compared {
    /// Whether the server took its default for a ranking: the model's are whole numbers, and that is 3.5.
    fn is_made_up(&self) -> bool {
        let pairs = self.comparison_results.as_array().into_iter().flatten();
        let mut rankings = pairs.filter_map(|pair| lenient::number(pair.get("ranking")?));
        rankings.any(|ranking| ranking.fract() != 0.0)
    }
}

impl Protocol for NemoGym {
    fn path(&self) -> &'static str {
        "/compare"
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        usize::MAX
    }

    fn common(&self) -> Common {
        Common::Group
    }

    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        questions_in_order(comparison, &shuffled(comparison, 0), 0)
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let answers = shuffled(question.comparison, 0);
        let own = json!(number(&answers, question.first_text()));
        let response = |text: &&str| {
            let content = json!([{"type": "output_text", "text": text}]);
            json!({"output": [{"type": "message", "role": "assistant", "content": content}]})
        };
        let mut shared = json!({
            "conversation_history": question.comparison.prompt.iter().collect::<Vec<_>>(),
            "response_objs": answers.iter().map(response).collect::<Vec<_>>(),
        });
        if let Some(principle) = &self.principle {
            shared["principle"] = json!(principle);
        }
        Ok(Part { shared, own })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        match shared(&parts) {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let compared: Compared = parse(body)?;
        let rewards = compared.rewards.iter().copied().map(QuestionVerdict::Score);
        let mut verdicts = all_valid(rewards, count)?;
        if compared.is_made_up() {
            verdicts = vec![Err(InvalidVerdict(MADE_UP.into())); count];
        }
        Ok(JudgeReply { verdicts, ..JudgeReply::default() })
    }
}
