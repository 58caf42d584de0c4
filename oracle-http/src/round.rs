//! The questions that one call asks, and the verdicts that their answers make.

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use sppo_plugin::{Comparison, PluginError, Verdict};

use crate::cache::Key;
use crate::config::{Orders, Undecided};
use crate::judgment::Judgment;
use crate::protocol::{Invalid, Question};

type Answer = Option<Result<Judgment, Invalid>>;

/// What a comparison is made of, by the numbers of its questions.
enum Layout {
    /// Each pair of answers, the lower number first.
    Pairs { candidates: usize, duels: Vec<Duel> },
    /// Each answer.
    Singles(Vec<usize>),
}

struct Duel {
    low: usize,
    high: usize,
    /// The question that shows `low` first.
    forward: Option<usize>,
    /// The question that shows `high` first.
    backward: Option<usize>,
}

/// A question for the service: its number.
pub(crate) struct New(pub(crate) usize);

/// One call's questions, equal ones asked once.
#[derive(Default)]
pub(crate) struct Round {
    numbers: HashMap<Key, usize>,
    answers: Vec<Answer>,
    /// The comparisons that wait for a question.
    waiting: Vec<Vec<usize>>,
    /// Questions without an answer, per comparison.
    open: Vec<usize>,
    layouts: Vec<Layout>,
    completed: u64,
    /// Pairs that became ties because nobody could say.
    pub(crate) undecided_pairs: u64,
}

impl Round {
    /// The questions that a comparison consists of. Answers that read the same draw without being
    /// judged.
    pub(crate) fn questions<'a>(
        comparison: &'a Comparison<'a>,
        compares: bool,
        orders: Orders,
    ) -> Vec<Question<'a>> {
        let candidates = comparison.candidates.len();
        let ask = |first, second| Question { comparison, first, second };
        if !compares {
            return (0..candidates).map(|index| ask(index, None)).collect();
        }
        let mut questions = Vec::with_capacity(candidates * candidates);
        for low in 0..candidates {
            for high in low + 1..candidates {
                let [a, b] = [low, high].map(|index| &*comparison.candidates[index].text);
                if a == b {
                    continue;
                }
                let (there, back) = match orders {
                    Orders::Both => (true, true),
                    Orders::One => {
                        let low_first = comes_first(a, b);
                        (low_first, !low_first)
                    }
                };
                questions.extend(there.then(|| ask(low, Some(high))));
                questions.extend(back.then(|| ask(high, Some(low))));
            }
        }
        questions
    }

    /// Adds a comparison and its questions with their keys and what is `known` of them; returns, in the
    /// same order, the numbers of those that must be asked.
    pub(crate) fn add(
        &mut self,
        comparison: &Comparison<'_>,
        compares: bool,
        questions: &[(Question<'_>, Key)],
        known: Vec<Option<Judgment>>,
    ) -> Vec<Option<New>> {
        let index = self.layouts.len();
        self.open.push(0);
        let mut numbers = Vec::with_capacity(questions.len());
        let mut new = Vec::with_capacity(questions.len());
        for ((_, key), known) in questions.iter().zip(known) {
            let (number, is_new) = match self.numbers.get(key) {
                Some(number) => (*number, false),
                None => {
                    let number = self.answers.len();
                    self.numbers.insert(*key, number);
                    self.answers.push(known.map(Ok));
                    self.waiting.push(Vec::new());
                    (number, self.answers[number].is_none())
                }
            };
            if self.answers[number].is_none() {
                self.waiting[number].push(index);
                self.open[index] += 1;
            }
            numbers.push(number);
            new.push(is_new.then_some(New(number)));
        }
        self.completed += u64::from(self.open[index] == 0);
        let candidates = comparison.candidates.len();
        self.layouts.push(match compares {
            false => Layout::Singles(numbers),
            true => Layout::Pairs { candidates, duels: duels(candidates, questions, &numbers) },
        });
        new
    }

    /// Takes note of an answer.
    pub(crate) fn settle(&mut self, number: usize, answer: Result<Judgment, Invalid>) {
        self.answers[number] = Some(answer);
        for comparison in std::mem::take(&mut self.waiting[number]) {
            self.open[comparison] -= 1;
            self.completed += u64::from(self.open[comparison] == 0);
        }
    }

    /// Comparisons all of whose questions are answered.
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    /// Questions so far.
    pub(crate) fn question_count(&self) -> u64 {
        self.answers.len() as u64
    }

    /// One verdict per comparison.
    pub(crate) fn verdicts(&mut self, undecided: Undecided) -> Result<Vec<Verdict>, PluginError> {
        let layouts = std::mem::take(&mut self.layouts);
        layouts.iter().map(|layout| self.verdict(layout, undecided)).collect()
    }

    fn verdict(&mut self, layout: &Layout, undecided: Undecided) -> Result<Verdict, PluginError> {
        match layout {
            Layout::Singles(numbers) => {
                let scores = numbers.iter().map(|number| match &self.answers[*number] {
                    Some(Ok(Judgment::Score(score))) => Ok(*score),
                    _ => Err(unexpected()),
                });
                Ok(Verdict::Scores(scores.collect::<Result<_, _>>()?))
            }
            Layout::Pairs { candidates, duels } => self.matrix(*candidates, duels, undecided),
        }
    }

    fn matrix(
        &mut self,
        size: usize,
        duels: &[Duel],
        undecided: Undecided,
    ) -> Result<Verdict, PluginError> {
        let valid = |number: Option<usize>| {
            number.and_then(|number| self.answers[number].as_ref()?.as_ref().ok().copied())
        };
        let mut probabilities = vec![0.5; size * size];
        let mut logits = vec![0.0_f32; size * size];
        let (mut in_probabilities, mut in_logits, mut ties) = (false, false, 0);
        for Duel { low, high, forward, backward } in duels {
            let (there, back) = (low * size + high, high * size + low);
            // Either order stands in for one that is not there.
            let given = (valid(*forward), valid(*backward));
            let (forward_word, backward_word) = match given {
                (None, None) => {
                    ties += 1;
                    if undecided == Undecided::Stop {
                        return Err(self.no_verdict(*forward, *backward));
                    }
                    continue;
                }
                (forward, backward) => (
                    forward.or(backward.map(Judgment::swapped)),
                    backward.or(forward.map(Judgment::swapped)),
                ),
            };
            match (forward_word, backward_word) {
                (Some(Judgment::Probability(first)), Some(Judgment::Probability(second))) => {
                    let probability = f64::midpoint(first, 1.0 - second);
                    (probabilities[there], probabilities[back]) = (probability, 1.0 - probability);
                    in_probabilities = true;
                }
                (Some(Judgment::Logit(first)), Some(Judgment::Logit(second))) => {
                    (logits[there], logits[back]) = (first as f32, second as f32);
                    in_logits = true;
                }
                _ => return Err(unexpected()),
            }
        }
        self.undecided_pairs += ties;
        match (in_probabilities, in_logits) {
            (true, true) => Err(unexpected()),
            (false, true) => Ok(Verdict::Logits(logits)),
            _ => Ok(Verdict::Probabilities(probabilities)),
        }
    }

    fn no_verdict(&self, forward: Option<usize>, backward: Option<usize>) -> PluginError {
        let said = [forward, backward].into_iter().flatten().find_map(|number| {
            match &self.answers[number] {
                Some(Err(Invalid(said))) => Some(said.as_str()),
                _ => None,
            }
        });
        PluginError::failed(format!(
            "there is no valid verdict on two answers; the judge said: {}",
            said.unwrap_or_default()
        ))
        .with_hint(
            "make the judge answer with a label alone (`judge.template`, `judge.max_tokens`), or call \
             such pairs ties with `judge.undecided = \"tie\"`",
        )
    }
}

/// Pairs each question with the one that shows the same answers in the other order.
fn duels(candidates: usize, questions: &[(Question<'_>, Key)], numbers: &[usize]) -> Vec<Duel> {
    let mut slots = vec![None; candidates * candidates];
    for ((question, _), number) in questions.iter().zip(numbers) {
        if let Some(second) = question.second {
            slots[question.first * candidates + second] = Some(*number);
        }
    }
    let pairs = (0..candidates).flat_map(|low| (low + 1..candidates).map(move |high| (low, high)));
    let duel = |(low, high)| Duel {
        low,
        high,
        forward: slots[low * candidates + high],
        backward: slots[high * candidates + low],
    };
    pairs.map(duel).filter(|duel| duel.forward.is_some() || duel.backward.is_some()).collect()
}

/// Which of two texts is shown first when only one order is: as good as drawn, yet always the same.
fn comes_first(a: &str, b: &str) -> bool {
    Sha256::digest(a) < Sha256::digest(b)
}

fn unexpected() -> PluginError {
    PluginError::failed("the service gives probabilities for some pairs and logits for others")
}

#[cfg(test)]
mod tests {
    use sppo_plugin::{Candidate, Message};

    use super::*;

    fn comparison<'a>(texts: &[&'a str]) -> Comparison<'a> {
        Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(*text)).collect(),
        }
    }

    /// What comes of three answers when each ordered pair gets `answer(first, second)`.
    fn verdict(
        orders: Orders,
        undecided: Undecided,
        answer: impl Fn(usize, usize) -> Result<Judgment, Invalid>,
    ) -> Result<Verdict, PluginError> {
        let comparison = comparison(&["a", "b", "c"]);
        let questions: Vec<(Question<'_>, Key)> = Round::questions(&comparison, true, orders)
            .into_iter()
            .enumerate()
            .map(|(index, question)| (question, [index as u8; 32]))
            .collect();
        let mut round = Round::default();
        let new = round.add(&comparison, true, &questions, vec![None; questions.len()]);
        assert_eq!((new.len(), round.completed()), (questions.len(), 0));
        for (New(number), (question, _)) in new.into_iter().flatten().zip(&questions) {
            round.settle(number, answer(question.first, question.second.unwrap_or_default()));
        }
        assert_eq!(round.completed(), 1);
        round.verdicts(undecided).map(|mut verdicts| verdicts.remove(0))
    }

    fn invalid() -> Result<Judgment, Invalid> {
        Err(Invalid("hm".into()))
    }

    #[test]
    fn both_orders_are_averaged_and_a_position_bias_cancels() {
        // The judge favours whoever comes first by 0.3, and sees no other difference.
        let biased = |_, _| Ok(Judgment::Probability(0.8));
        let verdict = verdict(Orders::Both, Undecided::Stop, biased).unwrap();
        let Verdict::Probabilities(matrix) = verdict else { panic!("{verdict:?}") };
        assert!(matrix.iter().all(|value| (value - 0.5).abs() < 1e-15), "{matrix:?}");
    }

    #[test]
    fn one_valid_order_stands_for_both_and_none_is_no_tie_unless_wanted() {
        let half = |first: usize, second: usize| match first < second {
            true => Ok(Judgment::Probability(0.75)),
            false => invalid(),
        };
        let expected = [0.5, 0.75, 0.75, 0.25, 0.5, 0.75, 0.25, 0.25, 0.5];
        let said = verdict(Orders::Both, Undecided::Stop, half);
        assert_eq!(said.unwrap(), Verdict::Probabilities(expected.into()));
        let error = verdict(Orders::Both, Undecided::Stop, |_, _| invalid()).unwrap_err();
        assert!(error.to_string().contains("hm"), "{error}");
        let tie = verdict(Orders::Both, Undecided::Tie, |_, _| invalid()).unwrap();
        assert_eq!(tie, Verdict::Probabilities(vec![0.5; 9]));
    }

    #[test]
    fn logits_stay_logits_in_one_order_too() {
        let logit =
            |first: usize, second: usize| Ok(Judgment::Logit(first as f64 - 2.0 * second as f64));
        let both = verdict(Orders::Both, Undecided::Stop, logit).unwrap();
        assert_eq!(both, Verdict::Logits(vec![0.0, -2.0, -4.0, 1.0, 0.0, -3.0, 2.0, 0.0, 0.0]));
        let one = verdict(Orders::One, Undecided::Stop, logit).unwrap();
        let Verdict::Logits(one) = one else { panic!("{one:?}") };
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            assert_eq!(one[3 * i + j], -one[3 * j + i]);
        }
        let mixed = |first: usize, second: usize| match (first, second) {
            (0 | 1, 0 | 1) => Ok(Judgment::Probability(0.5)),
            _ => Ok(Judgment::Logit(0.0)),
        };
        assert!(verdict(Orders::Both, Undecided::Stop, mixed).is_err());
    }

    #[test]
    fn which_answer_comes_first_does_not_depend_on_their_numbers() {
        let shown = |texts: &[&str]| {
            let comparison = comparison(texts);
            let questions = Round::questions(&comparison, true, Orders::One);
            let order = |question: &Question<'_>| {
                (question.first_text().to_owned(), question.second_text().to_owned())
            };
            let mut all: Vec<_> = questions.iter().map(order).collect();
            all.sort();
            all
        };
        let texts: Vec<String> = (0..40).map(|index| format!("answer {index}")).collect();
        let forward: Vec<&str> = texts.iter().map(String::as_str).collect();
        let backward: Vec<&str> = forward.iter().rev().copied().collect();
        assert_eq!(shown(&forward), shown(&backward));
        let low_first = shown(&forward)
            .iter()
            .filter(|(first, second)| {
                let number = |text: &str| forward.iter().position(|other| *other == text);
                number(first) < number(second)
            })
            .count();
        assert!((280..=500).contains(&low_first), "{low_first} of 780");
    }
}
