//! The criterion `length`: the response nearer to the wanted length is better.

use sppo_plugin::PluginError;

use super::Criterion;
use crate::config::LengthConfig;
use crate::text::Reading;

/// The factor by which a response's word count misses the range (1 within it), negated.
pub(crate) struct Length {
    min_words: f64,
    max_words: f64,
}

impl Length {
    pub(crate) fn new(config: &LengthConfig) -> Result<Self, PluginError> {
        if config.max_words == 0 {
            return Err(PluginError::configuration("length.max_words: no answer has 0 words")
                .with_hint("set it to the most words that a good answer has, from 1"));
        }
        if config.min_words > config.max_words {
            return Err(PluginError::configuration(format!(
                "length.min_words: {} is more than length.max_words, {}",
                config.min_words, config.max_words
            ))
            .with_hint("swap them, or raise length.max_words"));
        }
        Ok(Self { min_words: config.min_words as f64, max_words: config.max_words as f64 })
    }

    fn measure(&self, word_count: usize) -> f64 {
        let words = word_count as f64;
        if words < self.min_words {
            -self.min_words / words
        } else {
            -(words / self.max_words).max(1.0)
        }
    }
}

impl Criterion for Length {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        reading.responses.iter().map(|response| Some(self.measure(response.words.len()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote;

    #[test]
    fn the_nearer_to_the_range_wins_and_lengths_within_it_tie() {
        let length =
            Length::new(&LengthConfig { min_words: 4, max_words: 8, ..Default::default() })
                .unwrap();
        let vote = |first: usize, second: usize| {
            vote(&length, "?", [&"word ".repeat(first), &"word ".repeat(second)])
        };
        assert_eq!(vote(4, 8), Vote::Tie);
        assert_eq!(vote(8, 9), Vote::First);
        assert_eq!(vote(3, 4), Vote::Second);
        assert_eq!(vote(9, 30), Vote::First);
        // Half as long as wanted is as bad as twice as long.
        assert_eq!(vote(2, 16), Vote::Tie);
        assert_eq!(vote(2, 15), Vote::Second);
        // Without words an answer is worse than any length.
        assert_eq!(vote(0, 10_000), Vote::Second);
        assert_eq!(vote(0, 0), Vote::Tie);
    }

    #[test]
    fn an_empty_range_is_refused() {
        let refused = |min_words, max_words| {
            Length::new(&LengthConfig { min_words, max_words, ..Default::default() })
                .err()
                .unwrap()
                .message
        };
        assert_eq!(refused(9, 3), "length.min_words: 9 is more than length.max_words, 3");
        assert_eq!(refused(0, 0), "length.max_words: no answer has 0 words");
    }
}
