//! Counts of Markdown in an answer, by which Arena-Hard-Auto controls for style.

use regex::Regex;
use serde_json::{Value, json};

/// The `metadata` of an answer: its length in tokens, and its headers, lists and bold texts outside of blocks
/// of code.
pub(super) fn metadata(answer: &str, tokens: usize) -> Value {
    let text = without_code(answer);
    let count = |pattern: &str| matches(pattern, &text);
    let header = |level: usize| count(&format!(r"(?m)^#{{{level}}}\s"));
    json!({
        "token_len": tokens,
        "header_count": {
            "h1": header(1), "h2": header(2), "h3": header(3),
            "h4": header(4), "h5": header(5), "h6": header(6),
        },
        "list_count": {
            "ordered": count(r"(?m)^\s*\d+\.\s"),
            "unordered": count(r"(?m)^\s*[-*+]\s"),
        },
        "bold_count": {"**": count(r"\*\*[^*\n]+\*\*"), "__": count(r"__[^_\n]+__")},
    })
}

fn matches(pattern: &str, text: &str) -> usize {
    // patterns are constants, which a test compiles
    Regex::new(pattern).map_or(0, |pattern| pattern.find_iter(text).count())
}

/// The text without what stands between fences.
fn without_code(text: &str) -> String {
    let Ok(block) = Regex::new("```([^`]*)```") else { return text.into() };
    let insides = block.captures_iter(text).filter_map(|found| found.get(1));
    insides
        .filter(|inside| !inside.is_empty())
        .fold(text.to_owned(), |text, inside| text.replace(inside.as_str(), ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts of the functions of `utils/add_markdown_info.py` of arena-hard-auto.
    #[test]
    fn markdown_is_counted_outside_of_code() {
        let answer = "# One\n## Two\n```python\n# no header\n- no item\n```\n1. a\n2. b\n  - c\n* **bold** and __so__\n\
                      ###### Six\n#Seven\n****\n";
        let expected = json!({
            "token_len": 9,
            "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 1},
            "list_count": {"ordered": 2, "unordered": 2},
            "bold_count": {"**": 1, "__": 1},
        });
        assert_eq!(metadata(answer, 9), expected);
    }
}
