//! Adjustments of an oracle's probabilities for training: a price of length, and labels.

use sha2::{Digest, Sha256};

use super::{JudgedComparison, LabelRule, PreferenceSettings};
use crate::error::Result;
use crate::plugin::{Comparison, PluginError};
use crate::preference::{PreferenceMatrix, logit, sigmoid};
use crate::win_rate::Preferences;

/// Distances from one half below this are rounding.
const ROUNDING: f64 = 1e-9;

/// Source of the draws of sampled labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelDraw {
    /// The seed of the run.
    pub seed: u64,
    /// The iteration; 0 outside of self-play.
    pub iteration: u32,
}

/// Puts what the settings make of the probabilities in their place, and keeps the oracle's own. The scores
/// become win rates. Does nothing by default.
///
/// # Errors
/// None for probabilities.
pub(super) fn adjust(
    judged: JudgedComparison,
    comparison: &Comparison<'_>,
    settings: &PreferenceSettings,
    draw: LabelDraw,
) -> Result<JudgedComparison> {
    let PreferenceSettings { length_penalty, labels, .. } = *settings;
    if length_penalty == 0.0 && labels == LabelRule::Soft {
        return Ok(judged);
    }
    let oracle_matrix = judged.preferences.matrix;
    let lengths = standard_scores(comparison);
    let penalised = |i: usize, j: usize| match length_penalty {
        0.0 => oracle_matrix.get(i, j),
        price => sigmoid(logit(oracle_matrix.get(i, j)) - price * (lengths[i] - lengths[j])),
    };
    let labelled = |i: usize, j: usize| match labels {
        LabelRule::Soft => penalised(i, j),
        _ if i > j => {
            1.0 - label(labels, comparison, (j, i), penalised(j, i), penalised(i, j), draw)
        }
        _ => label(labels, comparison, (i, j), penalised(i, j), penalised(j, i), draw),
    };
    let matrix = PreferenceMatrix::from_fn(oracle_matrix.size(), labelled)
        .map_err(|error| PluginError::failed(error.to_string()))?;
    Ok(JudgedComparison {
        preferences: Preferences::of_probabilities(matrix, judged.preferences.orders),
        oracle_matrix: Some(oracle_matrix),
        ..judged
    })
}

/// The label of a pair whose probabilities are these in both directions: 1 where the lower index wins.
fn label(
    rule: LabelRule,
    comparison: &Comparison<'_>,
    (low, high): (usize, usize),
    forward: f64,
    backward: f64,
    draw: LabelDraw,
) -> f64 {
    let probability = 0.5 * (forward + (1.0 - backward));
    let reads_the_same = comparison.candidates[low].text == comparison.candidates[high].text;
    let wins = match rule {
        _ if reads_the_same => return 0.5,
        LabelRule::Soft => return probability,
        LabelRule::Hard if (probability - 0.5).abs() <= ROUNDING => return 0.5,
        LabelRule::Hard => probability > 0.5,
        LabelRule::Sampled => uniform(comparison, low, high, draw) < probability,
    };
    f64::from(u8::from(wins))
}

/// Length of each candidate in characters, in standard deviations from the mean; 0 where all are as long.
fn standard_scores(comparison: &Comparison<'_>) -> Vec<f64> {
    let candidates = comparison.candidates.iter();
    let lengths: Vec<f64> =
        candidates.map(|candidate| candidate.text.chars().count() as f64).collect();
    let count = lengths.len().max(1) as f64;
    let mean = lengths.iter().sum::<f64>() / count;
    let variance = lengths.iter().map(|length| (length - mean).powi(2)).sum::<f64>() / count;
    let score = |length: &f64| match variance > 0.0 {
        true => (length - mean) / variance.sqrt(),
        false => 0.0,
    };
    lengths.iter().map(score).collect()
}

/// A number from 0 to below 1 that follows from the seed, the iteration, the prompt and the pair, whatever is
/// judged beside it.
fn uniform(comparison: &Comparison<'_>, low: usize, high: usize, draw: LabelDraw) -> f64 {
    let mut hash = Sha256::new();
    hash.update(draw.seed.to_le_bytes());
    hash.update(draw.iteration.to_le_bytes());
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    for message in comparison.prompt.iter() {
        add(&message.role);
        add(&message.content);
    }
    for index in [low, high] {
        add(&index.to_string());
        add(&comparison.candidates[index].text);
    }
    let digest = hash.finalize();
    let bits = digest.iter().take(8).fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Candidate, Message};

    fn comparison<'a>(prompt: &'a str, texts: &[&'a str]) -> Comparison<'a> {
        Comparison {
            prompt: [Message::user(prompt)].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(*text)).collect(),
        }
    }

    fn adjusted(
        comparison: &Comparison<'_>,
        values: &[f64],
        settings: PreferenceSettings,
        draw: LabelDraw,
    ) -> JudgedComparison {
        let matrix = PreferenceMatrix::new(comparison.candidates.len(), values.to_vec()).unwrap();
        let judged = Preferences::of_probabilities(matrix, None).into();
        adjust(judged, comparison, &settings, draw).unwrap()
    }

    #[test]
    fn length_costs_logits_by_standard_deviations() {
        let comparison = comparison("?", &["xxxx", "xx", "xxxxxx"]);
        let values = [0.5, 0.7, 1.0, 0.3, 0.5, 0.4, 0.0, 0.6, 0.5];
        let settings = PreferenceSettings { length_penalty: 0.5, ..PreferenceSettings::default() };
        let judged = adjusted(&comparison, &values, settings, LabelDraw::default());
        let matrix = &judged.preferences.matrix;
        // Mean 4, standard deviation sqrt(8 / 3): 4 against 2 characters is 1.2247 of them.
        let expected = 1.0 / (1.0 + (0.3 / 0.7) * (0.5 * 1.224_744_871_391_589_f64).exp());
        assert!((matrix.get(0, 1) - expected).abs() < 1e-12, "{matrix:?}");
        assert!((matrix.get(0, 1) + matrix.get(1, 0) - 1.0).abs() < 1e-12);
        assert_eq!((matrix.get(0, 2), matrix.get(2, 0)), (1.0, 0.0), "certain stays certain");
        assert_eq!(judged.preferences.scores, matrix.win_rates());
        assert_eq!(judged.oracle_matrix.unwrap().values(), values);
    }

    #[test]
    fn by_default_nothing_changes() {
        let comparison = comparison("?", &["a", "bb"]);
        let values = [0.5, 0.9, 0.4, 0.5];
        let judged =
            adjusted(&comparison, &values, PreferenceSettings::default(), LabelDraw::default());
        assert_eq!(judged.preferences.matrix.values(), values);
        assert_eq!(judged.oracle_matrix, None);
    }

    #[test]
    fn hard_labels_are_wins_or_ties_over_both_orders() {
        let settings =
            PreferenceSettings { labels: LabelRule::Hard, ..PreferenceSettings::default() };
        let comparison = comparison("?", &["a", "b", "c"]);
        // The first pair is 0.5 over both orders, the second 0.55.
        let values = [0.5, 0.9, 0.6, 0.9, 0.5, 0.2, 0.5, 0.8, 0.5];
        let judged = adjusted(&comparison, &values, settings, LabelDraw::default());
        let expected = [0.5, 0.5, 1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 0.5];
        assert_eq!(judged.preferences.matrix.values(), expected);
    }

    #[test]
    fn sampled_labels_are_drawn_as_often_as_the_probability_says_and_can_be_repeated() {
        let settings =
            PreferenceSettings { labels: LabelRule::Sampled, ..PreferenceSettings::default() };
        let values = [0.5, 0.7, 0.3, 0.5];
        let drawn = |prompt: &str, iteration| {
            let comparison = comparison(prompt, &["a", "b"]);
            let draw = LabelDraw { seed: 3, iteration };
            adjusted(&comparison, &values, settings, draw).preferences.matrix.get(0, 1)
        };
        let prompts: Vec<String> = (0..2000).map(|number| format!("question {number}")).collect();
        let first: Vec<f64> = prompts.iter().map(|prompt| drawn(prompt, 1)).collect();
        let wins = first.iter().sum::<f64>() / 2000.0;
        // Four standard deviations are 0.041.
        assert!((wins - 0.7).abs() < 0.041, "{wins}");
        assert_eq!(first, prompts.iter().map(|prompt| drawn(prompt, 1)).collect::<Vec<_>>());
        assert_ne!(first, prompts.iter().map(|prompt| drawn(prompt, 2)).collect::<Vec<_>>());
        let same = comparison("?", &["a", "a"]);
        let tie = adjusted(&same, &[0.5; 4], settings, LabelDraw::default());
        assert_eq!(tie.preferences.matrix.values(), [0.5; 4]);
    }
}
