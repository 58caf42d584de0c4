//! From the answers about single responses to a verdict on all of them.

use sppo_plugin::Verdict;
use sppo_plugin::pairwise;

/// The meaning of the answers about each response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Combination {
    /// Scores, of which the mean counts.
    Mean,
    /// Probabilities that the response meets a criterion, with the weight of each criterion.
    Criteria(Vec<f64>),
}

/// A verdict on all responses, and the answers that it does without.
#[derive(Debug, PartialEq)]
pub(crate) struct Combined {
    pub(crate) verdict: Verdict,
    /// Whether an answer is missing that no other stands in for.
    pub(crate) is_undecided: bool,
}

impl Combination {
    /// The verdict that `answers` make: a list for each response, with an entry for each variant, `None` where the
    /// answer is invalid. A variant counts only where every response has an answer, so that none is compared with
    /// another by other questions.
    pub(crate) fn verdict(&self, answers: &[Vec<Option<f64>>]) -> Combined {
        let variants = answers.first().map_or(0, Vec::len);
        let is_whole = |variant: &usize| answers.iter().all(|one| one[*variant].is_some());
        let whole: Vec<usize> = (0..variants).filter(is_whole).collect();
        let value =
            |response: usize, variant: usize| answers[response][variant].unwrap_or_default();
        match self {
            Self::Mean => {
                let mean = |response| {
                    let values = whole.iter().map(|variant| value(response, *variant));
                    values.sum::<f64>() / whole.len().max(1) as f64
                };
                Combined {
                    verdict: Verdict::Scores((0..answers.len()).map(mean).collect()),
                    is_undecided: whole.is_empty(),
                }
            }
            Self::Criteria(weights) => {
                let met = |response| {
                    let values = whole.iter().map(|variant| (weights[*variant], *variant));
                    values.map(|(weight, variant)| weight * value(response, variant)).sum::<f64>()
                };
                let total: f64 = weights.iter().map(|weight| weight.abs()).sum();
                let met: Vec<f64> = (0..answers.len()).map(met).collect();
                let better = |first: usize, second: usize| {
                    Some((0.5 + (met[first] - met[second]) / (2.0 * total)).clamp(0.0, 1.0))
                };
                Combined {
                    verdict: Verdict::Probabilities(
                        pairwise::probabilities(answers.len(), better).values,
                    ),
                    is_undecided: whole.len() < variants,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(answers: &[&[f64]]) -> Vec<Vec<Option<f64>>> {
        answers.iter().map(|one| one.iter().copied().map(Some).collect()).collect()
    }

    #[test]
    fn criteria_are_as_good_as_a_draw_of_one_of_them() {
        let answers = known(&[&[0.9, 0.2, 0.5], &[0.3, 0.6, 0.5]]);
        let weights = [3.0, 1.0, -2.0];
        let Combined { verdict, is_undecided } =
            Combination::Criteria(weights.into()).verdict(&answers);
        let Verdict::Probabilities(matrix) = verdict else { panic!("{verdict:?}") };
        // A criterion is drawn by its weight; the response that alone meets it wins, and else a coin decides.
        let wins = |a: f64, b: f64| a * (1.0 - b) + 0.5 * (a * b + (1.0 - a) * (1.0 - b));
        let drawn = (3.0 * wins(0.9, 0.3) + wins(0.2, 0.6) + 2.0 * wins(0.5, 0.5)) / 6.0;
        assert!((matrix[1] - drawn).abs() < 1e-12, "{matrix:?}, not {drawn}");
        assert!((matrix[1] + matrix[2] - 1.0).abs() < 1e-12 && matrix[0] == 0.5);
        assert!(!is_undecided);
        // To meet all that is good and nothing that is bad is certain to win against the opposite.
        let best = known(&[&[1.0, 1.0, 0.0], &[0.0, 0.0, 1.0]]);
        let Combined { verdict, .. } = Combination::Criteria(weights.into()).verdict(&best);
        assert_eq!(verdict, Verdict::Probabilities(vec![0.5, 1.0, 0.0, 0.5]));
    }

    #[test]
    fn an_answer_that_is_missing_takes_its_variant_with_it() {
        let mut answers = known(&[&[1.0, 0.8], &[0.0, 0.4]]);
        answers[1][0] = None;
        let Combined { verdict, is_undecided } = Combination::Mean.verdict(&answers);
        assert_eq!((verdict, is_undecided), (Verdict::Scores(vec![0.8, 0.4]), false));
        let Combined { verdict, is_undecided } =
            Combination::Criteria(vec![1.0, 1.0]).verdict(&answers);
        let Verdict::Probabilities(matrix) = verdict else { panic!("{verdict:?}") };
        assert!((matrix[1] - 0.6).abs() < 1e-12 && is_undecided);
        answers[0][1] = None;
        assert!(Combination::Mean.verdict(&answers).is_undecided);
    }
}
