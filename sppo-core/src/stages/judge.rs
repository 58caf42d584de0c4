//! Stage 2: the oracle compares the responses, and its verdicts become preferences.

mod adjust;
mod pair_rules;
mod settings;

use std::borrow::Cow;

use crate::error::Result;
use crate::plugin::thought::{self, Thought};
use crate::plugin::{Candidate, Comparison, Message, Oracle, Progress};
use crate::preference::PreferenceMatrix;
use crate::records::Rollout;
use crate::win_rate::{self, Preferences};

pub use adjust::LabelDraw;
pub use pair_rules::PairRule;
pub(crate) use pair_rules::refuse_scores;
pub use settings::{LabelRule, OracleView, PreferenceSettings};

/// The preferences among the candidates of a comparison, as training takes them.
#[derive(Clone, Debug, PartialEq)]
pub struct JudgedComparison {
    /// The preferences.
    pub preferences: Preferences,
    /// Pairs that the oracle was asked about, the lower index first; `None` for all.
    pub asked_pairs: Option<Vec<(usize, usize)>>,
    /// The oracle's own probabilities, where the settings have changed them.
    pub oracle_matrix: Option<PreferenceMatrix>,
}

/// All pairs were asked about, and nothing was changed.
impl From<Preferences> for JudgedComparison {
    fn from(preferences: Preferences) -> Self {
        Self { preferences, asked_pairs: None, oracle_matrix: None }
    }
}

/// A rollout as the oracle sees it.
#[must_use]
pub fn comparison(rollout: &Rollout) -> Comparison<'_> {
    let candidates = rollout
        .responses
        .iter()
        .map(|response| Candidate {
            text: response.text.as_str().into(),
            finish_reason: Some(response.finish_reason),
            token_count: Some(response.tokens.len()),
        })
        .collect();
    Comparison {
        prompt: rollout.prompt.messages.as_slice().into(),
        rendered_prompt: Some(rollout.rendered_prompt.as_str().into()),
        candidates,
    }
}

/// Asks the oracle about each comparison and validates what it says (Algorithm 1, line 5).
///
/// # Errors
/// When the oracle fails, or returns the wrong number of verdicts or an impossible one.
pub fn judge(
    oracle: &mut dyn Oracle,
    comparisons: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Preferences>> {
    let seen = as_seen(comparisons, settings.oracle_sees);
    ask_all_pairs(oracle, &seen, settings, progress)
}

/// As [`judge`], as the settings want it for training: about some pairs, with a price of length, and with labels.
///
/// # Errors
/// As [`judge`].
pub fn judge_for_training(
    oracle: &mut dyn Oracle,
    comparisons: &[Comparison<'_>],
    settings: &PreferenceSettings,
    draw: LabelDraw,
    progress: &dyn Progress,
) -> Result<Vec<JudgedComparison>> {
    let seen = as_seen(comparisons, settings.oracle_sees);
    let saves = |comparison: &Comparison<'_>| {
        settings.pairs.asked_of(comparison.candidates.len()).is_some()
    };
    let judged: Vec<JudgedComparison> = match seen.iter().any(saves) {
        true => pair_rules::ask_some_pairs(oracle, &seen, settings, progress)?,
        false => {
            let judged = ask_all_pairs(oracle, &seen, settings, progress)?;
            judged.into_iter().map(JudgedComparison::from).collect()
        }
    };
    let pairs = judged.into_iter().zip(&seen);
    pairs.map(|(judged, seen)| adjust::adjust(judged, seen, settings, draw)).collect()
}

fn ask_all_pairs(
    oracle: &mut dyn Oracle,
    seen: &[Comparison<'_>],
    settings: &PreferenceSettings,
    progress: &dyn Progress,
) -> Result<Vec<Preferences>> {
    let PreferenceSettings { estimator, bradley_terry_temperature, .. } = *settings;
    Ok(win_rate::ask(oracle, seen, estimator, bradley_terry_temperature, progress)?)
}

/// The comparisons as the oracle sees them.
#[must_use]
pub fn as_seen<'a>(comparisons: &'a [Comparison<'_>], view: OracleView) -> Vec<Comparison<'a>> {
    match view {
        OracleView::Everything => comparisons.iter().map(lent).collect(),
        OracleView::Answer => {
            warn_of_open_thoughts(comparisons);
            comparisons.iter().map(without_thoughts_of).collect()
        }
    }
}

fn lent<'a>(comparison: &'a Comparison<'_>) -> Comparison<'a> {
    Comparison {
        prompt: comparison.prompt[..].into(),
        rendered_prompt: comparison.rendered_prompt.as_deref().map(Cow::Borrowed),
        candidates: comparison.candidates[..].into(),
    }
}

/// The comparison without the thoughts of its answers, and of the model's earlier turns.
fn without_thoughts_of<'a>(comparison: &'a Comparison<'_>) -> Comparison<'a> {
    let turn = |message: &'a Message<'_>| Message {
        role: Cow::Borrowed(&*message.role),
        content: match &*message.role {
            "assistant" => answer_in(thought::without_thought(&message.content)),
            _ => Cow::Borrowed(&*message.content),
        },
    };
    let candidate = |candidate: &'a Candidate<'_>| Candidate {
        text: answer_in(thought_of(comparison, candidate)),
        ..candidate.clone()
    };
    Comparison {
        prompt: comparison.prompt.iter().map(turn).collect(),
        rendered_prompt: comparison.rendered_prompt.as_deref().map(Cow::Borrowed),
        candidates: comparison.candidates.iter().map(candidate).collect(),
    }
}

fn thought_of<'a>(comparison: &Comparison<'_>, candidate: &'a Candidate<'_>) -> Thought<'a> {
    let prompt = comparison.rendered_prompt.as_deref().unwrap_or_default();
    thought::without_thought_after(prompt, &candidate.text)
}

fn answer_in(thought: Thought<'_>) -> Cow<'_, str> {
    match thought {
        Thought::Absent(text) => Cow::Borrowed(text),
        Thought::Closed(answer) => answer,
        Thought::Open => Cow::Borrowed(""),
    }
}

fn warn_of_open_thoughts(comparisons: &[Comparison<'_>]) {
    let answers =
        || comparisons.iter().flat_map(|one| one.candidates.iter().map(move |of| (one, of)));
    let open = answers().filter(|(one, of)| thought_of(one, of) == Thought::Open).count();
    if open > 0 {
        tracing::warn!(
            "{open} of {} answers end within their thought and are judged as empty; raise \
             sampling.max_new_tokens, or switch thinking off with template_variables",
            answers().count()
        );
    }
}

/// Differences of scores below this are rounding.
pub(crate) const ROUNDING: f64 = 1e-9;

/// A warning, if the oracle tells none of different candidates apart on any of several comparisons (or on one
/// of three candidates and more): nothing can be learned from that.
#[must_use]
pub fn without_signal(
    comparisons: &[Comparison<'_>],
    judged: &[JudgedComparison],
) -> Option<String> {
    let differ = |comparison: &Comparison<'_>| {
        comparison.candidates.iter().any(|one| one.text != comparison.candidates[0].text)
    };
    let asked: Vec<&Preferences> = comparisons
        .iter()
        .zip(judged)
        .filter(|(comparison, _)| differ(comparison))
        .map(|(_, judged)| &judged.preferences)
        .collect();
    let are_equal = |Preferences { scores, .. }: &&Preferences| {
        scores.iter().all(|score| (score - scores[0]).abs() < ROUNDING)
    };
    let enough = asked.len() > 1 || asked.iter().any(|one| one.scores.len() > 2);
    (enough && asked.iter().all(are_equal)).then(|| {
        format!(
            "the oracle calls all answers to each of {} prompts equal, different as they are: nothing can be \
             learned from that; see whether it gets the answers and how its scores are made",
            asked.len()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::{PluginError, SilentHost, Verdict};
    use crate::win_rate::WinRateEstimator;

    /// Remembers what it is shown.
    #[derive(Default)]
    struct Witness(Vec<String>);

    impl Oracle for Witness {
        fn preferences(
            &mut self,
            comparisons: &[Comparison<'_>],
            _progress: &dyn Progress,
        ) -> std::result::Result<Vec<Verdict>, PluginError> {
            for comparison in comparisons {
                self.0.extend(comparison.prompt.iter().map(|turn| turn.content.to_string()));
                self.0.extend(comparison.candidates.iter().map(|one| one.text.to_string()));
            }
            Ok(comparisons
                .iter()
                .map(|one| Verdict::Scores(vec![0.0; one.candidates.len()]))
                .collect())
        }
    }

    fn seen(
        rendered_prompt: Option<&str>,
        answers: &[&str],
        oracle_sees: OracleView,
    ) -> Vec<String> {
        let history = [
            Message::user("Question"),
            Message::assistant("<think>hm</think>Once"),
            Message::user("Again"),
        ];
        let comparison = Comparison {
            prompt: history.to_vec().into(),
            rendered_prompt: rendered_prompt.map(Cow::Borrowed),
            candidates: answers.iter().map(|text| Candidate::from_text(*text)).collect(),
        };
        let settings = PreferenceSettings { oracle_sees, ..PreferenceSettings::default() };
        let mut witness = Witness::default();
        judge(&mut witness, &[comparison], &settings, &SilentHost).unwrap();
        witness.0
    }

    #[test]
    fn a_thought_is_judged_only_where_that_is_asked_for() {
        let answers = [
            "<think>A long thought</think>\n\nFour",
            "[THINK]so[/THINK]Four",
            "Four",
            "<think>cut",
        ];
        let expected = ["Question", "Once", "Again", "Four", "Four", "Four", ""];
        assert_eq!(seen(None, &answers, OracleView::Answer), expected);
        let everything = seen(None, &answers, OracleView::Everything);
        assert_eq!(everything[1], "<think>hm</think>Once");
        assert_eq!(everything[3..], answers);
    }

    #[test]
    fn a_thought_that_the_prompt_opened_is_none_of_the_answer() {
        let answers = ["so</think>Four", "cut off before its end"];
        let judged = seen(Some("<|im_start|>assistant\n<think>\n"), &answers, OracleView::Answer);
        assert_eq!(judged[3..], ["Four", ""]);
        let closed = seen(Some("<think>\n\n</think>\n\n"), &["Four", "4"], OracleView::Answer);
        assert_eq!(closed[3..], ["Four", "4"]);
    }

    #[test]
    fn an_oracle_that_tells_nothing_apart_is_found_out() {
        let comparison = |texts: &[&'static str]| Comparison {
            prompt: [Message::user("?")].into(),
            rendered_prompt: None,
            candidates: texts.iter().map(|text| Candidate::from_text(*text)).collect(),
        };
        let warned = |all: &[(&[&'static str], Vec<f64>)]| {
            let comparisons: Vec<_> = all.iter().map(|(texts, _)| comparison(texts)).collect();
            let of = |scores: &Vec<f64>| {
                let verdict = Verdict::Scores(scores.clone());
                let estimator = WinRateEstimator::default();
                win_rate::judge(verdict, scores.len(), estimator, 1.0).unwrap().into()
            };
            let judged: Vec<JudgedComparison> = all.iter().map(|(_, scores)| of(scores)).collect();
            without_signal(&comparisons, &judged).is_some()
        };
        assert!(warned(&[(&["a", "b"], vec![1.0, 1.0]), (&["c", "d"], vec![2.0, 2.0])]));
        assert!(warned(&[(&["a", "b", "c"], vec![0.0; 3])]));
        assert!(!warned(&[(&["a", "b"], vec![1.0, 1.0])]), "one pair may be a tie");
        assert!(!warned(&[(&["a", "a", "a"], vec![1.0; 3])]), "they read the same");
        assert!(!warned(&[(&["a", "b"], vec![1.0, 1.0]), (&["c", "d"], vec![2.0, 2.1])]));
        assert!(!warned(&[]));
    }
}
