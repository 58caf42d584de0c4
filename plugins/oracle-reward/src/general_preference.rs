//! Scores of General Preference Models (arXiv 2410.02197): each response is a vector, and how two vectors lie
//! to each other says which response is better.
//!
//! ```text
//! v_i      = vector of response i, normalised, in planes of two numbers
//! w        = softmax of the prompt's weights of the planes; 1 without a prompt head
//! s(i > j) = sum_b w_b (v_i[2b] v_j[2b+1] - v_i[2b+1] v_j[2b])
//! P(i > j) = sigmoid(score_factor s(i > j) / temperature)
//! ```
//!
//! `s` is an angle in each plane, so that responses may beat each other in a circle.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sppo_plugin::preference::sigmoid;
use sppo_plugin::{PluginError, Verdict};

/// Settings for General Preference Models. Its authors' programs differ in three of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GeneralPreferenceSettings {
    /// The program of its authors whose conventions are the defaults of the others.
    pub preset: GeneralPreferencePreset,
    /// Begin tokens before a conversation.
    pub begin_token: Option<BeginToken>,
    /// The last token of a conversation, where its vector is read.
    pub last_token: Option<LastToken>,
    /// Factor of the score before it becomes a probability.
    pub score_factor: Option<f64>,
    /// Temperature that divides the score (tau), 0.1 when left out.
    pub temperature: Option<f64>,
}

/// A program of the authors of General Preference Models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GeneralPreferencePreset {
    /// `gpm_example_usage.py`, released with the models: begin tokens of the template and of the tokenizer, the
    /// end-of-sequence token in place of the last one, factor 1.
    #[default]
    Example,
    /// Their pipeline for SPPO and GPO: no begin token, the last token of the template, factor 2, because a
    /// table of scores is compared with its transpose.
    SppoPipeline,
}

/// Begin tokens before a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BeginToken {
    /// The chat template's, and before it the tokenizer's own: two, if both write one.
    TemplateAndTokenizer,
    /// The chat template's.
    Template,
    /// None.
    None,
}

/// The last token of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LastToken {
    /// The end-of-sequence token, in place of the last one of the chat template.
    EndOfSequence,
    /// The last one of the chat template.
    Template,
}

const TEMPERATURE: f64 = 0.1;

impl GeneralPreferenceSettings {
    /// Refuses numbers that make no sense.
    ///
    /// # Errors
    /// Names the setting.
    pub(crate) fn check(&self) -> Result<(), PluginError> {
        let numbers = [("score_factor", self.score_factor), ("temperature", self.temperature)];
        for (name, number) in numbers {
            if number.is_some_and(|number| !(number.is_finite() && number > 0.0)) {
                return Err(PluginError::configuration(format!(
                    "general_preference.{name}: must be a number above 0"
                )));
            }
        }
        Ok(())
    }

    pub(crate) fn begin_token(&self) -> BeginToken {
        self.begin_token.unwrap_or(match self.preset {
            GeneralPreferencePreset::Example => BeginToken::TemplateAndTokenizer,
            GeneralPreferencePreset::SppoPipeline => BeginToken::None,
        })
    }

    pub(crate) fn last_token(&self) -> LastToken {
        self.last_token.unwrap_or(match self.preset {
            GeneralPreferencePreset::Example => LastToken::EndOfSequence,
            GeneralPreferencePreset::SppoPipeline => LastToken::Template,
        })
    }

    /// The number that a score is multiplied with before it becomes a probability.
    fn sharpness(&self) -> f64 {
        let factor = self.score_factor.unwrap_or(match self.preset {
            GeneralPreferencePreset::Example => 1.0,
            GeneralPreferencePreset::SppoPipeline => 2.0,
        });
        factor / self.temperature.unwrap_or(TEMPERATURE)
    }

    /// The preferences among responses, from `width` numbers for each sequence: of each distinct response the
    /// vector, then the logits of the planes' weights if the model has a prompt head. Of the prompt, which comes
    /// last then, only these logits count.
    pub(crate) fn of_numbers(
        &self,
        numbers: &[f32],
        width: usize,
        has_prompt: bool,
        indices: &[usize],
    ) -> Verdict {
        let size = if has_prompt { width / 3 * 2 } else { width };
        let mut sequences: Vec<&[f32]> = numbers.chunks(width.max(1)).collect();
        let weights = if has_prompt { sequences.pop().map(|prompt| &prompt[size..]) } else { None };
        let vectors: Vec<&[f32]> = sequences.iter().map(|numbers| &numbers[..size]).collect();
        self.verdict(&vectors, weights, indices)
    }

    /// The preferences among responses with these vectors, `indices` of them for the response of each row.
    /// `weights` are the logits of the planes' weights, none without a prompt head.
    fn verdict(&self, vectors: &[&[f32]], weights: Option<&[f32]>, indices: &[usize]) -> Verdict {
        let vectors: Vec<Vec<f64>> = vectors.iter().map(|vector| normalised(vector)).collect();
        let weights = weights.map(softmax);
        let sharpness = self.sharpness();
        let probability = |&i: &usize, &j: &usize| match i == j {
            true => 0.5,
            false => sigmoid(sharpness * score(&vectors[i], &vectors[j], weights.as_deref())),
        };
        let row = |i| indices.iter().map(move |j| probability(i, j));
        Verdict::Probabilities(indices.iter().flat_map(row).collect())
    }
}

/// The skew-symmetric score of one vector against another.
fn score(one: &[f64], other: &[f64], weights: Option<&[f64]>) -> f64 {
    let planes = one.chunks_exact(2).zip(other.chunks_exact(2)).enumerate();
    let areas = planes.map(|(plane, (one, other))| {
        let weight = weights.and_then(|weights| weights.get(plane)).copied().unwrap_or(1.0);
        weight * (one[0] * other[1] - one[1] * other[0])
    });
    areas.sum()
}

/// A vector of length 1, unless it is nothing.
fn normalised(vector: &[f32]) -> Vec<f64> {
    /// The least length that PyTorch's `normalize` divides by.
    const LEAST: f64 = 1e-12;
    let values = || vector.iter().map(|&value| f64::from(value));
    let length = values().map(|value| value * value).sum::<f64>().sqrt().max(LEAST);
    values().map(|value| value / length).collect()
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(settings: &GeneralPreferenceSettings, vectors: &[&[f32]]) -> Vec<f64> {
        let indices: Vec<usize> = (0..vectors.len()).collect();
        match settings.verdict(vectors, None, &indices) {
            Verdict::Probabilities(matrix) => matrix,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn responses_may_beat_each_other_in_a_circle_and_no_one_beats_itself() {
        let angle = |degrees: f32| [degrees.to_radians().cos(), degrees.to_radians().sin()];
        let [a, b, c] = [0.0, 120.0, 240.0].map(angle);
        let matrix = matrix(&GeneralPreferenceSettings::default(), &[&a, &b, &c]);
        let sure = sigmoid(10.0 * (120f64).to_radians().sin());
        for (i, j) in [(0, 1), (1, 2), (2, 0)] {
            assert!((matrix[3 * i + j] - sure).abs() < 1e-6, "{matrix:?}");
            assert!((matrix[3 * j + i] - (1.0 - sure)).abs() < 1e-6, "{matrix:?}");
            assert_eq!(matrix[3 * i + i], 0.5);
        }
    }

    #[test]
    fn the_prompt_weighs_the_planes_and_a_factor_sharpens() {
        let (one, other) = ([1.0f32, 0.0, 0.0, 1.0], [0.0f32, 1.0, 1.0, 0.0]);
        let vectors: [&[f32]; 2] = [&one, &other];
        let settings = GeneralPreferenceSettings {
            preset: GeneralPreferencePreset::SppoPipeline,
            temperature: Some(1.0),
            ..GeneralPreferenceSettings::default()
        };
        // The planes have areas of 1/2 and -1/2.
        let weights = [3f32.ln(), 0.0];
        let verdict = settings.verdict(&vectors, Some(&weights), &[0, 1, 0]);
        let Verdict::Probabilities(matrix) = verdict else { panic!("{verdict:?}") };
        let expected = sigmoid(2.0 * (0.75 * 0.5 - 0.25 * 0.5));
        assert!((matrix[1] - expected).abs() < 1e-6, "{matrix:?}");
        assert_eq!((matrix[2], matrix[0]), (0.5, 0.5));
        assert!((matrix[3] - (1.0 - expected)).abs() < 1e-6, "{matrix:?}");
    }
}
