//! Log-probabilities in the replies of language models, in the forms that services give them.

use serde_json::{Map, Value};

use super::labels::{self, Labels};
use super::tokens;
use super::verdict::Found;
use crate::question::Certainty;

/// Characters of an answer, white space aside, by which its first token is found.
const HEAD: usize = 32;
/// The most that the probabilities of a position may add up to, rounding included.
const MOST: f64 = 1.01;

/// A token that could have come.
#[derive(Clone, Debug, PartialEq)]
struct Token {
    text: String,
    /// Log-probability; some services write `null` for minus infinity.
    log_prob: Option<f64>,
}

/// A position of the reply: the token that came, and those that could have.
#[derive(Clone, Debug, PartialEq)]
struct Position {
    drawn: Token,
    top: Vec<Token>,
}

/// The log-probabilities of a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct LogProbs {
    positions: Vec<Position>,
    /// Whether there is something in their place, readable or not.
    given: bool,
}

impl LogProbs {
    /// Log-probabilities of a choice: OpenAI's `content`, the lists of the older completions, or a list of
    /// positions alone.
    pub(super) fn read(value: &Value) -> Self {
        let positions = match value {
            Value::Object(fields) => match fields.get("content") {
                Some(Value::Array(content)) => content.iter().filter_map(position).collect(),
                Some(inner @ Value::Object(_)) => Self::read(inner).positions,
                _ => by_lists(fields),
            },
            Value::Array(content) => content.iter().filter_map(position).collect(),
            _ => Vec::new(),
        };
        Self { positions, given: !is_empty(value) }
    }

    /// `P(first) / (P(first) + P(second))` at the token where the label of `found`, the verdict of the answer's
    /// text, stands, or where the answer begins without one. As the weighted AlpacaEval annotator does, except that
    /// spellings of one label are added, and labels that are hardly considered ignored.
    pub(super) fn probability(
        &self,
        labels: &Labels,
        answer: &str,
        found: Option<&Found>,
        least: f64,
    ) -> Result<f64, Certainty> {
        if self.positions.is_empty() {
            return Err(if self.given { Certainty::Unknown } else { Certainty::Missing });
        }
        let position = match found {
            Some(found) if !found.begins(answer) => self.of_label(answer, found),
            _ => self.beginning(answer),
        };
        let position = position.ok_or(Certainty::Elsewhere)?;
        // Of a label of several tokens the first may be another label.
        let drawn = labels.decorated(&position.drawn.text);
        if found.zip(drawn).is_some_and(|(found, drawn)| drawn != found.share) {
            return Err(Certainty::Elsewhere);
        }
        let (mut total, mut wins) = (0.0, 0.0);
        for Token { text, log_prob } in position.candidates() {
            if let (Some(share), Some(log_prob)) = (labels.decorated(text), log_prob) {
                total += log_prob.exp();
                wins += share * log_prob.exp();
            }
        }
        let probability = wins / total;
        if total > 0.0 && (least..MOST).contains(&total) && probability.is_finite() {
            return Ok(probability.clamp(0.0, 1.0));
        }
        let numbers = position.candidates().any(|token| tokens::is_number(&token.text));
        Err(if numbers { Certainty::Numbers } else { Certainty::NoLabels })
    }

    /// The position at which the answer begins. Positions of a thought, of white space and of markers may
    /// precede it; the last place counts from which on the tokens spell the answer.
    fn beginning(&self, answer: &str) -> Option<&Position> {
        let mut spoken = self.positions.iter().filter(|position| !position.is_blank());
        let (first, is_only) = (spoken.next()?, spoken.next().is_none());
        let head = head(answer);
        if is_only {
            return (!head.is_empty()).then_some(first);
        }
        // Positions may stop before the answer does.
        let begins = || (!head.is_empty() && head.starts_with(&self.spelled(0))).then_some(0);
        // Quotes and brackets may precede the label.
        let mut rest = self.positions[self.start(&head).or_else(begins)?..].iter();
        rest.find(|position| !labels::is_decorative(&position.drawn.text))
    }

    /// The position of a label within the answer: the last from which on the tokens spell what stands there, quotes
    /// and brackets at the beginning of a token aside. It is none of a thought, for the answer begins before it.
    fn of_label(&self, answer: &str, found: &Found) -> Option<&Position> {
        // Shorter than what is spelled, of which decoration is taken off.
        let rest: String = letters(answer.get(found.place?..)?).take(HEAD / 2).collect();
        let start = self.start(&head(answer))?;
        let spells = |from: &usize| {
            let spelled = self.spelled(*from);
            let undecorated = spelled.trim_start_matches(labels::is_decoration);
            let holds_some = !labels::is_decorative(&self.positions[*from].drawn.text);
            holds_some && (spelled.starts_with(&rest) || undecorated.starts_with(&rest))
        };
        let place = (start..self.positions.len()).rev().find(spells)?;
        self.positions.get(place)
    }

    /// The last position from which on the tokens spell what the text begins with.
    fn start(&self, head: &str) -> Option<usize> {
        let spells = |from: &usize| {
            !self.positions[*from].is_blank() && self.spelled(*from).starts_with(head)
        };
        (0..self.positions.len()).rev().find(spells).filter(|_| !head.is_empty())
    }

    /// The beginning of what the tokens from a position on spell.
    fn spelled(&self, from: usize) -> String {
        let rest = self.positions[from..].iter().flat_map(|one| letters(&one.drawn.text));
        rest.take(HEAD).collect()
    }
}

impl Position {
    fn is_blank(&self) -> bool {
        self.drawn.text.trim().is_empty()
    }

    /// All tokens that are told of, the drawn one once.
    fn candidates(&self) -> impl Iterator<Item = &Token> {
        let is_told = self.top.iter().any(|token| token.text == self.drawn.text);
        self.top.iter().chain((!is_told).then_some(&self.drawn))
    }
}

/// The beginning of a text by which its first token is found.
fn head(text: &str) -> String {
    letters(text).take(HEAD).collect()
}

/// The characters of a text without white space.
fn letters(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|letter| !letter.is_whitespace())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        _ => false,
    }
}

fn position(value: &Value) -> Option<Position> {
    let top = ["top_logprobs", "top_log_probs", "top_probs"];
    let top = top.iter().find_map(|name| value.get(name)).map(candidates).unwrap_or_default();
    Some(Position { drawn: token(value)?, top })
}

fn token(value: &Value) -> Option<Token> {
    let name = ["token", "text", "tok_str"].iter().find_map(|name| value.get(name)?.as_str());
    let bytes = value.get("bytes");
    let name = name.or_else(|| bytes.map(|_| ""))?;
    Some(Token { text: tokens::spelled(name, bytes), log_prob: log_prob(value) })
}

/// The log-probability of a token: a number, or a field of it; some services give the probability.
fn log_prob(value: &Value) -> Option<f64> {
    let Value::Object(fields) = value else { return value.as_f64() };
    let of = |names: &[&str]| names.iter().find_map(|name| fields.get(*name)?.as_f64());
    of(&["logprob", "log_prob"]).or_else(|| of(&["prob", "probability"]).map(f64::ln))
}

/// Tokens that could have come: a list, or an object with a field for each.
fn candidates(value: &Value) -> Vec<Token> {
    let named = |(name, value): (&String, &Value)| {
        let decoded = value.get("decoded_token").and_then(Value::as_str).unwrap_or(name);
        Token { text: tokens::spelled(decoded, value.get("bytes")), log_prob: log_prob(value) }
    };
    match value {
        Value::Array(list) => list.iter().filter_map(token).collect(),
        Value::Object(fields) => fields.iter().map(named).collect(),
        _ => Vec::new(),
    }
}

/// Positions of the older completions, which have a list for each field.
fn by_lists(fields: &Map<String, Value>) -> Vec<Position> {
    let list =
        |name: &str| fields.get(name).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let (log_probs, top) = (list("token_logprobs"), list("top_logprobs"));
    let names = list("tokens").iter().enumerate();
    let position = |(index, name): (usize, &Value)| {
        let text = tokens::spelled(name.as_str()?, None);
        let drawn = Token { text, log_prob: log_probs.get(index).and_then(log_prob) };
        Some(Position { drawn, top: top.get(index).map(candidates).unwrap_or_default() })
    };
    names.filter_map(position).collect()
}
