//! Thoughts of reasoning models, told apart from their answers: `<think>...</think>` and the other marks
//! that model families put around them.
//!
//! A thought is not what a model says. Whoever judges an answer, or reads a verdict off a reply, does so
//! without it; and a thought that was cut off has no answer behind it.

use std::borrow::Cow;

/// The marks around the thoughts of a model family, in lower case.
struct Mark {
    /// The beginning. Only a line break at its end may be missing, at the end of a text.
    open: &'static str,
    /// The end.
    close: &'static str,
    place: Place,
}

/// Where a beginning counts. Marks that answers may well hold themselves, as tags of XML do, count only
/// where a thought is expected.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Anywhere,
    Start,
}

const fn anywhere(open: &'static str, close: &'static str) -> Mark {
    Mark { open, close, place: Place::Anywhere }
}

const fn at_start(open: &'static str, close: &'static str) -> Mark {
    Mark { open, close, place: Place::Start }
}

const MARKS: [Mark; 23] = [
    // DeepSeek-R1, Qwen3, QwQ, GLM, SmolLM3, Nemotron and most others
    anywhere("<think>", "</think>"),
    anywhere("<thinking>", "</thinking>"),
    anywhere("<thought>", "</thought>"),
    at_start("<thoughts>", "</thoughts>"),
    at_start("<reasoning>", "</reasoning>"),
    at_start("<reflection>", "</reflection>"),
    at_start("<analysis>", "</analysis>"),
    at_start("<scratchpad>", "</scratchpad>"),
    at_start("<inner_monologue>", "</inner_monologue>"),
    // Seed-OSS, MiniMax, LongCat
    anywhere("<seed:think>", "</seed:think>"),
    anywhere("<mm:think>", "</mm:think>"),
    anywhere("<longcat_think>", "</longcat_think>"),
    // Kimi-VL
    anywhere("◁think▷", "◁/think▷"),
    // Magistral
    anywhere("[think]", "[/think]"),
    // Command A Reasoning
    anywhere("<|start_thinking|>", "<|end_thinking|>"),
    // Sky-T1, OpenThinker
    anywhere("<|begin_of_thought|>", "<|end_of_thought|>"),
    anywhere("<|thinking_start|>", "<|thinking_end|>"),
    anywhere("<|think_start|>", "<|think_end|>"),
    // Gemma 4, MedGemma
    anywhere("<|channel>thought\n", "<channel|>"),
    anywhere("<unused94>thought\n", "<unused95>"),
    // gpt-oss
    anywhere("<|channel|>analysis<|message|>", "<|end|>"),
    anywhere("<|channel|>commentary<|message|>", "<|end|>"),
    // Apriel
    at_start("here are my reasoning steps:\n", "[begin final response]"),
];

/// An end of turns as of thoughts: it counts only behind the beginning of a thought.
const END_OF_TURN: &str = "<|end|>";

/// Marks around an answer, in lower case. They are left out where a thought precedes it.
const ANSWER_MARKS: [&str; 9] = [
    "<|start|>assistant",
    "<|channel|>final<|message|>",
    "<|return|>",
    "<|start_response|>",
    "<|end_response|>",
    "<|begin_of_solution|>",
    "<|end_of_solution|>",
    "[end final response]",
    END_OF_TURN,
];

/// A text of a model, taken apart into thoughts and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Thought<'a> {
    /// There is no thought: the text is the answer as it stands.
    Absent(&'a str),
    /// The thoughts are closed; this is the text without them, without white space at its ends.
    Closed(Cow<'a, str>),
    /// The last thought never ends: it was cut off, and there is no answer.
    Open,
}

impl Thought<'_> {
    /// The answer, or `None` where the thought never ends.
    #[must_use]
    pub fn answer(&self) -> Option<&str> {
        match self {
            Self::Absent(text) => Some(text),
            Self::Closed(answer) => Some(answer),
            Self::Open => None,
        }
    }
}

/// The text without the thoughts in it, whatever the case of their marks.
///
/// Where an end stands without a beginning, the thought began before the text: templates of many models
/// write the beginning into the prompt. Marks behind a quotation mark or a backtick are quoted, and mark
/// nothing.
#[must_use]
pub fn without_thought(text: &str) -> Thought<'_> {
    // ASCII keeps its length in bytes, so that places in the one are places in the other.
    let folded = text.to_ascii_lowercase();
    let mut scan = Scan { text, folded: &folded, at: 0, kept: Vec::new(), waiting: true };
    let mut closed = false;
    let mut open: Option<&Mark> = None;
    for found in marks_in(&folded) {
        let reached = found.start >= scan.at;
        match open {
            Some(mark) if reached && !found.begins && found.mark.close == mark.close => {
                (scan.at, open, closed) = (found.after, None, true);
            }
            None if reached && found.begins && scan.takes_for_beginning(&found) => {
                scan.keep_until(found.start);
                (scan.at, open) = (found.after, Some(found.mark));
            }
            None if reached && !found.begins && scan.takes_for_end(&found) => {
                (scan.kept, scan.waiting) = (Vec::new(), true);
                (scan.at, closed) = (found.after, true);
            }
            _ => (),
        }
    }
    match (open, closed) {
        (Some(_), _) => Thought::Open,
        (None, false) => Thought::Absent(text),
        (None, true) => {
            scan.keep_until(text.len());
            Thought::Closed(joined(&scan.kept))
        }
    }
}

/// As [`without_thought`], for a text that a model wrote after `prompt`: where the prompt ends with the
/// beginning of a thought, a text without its end is a thought that was cut off.
#[must_use]
pub fn without_thought_after<'a>(prompt: &str, text: &'a str) -> Thought<'a> {
    match without_thought(text) {
        Thought::Absent(_) if opens_thought(prompt) => Thought::Open,
        found => found,
    }
}

/// Whether the text ends with the beginning of a thought.
#[must_use]
pub fn opens_thought(prompt: &str) -> bool {
    let prompt = prompt.trim_end().to_ascii_lowercase();
    MARKS.iter().any(|mark| prompt.ends_with(mark.open.trim_end()))
}

/// Whether a token of this spelling begins or ends thoughts, alone or with others.
#[must_use]
pub fn is_part_of_mark(token: &str) -> bool {
    let token = token.to_ascii_lowercase();
    let special = token.starts_with(['<', '[', '◁']) && token.ends_with(['>', ']', '▷']);
    special
        && token != END_OF_TURN
        && MARKS.iter().any(|mark| mark.open.contains(&token) || mark.close == token)
}

/// A mark that was found: where it begins, and where the text goes on.
struct Found {
    start: usize,
    after: usize,
    mark: &'static Mark,
    /// Whether it is the beginning of a thought, and not the end.
    begins: bool,
}

/// All marks in the order of the text, those that are quoted left out.
fn marks_in(folded: &str) -> Vec<Found> {
    let mut all = Vec::new();
    for mark in &MARKS {
        for (begins, spelling) in [(true, mark.open), (false, mark.close)] {
            let found = |start| Found { start, after: start + spelling.len(), mark, begins };
            all.extend(folded.match_indices(spelling).map(|(start, _)| found(start)));
        }
        // One that is cut off by the end of the text lacks its line break.
        if mark.open.ends_with('\n') && folded.ends_with(mark.open.trim_end()) {
            let start = folded.len() - mark.open.trim_end().len();
            all.push(Found { start, after: folded.len(), mark, begins: true });
        }
    }
    all.retain(|found| !folded[..found.start].ends_with(['`', '"', '\'', '“', '‘']));
    all.sort_by_key(|found| found.start);
    all
}

/// The state of a walk over the marks of a text.
struct Scan<'a, 'f> {
    text: &'a str,
    folded: &'f str,
    /// What stands before is dealt with.
    at: usize,
    /// The parts of the text outside thoughts.
    kept: Vec<&'a str>,
    /// Whether no part of an answer was seen yet.
    waiting: bool,
}

impl Scan<'_, '_> {
    fn keep_until(&mut self, end: usize) {
        let piece = without_answer_marks(&self.text[self.at..end]);
        if !piece.is_empty() {
            self.kept.push(piece);
            self.waiting = false;
        }
    }

    fn takes_for_beginning(&mut self, found: &Found) -> bool {
        let before = &self.folded[self.at..found.start];
        self.waiting = self.waiting && without_answer_marks(before).is_empty();
        found.mark.place == Place::Anywhere || self.waiting
    }

    /// An end without a beginning; an element that the answer itself begins and ends is none.
    fn takes_for_end(&self, found: &Found) -> bool {
        let mark = found.mark;
        let of_the_answer =
            mark.place == Place::Start && self.folded[self.at..found.start].contains(mark.open);
        mark.close != END_OF_TURN && !of_the_answer
    }
}

/// The pieces between thoughts as one text.
fn joined<'a>(pieces: &[&'a str]) -> Cow<'a, str> {
    match pieces {
        [only] => Cow::Borrowed(only),
        several => several.join("\n").into(),
    }
}

fn without_answer_marks(piece: &str) -> &str {
    let mut piece = piece.trim();
    while let Some(shorter) = ANSWER_MARKS.iter().find_map(|mark| without_mark(piece, mark)) {
        piece = shorter.trim();
    }
    piece
}

fn without_mark<'a>(piece: &'a str, mark: &str) -> Option<&'a str> {
    let rest = piece.len().checked_sub(mark.len())?;
    let is_mark = |part: Option<&str>| part.is_some_and(|part| part.eq_ignore_ascii_case(mark));
    if is_mark(piece.get(..mark.len())) {
        piece.get(mark.len()..)
    } else {
        is_mark(piece.get(rest..)).then(|| &piece[..rest])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thought_is_never_part_of_the_answer_whatever_its_marks() {
        let texts = [
            "<think>\nA? [[A]]\n</think>\n\nB",
            "<thinking>A</thinking>B",
            "<THINK>A</THINK> B",
            "<thought>A</thought>\nB",
            "<reasoning>\nA\n</reasoning>\nB\n",
            "<reflection>A</reflection>B",
            "  <analysis>A</analysis>B",
            "<seed:think>A</seed:think>B",
            "◁think▷A◁/think▷B",
            "[THINK]A[/THINK]B",
            "<|START_THINKING|>A<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>",
            "<|begin_of_thought|>\nA\n<|end_of_thought|>\n<|begin_of_solution|>\nB\n<|end_of_solution|>",
            "<|channel>thought\nA<channel|>B",
            "<unused94>thought\nA<unused95>B",
            "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>",
            "Here are my reasoning steps:\nA\n[BEGIN FINAL RESPONSE]\nB\n[END FINAL RESPONSE]",
            // the template wrote the beginning into the prompt
            "A, no.\n</think>\n\nB",
            "A[/THINK]B",
            "A</seed:think>B",
            // thoughts within and behind thoughts
            "<think>A<think>A</think>A</think>B",
            "<think>A</think><think>A</think>B",
            "<think>A</think>\n<reflection>A</reflection>\nB",
            "<think>A, unless `</think>` were text</think>B",
        ];
        for text in texts {
            assert_eq!(without_thought(text), Thought::Closed("B".into()), "{text}");
        }
        let between = without_thought("First.\n<think>hm</think>\nSecond.");
        assert_eq!(between, Thought::Closed("First.\nSecond.".into()));
    }

    #[test]
    fn a_thought_that_was_cut_off_is_no_answer() {
        let texts = [
            "<think>",
            "<think>\nIt may be [[A]]?",
            "Well. <think>A",
            "<thinking>A</think",
            "<reasoning>A",
            "◁think▷A",
            "[THINK]A",
            "<seed:think>A",
            "<|channel>thought\nA",
            "<|channel>thought",
            "<|channel|>analysis<|message|>A",
            "<think>A</think>\n<think>A",
        ];
        for text in texts {
            assert_eq!(without_thought(text), Thought::Open, "{text}");
        }
        for prompt in ["<|im_start|>assistant\n<think>\n", "[THINK]", "<|channel>thought\n"] {
            assert_eq!(without_thought_after(prompt, "It may be A"), Thought::Open, "{prompt}");
            let closed = without_thought_after(prompt, "It may be A</think>B");
            assert_eq!(closed, Thought::Closed("B".into()), "{prompt}");
        }
        let switched_off = "<|im_start|>assistant\n<think>\n\n</think>\n\n";
        assert_eq!(without_thought_after(switched_off, "B"), Thought::Absent("B"));
    }

    #[test]
    fn an_answer_without_a_thought_stays_as_it_is() {
        let texts = [
            "",
            " B ",
            "I think so: x < 3 > y",
            "The tag `<think>` begins a thought, and `</think>` ends it.",
            "Write \"<think>\" first.",
            "<answer>B</answer>",
            "An element <reasoning>of XML</reasoning>",
            "<|end|>",
            "The channel: thought",
        ];
        for text in texts {
            assert_eq!(without_thought(text), Thought::Absent(text), "{text}");
        }
    }

    #[test]
    fn many_marks_take_no_longer_than_their_text() {
        for piece in ["<think>", "</think>", "<think>A</think>", "<|end|>", "x<reasoning>"] {
            assert_ne!(without_thought(&piece.repeat(100_000)), Thought::Absent(""));
        }
    }

    #[test]
    fn tokens_that_mark_thoughts_are_known() {
        for token in ["[THINK]", "[/THINK]", "<think>", "</think>", "<|channel>", "<channel|>"] {
            assert!(is_part_of_mark(token), "{token}");
        }
        for token in ["<|im_end|>", "</s>", "thought", "[INST]", "<|end|>", "", "<>"] {
            assert!(!is_part_of_mark(token), "{token}");
        }
    }
}
