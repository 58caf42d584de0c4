//! Verdicts in the replies of language models: log-probabilities, labels, brackets, JSON.

use serde::Deserialize;
use serde_json::{Map, Value};
use sppo_plugin::PluginError;

use crate::config::JudgeConfig;
use crate::question::InvalidVerdict;

/// Characters of an invalid reply that are shown.
const EXCERPT: usize = 120;

/// A token that could have come, with its log-probability.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct TokenProbability {
    #[serde(default)]
    pub(super) token: String,
    /// Some services write `null` for minus infinity.
    #[serde(default)]
    pub(super) logprob: Option<f64>,
}

/// A position of the reply: the token that came, and those that could have.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Position {
    #[serde(flatten)]
    pub(super) drawn: TokenProbability,
    #[serde(default)]
    pub(super) top_logprobs: Option<Vec<TokenProbability>>,
}

/// A reader of verdicts.
pub(super) struct VerdictReader {
    first: String,
    second: String,
    tie: Option<String>,
    /// Whether labels differ in more than the case of their letters, which then does not matter.
    ignore_case: bool,
    min_label_probability: f64,
    json_field: String,
}

impl VerdictReader {
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, PluginError> {
        let JudgeConfig { label_first, label_second, label_tie, .. } = config;
        let labels: Vec<&String> =
            [label_first, label_second].into_iter().chain(label_tie).collect();
        let distinct = |of: fn(&str) -> String| {
            let all: std::collections::BTreeSet<String> =
                labels.iter().map(|text| of(text)).collect();
            all.len() == labels.len()
        };
        let usable = labels.iter().all(|label| !label.is_empty() && label.trim() == **label);
        if !usable || !distinct(str::to_owned) {
            return Err(PluginError::configuration(
                "judge: the labels must be different words without spaces around them",
            )
            .with_hint("for instance `label_first = \"A\"` and `label_second = \"B\"`"));
        }
        if !(0.0..=1.0).contains(&config.min_label_probability) {
            return Err(PluginError::configuration("judge.min_label_probability: not from 0 to 1")
                .with_hint("for instance 0.1"));
        }
        Ok(Self {
            first: label_first.clone(),
            second: label_second.clone(),
            tie: label_tie.clone(),
            ignore_case: distinct(str::to_lowercase),
            min_label_probability: config.min_label_probability,
            json_field: config.json_field.clone(),
        })
    }

    /// The probability that the response shown first is better.
    pub(super) fn read(&self, text: &str, positions: &[Position]) -> Result<f64, InvalidVerdict> {
        if let Some(probability) = self.read_log_probs(positions) {
            return Ok(probability);
        }
        let said = text.rsplit("</think>").next().unwrap_or(text).trim();
        self.read_label(said)
            .or_else(|| self.read_brackets(said))
            .or_else(|| self.read_json(said))
            .ok_or_else(|| {
                let excerpt: String = said.chars().take(EXCERPT).collect();
                InvalidVerdict(if excerpt.is_empty() { "an empty reply".into() } else { excerpt })
            })
    }

    /// `P(first) / (P(first) + P(second))` at the first token that is not white space. As the weighted
    /// AlpacaEval annotator does, except that tokens are trimmed, spellings of one label added, and labels
    /// that are hardly considered ignored.
    fn read_log_probs(&self, positions: &[Position]) -> Option<f64> {
        let position = positions.iter().find(|position| !position.drawn.token.trim().is_empty())?;
        let mut top = position.top_logprobs.clone().unwrap_or_default();
        if !top.iter().any(|candidate| candidate.token == position.drawn.token) {
            top.push(position.drawn.clone());
        }
        let mut total = 0.0;
        let mut wins = 0.0;
        for TokenProbability { token, logprob } in &top {
            if let (Some(share), Some(logprob)) = (self.share_of_first(token.trim()), logprob) {
                total += logprob.exp();
                wins += share * logprob.exp();
            }
        }
        let probability = wins / total;
        let counts = total > 0.0 && total >= self.min_label_probability;
        (counts && probability.is_finite()).then(|| probability.clamp(0.0, 1.0))
    }

    /// A reply that is a label and nothing else, decoration aside.
    fn read_label(&self, said: &str) -> Option<f64> {
        let decoration = |c: char| c.is_whitespace() || "\"'`*_.()[]".contains(c);
        self.share_of_first(said).or_else(|| self.share_of_first(said.trim_matches(decoration)))
    }

    /// `[[A]]` anywhere, as MT-bench asks for it, unless there are several that differ.
    fn read_brackets(&self, said: &str) -> Option<f64> {
        let marked = said.split("[[").skip(1).filter_map(|rest| rest.split("]]").next());
        let mut shares = marked.filter_map(|label| self.share_of_first(label.trim()));
        let share = shares.next()?;
        shares.all(|other| other == share).then_some(share)
    }

    /// A JSON object, whatever stands around it.
    fn read_json(&self, said: &str) -> Option<f64> {
        let object = said.get(said.find('{')?..=said.rfind('}')?)?;
        let fields: Map<String, Value> = serde_json::from_str(object).ok()?;
        self.share_of_first(fields.get(&self.json_field)?.as_str()?.trim())
    }

    /// The points that a label gives the response shown first: 1, 0, or 1/2 for a tie.
    fn share_of_first(&self, label: &str) -> Option<f64> {
        let is = |wanted: &str| match self.ignore_case {
            true => label.to_lowercase() == wanted.to_lowercase(),
            false => label == wanted,
        };
        if is(&self.first) {
            Some(1.0)
        } else if is(&self.second) {
            Some(0.0)
        } else {
            self.tie.as_deref().is_some_and(is).then_some(0.5)
        }
    }
}
