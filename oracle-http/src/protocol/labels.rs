//! The labels of a judge's verdicts, and the spellings in which they come.

use std::collections::BTreeSet;

use serde_json::Value;
use sppo_plugin::PluginError;

use crate::config::JudgeConfig;

/// The labels, by the points that each gives the response shown first.
pub(super) struct Labels {
    first: String,
    second: String,
    tie: Option<String>,
    /// Whether labels differ in more than the case of their letters, which then does not matter.
    ignore_case: bool,
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

    /// The same for a label with decoration: white space, quotes, brackets, emphasis, a full stop.
    pub(super) fn decorated(&self, text: &str) -> Option<f64> {
        let text = text.trim();
        self.share_of(text).or_else(|| self.share_of(text.trim_matches(is_decoration)))
    }

    /// The same for a value of JSON. A number is a label's spelling.
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
fn is_decoration(letter: char) -> bool {
    letter.is_whitespace() || "\"'`*_.,:;!()[]{}<>“”‘’«»「」『』【】《》。，：！#".contains(letter)
}
