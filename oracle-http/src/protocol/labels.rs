//! The labels of a judge's verdicts, and the spellings in which they come.

use std::collections::BTreeSet;

use serde_json::Value;
use sppo_plugin::PluginError;

use crate::config::JudgeConfig;

/// Words for a tie.
const TIES: [&str; 4] = ["draw", "equal", "neither", "tie"];

/// The labels, by the points that each gives the response shown first.
pub(super) struct Labels {
    first: String,
    second: String,
    tie: Option<String>,
    /// Whether labels differ in more than the case of their letters, which then does not matter.
    ignore_case: bool,
}

/// A label in a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Spelled<'a> {
    /// The points that it gives the response shown first.
    pub(super) share: f64,
    /// The label as it stands, without decoration.
    pub(super) text: &'a str,
    /// Whether it is one of five grades.
    pub(super) is_graded: bool,
}

impl Labels {
    /// The labels of the settings.
    ///
    /// # Errors
    /// When they are not different words.
    pub(super) fn new(config: &JudgeConfig) -> Result<Self, PluginError> {
        let JudgeConfig { label_first, label_second, label_tie, .. } = config;
        let labels: Vec<&String> =
            [label_first, label_second].into_iter().chain(label_tie).collect();
        let distinct = |of: fn(&str) -> String| {
            let all: BTreeSet<String> = labels.iter().map(|text| of(text)).collect();
            all.len() == labels.len()
        };
        let usable = labels.iter().all(|label| !label.is_empty() && label.trim() == **label);
        if !usable || !distinct(str::to_owned) {
            return Err(PluginError::configuration(
                "judge: the labels must be different words without spaces around them",
            )
            .with_hint("for instance `label_first = \"A\"` and `label_second = \"B\"`"));
        }
        Ok(Self {
            first: label_first.clone(),
            second: label_second.clone(),
            tie: label_tie.clone(),
            ignore_case: distinct(str::to_lowercase),
        })
    }

    /// The points that a label gives the response shown first: 1, 0, or 1/2 for a tie.
    pub(super) fn share_of(&self, label: &str) -> Option<f64> {
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

    /// The points of a label with decoration: white space, quotes, brackets, emphasis, a full stop.
    pub(super) fn decorated(&self, text: &str) -> Option<f64> {
        let text = text.trim();
        self.share_of(text).or_else(|| self.share_of(text.trim_matches(is_decoration)))
    }

    /// The label that a text is, decoration aside, or one of the five grades of Arena-Hard: `A>>B`, `A>B`, `A=B`,
    /// `B>A`, `B>>A`.
    pub(super) fn spelled<'a>(&self, text: &'a str) -> Option<Spelled<'a>> {
        let text = text.trim();
        let inner = text.trim_matches(is_decoration);
        let label = |text| Some(Spelled { share: self.share_of(text)?, text, is_graded: false });
        let graded = || Some(Spelled { share: self.grade(inner)?, text: inner, is_graded: true });
        label(text).or_else(|| label(inner)).or_else(graded)
    }

    /// Whether a text is a verdict that no label stands for: a tie where there are none, or another letter or number.
    pub(super) fn is_foreign(&self, text: &str) -> bool {
        let text = text.trim_matches(is_decoration);
        let mut letters = text.chars();
        let is_one = letters.next().is_some_and(char::is_alphanumeric) && letters.next().is_none();
        let is_tie = TIES.contains(&text.to_lowercase().as_str());
        self.spelled(text).is_none() && (is_one || is_tie || self.points(text).is_some())
    }

    /// The place in a text of the label with this share, behind a name.
    pub(super) fn place_after(&self, text: &str, name: &str, share: f64) -> Option<usize> {
        let label = match share {
            1.0 => &self.first,
            0.0 => &self.second,
            _ => self.tie.as_ref()?,
        };
        let from = text.rfind(name)? + name.len();
        let folded = text[from..].to_ascii_lowercase();
        Some(from + folded.find(&label.to_ascii_lowercase())?)
    }

    fn grade(&self, text: &str) -> Option<f64> {
        self.points(text).filter(|points| *points != 0.5 || self.tie.is_some())
    }

    /// The points of a grade, that of a tie included.
    fn points(&self, text: &str) -> Option<f64> {
        let is_sign = |letter: char| "<>=".contains(letter);
        let (first, rest) = text.split_at(text.find(is_sign)?);
        let second = rest.trim_start_matches(is_sign);
        let sign = &rest[..rest.len() - second.len()];
        let points = match sign {
            ">>" => 1.0,
            ">" => 0.75,
            "=" => 0.5,
            "<" => 0.25,
            "<<" => 0.0,
            _ => return None,
        };
        match (self.share_of(first.trim())?, self.share_of(second.trim())?) {
            (1.0, 0.0) => Some(points),
            (0.0, 1.0) => Some(1.0 - points),
            _ => None,
        }
    }

    /// The points of a label that is a value of JSON. A number is a label's spelling.
    pub(super) fn of_value(&self, value: &Value) -> Option<f64> {
        match value {
            Value::String(text) => self.decorated(text),
            Value::Number(number) => match number.as_f64() {
                Some(whole) if whole.fract() == 0.0 => self.share_of(&format!("{whole:.0}")),
                _ => self.share_of(&number.to_string()),
            },
            _ => None,
        }
    }
}

/// Whether a text is nothing but decoration.
pub(super) fn is_decorative(text: &str) -> bool {
    text.chars().all(is_decoration)
}

/// Characters around a label that do not change it.
pub(super) fn is_decoration(letter: char) -> bool {
    letter.is_whitespace() || "\"'`*_.,:;!()[]{}<>“”‘’«»「」『』【】《》。，：！#".contains(letter)
}
