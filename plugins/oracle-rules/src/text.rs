//! The input of the criteria: words, and the responses of one comparison taken apart once.

use sppo_plugin::{Candidate, Comparison, FinishReason};
use unicode_segmentation::UnicodeSegmentation;

/// The words of a text in lower case, by the word boundaries of Unicode (UAX #29). Punctuation is
/// left out; in scripts without spaces such as Chinese each ideograph is a word.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.unicode_words().map(|word| word.to_lowercase().replace('’', "'")).collect()
}

/// A response, taken apart once for all criteria and all pairs.
pub(crate) struct Response<'a> {
    pub(crate) text: &'a str,
    pub(crate) words: Vec<String>,
    pub(crate) finished: Option<bool>,
}

impl<'a> Response<'a> {
    pub(crate) fn new(candidate: &'a Candidate) -> Self {
        Self {
            text: &candidate.text,
            words: words(&candidate.text),
            finished: candidate.finish_reason.map(|reason| reason == FinishReason::Stop),
        }
    }

    /// Whether it has no letter and no digit.
    pub(crate) fn says_nothing(&self) -> bool {
        self.words.is_empty()
    }
}

/// A comparison, taken apart.
pub(crate) struct Reading<'a> {
    /// The words of the user's last turn.
    pub(crate) question_words: Vec<String>,
    pub(crate) responses: Vec<Response<'a>>,
}

impl<'a> Reading<'a> {
    pub(crate) fn new(comparison: &'a Comparison<'_>) -> Self {
        let question = comparison.prompt.iter().rev().find(|message| message.role == "user");
        Self {
            question_words: question.map(|turn| words(&turn.content)).unwrap_or_default(),
            responses: comparison.candidates.iter().map(Response::new).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_follow_unicode_boundaries() {
        assert_eq!(words("Don’t pay 3.50 — PAY “more”!"), ["don't", "pay", "3.50", "pay", "more"]);
        assert_eq!(words("Größe, ça va?"), ["größe", "ça", "va"]);
        assert_eq!(words("你好。"), ["你", "好"]);
        assert!(words(" … !?").is_empty());
    }
}
