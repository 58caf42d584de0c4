//! Every training objective as a pure function of log-probabilities, with its derivative.
//!
//! Notation, per example: `lw = log pi(y_w|x) - log pi_t(y_w|x)` for the chosen response, `ll` for the
//! rejected one, `h = lw - ll`, `beta = 1 / eta`, and `P` an estimated win rate. Names and formulas
//! are those of the released trainer (`sppo/trainer.py` of uclaml/SPPO), checked against it. All
//! log-probabilities are summed over tokens, and the batch loss is the mean over its terms.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::preference::sigmoid;

/// The losses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// `1/2 [(lw - eta (P_w - 1/2))^2 + (ll - eta (P_l - 1/2))^2]`: equation 4.7 on the best and the
    /// worst response. Each response has its own target: its win rate's distance from 1/2.
    #[default]
    Sppo,
    /// `1/2 [(lw - eta (P - 1/2))^2 + (ll + eta (P - 1/2))^2]`, `P` the chosen response's
    /// probability of beating the rejected one.
    SppoSingle,
    /// `(lw - eta/2)^2 + (ll + eta/2)^2`: a certain win and a certain loss, as TRL's `sppo_hard`.
    SppoHard,
    /// `-log sigmoid(beta h)`, with label smoothing (DPO, arXiv 2305.18290; officially `sigmoid`).
    Dpo,
    /// `(h - 1 / (2 beta))^2` (IPO, arXiv 2310.12036), on summed log-probabilities.
    Ipo,
    /// `max(0, 1 - beta h)` (SLiC, arXiv 2305.10425).
    Hinge,
    /// `1 - sigmoid(beta (lw - max(0, mean ll)))` and `1 - sigmoid(beta (max(0, mean lw) - ll))`, the
    /// means over the batch (KTO, arXiv 2402.01306, on pairs).
    KtoPair,
    /// `1/2 sum_k (l_k - eta (P_k - 1/2))^2` over all K responses: Algorithm 1 as written. With two
    /// responses it is [`Self::Sppo`].
    SppoAll,
    /// `(h_pi - r h_1 - (1 - r) h_t - eta / 2)^2` (INPO, arXiv 2407.00617), where `h_pi`, `h_1` and `h_t` are the
    /// differences of the two responses' log-probabilities under the policy, the starting model and the current
    /// policy, and `r` is `training.reference_share`. In the first iteration it is [`Self::Ipo`].
    Inpo,
    /// As [`Self::Inpo`], with several earlier policies in place of the current one alone, weighted by
    /// `training.history_weights` (MNPO, arXiv 2509.23102; `mnpo_trainer.py` of smiles724/MNPO).
    Mnpo,
}

impl Objective {
    /// Inputs that the loss needs.
    #[must_use]
    pub fn requires(self) -> Requirements {
        let pair = Requirements {
            responses: Some(2),
            win_rates: false,
            chosen_probability: false,
            anchor: false,
            whole_batch: false,
        };
        match self {
            Self::Sppo => Requirements { win_rates: true, ..pair },
            Self::SppoSingle => Requirements { chosen_probability: true, ..pair },
            Self::SppoHard | Self::Dpo | Self::Ipo | Self::Hinge => pair,
            Self::Inpo | Self::Mnpo => Requirements { anchor: true, ..pair },
            Self::KtoPair => Requirements { whole_batch: true, ..pair },
            Self::SppoAll => Requirements { responses: None, win_rates: true, ..pair },
        }
    }
}

/// The name in the configuration.
impl fmt::Display for Objective {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(formatter)
    }
}

/// Inputs that an objective needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requirements {
    /// Responses of each example; `None` for any number.
    pub responses: Option<usize>,
    /// Whether it reads [`ResponseTerm::advantage`].
    pub win_rates: bool,
    /// Whether it reads [`ExampleTerms::chosen_probability`].
    pub chosen_probability: bool,
    /// Whether it reads [`ResponseTerm::anchor_log_prob`].
    pub anchor: bool,
    /// Whether an example's loss depends on the rest of its batch.
    pub whole_batch: bool,
}

/// A loss and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObjectiveSettings {
    /// The loss.
    pub objective: Objective,
    /// Scale of the targets of log-ratios; `beta = 1 / eta`.
    pub eta: f64,
    /// Share of labels assumed to be wrong, in `[0, 1/2)`; only [`Objective::Dpo`] uses it.
    pub label_smoothing: f64,
}

impl Default for ObjectiveSettings {
    fn default() -> Self {
        Self { objective: Objective::default(), eta: 1000.0, label_smoothing: 0.0 }
    }
}

/// Inputs of the loss for one response.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResponseTerm {
    /// `log pi(y|x)`, summed over the response's tokens.
    pub log_prob: f64,
    /// `log pi_t(y|x)`.
    pub reference_log_prob: f64,
    /// Worth of the response: `P(y > pi_t | x) - 1/2`, or what [`crate::target`] puts in its place.
    pub advantage: f64,
    /// Weighted mean of the log-probabilities under the policies that [`Objective::Inpo`] and
    /// [`Objective::Mnpo`] stay near to.
    pub anchor_log_prob: Option<f64>,
}

impl ResponseTerm {
    /// `log pi(y|x) - log pi_t(y|x)`.
    #[must_use]
    pub fn log_ratio(&self) -> f64 {
        self.log_prob - self.reference_log_prob
    }
}

/// Inputs of the loss for one prompt: `[chosen, rejected]`, or all K responses.
#[derive(Clone, Debug, PartialEq)]
pub struct ExampleTerms {
    /// The responses.
    pub responses: Vec<ResponseTerm>,
    /// `P(chosen beats rejected)`.
    pub chosen_probability: Option<f64>,
}

/// A batch's loss and the derivative of its mean.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchLoss {
    /// The terms: one per example; under [`Objective::KtoPair`] all chosen, then all rejected.
    pub losses: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// `d mean / d log_prob` of each response of each example.
    pub coefficients: Vec<Vec<f64>>,
}

/// A batch that does not fit its objective.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectiveError {
    /// The objective compares two responses and the example has another number.
    #[error("`{objective}` needs two answers per prompt, example {example} has {found}")]
    NotAPair {
        /// The objective.
        objective: Objective,
        /// Its index in the batch.
        example: usize,
        /// Number of its responses.
        found: usize,
    },
    /// The objective needs the probability that the chosen response beats the rejected one.
    #[error(
        "sppo_single needs the chosen answer's probability (`chosen_probs`), example {example} has none"
    )]
    NoChosenProbability {
        /// Its index in the batch.
        example: usize,
    },
    /// The objective needs the log-probabilities under earlier policies.
    #[error(
        "`{objective}` needs the log-probabilities under earlier policies, example {example} has none"
    )]
    NoAnchor {
        /// The objective.
        objective: Objective,
        /// Its index in the batch.
        example: usize,
    },
}

/// The loss of a batch and its derivative.
///
/// # Errors
/// When the examples do not fit the objective.
pub fn evaluate(
    settings: &ObjectiveSettings,
    examples: &[ExampleTerms],
) -> Result<BatchLoss, ObjectiveError> {
    if settings.objective.requires().whole_batch {
        return kto_pair(settings, examples);
    }
    let mut losses = Vec::with_capacity(examples.len());
    let mut coefficients = Vec::with_capacity(examples.len());
    for (index, example) in examples.iter().enumerate() {
        let (loss, derivatives) = example_loss(settings, index, example)?;
        losses.push(loss);
        coefficients.push(derivatives.iter().map(|value| value / examples.len() as f64).collect());
    }
    let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    Ok(BatchLoss { losses, mean, coefficients })
}

/// One example's loss and its derivative with respect to each log-probability.
fn example_loss(
    settings: &ObjectiveSettings,
    index: usize,
    example: &ExampleTerms,
) -> Result<(f64, Vec<f64>), ObjectiveError> {
    let ObjectiveSettings { objective, eta, label_smoothing } = *settings;
    if objective == Objective::SppoAll {
        return Ok(toward_advantages(&example.responses, eta));
    }
    let pair = pair(objective, index, example)?;
    let h = pair[0].log_ratio() - pair[1].log_ratio();
    Ok(match objective {
        Objective::Sppo | Objective::SppoAll => toward_advantages(pair, eta),
        Objective::SppoSingle => {
            let probability = example
                .chosen_probability
                .ok_or(ObjectiveError::NoChosenProbability { example: index })?;
            let target = eta * (probability - 0.5);
            squared_distance(pair, [target, -target], 0.5)
        }
        Objective::SppoHard => squared_distance(pair, [0.5 * eta, -0.5 * eta], 1.0),
        Objective::Dpo => of_difference(dpo(h, 1.0 / eta, label_smoothing)),
        Objective::Ipo => of_difference(ipo(h, eta)),
        Objective::Hinge => of_difference(hinge(h, 1.0 / eta)),
        Objective::Inpo | Objective::Mnpo => {
            let [chosen, rejected] = pair.map(|response| {
                let anchor = response.anchor_log_prob?;
                Some(response.log_prob - anchor)
            });
            let h = chosen.zip(rejected).map(|(chosen, rejected)| chosen - rejected);
            let h = h.ok_or(ObjectiveError::NoAnchor { objective, example: index })?;
            of_difference(ipo(h, eta))
        }
        Objective::KtoPair => {
            let alone = kto_pair(settings, std::slice::from_ref(example))?;
            (alone.mean, alone.coefficients.concat())
        }
    })
}

/// `1/2 sum_k (l_k - eta A_k)^2`, where `A_k` is `P_k - 1/2` or what stands in its place.
fn toward_advantages(responses: &[ResponseTerm], eta: f64) -> (f64, Vec<f64>) {
    let targets = responses.iter().map(|answer| eta * answer.advantage);
    squared_distance(responses, targets, 0.5)
}

/// `weight * sum_k (l_k - target_k)^2`.
fn squared_distance(
    responses: &[ResponseTerm],
    targets: impl IntoIterator<Item = f64>,
    weight: f64,
) -> (f64, Vec<f64>) {
    let distances: Vec<f64> =
        responses.iter().zip(targets).map(|(answer, target)| answer.log_ratio() - target).collect();
    let loss = weight * distances.iter().map(|distance| distance * distance).sum::<f64>();
    (loss, distances.iter().map(|distance| 2.0 * weight * distance).collect())
}

/// A loss of `h = lw - ll`, from its value and slope.
fn of_difference((loss, slope): (f64, f64)) -> (f64, Vec<f64>) {
    (loss, vec![slope, -slope])
}

fn dpo(h: f64, beta: f64, label_smoothing: f64) -> (f64, f64) {
    let loss = (1.0 - label_smoothing) * softplus(-beta * h) + label_smoothing * softplus(beta * h);
    let slope = beta * (sigmoid(beta * h) - (1.0 - label_smoothing));
    (loss, slope)
}

fn ipo(h: f64, eta: f64) -> (f64, f64) {
    let distance = h - 0.5 * eta;
    (distance * distance, 2.0 * distance)
}

fn hinge(h: f64, beta: f64) -> (f64, f64) {
    let margin = 1.0 - beta * h;
    if margin > 0.0 { (margin, -beta) } else { (0.0, 0.0) }
}

/// The batch means act as estimates of a KL divergence; the released code lets gradients through.
fn kto_pair(
    settings: &ObjectiveSettings,
    examples: &[ExampleTerms],
) -> Result<BatchLoss, ObjectiveError> {
    let beta = 1.0 / settings.eta;
    let ratios = examples
        .iter()
        .enumerate()
        .map(|(index, example)| {
            Ok(pair(settings.objective, index, example)?.map(|answer| answer.log_ratio()))
        })
        .collect::<Result<Vec<[f64; 2]>, ObjectiveError>>()?;
    let count = ratios.len().max(1) as f64;
    let mean = |side: usize| ratios.iter().map(|ratio| ratio[side]).sum::<f64>() / count;
    let (mean_chosen, mean_rejected) = (mean(0), mean(1));

    let chosen: Vec<f64> =
        ratios.iter().map(|[lw, _]| sigmoid(beta * (lw - mean_rejected.max(0.0)))).collect();
    let rejected: Vec<f64> =
        ratios.iter().map(|[_, ll]| sigmoid(beta * (mean_chosen.max(0.0) - ll))).collect();
    let slope = |value: f64| beta * value * (1.0 - value) / (2.0 * count);
    let through_mean = |mean: f64, values: &[f64]| match mean > 0.0 {
        true => values.iter().map(|value| slope(*value)).sum::<f64>() / count,
        false => 0.0,
    };
    let shared_chosen = through_mean(mean_chosen, &rejected);
    let shared_rejected = through_mean(mean_rejected, &chosen);
    let coefficients = chosen
        .iter()
        .zip(&rejected)
        .map(|(chosen, rejected)| {
            vec![-slope(*chosen) - shared_chosen, slope(*rejected) + shared_rejected]
        })
        .collect();
    let losses: Vec<f64> = chosen.iter().chain(&rejected).map(|value| 1.0 - value).collect();
    let mean = losses.iter().sum::<f64>() / losses.len().max(1) as f64;
    Ok(BatchLoss { losses, mean, coefficients })
}

fn pair(
    objective: Objective,
    index: usize,
    example: &ExampleTerms,
) -> Result<&[ResponseTerm; 2], ObjectiveError> {
    example.responses.as_slice().try_into().map_err(|_| ObjectiveError::NotAPair {
        objective,
        example: index,
        found: example.responses.len(),
    })
}

/// `log(1 + exp(x))`, which is `-log sigmoid(-x)`.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
pub(crate) mod golden;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Objective; 10] = [
        Objective::Sppo,
        Objective::SppoSingle,
        Objective::SppoHard,
        Objective::Dpo,
        Objective::Ipo,
        Objective::Hinge,
        Objective::KtoPair,
        Objective::SppoAll,
        Objective::Inpo,
        Objective::Mnpo,
    ];

    fn answer(log_prob: f64, reference_log_prob: f64, win_rate: f64) -> ResponseTerm {
        let anchor_log_prob = Some(0.75 * reference_log_prob - 3.0);
        ResponseTerm { log_prob, reference_log_prob, advantage: win_rate - 0.5, anchor_log_prob }
    }

    /// The released trainer's example, with the probabilities of the released ranking code.
    fn golden_example() -> ExampleTerms {
        ExampleTerms {
            responses: vec![
                answer(-120.5, -118.0, 0.8159178532813354),
                answer(-98.25, -101.75, 0.16712850423118186),
            ],
            chosen_probability: Some(0.9900481967153879),
        }
    }

    #[test]
    fn values_are_those_of_the_released_trainer() {
        let check = |objective, label_smoothing, expected: [&[f64]; 2]| {
            for (eta, expected) in [1000.0, 10.0].into_iter().zip(expected) {
                let settings = ObjectiveSettings { objective, eta, label_smoothing };
                let losses = evaluate(&settings, &[golden_example()]).unwrap().losses;
                for (loss, expected) in losses.iter().zip(expected) {
                    let error = (loss - expected).abs() / expected.abs();
                    assert!(error < 1e-12, "{objective:?} eta {eta}: {loss} is not {expected}");
                }
                assert_eq!(losses.len(), expected.len());
            }
        };
        check(Objective::Dpo, 0.0, [&[0.6961516805531953], &[1.0374879504858856]]);
        check(Objective::Dpo, 0.1, [&[0.6955516805531953], &[0.9774879504858855]]);
        check(Objective::Hinge, 0.0, [&[1.006], &[1.6]]);
        check(Objective::Ipo, 0.0, [&[256036.0], &[121.0]]);
        check(Objective::Sppo, 0.0, [&[107267.85622702303], &[39.32882481980489]]);
        check(Objective::SppoSingle, 0.0, [&[243096.77428429585], &[62.66761531332363]]);
        check(
            Objective::KtoPair,
            0.0,
            [&[0.5014999955000161, 0.500874999106772], &[0.6456563062257954, 0.58661757891733]],
        );
        check(Objective::SppoHard, 0.0, [&[506018.5], &[128.5]]);
    }

    #[test]
    fn the_exact_small_case() {
        let mut example = golden_example();
        example.responses[0].advantage = 0.375;
        example.responses[1].advantage = -0.25;
        let loss = evaluate(&ObjectiveSettings::default(), &[example]).unwrap();
        assert_eq!(loss.mean, 103384.25);
        assert_eq!(loss.coefficients, [[-377.5, 253.5]]);
    }

    #[test]
    fn all_answers_with_two_answers_is_sppo() {
        let of = |objective| {
            let settings = ObjectiveSettings { objective, ..ObjectiveSettings::default() };
            evaluate(&settings, &[golden_example()]).unwrap()
        };
        assert_eq!(of(Objective::SppoAll), of(Objective::Sppo));
    }

    #[test]
    fn unsuitable_examples_are_refused() {
        let mut example = golden_example();
        example.chosen_probability = None;
        let settings =
            ObjectiveSettings { objective: Objective::SppoSingle, ..ObjectiveSettings::default() };
        let error = evaluate(&settings, &[golden_example(), example.clone()]).unwrap_err();
        assert_eq!(error, ObjectiveError::NoChosenProbability { example: 1 });
        example.responses.push(example.responses[0]);
        let error = evaluate(&ObjectiveSettings::default(), &[example]).unwrap_err();
        assert!(matches!(error, ObjectiveError::NotAPair { found: 3, .. }));
    }

    /// Value and derivative of the second implementation, `tests/python/make_objectives.py`.
    #[test]
    fn inpo_and_mnpo_are_those_of_the_python_reference() {
        for case in golden::golden().earlier_policies {
            let anchors = case.responses.iter().map(|response| {
                let earlier = &response.earlier_log_probs;
                crate::stages::anchor_log_prob(
                    response.starting_log_prob,
                    earlier,
                    case.reference_share,
                    &case.weights,
                )
            });
            let terms = case.responses.iter().zip(anchors).map(|(response, anchor)| ResponseTerm {
                log_prob: response.log_prob,
                reference_log_prob: response.earlier_log_probs[0],
                advantage: 0.0,
                anchor_log_prob: Some(anchor),
            });
            let examples = [ExampleTerms { responses: terms.collect(), chosen_probability: None }];
            let settings = ObjectiveSettings {
                objective: case.objective,
                eta: case.eta,
                ..ObjectiveSettings::default()
            };
            let found = evaluate(&settings, &examples).unwrap();
            assert!(golden::near(&[found.mean], &[case.loss]), "{case:?}: {found:?}");
            assert!(golden::near(&found.coefficients[0], &case.derivative), "{case:?}: {found:?}");
        }
    }

    #[test]
    fn near_the_current_policy_alone_inpo_is_ipo() {
        let mut example = golden_example();
        for response in &mut example.responses {
            response.anchor_log_prob = Some(response.reference_log_prob);
        }
        let of = |objective| {
            let settings = ObjectiveSettings { objective, ..ObjectiveSettings::default() };
            evaluate(&settings, std::slice::from_ref(&example)).unwrap()
        };
        assert_eq!(of(Objective::Inpo), of(Objective::Ipo));
        example.responses[1].anchor_log_prob = None;
        let settings =
            ObjectiveSettings { objective: Objective::Mnpo, ..ObjectiveSettings::default() };
        let error = evaluate(&settings, &[example]).unwrap_err();
        assert_eq!(error, ObjectiveError::NoAnchor { objective: Objective::Mnpo, example: 0 });
    }

    fn examples() -> impl Strategy<Value = Vec<ExampleTerms>> {
        let answer = (-20.0..-1.0, -20.0..-1.0, 0.0..1.0)
            .prop_map(|(log_prob, reference, win_rate)| answer(log_prob, reference, win_rate));
        let example = (prop::array::uniform2(answer), 0.0..1.0).prop_map(|(pair, probability)| {
            ExampleTerms { responses: pair.to_vec(), chosen_probability: Some(probability) }
        });
        prop::collection::vec(example, 1..5)
    }

    proptest! {
        #[test]
        fn derivatives_agree_with_finite_differences(
            examples in examples(),
            which in 0..ALL.len(),
            eta in 0.5..50.0f64,
            label_smoothing in 0.0..0.4f64,
        ) {
            let settings = ObjectiveSettings { objective: ALL[which], eta, label_smoothing };
            let coefficients = evaluate(&settings, &examples).unwrap().coefficients;
            for (example, found) in coefficients.iter().enumerate() {
                for (response, &found) in found.iter().enumerate() {
                    let at = |shift: f64| {
                        let mut moved = examples.clone();
                        moved[example].responses[response].log_prob += shift;
                        evaluate(&settings, &moved).unwrap().mean
                    };
                    let step = 1e-5;
                    let (left, middle, right) = (at(-step), at(0.0), at(step));
                    let (before, after) = ((middle - left) / step, (right - middle) / step);
                    // At the kink of hinge and of the batch means, either side's slope will do.
                    let tolerance = 1e-4 * (1.0 + found.abs());
                    let (low, high) = (before.min(after), before.max(after));
                    prop_assert!(
                        found >= low - tolerance && found <= high + tolerance,
                        "{:?}: {found} is not in {low}..{high}", ALL[which]
                    );
                }
            }
        }
    }
}
