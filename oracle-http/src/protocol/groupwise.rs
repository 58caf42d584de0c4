//! A chat model that sees all answers to a prompt at once and scores each, in several orders of them.

use minijinja::context;
use minijinja::value::merge_maps;
use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;
use sppo_plugin::{Comparison, PluginError};

use super::chat_judge::{check_sampling, messages};
use super::chat_reply::ChatReply;
use super::decisions::shuffled;
use super::{CHAT_PATH, Common, Protocol, json_in_text, lenient, shared};
use crate::config::{GroupwiseConfig, HttpConfig};
use crate::question::{JudgeReply, Part, Question, QuestionVerdict};
use crate::templates::{Template, answers_template, prompt_values, texts};

/// The field with the scores.
const SCORES: &str = "scores";
/// Names of the number of an answer in a list of scores.
const NUMBERS: [&str; 4] = ["answer", "id", "number", "index"];

pub(super) struct Groupwise {
    config: GroupwiseConfig,
    max_tokens_field: String,
    template: Template,
}

impl Groupwise {
    pub(super) fn new(config: &HttpConfig) -> Result<Self, PluginError> {
        let groupwise = config.groupwise.clone();
        check(&groupwise)?;
        let more = range_values(&groupwise);
        Ok(Self {
            template: answers_template("groupwise.template", &groupwise.template, more)?,
            max_tokens_field: config.judge.max_tokens_field.clone(),
            config: groupwise,
        })
    }

    /// One of the orders in which the different answers are shown: a pseudo-random one, turned so that each answer
    /// comes to each place as often as the number of orders allows; another after as many as there are answers.
    fn order<'a>(&self, comparison: &'a Comparison<'_>, variant: usize) -> Vec<&'a str> {
        let mut answers = shuffled(comparison, 0);
        let count = answers.len().max(1);
        let (cycle, turn) = (variant / count, variant % count);
        if cycle > 0 {
            answers = shuffled(comparison, cycle);
        }
        let turns = (self.variants() - cycle * count).min(count);
        let places = turn * answers.len() / turns;
        answers.rotate_left(places);
        answers
    }

    /// The scores in an answer, one for each of `count` answers.
    fn scores(&self, answer: &str, count: usize) -> Option<Vec<f64>> {
        let objects = json_in_text::objects(answer);
        let mut scores = objects.iter().rev().find_map(|object| {
            match json_in_text::field(&object.fields, SCORES) {
                Some(Value::Array(list)) => of_list(list),
                Some(Value::Object(fields)) => of_fields(fields),
                Some(_) => None,
                None => of_fields(&object.fields),
            }
        })?;
        scores.sort_by_key(|(number, _)| *number);
        let range = self.config.lowest..=self.config.highest;
        let valid = scores
            .iter()
            .zip(1..)
            .all(|((number, score), place)| *number == place && range.contains(score));
        (scores.len() == count && valid)
            .then(|| scores.into_iter().map(|(_, score)| score).collect())
    }
}

impl Protocol for Groupwise {
    fn path(&self) -> &'static str {
        CHAT_PATH
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

    fn variants(&self) -> usize {
        self.config.orders as usize
    }

    /// The answers of each order as it shows them, so that the numbers of a request ascend.
    fn questions<'a>(&self, comparison: &'a Comparison<'a>) -> Vec<Question<'a>> {
        let mut questions = Vec::new();
        for variant in 0..self.variants() {
            let shown = self.order(comparison, variant);
            questions.extend(questions_in_order(comparison, &shown, variant));
        }
        questions
    }

    fn part(&self, question: Question<'_>) -> Result<Part, PluginError> {
        let answers = self.order(question.comparison, question.variant);
        let own = json!(number(&answers, question.first_text()));
        let text = self.template.render(context! {
            answers => texts(&answers),
            ..merge_maps([range_values(&self.config), prompt_values(question.comparison)])
        })?;
        Ok(Part { shared: messages(&self.config.system, &text), own })
    }

    fn body(&self, parts: Vec<Part>) -> Map<String, Value> {
        let mut messages = shared(&parts);
        let numbers: Vec<String> = parts.iter().map(|part| part.own.to_string()).collect();
        ask_for_scores(&mut messages, &numbers);
        Map::from_iter([
            ("messages".into(), messages),
            ("temperature".into(), json!(self.config.temperature)),
            (self.max_tokens_field.clone(), json!(self.config.max_tokens)),
        ])
    }

    fn read(&self, body: &[u8], count: usize) -> Result<JudgeReply, Malformed> {
        let reply = ChatReply::read(body)?;
        let whole = reply.whole_answer();
        let answer = whole.as_ref().and_then(|thought| thought.answer());
        let scores = answer.and_then(|answer| self.scores(answer, count));
        Ok(reply.judged(match scores {
            Some(scores) => {
                scores.into_iter().map(|one| Some(QuestionVerdict::Score(one))).collect()
            }
            None => vec![None; count],
        }))
    }
}

/// The values that describe the range of scores in templates.
fn range_values(config: &GroupwiseConfig) -> minijinja::Value {
    let GroupwiseConfig { lowest, highest, .. } = config;
    context! { lowest => lowest.to_string(), highest => highest.to_string() }
}

/// The questions about the answers to a prompt in the order in which these are shown.
pub(super) fn questions_in_order<'a>(
    comparison: &'a Comparison<'a>,
    shown: &[&str],
    variant: usize,
) -> Vec<Question<'a>> {
    let mut responses: Vec<usize> = (0..comparison.candidates.len()).collect();
    responses.sort_by_cached_key(|index| number(shown, &comparison.candidates[*index].text));
    let ask = |response| Question { variant, ..Question::about(comparison, response) };
    responses.into_iter().map(ask).collect()
}

/// The number of an answer among those that are shown, from 1.
pub(super) fn number(answers: &[&str], text: &str) -> usize {
    answers.iter().position(|one| *one == text).map_or(0, |index| index + 1)
}

/// Says at the end of the last message which scores to reply with.
fn ask_for_scores(messages: &mut Value, numbers: &[String]) {
    let last = messages.as_array_mut().and_then(|all| all.last_mut());
    if let Some(Value::String(text)) = last.and_then(|message| message.get_mut("content")) {
        let form: Vec<String> =
            numbers.iter().map(|number| format!("\"{number}\": SCORE")).collect();
        text.push_str(&format!(
            "\n\nReply with a JSON object of this form, and nothing else: {{\"{SCORES}\": {{{}}}}}",
            form.join(", ")
        ));
    }
}

/// Scores by the numbers of their answers: `{"1": 7, "2": 3}`, also with names such as `Answer 1`.
fn of_fields(fields: &Map<String, Value>) -> Option<Vec<(usize, f64)>> {
    let score = |(name, value): (&String, &Value)| {
        let digits = name.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        Some((digits.parse().ok()?, score(value)?))
    };
    fields.iter().map(score).collect()
}

/// Scores in a list: numbers in order, or objects with the number of their answer.
fn of_list(list: &[Value]) -> Option<Vec<(usize, f64)>> {
    let score = |(index, value): (usize, &Value)| {
        let number = NUMBERS.iter().find_map(|name| lenient::number(value.get(name)?));
        let number = number.unwrap_or((index + 1) as f64);
        let is_whole = number >= 1.0 && number.fract() == 0.0;
        is_whole.then_some((number as usize, score(value)?))
    };
    list.iter().enumerate().map(score).collect()
}

/// A score: a number, or the field `score` of an object, which may say more.
fn score(value: &Value) -> Option<f64> {
    lenient::number(value.get("score").unwrap_or(value))
}

fn check(config: &GroupwiseConfig) -> Result<(), PluginError> {
    check_sampling("groupwise", config.temperature, config.max_tokens)?;
    if config.orders == 0 {
        return Err(PluginError::configuration("groupwise.orders: must be at least 1"));
    }
    let GroupwiseConfig { lowest, highest, .. } = config;
    if !(lowest.is_finite() && highest.is_finite() && lowest < highest) {
        return Err(PluginError::configuration(
            "groupwise.lowest: must be below groupwise.highest",
        ));
    }
    Ok(())
}
