//! Numbers of scipy and statsmodels, made by `tests/python/make_statistics.py`.

use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Golden {
    pub(super) logistic: Vec<LogisticCase>,
    pub(super) length_controlled: Vec<LengthCase>,
    pub(super) bradley_terry: Vec<RankingCase>,
}

/// Without penalty.
#[derive(Deserialize)]
pub(super) struct LogisticCase {
    pub(super) features: Vec<Vec<f64>>,
    pub(super) labels: Vec<f64>,
    pub(super) weights: Vec<f64>,
    pub(super) coefficients: Vec<f64>,
}

#[derive(Deserialize)]
pub(super) struct LengthCase {
    pub(super) name: String,
    /// Of each prompt, win rate and length difference.
    pub(super) duels: Vec<Vec<[f64; 2]>>,
    pub(super) win_rate: f64,
}

#[derive(Deserialize)]
pub(super) struct RankingCase {
    pub(super) name: String,
    pub(super) wins: Vec<Vec<f64>>,
    pub(super) penalty: f64,
    pub(super) strengths: Vec<f64>,
}

pub(super) fn golden() -> Golden {
    let text = include_str!("../../../tests/fixtures/statistics.json");
    serde_json::from_str(text).unwrap()
}
