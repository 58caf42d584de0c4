//! Decision models, asked which of two answers is better. The state that they decide on shows the two, or all
//! answers to the prompt with a question about each pair.

use minijinja::context;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use sppo_http_transport::Malformed;
use sppo_plugin::{Comparison, PluginError};

use super::dialect::Dialect;
use super::{Common, Protocol, shared};
use crate::config::{DecisionConfig, HttpConfig, Scope};
use crate::question::{JudgeReply, Part, Question};
use crate::templates::{Template, answers_template, prompt_values, texts};

/// Names of the options.
const FIRST: &str = "first";
const SECOND: &str = "second";
const TIE: &str = "tie";

/// Questions that every server takes at once.
pub(super) const TOGETHER: usize = 64;

pub(super) struct Decisions {
    dialect: Dialect,
    config: DecisionConfig,
    state: Template,
    instructions: Template,
    /// The least probability that the labels of the options must have together.
    least: f64,
}

impl Decisions {
    pub(super) fn new(config: &HttpConfig, dialect: Dialect) -> Result<Self, PluginError> {
        let decision = config.decision.clone();
        // Two answers need no numbers.
        let must_show: &[&str] = match decision.scope {
            Scope::Pair => &[],
            Scope::Prompt => &["1077", "1078"],
        };
        let sample = context! { first => 1077, second => 1078 };
        let source = &decision.instructions;
        Ok(Self {
            state: answers_template("decision.state", &decision.state, context! {})?,
            instructions: Template::new("decision.instructions", source, sample, must_show)?,
            least: config.judge.min_label_probability,
            config: decision,
            dialect,
        })
    }

    fn state(&self, comparison: &Comparison<'_>, answers: &[&str]) -> Result<Value, PluginError> {
        let values = context! { answers => texts(answers), ..prompt_values(comparison) };
        self.state.render(values).map(|state| json!(state))
    }

    /// The question about two answers by their numbers.
    fn question(&self, first: usize, second: usize) -> Result<Value, PluginError> {
        let instructions = self.instructions.render(context! { first, second })?;
        let mut options = vec![
            (FIRST, format!("Answer {first} is better")),
            (SECOND, format!("Answer {second} is better")),
        ];
        if self.config.tie {
            options.push((TIE, "Both answers are equally good".to_owned()));
        }
        Ok(self.dialect.choice(&instructions, &options))
    }
}

impl Protocol for Decisions {
    fn path(&self) -> &'static str {
        self.dialect.path()
    }

    fn compares(&self) -> bool {
        true
    }

    fn questions_per_request(&self) -> usize {
        if self.takes_several() { TOGETHER } else { 1 }
    }

    fn takes_several(&self) -> bool {
        self.config.scope == Scope::Prompt
    }

    fn common(&self) -> Common {
        Common::Prompt
    }

    fn varies(&self) -> bool {
        false
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let (first, second) = (question.first_text(), question.second_text());
        let comparison = question.comparison;
        let (answers, numbers) = match self.config.scope {
            Scope::Pair => (vec![first, second], (1, 2)),
            Scope::Prompt => {
                let answers = shuffled(comparison, 0);
                let number = |text| answers.iter().position(|one| *one == text).unwrap_or(0) + 1;
                let numbers = (number(first), number(second));
                (answers, numbers)
            }
        };
        Ok(Part {
            shared: self.state(comparison, &answers)?,
            own: self.question(numbers.0, numbers.1)?,
        })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let state = shared(&parts);
        self.dialect.body(state, parts.into_iter().map(|part| part.own).collect())
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let options = match self.config.tie {
            true => &[FIRST, SECOND, TIE][..],
            false => &[FIRST, SECOND],
        };
        self.dialect.read(body, count, self.least, |dialect, answer| {
            let probabilities = dialect.probabilities(answer, options)?;
            let tie = probabilities.get(2).copied().unwrap_or_default();
            Ok((probabilities[0] + tie / 2.0).clamp(0.0, 1.0))
        })
    }
}

/// The different answers to a prompt in a pseudo-random order, one for each `seed`, that follows from the texts
/// alone.
pub(super) fn shuffled<'a>(comparison: &'a Comparison<'_>, seed: usize) -> Vec<&'a str> {
    let mut hasher = Sha256::new();
    hasher.update(format!("{seed}\n"));
    for message in comparison.prompt.iter() {
        hasher.update(format!("{} {}\n", message.role, message.content));
    }
    let mut answers: Vec<&str> = comparison.candidates.iter().map(|one| &*one.text).collect();
    answers.sort_by_cached_key(|answer| {
        let digest: [u8; 32] = hasher.clone().chain_update(answer.as_bytes()).finalize().into();
        digest
    });
    answers.dedup();
    answers
}
