//! Ranking of several players by the model of Bradley and Terry (1952): the probability that `i` beats `j` is
//! `1 / (1 + exp(strength_j - strength_i))`.

use super::logistic::{LogisticData, logistic_regression};

/// Penalty on every strength: that of a normal prior with a standard deviation of 10 in log-odds. It keeps
/// the strength of a player finite that wins or loses everything, and matters little elsewhere.
pub const STRENGTH_PENALTY: f64 = 0.01;

/// The strengths that maximise the likelihood of `wins`, less `penalty / 2` times their sum of squares, in
/// log-odds; their mean is 0. `wins[i][j]` counts how often `i` beat `j`, parts of a win included.
///
/// `None` when there is no maximum: never with a penalty above 0, and without one when some players have won
/// all their games against the others, or played none.
#[must_use]
pub fn bradley_terry(wins: &[Vec<f64>], penalty: f64) -> Option<Vec<f64>> {
    let players = wins.len();
    // Only differences of strengths matter, so without a penalty the last one is the others' reference.
    let free = if penalty > 0.0 { players } else { players.saturating_sub(1) };
    let mut data = LogisticData::new(free);
    for first in 0..players {
        for second in first + 1..players {
            let games = wins[first][second] + wins[second][first];
            if games > 0.0 {
                let mut row = vec![0.0; players];
                (row[first], row[second]) = (1.0, -1.0);
                data.push(&row[..free], wins[first][second] / games, games);
            }
        }
    }
    let mut strengths = logistic_regression(&data, &vec![penalty; free])?;
    strengths.resize(players, 0.0);
    let mean = strengths.iter().sum::<f64>() / players.max(1) as f64;
    strengths.iter_mut().for_each(|strength| *strength -= mean);
    Some(strengths)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::golden::golden;

    #[test]
    fn it_agrees_with_scipy_and_statsmodels() {
        for case in golden().bradley_terry {
            let strengths = bradley_terry(&case.wins, case.penalty).unwrap();
            for (ours, theirs) in strengths.iter().zip(&case.strengths) {
                assert!(
                    (ours - theirs).abs() < 1e-8,
                    "{}: {strengths:?}, not {:?}",
                    case.name,
                    case.strengths
                );
            }
        }
    }

    #[test]
    fn who_always_wins_is_ranked_first_by_a_finite_distance() {
        let wins = vec![vec![0.0, 8.0, 8.0], vec![0.0, 0.0, 5.0], vec![0.0, 3.0, 0.0]];
        let strengths = bradley_terry(&wins, STRENGTH_PENALTY).unwrap();
        assert!(strengths[0] > strengths[1] && strengths[1] > strengths[2], "{strengths:?}");
        assert!(strengths[0] < 10.0, "{strengths:?}");
        assert_eq!(bradley_terry(&wins, 0.0), None);
    }
}
