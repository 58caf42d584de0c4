//! Win rate at equal length, as in AlpacaEval 2 (Dubois et al., *Length-controlled AlpacaEval*, 2024).
//!
//! A judge may prefer longer answers, and a model may learn to write them. The win rates of pairs of answers
//! are regressed on their difference in length,
//!
//! ```text
//! logit P(first beats second) = a + b tanh(d / s)
//! ```
//!
//! where `d` is the length of the first minus that of the second, and `s` the standard deviation of all `d`
//! (divided by n - 1). The length-controlled win rate is what the regression predicts at `d = 0`:
//! `1 / (1 + exp(-a))`. Differences from AlpacaEval 2:
//!
//! - there is no term for the difficulty of the instruction, which needs the answers of many models;
//! - there are no made-up answers of a model that games the length;
//! - `b` has the penalty `LENGTH_PENALTY b^2 / 2` instead of an L1 penalty found by cross-validation.
//!
//! The penalty keeps `b` finite where length alone decides who wins, and matters little elsewhere. Where one
//! side wins everything, the length-controlled win rate is 1 or 0, as the win rate is.

use super::bootstrap::{Bootstrap, Interval};
use super::duels::{Duel, Duels, crossed};
use super::logistic::{LogisticData, logistic_regression, sigmoid};

/// Penalty on the slope of length: that of a normal prior with a standard deviation of 10 in log-odds.
pub const LENGTH_PENALTY: f64 = 0.01;

/// Win rates that are this close to 0 or 1 have no finite log-odds worth fitting.
const CERTAINTY: f64 = 1e-9;

/// The win rate of the first model at equal length, with its interval. All resamples have the standard
/// deviation of the whole sample.
pub(super) fn win_rate_at_equal_length(duels: &Duels, bootstrap: &Bootstrap) -> Option<Interval> {
    let differences: Vec<f64> = duels
        .map(|duels| duels.iter().map(|duel| duel.length_difference).collect::<Vec<_>>())
        .concat()
        .concat();
    let first = differences.first()?;
    if *first != 0.0 && differences.iter().all(|difference| difference == first) {
        return None;
    }
    let scale = standard_deviation(&differences);
    let rows = duels.map(|duels| rows(duels, scale));
    Some(bootstrap.interval(duels.counts(), |drawn| at_equal_length(crossed(&rows, &drawn))))
}

/// The rows of one prompt.
fn rows(duels: &[Duel], scale: f64) -> LogisticData {
    let mut data = LogisticData::new(2);
    for duel in duels {
        let standardised = if scale > 0.0 { duel.length_difference / scale } else { 0.0 };
        data.push(&[1.0, standardised.tanh()], duel.win_rate, 1.0 / duels.len() as f64);
    }
    data
}

fn at_equal_length<'a>(prompts: impl Iterator<Item = &'a LogisticData>) -> f64 {
    let mut data = LogisticData::new(2);
    prompts.for_each(|prompt| data.extend(prompt));
    let win_rate = data.mean_label();
    if !(CERTAINTY..=1.0 - CERTAINTY).contains(&win_rate) {
        return win_rate;
    }
    // With the penalty there is a maximum wherever the win rate is not certain.
    logistic_regression(&data, &[0.0, LENGTH_PENALTY]).map_or(win_rate, |fit| sigmoid(fit[0]))
}

/// Divided by n - 1; 0 for fewer than two values.
fn standard_deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (count - 1.0).max(1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden::golden;

    const BOOTSTRAP: Bootstrap = Bootstrap { resamples: 500, confidence: 0.9, seed: 1 };

    fn rate(duels: Vec<Vec<Duel>>) -> Option<Interval> {
        Duels::new(vec![duels]).unwrap().length_controlled_win_rate(&BOOTSTRAP)
    }

    fn rate_of(pairs: &[(f64, f64)]) -> Option<Interval> {
        let alone = |&(win_rate, length_difference)| vec![Duel { win_rate, length_difference }];
        rate(pairs.iter().map(alone).collect())
    }

    #[test]
    fn it_agrees_with_scipy_and_statsmodels() {
        let duel = |&[win_rate, length_difference]: &[f64; 2]| Duel { win_rate, length_difference };
        for case in golden().length_controlled {
            let prompts = case.duels.iter().map(|prompt| prompt.iter().map(duel).collect());
            let rate = rate(prompts.collect()).unwrap().mean;
            let expected = case.win_rate;
            assert!((rate - expected).abs() < 1e-9, "{}: {rate}, not {expected}", case.name);
        }
    }

    #[test]
    fn at_equal_lengths_it_is_the_win_rate() {
        let interval = rate_of(&[(0.9, 0.0), (0.2, 0.0), (1.0, 0.0)]).unwrap();
        assert!((interval.mean - 0.7).abs() < 1e-12);
        assert!(interval.low < 0.7 && interval.high > 0.7);
    }

    #[test]
    fn a_judge_of_length_alone_calls_no_model_better() {
        // The first model writes longer answers, and whatever is longer wins.
        let pairs: Vec<(f64, f64)> = (-20..60)
            .filter(|difference| *difference != 0)
            .map(|difference| (f64::from(u8::from(difference > 0)), f64::from(difference)))
            .collect();
        let interval = rate_of(&pairs).unwrap();
        assert!((interval.mean - 0.5).abs() < 0.1, "{interval:?}");
        assert!(interval.low.is_finite() && interval.high.is_finite());
    }

    #[test]
    fn certain_wins_stay_certain_and_one_difference_tells_nothing() {
        let rate = |pairs: &[(f64, f64)]| rate_of(pairs).map(|interval| interval.mean);
        assert_eq!(rate(&[(1.0, 3.0), (1.0, -8.0)]), Some(1.0));
        assert_eq!(rate(&[(0.0, 3.0), (0.0, -8.0)]), Some(0.0));
        assert_eq!(rate(&[(0.3, 5.0), (0.6, 5.0)]), None);
    }
}
