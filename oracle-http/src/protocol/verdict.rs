//! Verdicts in the texts of language models: labels, brackets, JSON.

use serde_json::{Map, Value};

use super::labels::Labels;

/// Words that announce a verdict before a colon, as in `Verdict: A`.
const CUES: [&str; 15] = [
    "answer",
    "best",
    "better",
    "choice",
    "conclusion",
    "decision",
    "judgement",
    "judgment",
    "label",
    "output",
    "preference",
    "result",
    "selection",
    "verdict",
    "winner",
];
/// Ends of turns that a server should have taken off.
const END_MARKS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
    "<eos>",
];

/// A reader of texts.
pub(super) struct VerdictReader {
    labels: Labels,
    json_field: String,
}

impl VerdictReader {
    pub(super) fn new(labels: Labels, json_field: &str) -> Self {
        Self { labels, json_field: json_field.to_owned() }
    }

    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The points of the response shown first, if the text is a verdict in some form.
    pub(super) fn read(&self, text: &str) -> Option<f64> {
        let said = without_end_marks(text);
        self.bare(said)
            .or_else(|| self.marked(said))
            .or_else(|| self.json(said))
            .or_else(|| self.field(said))
            .or_else(|| self.line(said))
    }

    /// A text that is a label and nothing else, decoration aside.
    pub(super) fn bare(&self, text: &str) -> Option<f64> {
        self.labels.decorated(without_end_marks(text))
    }

    /// `[[A]]` anywhere, as MT-bench asks for it, or `\boxed{A}`, `<answer>A</answer>` and their like, unless
    /// there are several that differ.
    fn marked(&self, said: &str) -> Option<f64> {
        let between = |open: &'static str, close: &'static str| {
            said.split(open).skip(1).filter_map(move |rest| rest.split_once(close)).map(|one| one.0)
        };
        let mut shares = between("[[", "]]")
            .chain(between("\\boxed{", "}"))
            .chain(between("<answer>", "</answer>"))
            .chain(between("<verdict>", "</verdict>"))
            .chain(between("<result>", "</result>"))
            .filter_map(|label| self.labels.decorated(label));
        let share = shares.next()?;
        shares.all(|other| other == share).then_some(share)
    }

    /// The last JSON object with the field, whatever stands around it.
    fn json(&self, said: &str) -> Option<f64> {
        let mut share = None;
        let mut rest = said;
        while let Some(start) = rest.find('{') {
            rest = &rest[start..];
            let mut objects =
                serde_json::Deserializer::from_str(rest).into_iter::<Map<String, Value>>();
            let parsed = objects.next().and_then(Result::ok);
            let end = objects.byte_offset();
            match parsed {
                Some(fields) => {
                    if let Some(value) = fields.get(&self.json_field) {
                        share = Some(self.labels.of_value(value));
                    }
                    rest = &rest[end..];
                }
                None => rest = &rest[1..],
            }
        }
        share.flatten()
    }

    /// The last `winner: A`, as JSON that is not quite in form has it: single quotes or none, a comma too
    /// many, an end that is missing.
    fn field(&self, said: &str) -> Option<f64> {
        let quotes = |letter: char| letter.is_whitespace() || "\"'`*_".contains(letter);
        let value = |(index, name): (usize, &str)| {
            let before = said[..index].chars().next_back();
            let rest = said[index + name.len()..].trim_start_matches(quotes);
            let rest = rest.strip_prefix([':', '=']).filter(|_| !before.is_some_and(is_of_word))?;
            rest.split([',', '}', '\n']).next()
        };
        let found = said.rmatch_indices(self.json_field.as_str()).find_map(value)?;
        self.labels.decorated(found)
    }

    /// A first or last line that is a label, or the label after words such as `Verdict:`.
    fn line(&self, said: &str) -> Option<f64> {
        let mut lines = said.lines().filter(|line| !line.trim().is_empty());
        let first = lines.next()?;
        let last = lines.next_back();
        let shares = [Some(first), last].map(|line| line.and_then(|line| self.announced(line)));
        match shares {
            [Some(first), Some(last)] => (first == last).then_some(first),
            [first, last] => first.or(last),
        }
    }

    fn announced(&self, line: &str) -> Option<f64> {
        let after_cue = || {
            let (cue, label) = line.rsplit_once([':', '：'])?;
            let mut words =
                cue.split(|letter: char| !is_of_word(letter)).filter(|word| !word.is_empty());
            let is_cue = words.any(|word| CUES.contains(&word.to_lowercase().as_str()));
            is_cue.then(|| self.labels.decorated(label)).flatten()
        };
        self.labels.decorated(line).or_else(after_cue)
    }
}

/// The text without the marks at its end that end a turn.
fn without_end_marks(text: &str) -> &str {
    let mut said = text.trim();
    while let Some(rest) = END_MARKS.iter().find_map(|mark| said.strip_suffix(mark)) {
        said = rest.trim_end();
    }
    said
}

fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}
