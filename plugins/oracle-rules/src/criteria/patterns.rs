//! The criteria `required` and `forbidden`: regular expressions that a response should or should not match.

use regex::Regex;
use sppo_plugin::PluginError;

use super::Criterion;
use crate::config::PatternsConfig;
use crate::text::Reading;

/// The number of expressions that are found in the response; negated when they are forbidden.
pub(crate) struct Patterns {
    expressions: Vec<Regex>,
    sign: f64,
}

impl Patterns {
    pub(crate) fn required(config: &PatternsConfig) -> Result<Self, PluginError> {
        Ok(Self { expressions: compile("required", &config.patterns)?, sign: 1.0 })
    }

    pub(crate) fn forbidden(config: &PatternsConfig) -> Result<Self, PluginError> {
        Ok(Self { expressions: compile("forbidden", &config.patterns)?, sign: -1.0 })
    }
}

impl Criterion for Patterns {
    fn measures(&self, reading: &Reading<'_>) -> Vec<Option<f64>> {
        let found = |text| self.expressions.iter().filter(|one| one.is_match(text)).count();
        reading
            .responses
            .iter()
            .map(|response| Some(self.sign * found(response.text) as f64))
            .collect()
    }
}

fn compile(criterion: &str, patterns: &[String]) -> Result<Vec<Regex>, PluginError> {
    let compile_one = |(index, pattern): (usize, &String)| {
        Regex::new(pattern).map_err(|error| {
            PluginError::configuration(format!(
                "{criterion}.patterns[{index}]: `{pattern}` is not a usable regular expression: {}",
                cause(&error)
            ))
            .with_hint(
                "put `\\` before a character that is meant literally; in TOML write the pattern in \
                 single quotes, so that `\\` stays as it is",
            )
        })
    };
    patterns.iter().enumerate().map(compile_one).collect()
}

/// The last line of the error, which says what is wrong; those above it draw a picture.
fn cause(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criteria::Vote;
    use crate::criteria::testing::vote;

    fn config(patterns: &[&str]) -> PatternsConfig {
        let patterns = patterns.iter().map(|&pattern| pattern.into()).collect();
        PatternsConfig { patterns, ..Default::default() }
    }

    #[test]
    fn more_required_and_fewer_forbidden_patterns_win() {
        let patterns = config(&["(?i)^dear ", r"\bregards\b"]);
        let required = Patterns::required(&patterns).unwrap();
        let forbidden = Patterns::forbidden(&patterns).unwrap();
        let answers = ["Dear Ann, see you. Kind regards, Bo", "dear Ann, see you"];
        assert_eq!(vote(&required, "?", answers), Vote::First);
        assert_eq!(vote(&forbidden, "?", answers), Vote::Second);
        // Each pattern counts once, however often it is found.
        assert_eq!(vote(&required, "?", ["regards", "regards regards"]), Vote::Tie);
    }

    #[test]
    fn a_malformed_pattern_is_named_with_its_cause() {
        let error = Patterns::forbidden(&config(&["fine", "(open"])).err().unwrap();
        assert_eq!(
            error.message,
            "forbidden.patterns[1]: `(open` is not a usable regular expression: unclosed group"
        );
        let error = Patterns::required(&config(&[r"(\w{9000}){9000}"])).err().unwrap();
        assert!(error.message.contains("required.patterns[0]"), "{}", error.message);
        assert!(error.message.contains("size limit"), "{}", error.message);
    }
}
