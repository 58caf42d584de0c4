//! Fewer questions: the pairs that an oracle is asked about, and the probabilities of the others.
//!
//! Pairs that are not asked about get the probabilities of the Bradley-Terry model that fits the answers best
//! (`statistics::bradley_terry`, with its weak prior). That model knows no circles, so intransitive preferences
//! are only seen among pairs that were asked about.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{JudgedComparison, PreferenceSettings};
use crate::error::{Error, Result};
use crate::plugin::order::OrderMatrix;
use crate::plugin::{Candidate, Comparison, Oracle, PluginError, Progress};
use crate::preference::{PreferenceMatrix, sigmoid};
use crate::statistics::{STRENGTH_PENALTY, bradley_terry};
use crate::win_rate::{self, Preferences, VerdictKind};

/// Pairs of the K answers to a prompt that an oracle is asked about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairRule {
    /// All of them: K (K - 1) / 2.
    #[default]
    All,
    /// Each answer and the next one, the last and the first: K pairs.
    Circular,
    /// A Swiss tournament: in each of `log2 K` rounds (rounded up), answers with about as many wins meet that have
    /// not met yet: K / 2 pairs in a round.
    Tournament,
}

impl PairRule {
    /// Most pairs of `size` answers that are asked about; `None` where these are all of them.
    #[must_use]
    pub fn asked_of(self, size: usize) -> Option<usize> {
        let asked = match self {
            Self::All => return None,
            Self::Circular => size,
            Self::Tournament => rounds(size) * (size / 2),
        };
        (asked < size * size.saturating_sub(1) / 2).then_some(asked)
    }

    /// Rounds in which the pairs of `size` answers are asked about.
    fn rounds(self, size: usize) -> usize {
        match self {
            Self::All | Self::Circular => 1,
            Self::Tournament => rounds(size),
        }
    }

    /// The pairs of the next round, the lower index first.
    fn next(self, answers: &PairAnswers) -> Vec<(usize, usize)> {
        let size = answers.size;
        match self {
            Self::All => {
                (0..size).flat_map(|low| (low + 1..size).map(move |high| (low, high))).collect()
            }
            Self::Circular => {
                let mut pairs: Vec<_> = (0..size).map(|at| in_order(at, (at + 1) % size)).collect();
                pairs.retain(|(low, high)| low != high);
                pairs.sort_unstable();
                pairs.dedup();
                pairs
            }
            Self::Tournament => swiss_round(answers),
        }
    }
}

/// `log2(size)`, rounded up.
fn rounds(size: usize) -> usize {
    size.next_power_of_two().trailing_zeros() as usize
}

fn in_order(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

/// Those who have won most meet each other, unless they have met; with an odd number, one sits out.
fn swiss_round(answers: &PairAnswers) -> Vec<(usize, usize)> {
    let points = answers.points();
    let mut order: Vec<usize> = (0..answers.size).collect();
    order.sort_by(|&one, &other| points[other].total_cmp(&points[one]).then(one.cmp(&other)));
    let mut free = vec![true; answers.size];
    let mut pairs = Vec::with_capacity(answers.size / 2);
    for (at, &one) in order.iter().enumerate() {
        if !free[one] {
            continue;
        }
        let opponent = order[at + 1..].iter().copied();
        let mut opponent = opponent.filter(|&other| free[other] && !answers.has_met(one, other));
        if let Some(other) = opponent.next() {
            (free[one], free[other]) = (false, false);
            pairs.push(in_order(one, other));
        }
    }
    pairs
}

/// Asks an oracle about pairs of the candidates of each comparison, by a rule that does not ask about all.
///
/// # Errors
/// When the oracle fails, or gives each candidate a score: then nothing is saved.
pub(super) fn ask_some_pairs(
    oracle: &mut dyn Oracle,
    comparisons: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<JudgedComparison>> {
    let rule = settings.pairs;
    let sizes = || comparisons.iter().map(|comparison| comparison.candidates.len());
    let mut answers: Vec<PairAnswers> = sizes().map(PairAnswers::new).collect();
    let planned: usize =
        sizes().map(|size| rule.asked_of(size).unwrap_or(size * size.saturating_sub(1) / 2)).sum();
    let mut done = 0;
    for round in 0..sizes().map(|size| rule.rounds(size)).max().unwrap_or(0) {
        let mut asked = Vec::new();
        for (at, known) in answers.iter().enumerate() {
            if round < rule.rounds(known.size) {
                asked.extend(rule.next(known).into_iter().map(|pair| (at, pair)));
            }
        }
        let pairs: Vec<_> =
            asked.iter().map(|&(at, pair)| pair_of(&comparisons[at], pair)).collect();
        let part = PartOfPairs { progress, done, planned, comparisons: comparisons.len() };
        let judged = ask(oracle, &pairs, settings, &part)?;
        for ((at, pair), judged) in asked.into_iter().zip(judged) {
            answers[at].add(pair, &judged);
        }
        done += pairs.len();
    }
    answers.into_iter().map(PairAnswers::judged).collect()
}

fn ask(
    oracle: &mut dyn Oracle,
    pairs: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Preferences>> {
    let PreferenceSettings { estimator, bradley_terry_temperature, .. } = *settings;
    let judged = win_rate::ask(oracle, pairs, estimator, bradley_terry_temperature, progress)?;
    refuse_scores(&judged)?;
    Ok(judged)
}

/// # Errors
/// When the oracle gives each candidate a score of its own.
pub(crate) fn refuse_scores(judged: &[Preferences]) -> Result<()> {
    match judged.iter().any(|one| one.kind == VerdictKind::Scores) {
        true => Err(Error::configuration(
            "preference.pairs",
            "the oracle gives each answer a score of its own: fewer pairs save nothing",
        )
        .with_hint("set `preference.pairs = \"all\"`")),
        false => Ok(()),
    }
}

fn pair_of<'a>(comparison: &'a Comparison<'_>, (low, high): (usize, usize)) -> Comparison<'a> {
    let lent = |index: usize| {
        let candidate: &'a Candidate<'_> = &comparison.candidates[index];
        Candidate { text: Cow::Borrowed(&*candidate.text), ..*candidate }
    };
    Comparison {
        prompt: comparison.prompt[..].into(),
        rendered_prompt: comparison.rendered_prompt.as_deref().map(Cow::Borrowed),
        candidates: [lent(low), lent(high)].into(),
    }
}

/// Answers about some pairs of the candidates of one comparison.
struct PairAnswers {
    size: usize,
    /// `P[i][j]`, row-major; `None` for pairs that were not asked about.
    probabilities: Vec<Option<f64>>,
    orders: Vec<Option<f64>>,
}

impl PairAnswers {
    fn new(size: usize) -> Self {
        let nothing = vec![None; size * size];
        Self { size, probabilities: nothing.clone(), orders: nothing }
    }

    fn has_met(&self, one: usize, other: usize) -> bool {
        self.probabilities[one * self.size + other].is_some()
    }

    fn add(&mut self, (low, high): (usize, usize), judged: &Preferences) {
        let [forward, backward] = [low * self.size + high, high * self.size + low];
        self.probabilities[forward] = Some(judged.matrix.get(0, 1));
        self.probabilities[backward] = Some(judged.matrix.get(1, 0));
        if let Some(orders) = &judged.orders {
            self.orders[forward] = orders.get(0, 1);
            self.orders[backward] = orders.get(1, 0);
        }
    }

    /// The probability over both orders that one beats another, where they have met.
    fn mean(&self, one: usize, other: usize) -> Option<f64> {
        let forward = self.probabilities[one * self.size + other]?;
        let backward = self.probabilities[other * self.size + one]?;
        Some(0.5 * (forward + (1.0 - backward)))
    }

    /// The wins of each so far, parts of a win included.
    fn points(&self) -> Vec<f64> {
        let of = |one: usize| (0..self.size).filter_map(|other| self.mean(one, other)).sum();
        (0..self.size).map(of).collect()
    }

    fn judged(self) -> Result<JudgedComparison> {
        let size = self.size;
        let wins: Vec<Vec<f64>> = (0..size)
            .map(|one| (0..size).map(|other| self.mean(one, other).unwrap_or(0.0)).collect())
            .collect();
        let strengths = bradley_terry(&wins, STRENGTH_PENALTY)
            .ok_or_else(|| PluginError::failed("no strengths fit its verdicts on pairs"))?;
        let filled = |one: usize, other: usize| {
            let asked = self.probabilities[one * size + other];
            asked.unwrap_or_else(|| sigmoid(strengths[one] - strengths[other]))
        };
        let faulty =
            |error: crate::preference::PreferenceError| PluginError::failed(error.to_string());
        let matrix = PreferenceMatrix::from_fn(size, filled).map_err(faulty)?;
        let orders = match self.orders.iter().any(Option::is_some) {
            true => Some(OrderMatrix::new(size, self.orders.clone()).map_err(faulty)?),
            false => None,
        };
        let all = || (0..size).flat_map(|low| (low + 1..size).map(move |high| (low, high)));
        let asked: Vec<_> = all().filter(|&(low, high)| self.has_met(low, high)).collect();
        let is_complete = asked.len() == all().count();
        Ok(JudgedComparison {
            preferences: Preferences::of_probabilities(matrix, orders),
            asked_pairs: (!is_complete).then_some(asked),
            oracle_matrix: None,
        })
    }
}

/// Progress in pairs, told in comparisons.
struct PartOfPairs<'a> {
    progress: &'a dyn Progress,
    /// Pairs of earlier rounds.
    done: usize,
    planned: usize,
    comparisons: usize,
}

impl Progress for PartOfPairs<'_> {
    fn is_cancelled(&self) -> bool {
        self.progress.is_cancelled()
    }

    fn progress(&self, completed: u64, _total: u64) {
        let (comparisons, planned) = (self.comparisons as u64, self.planned.max(1) as u64);
        let done = (self.done as u64 + completed).min(planned);
        self.progress.progress(comparisons * done / planned, comparisons);
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        self.progress.metrics(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{Message, SilentHost, Verdict};

    /// Prefers the longer of two answers, a little more so where it is read first. Counts its questions.
    #[derive(Default)]
    struct Longer {
        pairs: usize,
        rounds: usize,
        scores: bool,
    }

    fn probability(first: &str, second: &str) -> f64 {
        sigmoid(0.3 + 0.1 * (first.len() as f64 - second.len() as f64))
    }

    impl Oracle for Longer {
        fn preferences(
            &mut self,
            comparisons: &[Comparison<'_>],
            _progress: &dyn Progress,
        ) -> std::result::Result<Vec<Verdict>, PluginError> {
            self.rounds += 1;
            self.pairs += comparisons.len();
            let verdict = |comparison: &Comparison<'_>| {
                let [one, other] = [0, 1].map(|at| &*comparison.candidates[at].text);
                match self.scores {
                    true => Verdict::Scores(vec![0.0; 2]),
                    false => Verdict::Orders(vec![
                        None,
                        Some(probability(one, other)),
                        Some(probability(other, one)),
                        None,
                    ]),
                }
            };
            Ok(comparisons.iter().map(verdict).collect())
        }
    }

    fn asked(rule: PairRule, lengths: &[usize]) -> (Vec<JudgedComparison>, Longer) {
        let texts: Vec<String> = lengths.iter().map(|&length| "x".repeat(length)).collect();
        let comparison = Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(text.as_str())).collect(),
        };
        let settings = PreferenceSettings { pairs: rule, ..PreferenceSettings::default() };
        let mut oracle = Longer::default();
        let comparisons = [comparison.clone(), comparison];
        let judged = ask_some_pairs(&mut oracle, &comparisons, &settings, &SilentHost).unwrap();
        (judged, oracle)
    }

    #[test]
    fn each_rule_asks_as_many_pairs_as_it_says() {
        for (rule, size, pairs, rounds) in [
            (PairRule::Circular, 5, 5, 1),
            (PairRule::Circular, 8, 8, 1),
            (PairRule::Tournament, 5, 6, 3),
            (PairRule::Tournament, 8, 12, 3),
            (PairRule::Tournament, 16, 32, 4),
        ] {
            assert_eq!(rule.asked_of(size), Some(pairs));
            let lengths: Vec<usize> = (0..size).map(|at| at * 7 % size + 1).collect();
            let (judged, oracle) = asked(rule, &lengths);
            assert_eq!((oracle.pairs, oracle.rounds), (2 * pairs, rounds), "{rule:?} {size}");
            assert!(judged.iter().all(|one| one.asked_pairs.as_ref().unwrap().len() == pairs));
        }
        assert_eq!(PairRule::Circular.asked_of(3), None);
        assert_eq!(PairRule::Tournament.asked_of(2), None);
    }

    /// The oracle is a Bradley-Terry model, so what it was not asked follows from what it was asked.
    #[test]
    fn the_rest_is_what_a_bradley_terry_oracle_would_have_said() {
        let lengths = [9, 2, 14, 6, 11, 3];
        let (whole, _) = asked(PairRule::All, &lengths);
        assert_eq!(whole[0].asked_pairs, None);
        for rule in [PairRule::Circular, PairRule::Tournament] {
            let (judged, _) = asked(rule, &lengths);
            let (some, all) = (&judged[0].preferences, &whole[0].preferences);
            for (found, expected) in some.matrix.values().iter().zip(all.matrix.values()) {
                assert!((found - expected).abs() < 0.02, "{rule:?}: {found} is not {expected}");
            }
            let best = |scores: &[f64]| scores.iter().copied().fold(0.0, f64::max);
            assert_eq!(some.scores[2], best(&some.scores), "{rule:?}");
            for &(low, high) in judged[0].asked_pairs.as_ref().unwrap() {
                assert_eq!(some.matrix.get(low, high), all.matrix.get(low, high));
                assert!(some.orders.as_ref().unwrap().get(high, low).is_some());
            }
        }
    }

    #[test]
    fn no_two_answers_meet_twice_and_scores_are_refused() {
        let mut oracle = Longer { scores: true, ..Longer::default() };
        let comparison = Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: ["a", "b", "c", "d"].map(Candidate::from_text).into(),
        };
        let settings =
            PreferenceSettings { pairs: PairRule::Circular, ..PreferenceSettings::default() };
        let error = ask_some_pairs(&mut oracle, &[comparison], &settings, &SilentHost).unwrap_err();
        assert!(error.to_string().contains("preference.pairs"), "{error}");
        let mut answers = PairAnswers::new(7);
        let even =
            Preferences::of_probabilities(PreferenceMatrix::new(2, vec![0.5; 4]).unwrap(), None);
        for round in 0..3 {
            for (low, high) in swiss_round(&answers) {
                assert!(!answers.has_met(low, high), "round {round}: {low} and {high}");
                answers.add((low, high), &even);
            }
        }
    }
}
