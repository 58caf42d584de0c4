//! Labels: the tokens that spell them, and the verdict in their log-probabilities.

use sppo_model::text::TextCodec;
use sppo_plugin::PluginError;

use crate::config::{JudgeConfig, JudgePreset};

/// Beginnings of a label where it is the next thing that the judge says. Tokenizers have tokens of
/// their own for a word after a space, and after the beginning of a line.
const BEFORE: [&str; 3] = ["", " ", "\n"];

/// The tokens of each label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    /// Tokens of the first label, then those of the second, then those of the tie.
    tokens: Vec<u32>,
    /// Tokens of each.
    counts: [usize; 3],
}

impl Labels {
    /// Finds the labels of the settings among a judge's tokens. Where an answer `begins_with_label`, one in other
    /// letters is the same, as the oracle `http` reads it; after other words, ` a` is a word of its own.
    ///
    /// # Errors
    /// When a label is no single token, or two of them are the same.
    pub(crate) fn find(
        config: &JudgeConfig,
        text: &TextCodec,
        begins_with_label: bool,
    ) -> Result<Self, PluginError> {
        let JudgeConfig { label_first, label_second, label_tie, preset, .. } = config;
        let lower = [Some(label_first), Some(label_second), label_tie.as_ref()]
            .map(|label| label.map(|label| label.to_lowercase()));
        let differ = lower[0] != lower[1] && lower[0] != lower[2] && lower[1] != lower[2];
        let ignore_case = begins_with_label && differ && *preset == JudgePreset::Chat;
        let find = |setting, label| spellings(setting, label, *preset, ignore_case, text);
        let first = find("label_first", label_first)?;
        let second = find("label_second", label_second)?;
        let tie = label_tie.as_ref().map(|label| find("label_tie", label));
        let tie = tie.transpose()?.unwrap_or_default();
        let counts = [first.len(), second.len(), tie.len()];
        let tokens = [first, second, tie].concat();
        let mut distinct = tokens.clone();
        distinct.sort_unstable();
        distinct.dedup();
        match distinct.len() == tokens.len() {
            true => Ok(Self { tokens, counts }),
            false => Err(PluginError::configuration(
                "label_first, label_second and label_tie: two of them are the same token",
            )
            .with_hint("give labels that differ in their first letter")),
        }
    }

    /// The tokens that the judge is asked for.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The verdict in log-probabilities of [`Self::tokens`].
    pub(crate) fn verdict(&self, log_probs: &[f32]) -> LabelVerdict {
        let mut rest = log_probs;
        let [first, second, tie] = self.counts.map(|count| {
            let (own, others) = rest.split_at(count.min(rest.len()));
            rest = others;
            own.iter().map(|&log_prob| f64::from(log_prob).exp()).sum::<f64>()
        });
        let mass = first + second + tie;
        LabelVerdict { probability: (first + tie / 2.0) / mass, mass }
    }
}

/// A verdict on two responses by a judge's next token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LabelVerdict {
    /// Probability that the response shown first is better, given that the next token is a label.
    probability: f64,
    /// Probability that the next token is a label.
    pub(crate) mass: f64,
}

impl LabelVerdict {
    /// The probability that the response shown first is better; `None` where the labels have less than the
    /// `least` probability.
    pub(crate) fn valid(self, least: f64) -> Option<f64> {
        let is_valid = self.mass >= least && (0.0..=1.0).contains(&self.probability);
        is_valid.then_some(self.probability)
    }
}

/// The tokens that are a label. Of a pair-preference model, the one that it was trained to give.
fn spellings(
    setting: &str,
    label: &str,
    preset: JudgePreset,
    ignore_case: bool,
    text: &TextCodec,
) -> Result<Vec<u32>, PluginError> {
    let before = match preset {
        JudgePreset::Chat => &BEFORE[..],
        JudgePreset::PairPreference => &BEFORE[..1],
    };
    let others = [label.to_lowercase(), label.to_uppercase()];
    let others = others.into_iter().filter(|_| ignore_case);
    let mut tokens = Vec::new();
    for label in std::iter::once(label.to_owned()).chain(others) {
        for before in before {
            let encoded = text.encode(&format!("{before}{label}"), false)?;
            let Some(&last) = encoded.last() else { continue };
            let is_label = !label.trim().is_empty() && text.decode(&[last])?.trim() == label.trim();
            if is_label && !tokens.contains(&last) {
                tokens.push(last);
            }
        }
    }
    match tokens.is_empty() {
        false => Ok(tokens),
        true => Err(PluginError::configuration(format!(
            "{setting}: `{label}` is no single token of the judge's tokenizer"
        ))
        .with_hint("give a single letter or digit")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_a_label_add_up_and_ties_are_halved() {
        let labels = Labels { tokens: vec![1, 2, 3, 4], counts: [2, 1, 1] };
        let log_probs = [0.2f32, 0.1, 0.1, 0.2].map(f32::ln);
        let verdict = labels.verdict(&log_probs);
        assert!((verdict.mass - 0.6).abs() < 1e-6);
        assert!((verdict.valid(0.5).unwrap() - 0.4 / 0.6).abs() < 1e-6);
        assert_eq!(verdict.valid(0.7), None);
    }

    #[test]
    fn impossible_labels_are_no_verdict() {
        let labels = Labels { tokens: vec![1, 2], counts: [1, 1, 0] };
        for log_probs in [[f32::NEG_INFINITY; 2], [f32::NAN, -1.0]] {
            assert_eq!(labels.verdict(&log_probs).valid(0.0), None);
        }
    }
}
