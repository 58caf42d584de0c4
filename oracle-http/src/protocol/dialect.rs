//! The two APIs of decision models: System One's and OpenAI's. A question with a fixed set of options is answered by
//! their probabilities.

use serde_json::{Map, Value, json};
use sppo_http_transport::Malformed;

use super::{in_order, lenient, parse};
use crate::question::{InvalidVerdict, JudgeReply, QuestionVerdict};

/// The most that the probabilities of a question may differ from 1 in their sum, rounding included.
const ROUNDING: f64 = 0.02;

/// An API of decision models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `/v1/systemone`: TypeSafe, vLLM, SGLang, Ollama, gateways.
    SystemOne,
    /// `/v1/decisions`: OpenAI and vLLM.
    OpenAi,
}

/// An answer to a question, as it stands in a reply.
struct Answer<'a> {
    fields: &'a Value,
    /// The probability that the labels of the options have among all tokens, where the server says it.
    label_mass: Option<f64>,
}

impl Dialect {
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::SystemOne => "/v1/systemone",
            Self::OpenAi => "/v1/decisions",
        }
    }

    /// A question that one of the options answers, each a name and a description.
    pub(super) fn choice(self, instructions: &str, options: &[(&str, String)]) -> Value {
        match self {
            Self::SystemOne => {
                let criteria =
                    options.iter().map(|(name, about)| ((*name).to_owned(), json!(about)));
                let criteria = Map::from_iter(criteria);
                json!({"type": "choice", "instructions": instructions, "criteria": criteria})
            }
            Self::OpenAi => {
                let choice =
                    |(name, about): &(&str, String)| json!({"value": name, "description": about});
                let choices: Vec<Value> = options.iter().map(choice).collect();
                json!({"type": "choice", "instructions": instructions, "choices": choices})
            }
        }
    }

    /// A question that yes or no answers.
    pub(super) fn yes_or_no(self, instructions: &str) -> Value {
        match self {
            Self::SystemOne => json!({"type": "noul", "instructions": instructions}),
            Self::OpenAi => json!({"type": "predicate", "instructions": instructions}),
        }
    }

    /// The body of a request with questions about a state.
    pub(super) fn body(self, state: Value, questions: Vec<Value>) -> Map<String, Value> {
        match self {
            Self::SystemOne => {
                let named = questions.into_iter().enumerate();
                let named = named.map(|(index, question)| (name(index), question));
                Map::from_iter([
                    ("state".into(), state),
                    ("questions".into(), Value::Object(named.collect())),
                ])
            }
            Self::OpenAi => {
                let mut questions = questions;
                for (index, question) in questions.iter_mut().enumerate() {
                    question["name"] = json!(name(index));
                }
                Map::from_iter([("input".into(), state), ("questions".into(), json!(questions))])
            }
        }
    }

    /// Reads the answers to `count` questions, each with `read`; labels of less probability than `least` are no
    /// answer.
    pub(super) fn read(
        self,
        body: &[u8],
        count: usize,
        least: f64,
        read: impl Fn(Self, &Value) -> Result<f64, Malformed>,
    ) -> Result<JudgeReply, Malformed> {
        let body: Value = parse(body)?;
        let answers = self.answers(&body, count)?;
        let verdicts = answers.into_iter().map(|Answer { fields, label_mass }| {
            if fields["type"] == "refusal" {
                return Ok(Err(InvalidVerdict("it refuses to decide".into())));
            }
            if let Some(mass) = label_mass.filter(|mass| *mass < least) {
                let said = format!(
                    "the options have a probability of {mass} together, less than judge.min_label_probability"
                );
                return Ok(Err(InvalidVerdict(said)));
            }
            read(self, fields).map(|value| Ok(QuestionVerdict::Probability(value)))
        });
        let usage = body.get("usage").unwrap_or(&Value::Null);
        Ok(JudgeReply {
            verdicts: verdicts.collect::<Result<_, _>>()?,
            prompt_tokens: lenient::count(usage, &["input_tokens", "prompt_tokens"]),
            completion_tokens: lenient::count(usage, &["output_tokens", "completion_tokens"]),
            ..JudgeReply::default()
        })
    }

    /// The answers in the order of the questions.
    fn answers(self, body: &Value, count: usize) -> Result<Vec<Answer<'_>>, Malformed> {
        match (self, body.get("answers")) {
            (Self::SystemOne, Some(Value::Object(answers))) => {
                if answers.len() != count {
                    return Err(Malformed(format!("{} answers to {count} questions", answers.len())));
                }
                let answer = |index| {
                    let name = name(index);
                    let fields = answers.get(&name);
                    let fields = fields.ok_or_else(|| Malformed(format!("no answer to {name}")))?;
                    let mass = fields.get("x_label_mass");
                    let mass = mass.or_else(|| body.get("diagnostics")?.get(&name)?.get("label_mass"));
                    Ok(Answer { fields, label_mass: mass.and_then(lenient::number) })
                };
                (0..count).map(answer).collect()
            }
            (Self::OpenAi, Some(Value::Array(answers))) => {
                // A service may leave the names out; the answers are in order then.
                let index = |fields: &Value| {
                    let given = fields.get("name")?.as_str()?;
                    (0..count).find(|index| name(*index) == given)
                };
                let indexed = answers.iter().map(|fields| (index(fields), fields)).collect();
                let answers = in_order(indexed, count)?;
                Ok(answers.into_iter().map(|fields| Answer { fields, label_mass: None }).collect())
            }
            (Self::OpenAi, Some(Value::Object(_))) => Err(Malformed(
                "`answers` is no list: this /v1/decisions is not OpenAI's; see whether the server has \
                 /v1/systemone (`protocol = \"systemone\"`)"
                    .into(),
            )),
            _ => Err(Malformed("there are no `answers`".into())),
        }
    }

    /// The probability of each option of a `choice`, in the order of their names.
    pub(super) fn probabilities(
        self,
        answer: &Value,
        options: &[&str],
    ) -> Result<Vec<f64>, Malformed> {
        require_kind(answer, "choice")?;
        let given = &answer["probabilities"];
        let of = |option: &&str| match self {
            Self::SystemOne => given.get(*option).and_then(lenient::number),
            Self::OpenAi => {
                let choice = given.as_array()?.iter().find(|one| one["value"] == **option)?;
                choice.get("probability").and_then(lenient::number)
            }
        };
        let values: Option<Vec<f64>> = options.iter().map(of).collect();
        let values = values
            .ok_or_else(|| Malformed(format!("an option of {options:?} has no probability")))?;
        let total: f64 = values.iter().sum();
        let valid = values.iter().all(|value| (0.0..=1.0).contains(value));
        match valid && (total - 1.0).abs() <= ROUNDING {
            true => Ok(values.iter().map(|value| value / total).collect()),
            false => Err(Malformed(format!("the probabilities {values:?} do not add up to 1"))),
        }
    }

    /// The probability of yes.
    pub(super) fn probability_of_yes(self, answer: &Value) -> Result<f64, Malformed> {
        let (kind, field) = match self {
            Self::SystemOne => ("noul", "noul"),
            Self::OpenAi => ("predicate", "probability"),
        };
        require_kind(answer, kind)?;
        let value = answer.get(field).and_then(lenient::number);
        value
            .filter(|value| (0.0..=1.0).contains(value))
            .ok_or_else(|| Malformed(format!("`{field}` is no probability")))
    }
}

/// The name of a question, by its place in the request.
fn name(index: usize) -> String {
    format!("q{}", index + 1)
}

fn require_kind(answer: &Value, kind: &str) -> Result<(), Malformed> {
    match answer.get("type").and_then(Value::as_str) {
        Some(other) if other != kind => Err(Malformed(format!(
            "a question of the type {kind} has an answer of the type {other}"
        ))),
        _ => Ok(()),
    }
}
