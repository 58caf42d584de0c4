//! The questions that one call asks, and the verdicts that their answers make.

use std::collections::{HashMap, HashSet};

use sppo_plugin::pairwise::{self, Orders, PairMatrix};
use sppo_plugin::{Comparison, PluginError, Verdict};

use crate::cache::Key;
use crate::combination::{Combination, Combined};
use crate::config::Undecided;
use crate::protocol::Protocol;
use crate::question::{InvalidVerdict, Question, QuestionVerdict};

/// The questions of a comparison, by their numbers.
enum Asked {
    /// One for each pair that was shown; the entry `first * candidates + second` is its number.
    Pairs { candidates: usize, numbers: Vec<Option<usize>> },
    /// Some for each response, one for each variant.
    Singles(Vec<Vec<usize>>),
}

/// The place of a question: a comparison, by its index, and the responses that are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) comparison: usize,
    pub(crate) first: usize,
    pub(crate) second: Option<usize>,
    pub(crate) variant: usize,
}

/// The number of a question that the service has to be asked.
pub(crate) struct New(pub(crate) usize);

/// The questions of one call, equal ones asked once.
#[derive(Default)]
pub(crate) struct Round {
    numbers: HashMap<Key, usize>,
    /// By number; `None` until the question is answered.
    verdicts: Vec<Option<Result<QuestionVerdict, InvalidVerdict>>>,
    /// By number, the first place at which the question is asked.
    places: Vec<Place>,
    /// Numbers of questions that the service refuses.
    refused: HashSet<usize>,
    /// By number, the comparisons that wait for the question.
    waiting: Vec<Vec<usize>>,
    /// Questions without an answer, per comparison.
    open: Vec<usize>,
    asked: Vec<Asked>,
    completed: u64,
    /// Pairs that became ties because no verdict on them was valid.
    pub(crate) undecided_pairs: u64,
    /// The remedy for the last invalid verdict.
    pub(crate) remedy: String,
}

impl Round {
    /// The questions that a comparison consists of. Responses that read the same tie without being
    /// judged.
    pub(crate) fn questions<'a>(
        comparison: &'a Comparison<'a>,
        protocol: &dyn Protocol,
        orders: Orders,
    ) -> Vec<Question<'a>> {
        if !protocol.compares() {
            return protocol.questions(comparison);
        }
        let texts: Vec<&str> = comparison.candidates.iter().map(|one| &*one.text).collect();
        let pairs = pairwise::pairs(&texts, orders).into_iter();
        let ask = |(first, second)| Question {
            second: Some(second),
            ..Question::about(comparison, first)
        };
        pairs.map(ask).collect()
    }

    /// Adds a comparison and its questions with their keys and the verdicts that are `known`; returns, in
    /// the same order, the numbers of the questions that must be asked.
    pub(crate) fn add(
        &mut self,
        comparison: &Comparison<'_>,
        compares: bool,
        questions: &[(Question<'_>, Key)],
        known: Vec<Option<QuestionVerdict>>,
    ) -> Vec<Option<New>> {
        let index = self.asked.len();
        self.open.push(0);
        let mut numbers = Vec::with_capacity(questions.len());
        let mut new = Vec::with_capacity(questions.len());
        for ((question, key), known) in questions.iter().zip(known) {
            let (number, is_new) = match self.numbers.get(key) {
                Some(number) => (*number, false),
                None => {
                    let number = self.verdicts.len();
                    self.numbers.insert(*key, number);
                    self.verdicts.push(known.map(Ok));
                    self.waiting.push(Vec::new());
                    let Question { first, second, variant, .. } = *question;
                    self.places.push(Place { comparison: index, first, second, variant });
                    (number, self.verdicts[number].is_none())
                }
            };
            if self.verdicts[number].is_none() {
                self.waiting[number].push(index);
                self.open[index] += 1;
            }
            numbers.push(number);
            new.push(is_new.then_some(New(number)));
        }
        self.completed += u64::from(self.open[index] == 0);
        self.asked.push(match compares {
            false => singles(comparison.candidates.len(), questions, &numbers),
            true => pairs(comparison.candidates.len(), questions, &numbers),
        });
        new
    }

    /// Takes note of the answer to a question.
    pub(crate) fn settle(
        &mut self,
        number: usize,
        verdict: Result<QuestionVerdict, InvalidVerdict>,
    ) {
        self.verdicts[number] = Some(verdict);
        for comparison in std::mem::take(&mut self.waiting[number]) {
            self.open[comparison] -= 1;
            self.completed += u64::from(self.open[comparison] == 0);
        }
    }

    /// Takes note that the service refuses a question, in these words.
    pub(crate) fn refuse(&mut self, number: usize, said: String) {
        self.refused.insert(number);
        self.settle(number, Err(InvalidVerdict(said)));
    }

    /// The place of a question.
    pub(crate) fn place(&self, number: usize) -> Place {
        self.places[number]
    }

    /// All valid verdicts, one for each question.
    pub(crate) fn valid_verdicts(&self) -> impl Iterator<Item = QuestionVerdict> {
        (0..self.verdicts.len()).filter_map(|number| self.valid(number))
    }

    /// Comparisons all of whose questions are answered.
    pub(crate) fn completed(&self) -> u64 {
        self.completed
    }

    /// Questions so far.
    pub(crate) fn question_count(&self) -> u64 {
        self.verdicts.len() as u64
    }

    /// One verdict per comparison.
    pub(crate) fn verdicts(
        &mut self,
        combination: &Combination,
        undecided: Undecided,
    ) -> Result<Vec<Verdict>, PluginError> {
        let asked = std::mem::take(&mut self.asked);
        let verdict = |asked: &Asked| match asked {
            Asked::Singles(numbers) => self.combined(numbers, combination, undecided),
            Asked::Pairs { candidates, numbers } => self.matrix(*candidates, numbers, undecided),
        };
        asked.iter().map(verdict).collect()
    }

    /// The verdict that the answers about each response make: equal ones where the service refuses a part of them.
    fn combined(
        &mut self,
        numbers: &[Vec<usize>],
        combination: &Combination,
        undecided: Undecided,
    ) -> Result<Verdict, PluginError> {
        let value = |number: &usize| self.valid(*number).map(QuestionVerdict::value);
        let answers: Vec<Vec<Option<f64>>> =
            numbers.iter().map(|one| one.iter().map(value).collect()).collect();
        if numbers.iter().flatten().any(|number| self.refused.contains(number)) {
            let known: Vec<f64> = answers.iter().flatten().filter_map(|answer| *answer).collect();
            let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
            let equal: Vec<Vec<Option<f64>>> =
                answers.iter().map(|one| vec![Some(mean); one.len()]).collect();
            return Ok(combination.verdict(&equal).verdict);
        }
        let Combined { verdict, is_undecided } = combination.verdict(&answers);
        if is_undecided {
            if undecided == Undecided::Stop {
                return Err(self.no_verdict(numbers.iter().flatten().copied()));
            }
            let size = numbers.len() as u64;
            self.undecided_pairs += size * size.saturating_sub(1) / 2;
        }
        Ok(verdict)
    }

    fn valid(&self, number: usize) -> Option<QuestionVerdict> {
        self.verdicts[number].as_ref()?.as_ref().ok().copied()
    }

    /// Whether the valid verdicts on the pairs of a comparison are logits.
    fn are_logits(&self, numbers: &[Option<usize>]) -> Result<bool, PluginError> {
        let (mut logits, mut probabilities) = (false, false);
        for verdict in numbers.iter().flatten().filter_map(|number| self.valid(*number)) {
            match verdict {
                QuestionVerdict::Logit(_) => logits = true,
                QuestionVerdict::Probability(_) => probabilities = true,
                QuestionVerdict::Score(_) => return Err(unexpected()),
            }
        }
        if logits && probabilities { Err(unexpected()) } else { Ok(logits) }
    }

    fn matrix(
        &mut self,
        size: usize,
        numbers: &[Option<usize>],
        undecided: Undecided,
    ) -> Result<Verdict, PluginError> {
        let value = |first: usize, second: usize| {
            self.valid(numbers[first * size + second]?).map(QuestionVerdict::value)
        };
        let (verdict, open) = if self.are_logits(numbers)? {
            let logit = |first, second| value(first, second).map(|logit| logit as f32);
            let PairMatrix { values, undecided } = pairwise::logits(size, logit);
            (Verdict::Logits(values), undecided)
        } else {
            let PairMatrix { undecided, .. } = pairwise::probabilities(size, value);
            let orders = (0..size * size).map(|entry| value(entry / size, entry % size));
            (Verdict::Orders(orders.collect()), undecided)
        };
        // Pairs that read the same were not asked about, and tie in any case.
        let mut ties = 0;
        for (low, high) in open {
            let pair = [numbers[low * size + high], numbers[high * size + low]];
            if pair == [None, None] {
                continue;
            }
            // These are counted by their prompts.
            if pair.iter().flatten().any(|number| self.refused.contains(number)) {
                continue;
            }
            if undecided == Undecided::Stop {
                return Err(self.no_verdict(pair.into_iter().flatten()));
            }
            ties += 1;
        }
        self.undecided_pairs += ties;
        Ok(verdict)
    }

    fn no_verdict(&self, mut numbers: impl Iterator<Item = usize>) -> PluginError {
        let said = numbers.find_map(|number| match &self.verdicts[number] {
            Some(Err(InvalidVerdict(said))) => Some(said.as_str()),
            _ => None,
        });
        PluginError::failed(format!(
            "there is no valid verdict on two answers; the judge said: {}",
            said.unwrap_or_default()
        ))
        .with_hint(format!(
            "{}; or call such pairs ties with `judge.undecided = \"tie\"`",
            self.remedy
        ))
    }
}

/// The numbers of a comparison's questions, by the pair that each shows.
fn pairs(candidates: usize, questions: &[(Question<'_>, Key)], numbers: &[usize]) -> Asked {
    let mut by_pair = vec![None; candidates * candidates];
    for ((question, _), number) in questions.iter().zip(numbers) {
        if let Some(second) = question.second {
            by_pair[question.first * candidates + second] = Some(*number);
        }
    }
    Asked::Pairs { candidates, numbers: by_pair }
}

/// The numbers of a comparison's questions, by the response that each is about and its variant.
fn singles(candidates: usize, questions: &[(Question<'_>, Key)], numbers: &[usize]) -> Asked {
    let mut asked: Vec<(Question<'_>, usize)> =
        questions.iter().map(|(question, _)| *question).zip(numbers.iter().copied()).collect();
    asked.sort_by_key(|(question, _)| question.variant);
    let mut by_response = vec![Vec::new(); candidates];
    for (question, number) in asked {
        by_response[question.first].push(number);
    }
    Asked::Singles(by_response)
}

fn unexpected() -> PluginError {
    PluginError::failed("the service gives probabilities for some pairs and logits for others")
}

#[cfg(test)]
mod tests {
    use sppo_plugin::order::OrderMatrix;
    use sppo_plugin::{Candidate, Message};

    use super::*;
    use crate::config::HttpConfig;
    use crate::protocol::create;

    fn comparison<'a>(texts: &[&'a str]) -> Comparison<'a> {
        Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(*text)).collect(),
        }
    }

    /// The verdict on three responses when each ordered pair gets `answer(first, second)`.
    fn verdict(
        orders: Orders,
        undecided: Undecided,
        answer: impl Fn(usize, usize) -> Result<QuestionVerdict, InvalidVerdict>,
    ) -> Result<Verdict, PluginError> {
        let comparison = comparison(&["a", "b", "c"]);
        let protocol = create(&HttpConfig::default()).unwrap();
        let asked = Round::questions(&comparison, protocol.as_ref(), orders);
        let questions: Vec<(Question<'_>, Key)> = asked
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
        round.verdicts(&protocol.combination(), undecided).map(|mut verdicts| verdicts.remove(0))
    }

    fn orders(verdict: Verdict) -> OrderMatrix {
        let Verdict::Orders(values) = verdict else { panic!("{verdict:?}") };
        OrderMatrix::new(values.len().isqrt(), values).unwrap()
    }

    fn invalid() -> Result<QuestionVerdict, InvalidVerdict> {
        Err(InvalidVerdict("hm".into()))
    }

    #[test]
    fn both_orders_are_kept_and_a_position_bias_cancels() {
        // The judge favours the first position by 0.3, and sees no other difference.
        let biased = |_, _| Ok(QuestionVerdict::Probability(0.8));
        let orders = orders(verdict(Orders::Both, Undecided::Stop, biased).unwrap());
        assert_eq!((orders.get(0, 1), orders.get(1, 0)), (Some(0.8), Some(0.8)));
        let matrix = orders.average().unwrap();
        assert!(matrix.values().iter().all(|value| (value - 0.5).abs() < 1e-15), "{matrix:?}");
    }

    #[test]
    fn one_valid_order_stands_for_both_and_none_is_no_tie_unless_wanted() {
        let half = |first: usize, second: usize| match first < second {
            true => Ok(QuestionVerdict::Probability(0.75)),
            false => invalid(),
        };
        let expected = [0.5, 0.75, 0.75, 0.25, 0.5, 0.75, 0.25, 0.25, 0.5];
        let said = orders(verdict(Orders::Both, Undecided::Stop, half).unwrap());
        assert_eq!(said.average().unwrap().values(), expected);
        assert_eq!((said.get(0, 1), said.get(1, 0)), (Some(0.75), None));
        let error = verdict(Orders::Both, Undecided::Stop, |_, _| invalid()).unwrap_err();
        assert!(error.to_string().contains("hm"), "{error}");
        let tie = verdict(Orders::Both, Undecided::Tie, |_, _| invalid()).unwrap();
        assert_eq!(orders(tie).average().unwrap().values(), [0.5; 9]);
    }

    #[test]
    fn logits_stay_logits_in_one_order_too() {
        let logit = |first: usize, second: usize| {
            Ok(QuestionVerdict::Logit(first as f64 - 2.0 * second as f64))
        };
        let both = verdict(Orders::Both, Undecided::Stop, logit).unwrap();
        assert_eq!(both, Verdict::Logits(vec![0.0, -2.0, -4.0, 1.0, 0.0, -3.0, 2.0, 0.0, 0.0]));
        let one = verdict(Orders::One, Undecided::Stop, logit).unwrap();
        let Verdict::Logits(one) = one else { panic!("{one:?}") };
        for (i, j) in [(0, 1), (0, 2), (1, 2)] {
            assert_eq!(one[3 * i + j], -one[3 * j + i]);
        }
        let mixed = |first: usize, second: usize| match (first, second) {
            (0 | 1, 0 | 1) => Ok(QuestionVerdict::Probability(0.5)),
            _ => Ok(QuestionVerdict::Logit(0.0)),
        };
        assert!(verdict(Orders::Both, Undecided::Stop, mixed).is_err());
    }
}
