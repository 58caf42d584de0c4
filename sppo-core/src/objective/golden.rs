//! Numbers of a second implementation, made by `tests/python/make_objectives.py`.

use serde::Deserialize;

use super::Objective;
use crate::target::{Baseline, TargetMeasure};

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) targets: Vec<TargetCase>,
    pub(crate) earlier_policies: Vec<EarlierCase>,
}

/// Targets of all K responses to a prompt.
#[derive(Debug, Deserialize)]
pub(crate) struct TargetCase {
    pub(crate) size: usize,
    pub(crate) probability: Vec<Vec<f64>>,
    pub(crate) measure: TargetMeasure,
    pub(crate) baseline: Baseline,
    pub(crate) score_limit: f64,
    pub(crate) eta: f64,
    pub(crate) targets: Vec<f64>,
}

/// A pair under an objective of earlier policies.
#[derive(Debug, Deserialize)]
pub(crate) struct EarlierCase {
    pub(crate) objective: Objective,
    pub(crate) eta: f64,
    pub(crate) reference_share: f64,
    pub(crate) weights: Vec<f64>,
    /// The better response, then the worse one.
    pub(crate) responses: Vec<EarlierResponse>,
    pub(crate) loss: f64,
    /// `d loss / d log_prob` of each response.
    pub(crate) derivative: Vec<f64>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct EarlierResponse {
    pub(crate) log_prob: f64,
    pub(crate) starting_log_prob: f64,
    /// Under the current policy, then under those before it.
    pub(crate) earlier_log_probs: Vec<f64>,
}

pub(crate) fn golden() -> Golden {
    let text = include_str!("../../../tests/fixtures/objectives.json");
    serde_json::from_str(text).unwrap()
}

/// Whether numbers agree but for rounding.
pub(crate) fn near(found: &[f64], expected: &[f64]) -> bool {
    let pairs = found.iter().zip(expected);
    found.len() == expected.len()
        && pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-9 * (1.0 + b.abs()))
}
