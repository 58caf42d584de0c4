//! The terms of the loss: log-probabilities paired with references, targets, and anchors.

use std::borrow::Borrow;

use super::TrainingSettings;
use crate::error::{Error, Result};
use crate::objective::{ExampleTerms, Objective, ResponseTerm};
use crate::plugin::PluginError;
use crate::records::{TrainingExample, TrainingResponse};

/// Refuses examples that lack what the settings ask for, before the first step.
///
/// # Errors
/// Names the first prompt that lacks something, and what.
pub(super) fn require_terms(
    examples: &[TrainingExample],
    settings: &TrainingSettings,
) -> Result<()> {
    for example in examples {
        let log_probs = vec![0.0; example.responses.len()];
        example_terms(std::slice::from_ref(example), &log_probs, settings)?;
    }
    Ok(())
}

/// Pairs each response's log-probability with its reference, its target and its anchor.
///
/// # Errors
/// When an example lacks one of them.
pub(super) fn example_terms<E: Borrow<TrainingExample>>(
    part: &[E],
    log_probs: &[f64],
    settings: &TrainingSettings,
) -> Result<Vec<ExampleTerms>> {
    let mut log_probs = log_probs.iter();
    part.iter()
        .map(|example| {
            let example = example.borrow();
            let advantages = advantages(example, settings)?;
            let responses = example
                .responses
                .iter()
                .zip(advantages)
                .zip(log_probs.by_ref())
                .map(|((response, advantage), &log_prob)| {
                    let reference_log_prob = response.reference_log_prob.ok_or_else(|| {
                        PluginError::failed(format!(
                            "prompt {} has no reference log-probability yet",
                            example.prompt_id
                        ))
                    })?;
                    let anchor_log_prob = anchor(response, reference_log_prob, settings);
                    Ok(ResponseTerm { log_prob, reference_log_prob, advantage, anchor_log_prob })
                })
                .collect::<Result<Vec<_>>>()?;
            Ok(ExampleTerms { responses, chosen_probability: example.chosen_probability })
        })
        .collect()
}

/// Worth of each response; that of objectives which do not look at it is that of the win rates.
fn advantages(example: &TrainingExample, settings: &TrainingSettings) -> Result<Vec<f64>> {
    settings.targets().advantages(example).map_err(|error| {
        Error::configuration("training.target", error.to_string()).with_hint(
            "train on the training set of a run with the same `training.target` and `training.baseline`, or \
             leave both out",
        )
    })
}

/// Log-probability of a response under the policies that the objective stays near to; `None` where it needs
/// none, or it is not known.
fn anchor(response: &TrainingResponse, reference: f64, settings: &TrainingSettings) -> Option<f64> {
    if !settings.objective.requires().anchor {
        return None;
    }
    let starting = response.starting_log_prob?;
    let mut policies = vec![reference];
    let weights = settings.weights_of_earlier();
    if settings.objective == Objective::Mnpo {
        policies.extend(response.earlier_log_probs.iter().flatten());
    }
    Some(anchor_log_prob(starting, &policies, settings.reference_share, weights))
}

/// `r log pi_1 + (1 - r) sum_j w_j log pi_{t-j} / sum_j w_j`, over the policies that are there.
#[must_use]
pub(crate) fn anchor_log_prob(
    starting: f64,
    policies: &[f64],
    reference_share: f64,
    weights: &[f64],
) -> f64 {
    let known = || policies.iter().zip(weights);
    let total: f64 = known().map(|(_, weight)| weight).sum();
    let mean: f64 = known().map(|(log_prob, weight)| weight / total * log_prob).sum();
    reference_share * starting + (1.0 - reference_share) * mean
}
