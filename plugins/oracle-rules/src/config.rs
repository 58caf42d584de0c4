//! The settings of the oracle, the table `[oracle.rules]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One table per criterion. A criterion's weight is its number of votes; with weight 0 it does not
/// vote at all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RulesConfig {
    /// Prefers answers that the model ended itself to answers that were cut off.
    pub ended: EndedConfig,
    /// Prefers answers whose length is within a target range, or nearer to it.
    pub length: LengthConfig,
    /// Prefers answers that repeat themselves less.
    pub repetition: RepetitionConfig,
    /// Prefers answers that take up more of the question's content words.
    pub relevance: RelevanceConfig,
    /// Prefers answers in which more of these regular expressions are found.
    pub required: PatternsConfig,
    /// Prefers answers in which fewer of these regular expressions are found.
    pub forbidden: PatternsConfig,
    /// Prefers answers that are valid JSON.
    pub json: JsonConfig,
}

/// Settings of the criterion `ended`. An answer of which it is not known whether it ended, because it
/// came from a file, ties with every other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EndedConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
}

impl Default for EndedConfig {
    fn default() -> Self {
        Self { weight: 3.0 }
    }
}

/// Settings of the criterion `length`. Lengths within the range tie. Outside of it the answer that
/// misses it by the smaller factor wins: half as long as wanted and twice as long are equally bad.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LengthConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
    /// Fewest words of a good answer.
    pub min_words: usize,
    /// Most words of a good answer.
    pub max_words: usize,
}

impl Default for LengthConfig {
    fn default() -> Self {
        Self { weight: 2.0, min_words: 5, max_words: 40 }
    }
}

/// Settings of the criterion `repetition`, which measures the share of an answer's word n-grams that
/// occurred in it before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RepetitionConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
    /// Words per n-gram, from 1.
    pub ngram_words: usize,
    /// Shares that differ by no more than this tie; from 0 to 1.
    pub margin: f64,
}

impl Default for RepetitionConfig {
    fn default() -> Self {
        Self { weight: 1.0, ngram_words: 3, margin: 0.05 }
    }
}

/// Settings of the criterion `relevance`, which measures the share of the content words of the user's
/// last turn that an answer uses. English endings are ignored (`bake`, `baking`); words that say
/// little about the subject (`the`, `please`, `write`) do not count.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RelevanceConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
    /// Shares that differ by no more than this tie; from 0 to 1.
    pub margin: f64,
    /// Words that do not count, in addition to the English ones built in.
    pub extra_stop_words: Vec<String>,
}

impl Default for RelevanceConfig {
    fn default() -> Self {
        Self { weight: 1.0, margin: 0.1, extra_stop_words: Vec::new() }
    }
}

/// Settings of the criteria `required` and `forbidden`. Without patterns they do not vote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PatternsConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
    /// Regular expressions in the syntax of Rust's `regex` crate, searched for anywhere in the answer;
    /// `(?i)` in front ignores case, `(?s)` lets `.` match line ends.
    pub patterns: Vec<String>,
}

impl Default for PatternsConfig {
    fn default() -> Self {
        Self { weight: 1.0, patterns: Vec::new() }
    }
}

/// Settings of the criterion `json`. The whole answer, spaces around it aside, must be one JSON value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct JsonConfig {
    /// Votes of this criterion, from 0.
    pub weight: f64,
}
