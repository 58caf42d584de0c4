//! Comparison of models by an oracle that judges their answers to the same prompts.

mod tournament;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::plugin::check::{self, Check};
use crate::plugin::{Candidate, Comparison, Oracle, Progress};
use crate::records::DuelVerdict;
use crate::stages::{self, OracleView, PreferenceSettings};
use crate::statistics::{Bootstrap, Duel};

pub use tournament::{NashReport, PairReport, Share, Standing, Tournament, TournamentReport};

/// Settings of the section `[evaluation]`: held-out prompts, answered by two models, judged by the run's
/// oracle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvaluationSettings {
    /// Whether each iteration is compared with the starting model.
    pub enabled: bool,
    /// Responses per held-out prompt and model.
    pub samples_per_prompt: usize,
    /// Resamples of the bootstrap over prompts.
    pub bootstrap_resamples: usize,
    /// Confidence of the interval, between 0 and 1.
    pub confidence: f64,
}

impl Default for EvaluationSettings {
    fn default() -> Self {
        Self { enabled: true, samples_per_prompt: 1, bootstrap_resamples: 2000, confidence: 0.95 }
    }
}

impl EvaluationSettings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub fn check(&self) -> Check {
        check::at_least_one("samples_per_prompt", self.samples_per_prompt as u64)?;
        check::at_least_one("bootstrap_resamples", self.bootstrap_resamples as u64)?;
        check::require(
            self.confidence > 0.0 && self.confidence < 1.0,
            "confidence",
            format!("{} is not between 0 and 1", self.confidence),
            "give for instance 0.95",
        )
    }

    /// Intervals as these settings say.
    #[must_use]
    pub fn bootstrap(&self, seed: u64) -> Bootstrap {
        let Self { bootstrap_resamples: resamples, confidence, .. } = *self;
        Bootstrap { resamples, confidence, seed }
    }
}

/// Two answers to a prompt, judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JudgedPair {
    /// The oracle's word on them, the challenger's in both orders.
    pub verdict: DuelVerdict,
    /// Length of the challenger's answer less that of the other, in characters, as the oracle saw them.
    pub length_difference: f64,
}

impl JudgedPair {
    /// The pair as statistics take it.
    #[must_use]
    pub fn duel(&self) -> Duel {
        let Self { verdict, length_difference } = *self;
        Duel { win_rate: verdict.win_probability(), length_difference }
    }
}

/// Lets the challenger's answers meet the baseline's, answer against answer in order: for each prompt, one pair
/// per answer. Both lists hold the answers of a model to the same prompts; of answers to a prompt that are more
/// on one side, the last have no partner.
///
/// Each model's thoughts are those after its own prompt. Where the finish of one of two answers is not known,
/// the oracle is not told that of the other.
///
/// # Errors
/// When the oracle fails.
pub fn judge_pairs(
    oracle: &mut dyn Oracle,
    challenger: &[Comparison<'_>],
    baseline: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Vec<JudgedPair>>> {
    let view = settings.oracle_sees;
    let ours = stages::as_seen(challenger, view);
    let theirs = stages::as_seen(baseline, view);
    let by_prompt: Vec<Vec<Comparison<'_>>> =
        ours.iter().zip(&theirs).map(|(ours, theirs)| pairs(ours, theirs)).collect();
    // What the oracle is to see is chosen already.
    let settings = PreferenceSettings { oracle_sees: OracleView::Everything, ..*settings };
    let pairs = by_prompt.concat();
    let judged = stages::judge(oracle, &pairs, &settings, progress)?;
    let mut judged = pairs.iter().zip(&judged).map(|(pair, judged)| JudgedPair {
        verdict: DuelVerdict::of(judged),
        length_difference: length(&pair.candidates[0]) - length(&pair.candidates[1]),
    });
    Ok(by_prompt.iter().map(|pairs| judged.by_ref().take(pairs.len()).collect()).collect())
}

/// For each prompt, the mean probability that the challenger's answer is preferred.
#[must_use]
pub fn win_rates(duels: &[Vec<DuelVerdict>]) -> Vec<f64> {
    let mean = |of_one_prompt: &Vec<DuelVerdict>| {
        let wins: f64 = of_one_prompt.iter().map(DuelVerdict::win_probability).sum();
        wins / of_one_prompt.len().max(1) as f64
    };
    duels.iter().map(mean).collect()
}

fn length(candidate: &Candidate<'_>) -> f64 {
    candidate.text.chars().count() as f64
}

/// One comparison of two candidates per answer, the challenger's first.
fn pairs<'a>(ours: &'a Comparison<'_>, theirs: &'a Comparison<'_>) -> Vec<Comparison<'a>> {
    let pair = |(a, b): (&'a Candidate<'_>, &'a Candidate<'_>)| Comparison {
        prompt: ours.prompt[..].into(),
        rendered_prompt: ours.rendered_prompt.as_deref().map(Cow::Borrowed),
        candidates: [told_as(a, b), told_as(b, a)].into(),
    };
    ours.candidates.iter().zip(theirs.candidates.iter()).map(pair).collect()
}

/// A candidate with no more than is known of the other.
fn told_as<'a>(candidate: &'a Candidate<'_>, other: &Candidate<'_>) -> Candidate<'a> {
    Candidate {
        text: Cow::Borrowed(&*candidate.text),
        finish_reason: other.finish_reason.and(candidate.finish_reason),
        token_count: other.token_count.and(candidate.token_count),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{FinishReason, Message, PluginError, SilentHost, Verdict};
    use crate::win_rate::WinRateEstimator;

    /// Prefers the answer that it reads first, and the longer one. Tells what it saw.
    #[derive(Default)]
    struct Hasty(Vec<Candidate<'static>>);

    impl Oracle for Hasty {
        fn preferences(
            &mut self,
            comparisons: &[Comparison<'_>],
            _progress: &dyn Progress,
        ) -> std::result::Result<Vec<Verdict>, PluginError> {
            let logits = |comparison: &Comparison<'_>| {
                let [a, b] = [0, 1].map(|place| comparison.candidates[place].text.len() as f32);
                Verdict::Logits(vec![0.0, 2.0 + a - b, 2.0 + b - a, 0.0])
            };
            let seen = comparisons.iter().flat_map(|comparison| comparison.candidates.iter());
            let owned = |seen: &Candidate<'_>| Candidate {
                text: seen.text.to_string().into(),
                finish_reason: seen.finish_reason,
                token_count: seen.token_count,
            };
            self.0.extend(seen.map(owned));
            Ok(comparisons.iter().map(logits).collect())
        }
    }

    fn answers<'a>(rendered_prompt: Option<&'a str>, texts: &[&'a str]) -> Comparison<'a> {
        let candidate = |text: &&'a str| Candidate {
            finish_reason: rendered_prompt.map(|_| FinishReason::Stop),
            ..Candidate::from_text(*text)
        };
        Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: rendered_prompt.map(Cow::Borrowed),
            candidates: texts.iter().map(candidate).collect(),
        }
    }

    fn judged(ours: &Comparison<'_>, theirs: &Comparison<'_>) -> (Vec<Duel>, Hasty) {
        let mut oracle = Hasty::default();
        let [ours, theirs] = [ours, theirs].map(std::slice::from_ref);
        let settings = PreferenceSettings {
            estimator: WinRateEstimator::Pairwise,
            ..PreferenceSettings::default()
        };
        let judged = judge_pairs(&mut oracle, ours, theirs, &settings, &SilentHost).unwrap();
        (judged[0].iter().map(JudgedPair::duel).collect(), oracle)
    }

    #[test]
    fn whoever_is_read_first_has_no_advantage() {
        let [longer, short, same] = [["longer", "too"], ["short", "too"], ["same", "too"]]
            .map(|texts| answers(Some("?"), &texts));
        for duel in judged(&same, &same).0 {
            assert!((duel.win_rate - 0.5).abs() < 1e-12);
        }
        let (better, worse) = (judged(&longer, &short).0[0], judged(&short, &longer).0[0]);
        assert!(better.win_rate > 0.5, "{better:?}");
        assert!((better.win_rate + worse.win_rate - 1.0).abs() < 1e-12, "{worse:?}");
        assert_eq!([better.length_difference, worse.length_difference], [1.0, -1.0]);
    }

    #[test]
    fn each_model_thinks_after_its_own_prompt() {
        let thinker = answers(Some("? <think>\n"), &["hm</think>Four"]);
        let talker = answers(Some("?"), &["Four ä"]);
        for (ours, theirs, texts) in
            [(&thinker, &talker, ["Four", "Four ä"]), (&talker, &thinker, ["Four ä", "Four"])]
        {
            let (duels, oracle) = judged(ours, theirs);
            assert_eq!(oracle.0.iter().map(|seen| &*seen.text).collect::<Vec<_>>(), texts);
            assert_eq!(duels[0].length_difference.abs(), 2.0);
        }
    }

    #[test]
    fn the_finish_of_an_answer_from_a_file_is_held_against_none() {
        let of_file = answers(None, &["Four"]);
        let of_model = answers(Some("?"), &["Five", "and more"]);
        let (duels, oracle) = judged(&of_file, &of_model);
        assert_eq!(duels.len(), 1);
        assert!(oracle.0.iter().all(|seen| seen.finish_reason.is_none()), "{:?}", oracle.0);
        let (_, oracle) = judged(&of_model, &of_model);
        assert!(oracle.0.iter().all(|seen| seen.finish_reason.is_some()), "{:?}", oracle.0);
    }
}
