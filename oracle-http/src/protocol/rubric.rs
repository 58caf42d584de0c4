//! Rubrics: for each answer and each criterion of a file the probability that the answer meets it.

use minijinja::context;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::{Comparison, PluginError};

use super::chat_judge::{ChatJudge, messages};
use super::dialect::Dialect;
use super::rubric_file::Rubric;
use super::{CHAT_PATH, Common, Protocol, only, shared};
use crate::combination::Combination;
use crate::config::{HttpConfig, JudgeConfig, RubricConfig};
use crate::question::{JudgeReply, Part, Question};
use crate::templates::{Template, render_response, response_template};

/// The labels of a chat model.
const YES: &str = "yes";
const NO: &str = "no";

/// The criteria, and the texts that ask about them.
struct Criteria {
    rubric: Rubric,
    state: Template,
    /// The question about each criterion.
    questions: Vec<String>,
}

impl Criteria {
    fn new(config: &RubricConfig) -> Result<Self, PluginError> {
        let Some(file) = &config.file else {
            return Err(PluginError::configuration(
                "rubric.file: it is not said where the criteria are",
            )
            .with_hint("for instance `--set oracle.http.rubric.file=rubric.json`"));
        };
        let rubric = Rubric::read(file)?;
        let sample = context! { criterion => "the criterion" };
        let template =
            Template::new("rubric.question", &config.question, sample, &["the criterion"])?;
        let question = |criterion: &str| template.render(context! { criterion });
        let questions =
            rubric.criteria.iter().map(|one| question(&one.criterion)).collect::<Result<_, _>>()?;
        let state = response_template("rubric.state", &config.state)?;
        Ok(Self { rubric, state, questions })
    }

    /// One question for each response and criterion, those about a response together.
    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        let criteria = self.questions.len();
        let of = |response| {
            let question = Question::about(comparison, response);
            (0..criteria).map(move |variant| Question { variant, ..question })
        };
        (0..comparison.candidates.len()).flat_map(of).collect()
    }

    fn combination(&self) -> Combination {
        Combination::Criteria(self.rubric.weights())
    }

    fn identity(&self) -> String {
        format!("rubric {}", self.rubric.digest())
    }
}

/// A rubric whose judge is a chat model that says yes or no.
pub(super) struct ChatRubric {
    criteria: Criteria,
    system: String,
    judge: ChatJudge,
}

impl ChatRubric {
    pub(super) fn new(config: &HttpConfig) -> Result<Self, PluginError> {
        let judge = JudgeConfig {
            label_first: YES.into(),
            label_second: NO.into(),
            label_tie: None,
            ..config.judge.clone()
        };
        Ok(Self {
            criteria: Criteria::new(&config.rubric)?,
            system: config.rubric.system.clone(),
            judge: ChatJudge::new(judge)?,
        })
    }
}

impl Protocol for ChatRubric {
    fn path(&self) -> &'static str {
        CHAT_PATH
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        1
    }

    fn takes_several(&self) -> bool {
        false
    }

    fn variants(&self) -> usize {
        self.criteria.questions.len()
    }

    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        self.criteria.questions(comparison)
    }

    fn combination(&self) -> Combination {
        self.criteria.combination()
    }

    fn identity(&self) -> Option<String> {
        Some(self.criteria.identity())
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let state = render_response(&self.criteria.state, question)?;
        let asked = &self.criteria.questions[question.variant];
        let text = format!("{state}\n\n{asked}\n\nReply with {YES} or {NO}, and nothing else.");
        Ok(Part::of(messages(&self.system, &text)))
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        self.judge.body(only(parts))
    }

    fn read(&self, body: &[u8], _count: usize) -> Result<JudgeReply, Malformed> {
        self.judge.read(body)
    }
}

/// A rubric whose judge is a decision model, which is asked about all criteria of an answer at once.
pub(super) struct DecisionRubric {
    criteria: Criteria,
    dialect: Dialect,
    least: f64,
}

impl DecisionRubric {
    pub(super) fn new(config: &HttpConfig, dialect: Dialect) -> Result<Self, PluginError> {
        let criteria = Criteria::new(&config.rubric)?;
        Ok(Self { criteria, dialect, least: config.judge.min_label_probability })
    }
}

impl Protocol for DecisionRubric {
    fn path(&self) -> &'static str {
        self.dialect.path()
    }

    fn compares(&self) -> bool {
        false
    }

    fn questions_per_request(&self) -> usize {
        super::decisions::TOGETHER
    }

    fn common(&self) -> Common {
        Common::Response
    }

    fn varies(&self) -> bool {
        false
    }

    fn variants(&self) -> usize {
        self.criteria.questions.len()
    }

    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        self.criteria.questions(comparison)
    }

    fn combination(&self) -> Combination {
        self.criteria.combination()
    }

    fn identity(&self) -> Option<String> {
        Some(self.criteria.identity())
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        Ok(Part {
            shared: json!(render_response(&self.criteria.state, question)?),
            own: self.dialect.yes_or_no(&self.criteria.questions[question.variant]),
        })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let state = shared(&parts);
        self.dialect.body(state, parts.into_iter().map(|part| part.own).collect())
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        self.dialect.read(body, count, self.least, Dialect::probability_of_yes)
    }
}
