//! The criterion `repetition`: the response that repeats itself less is better.

use std::collections::HashSet;

use sppo_plugin::PluginError;

use super::{Criterion, checked_margin};
use crate::config::RepetitionConfig;
use crate::text::Reading;

/// The share of word n-grams that occurred in the response before, negated.
pub(crate) struct Repetition {
    ngram_words: usize,
    margin: f64,
}

impl Repetition {
    pub(crate) fn new(config: &RepetitionConfig) -> Result<Self, PluginError> {
        if config.ngram_words == 0 {
            return Err(PluginError::configuration(
                "repetition.ngram_words: an n-gram has at least 1 word",
            )
            .with_hint("3 is a usual value"));
        }
        let margin = checked_margin("repetition", config.margin)?;
        Ok(Self { ngram_words: config.ngram_words, margin })
    }

    /// `None` without words; 0 for a response too short to hold two n-grams.
    fn repeated_share(&self, words: &[String]) -> Option<f64> {
        if words.is_empty() {
            return None;
        }
        let ngrams = words.windows(self.ngram_words);
        let count = ngrams.len();
        let distinct = ngrams.collect::<HashSet<_>>().len();
        Some((count - distinct) as f64 / count.max(1) as f64)
    }
}

impl Criterion for Repetition {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        let measure = |words: &[String]| self.repeated_share(words).map(|share| -share);
        reading.responses.iter().map(|response| measure(&response.words)).collect()
    }

    fn margin(&self) -> f64 {
        self.margin
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote;
    use crate::text::words;

    fn repetition(ngram_words: usize, margin: f64) -> Repetition {
        Repetition::new(&RepetitionConfig { ngram_words, margin, ..Default::default() }).unwrap()
    }

    #[test]
    fn counts_the_ngrams_that_were_there_before() {
        let share = |n, text: &str| repetition(n, 0.0).repeated_share(&words(text));
        // Bigrams: a b, b a, a b, b c; one of four is a repeat.
        assert_eq!(share(2, "A b. A, b c"), Some(0.25));
        assert_eq!(share(1, "a b a b c"), Some(0.4));
        assert_eq!(share(3, "one two"), Some(0.0));
        assert_eq!(share(3, "!!!"), None);
    }

    #[test]
    fn a_loop_loses_and_small_differences_tie() {
        let fluent = "The kettle whistles when the water boils, so take it off the stove.";
        let looping = "The water boils. The water boils. The water boils. The water boils.";
        assert_eq!(vote(&repetition(3, 0.05), "?", [fluent, looping]), Vote::First);
        assert_eq!(vote(&repetition(3, 0.9), "?", [fluent, looping]), Vote::Tie);
    }

    #[test]
    fn invalid_settings_are_refused() {
        let refused = |ngram_words, margin| {
            let config = RepetitionConfig { ngram_words, margin, ..Default::default() };
            Repetition::new(&config).err().unwrap().message
        };
        assert!(refused(0, 0.1).starts_with("repetition.ngram_words:"));
        assert!(refused(3, f64::NAN).starts_with("repetition.margin: NaN"));
        assert!(refused(3, -0.1).starts_with("repetition.margin: -0.1"));
    }
}
