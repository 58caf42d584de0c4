//! Signs that a service tells nothing apart: scores that are all the same, a judge that looks at positions.

use crate::config::ProtocolName;
use crate::question::QuestionVerdict;

/// Scores, all the same, after which it is told.
const SAME_SCORES: u64 = 3;
/// Scores, all between 0 and 1, after which it is told.
const UNIT_SCORES: u64 = 12;
/// Verdicts on pairs after which it is told what they have in common.
const PAIRS: u64 = 12;
/// The share of verdicts for one position, and the share of ties, that makes them suspicious.
const LARGE_SHARE: f64 = 0.9;

/// Running totals of a service's verdicts on different questions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signal {
    scores: u64,
    lowest: f64,
    highest: f64,
    pairs: u64,
    for_first: u64,
    for_second: u64,
    told: Vec<Sign>,
}

/// A sign that verdicts say little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// Every score is the same.
    SameScores,
    /// Every score lies between 0 and 1.
    UnitScores,
    /// Hardly any pair is decided.
    Ties,
    /// The response shown first wins nearly always.
    First,
    /// The response shown second wins nearly always.
    Second,
}

impl Signal {
    /// Takes a verdict on a question that differs from all others.
    pub(crate) fn add(&mut self, verdict: QuestionVerdict) {
        let (value, middle) = match verdict {
            QuestionVerdict::Score(score) => {
                let first = self.scores == 0;
                self.lowest = if first { score } else { self.lowest.min(score) };
                self.highest = if first { score } else { self.highest.max(score) };
                self.scores += 1;
                return;
            }
            QuestionVerdict::Probability(value) => (value, 0.5),
            QuestionVerdict::Logit(value) => (value, 0.0),
        };
        self.pairs += 1;
        self.for_first += u64::from(value > middle);
        self.for_second += u64::from(value < middle);
    }

    /// A sign that has not been told yet.
    pub(crate) fn news(&mut self) -> Option<Sign> {
        let sign = self.sign()?;
        if self.told.contains(&sign) {
            return None;
        }
        self.told.push(sign);
        Some(sign)
    }

    fn sign(&self) -> Option<Sign> {
        let share = |count: u64| count as f64 / self.pairs as f64;
        let ties = self.pairs - self.for_first - self.for_second;
        if self.scores >= SAME_SCORES && self.lowest == self.highest {
            Some(Sign::SameScores)
        } else if self.scores >= UNIT_SCORES && self.lowest >= 0.0 && self.highest <= 1.0 {
            Some(Sign::UnitScores)
        } else if self.pairs < PAIRS {
            None
        } else if share(ties) >= LARGE_SHARE {
            Some(Sign::Ties)
        } else if share(self.for_first) >= LARGE_SHARE {
            Some(Sign::First)
        } else if share(self.for_second) >= LARGE_SHARE {
            Some(Sign::Second)
        } else {
            None
        }
    }

    /// A warning of a sign: what it is, what follows, and what to do.
    pub(crate) fn warning(&self, sign: Sign, protocol: ProtocolName) -> String {
        let Self { scores, lowest, highest, pairs, .. } = self;
        let (text, tie) = match protocol {
            ProtocolName::Systemone | ProtocolName::OpenaiDecisions => {
                ("decision.instructions", "decision.tie")
            }
            ProtocolName::NvidiaGenrm => ("genrm.principle", "genrm.probabilities"),
            _ => ("judge.template", "judge.label_tie"),
        };
        let position = |which: &str| {
            format!(
                "the answer shown {which} wins in nearly all of {pairs} verdicts, whatever the answers: the \
                 judge looks at the position, and both orders cancel out. Take another judge, or another \
                 `{text}`"
            )
        };
        match sign {
            Sign::SameScores => format!(
                "all of {scores} different answers score {lowest}: nothing can be learned from that. {}",
                remedy(protocol)
            ),
            Sign::UnitScores => format!(
                "all scores lie between 0 and 1 ({lowest} to {highest}): they are probably probabilities, \
                 whose differences say next to nothing as rewards. {}; or lower \
                 `preference.bradley_terry_temperature`",
                remedy(protocol)
            ),
            Sign::Ties => format!(
                "nearly all of {pairs} verdicts call the answers equal: hardly anything can be learned from \
                 that. Take a judge that tells them apart, or leave out `{tie}`"
            ),
            Sign::First => position("first"),
            Sign::Second => position("second"),
        }
    }
}

/// The usual reason of a protocol's scores without a signal, and the remedy.
fn remedy(protocol: ProtocolName) -> &'static str {
    match protocol {
        ProtocolName::VllmClassify | ProtocolName::VllmScore => {
            "The server seems to apply its activation, whose softmax makes 1 of every single score: the vLLM \
             of late 2025 and later knows `use_activation`, that of the summer of 2025 wants \
             `extra = { activation = false }`, and older ones ignore both"
        }
        ProtocolName::TeiPredict | ProtocolName::TeiRerank => {
            "The server seems to apply its activation in spite of `raw_scores`: take a newer \
             text-embeddings-inference"
        }
        ProtocolName::OpenaiGroupwise => {
            "Widen the scores (`groupwise.highest`), or take a judge that tells the answers apart"
        }
        _ => {
            "See whether the service gets the answers (`scoring.template`) and returns rewards before any \
             sigmoid or softmax"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(verdicts: impl IntoIterator<Item = QuestionVerdict>) -> Option<Sign> {
        let mut signal = Signal::default();
        verdicts.into_iter().for_each(|verdict| signal.add(verdict));
        let sign = signal.news();
        assert!(
            sign.is_none_or(|sign| signal.warning(sign, ProtocolName::VllmClassify).len() > 60)
        );
        assert_eq!(signal.news(), None, "it is told once");
        sign
    }

    #[test]
    fn services_that_tell_nothing_apart_are_found_out_and_others_left_alone() {
        let scores = |values: &[f64], times: usize| -> Vec<QuestionVerdict> {
            values.repeat(times).into_iter().map(QuestionVerdict::Score).collect()
        };
        let pairs = |values: &[f64], times: usize| -> Vec<QuestionVerdict> {
            values.repeat(times).into_iter().map(QuestionVerdict::Probability).collect()
        };
        for (verdicts, expected) in [
            (scores(&[1.0], 12), Some(Sign::SameScores)),
            (scores(&[0.0], 3), Some(Sign::SameScores)),
            (scores(&[-3.5], 100), Some(Sign::SameScores)),
            (scores(&[0.2, 0.9], 6), Some(Sign::UnitScores)),
            (scores(&[0.2, 1.2], 6), None),
            (scores(&[-0.1, 0.9], 6), None),
            (scores(&[1.0], 2), None),
            (pairs(&[0.5], 12), Some(Sign::Ties)),
            (pairs(&[1.0], 12), Some(Sign::First)),
            (pairs(&[0.1, 0.3], 6), Some(Sign::Second)),
            (pairs(&[0.9, 0.1], 20), None),
            (pairs(&[0.9, 0.5], 20), None),
            (pairs(&[1.0], 6), None),
            (vec![QuestionVerdict::Logit(0.0); 12], Some(Sign::Ties)),
            (vec![QuestionVerdict::Logit(1.5); 12], Some(Sign::First)),
            (Vec::new(), None),
        ] {
            assert_eq!(sign(verdicts.clone()), expected, "{verdicts:?}");
        }
    }
}
