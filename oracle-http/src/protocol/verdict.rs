//! Verdicts in the texts of language models: labels, marks, JSON, lines that announce one.

use serde_json::{Map, Value};

use super::json_in_text::{self, Object, is_of_word};
use super::labels::{self, Labels, Spelled};

/// Words that announce a verdict, as in `Verdict: A`, `<verdict>A</verdict>` and `{"verdict": "A"}`.
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
/// Words beside those in the name of a field that holds a verdict, as in `final_answer`.
const BESIDE_CUES: [&str; 6] = ["final", "is", "overall", "preferred", "response", "the"];
/// Words between labels that are told of and not chosen, as in `[[A]] or [[B]]`.
const CONNECTIVES: [&str; 5] = ["and", "either", "or", "versus", "vs"];
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

/// A verdict in a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Found {
    /// The points of the response shown first, from 0 to 1.
    pub(super) share: f64,
    /// The place of the label in the text, in bytes, where it is known.
    pub(super) place: Option<usize>,
    /// Whether the label is one of five grades, as `A>>B`.
    pub(super) is_graded: bool,
}

impl Found {
    /// Whether nothing but decoration stands before its label.
    pub(super) fn begins(&self, text: &str) -> bool {
        self.place.is_some_and(|place| labels::is_decorative(&text[..place]))
    }

    /// The same in a text of which the present one begins at `start`.
    fn within(self, start: usize) -> Self {
        Self { place: self.place.map(|place| start + place), ..self }
    }

    fn of(said: &str, label: Spelled<'_>) -> Self {
        let Spelled { share, text, is_graded } = label;
        Self { share, place: Some(offset(said, text)), is_graded }
    }
}

/// A reader of texts.
pub(super) struct VerdictReader {
    labels: Labels,
    json_field: String,
}

/// A place where a text marks a verdict: `[[A]]`.
struct Mark<'a> {
    start: usize,
    end: usize,
    /// The label, unless it is one that no setting names.
    label: Option<Spelled<'a>>,
}

impl VerdictReader {
    pub(super) fn new(labels: Labels, json_field: &str) -> Self {
        Self { labels, json_field: json_field.to_owned() }
    }

    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The verdict of a text, if it is one in some form: of the forms the first that is there, of its places the
    /// last.
    pub(super) fn read(&self, text: &str) -> Option<Found> {
        let said = without_end_marks(text);
        let of = |label| Found::of(text, label);
        if let Some(label) = self.labels.spelled(said) {
            return Some(of(label));
        }
        match chosen(said, self.marks(said)) {
            Choice::Of(label) => return Some(of(label)),
            Choice::Unknown => return None,
            Choice::None => {}
        }
        match self.in_json(said) {
            Choice::Of(found) => return Some(found.within(offset(text, said))),
            Choice::Unknown => return None,
            Choice::None => {}
        }
        let field = || json_in_text::loose_field(said, &self.json_field);
        let label = field().and_then(|field| self.labels.spelled(field));
        label.or_else(|| self.on_a_line(said)).map(of)
    }

    /// The points of a text that is a label and nothing else, decoration aside.
    pub(super) fn bare(&self, text: &str) -> Option<f64> {
        self.labels.decorated(without_end_marks(text))
    }

    /// `[[A]]` anywhere, as MT-bench asks for it, or `\boxed{A}`, `<answer>A</answer>` and their like.
    fn marks<'a>(&self, said: &'a str) -> Vec<Mark<'a>> {
        let folded = said.to_ascii_lowercase();
        let mut marks = Vec::new();
        let mut add = |open: &str, close: &str| {
            for (start, _) in folded.match_indices(open) {
                let from = start + open.len();
                let Some(length) = folded[from..].find(close) else { break };
                let content = &said[from..from + length];
                let label = self.labels.spelled(content);
                if label.is_some() || self.labels.is_foreign(content) {
                    marks.push(Mark { start, end: from + length + close.len(), label });
                }
            }
        };
        add("[[", "]]");
        add("\\boxed{", "}");
        CUES.iter().for_each(|cue| add(&format!("<{cue}>"), &format!("</{cue}>")));
        marks.sort_by_key(|mark| mark.start);
        marks
    }

    /// The label in the last JSON object with the field, or else in the last with fields that are named as verdicts
    /// are and do not contradict each other.
    fn in_json(&self, said: &str) -> Choice<Found> {
        let objects = json_in_text::objects(said);
        let of = |object: &Object, name: &str, value: &Value| -> Option<Found> {
            let share = self.labels.of_value(value)?;
            let place = self.labels.place_after(&said[object.place.clone()], name, share);
            let found = Found { share, place, is_graded: false };
            Some(found.within(object.place.start))
        };
        for object in objects.iter().rev() {
            if let Some(value) = json_in_text::field(&object.fields, &self.json_field) {
                return of(object, &self.json_field, value).map_or(Choice::None, Choice::Of);
            }
        }
        let named = |object: &Object| {
            let fields = verdict_fields(&object.fields).into_iter();
            fields.filter_map(|(name, value)| of(object, name, value)).collect::<Vec<_>>()
        };
        let last = objects.iter().rev().map(named).find(|found| !found.is_empty());
        match last.as_deref() {
            None | Some([]) => Choice::None,
            Some([first, rest @ ..]) => match rest.iter().all(|one| one.share == first.share) {
                true => Choice::Of(*first),
                false => Choice::Unknown,
            },
        }
    }

    /// A last or first line that is a label, or the last one with a label after words such as `Verdict:`.
    fn on_a_line<'a>(&self, said: &'a str) -> Option<Spelled<'a>> {
        let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        let (first, last) = (*lines.first()?, *lines.last()?);
        // Lines that are all labels tell of them, and choose none.
        let bare: Vec<f64> =
            lines.iter().map_while(|line| Some(self.labels.spelled(line)?.share)).collect();
        if bare.len() == lines.len() && bare.iter().any(|share| *share != bare[0]) {
            return None;
        }
        self.labels
            .spelled(last)
            .or_else(|| lines.iter().rev().find_map(|line| self.announced(line)))
            .or_else(|| self.labels.spelled(first))
    }

    fn announced<'a>(&self, line: &'a str) -> Option<Spelled<'a>> {
        let is_cue = |text: &str| words(text).any(|word| CUES.contains(&word.as_str()));
        // `Verdict: A`
        let after_colon = || {
            let (cue, label) = line.rsplit_once([':', '：'])?;
            self.labels.spelled(label).filter(|_| is_cue(cue))
        };
        // `[RESULT] A`
        let after_mark = || {
            let is_marked =
                |end: usize| line[..end].rsplit_once('[').is_some_and(|one| is_cue(one.1));
            let (end, _) = line.rmatch_indices(']').find(|(end, _)| is_marked(*end))?;
            self.labels.spelled(&line[end + 1..])
        };
        // `Output (a)`
        let in_brackets = || {
            let rest = line.trim_end_matches(|letter: char| ".*_ \r".contains(letter));
            let (cue, label) = rest.strip_suffix(')')?.rsplit_once('(')?;
            self.labels.spelled(label).filter(|_| is_named_as_verdict(cue))
        };
        after_colon().or_else(after_mark).or_else(in_brackets)
    }
}

/// The verdict in one form.
enum Choice<T> {
    Of(T),
    /// There is one, and it is not known which: no setting names it, or it contradicts itself.
    Unknown,
    /// There is none in this form. Labels that are told of, as in `[[A]] or [[B]]`, are not chosen.
    None,
}

/// The verdict of the last mark.
fn chosen<'a>(said: &str, mut marks: Vec<Mark<'a>>) -> Choice<Spelled<'a>> {
    let Some(last) = marks.pop() else { return Choice::None };
    let share = |mark: &Mark<'_>| mark.label.map(|label| label.share);
    let other = marks.iter().rev().find(|mark| share(mark) != share(&last));
    let is_told_of = other.is_some_and(|other| {
        let between = said.get(other.end..last.start).unwrap_or_default();
        words(between).all(|word| CONNECTIVES.contains(&word.as_str()))
    });
    match last.label {
        _ if is_told_of => Choice::None,
        Some(label) => Choice::Of(label),
        None => Choice::Unknown,
    }
}

/// The fields of an object whose names are those of a verdict.
fn verdict_fields(fields: &Map<String, Value>) -> Vec<(&str, &Value)> {
    let named = fields.iter().filter(|(name, _)| is_named_as_verdict(name));
    named.map(|(name, value)| (name.as_str(), value)).collect()
}

/// Whether a name is that of a verdict, as `Output` and `final_answer` are.
fn is_named_as_verdict(name: &str) -> bool {
    let words: Vec<String> = words(&name.replace('_', " ")).collect();
    let is_of = |list: &[&str], word: &String| list.contains(&word.as_str());
    words.iter().any(|word| is_of(&CUES, word))
        && words.iter().all(|word| is_of(&CUES, word) || is_of(&BESIDE_CUES, word))
}

/// The words of a text, in lower case.
fn words(text: &str) -> impl Iterator<Item = String> {
    text.split(|letter: char| !is_of_word(letter))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
}

/// The place of a part of a text in it, in bytes.
fn offset(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// The text without the marks at its end that end a turn.
fn without_end_marks(text: &str) -> &str {
    let mut said = text.trim();
    while let Some(rest) = END_MARKS.iter().find_map(|mark| said.strip_suffix(mark)) {
        said = rest.trim_end();
    }
    said
}
