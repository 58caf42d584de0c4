//! Mixtures of experts: which experts a router's logits choose for each row, and with which weights.

use serde::{Deserialize, Serialize};

/// The way in which experts are chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routing {
    /// Experts that there are.
    pub expert_count: usize,
    /// Experts that each row goes through: those of the largest probabilities, of equal ones the first.
    pub chosen: usize,
    /// Whether the probabilities of the chosen experts are divided by their sum.
    pub is_normalised: bool,
}

/// The rows of a batch that go through an expert.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertRows {
    /// The expert.
    pub expert: usize,
    /// Its rows, ascending.
    pub rows: Vec<u32>,
    /// The weight of its output in each of these rows.
    pub weights: Vec<f32>,
}

/// Experts for the rows of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Routes {
    /// Experts with rows, ascending.
    pub experts: Vec<ExpertRows>,
    /// Rows of the batch.
    pub row_count: usize,
    routing: Routing,
    /// Softmax of the router's logits, `[row_count, expert_count]`.
    probabilities: Vec<f64>,
}

impl Routes {
    /// Chooses by the softmax of the router's row-major logits, `[rows, expert_count]`. If `all_take_part`,
    /// an expert that no row chooses gets the first row with the weight 0, so that it has a gradient, which
    /// is zero.
    #[must_use]
    pub fn choose(logits: &[f32], routing: Routing, all_take_part: bool) -> Self {
        let count = routing.expert_count.max(1);
        let mut probabilities = Vec::with_capacity(logits.len());
        let mut experts: Vec<ExpertRows> = (0..count)
            .map(|expert| ExpertRows { expert, rows: Vec::new(), weights: Vec::new() })
            .collect();
        for (row, logits) in (0..).zip(logits.chunks_exact(count)) {
            let of_row = softmax(logits);
            let chosen = largest(&of_row, routing.chosen);
            let sum: f64 = chosen.iter().map(|&expert| of_row[expert]).sum();
            for expert in chosen {
                let divisor = if routing.is_normalised { sum } else { 1.0 };
                experts[expert].rows.push(row);
                experts[expert].weights.push((of_row[expert] / divisor) as f32);
            }
            probabilities.extend(of_row);
        }
        let row_count = probabilities.len() / count;
        for expert in experts.iter_mut().filter(|expert| expert.rows.is_empty()) {
            if all_take_part && row_count > 0 {
                (expert.rows, expert.weights) = (vec![0], vec![0.0]);
            }
        }
        experts.retain(|expert| !expert.rows.is_empty());
        Self { experts, row_count, routing, probabilities }
    }

    /// The gradient of the logits, row-major, from those of the weights of each expert. The choice itself
    /// has none.
    ///
    /// A weight is `w_i = p_i`, of which `dp_i/dl_j = p_i (1[i = j] - p_j)`; or the softmax of the chosen
    /// logits alone, of which the same holds among these.
    #[must_use]
    pub fn logits_gradient(&self, of_weights: &[Vec<f32>]) -> Vec<f32> {
        let count = self.routing.expert_count.max(1);
        let mut gradient = vec![0.0; self.probabilities.len()];
        let mut weighted = vec![0.0; self.row_count];
        let every = || {
            self.experts.iter().zip(of_weights).flat_map(|(expert, of_weights)| {
                let rows = expert.rows.iter().zip(&expert.weights).zip(of_weights);
                // a weight of exactly 0 is that of a row that did not choose the expert
                let rows = rows.filter(|((_, weight), _)| **weight != 0.0);
                rows.map(move |((&row, &weight), &of_weight)| {
                    (row as usize, expert.expert, f64::from(weight), f64::from(of_weight))
                })
            })
        };
        for (row, expert, weight, of_weight) in every() {
            gradient[row * count + expert] += weight * of_weight;
            weighted[row] += weight * of_weight;
        }
        if self.routing.is_normalised {
            for (row, expert, weight, _) in every() {
                gradient[row * count + expert] -= weight * weighted[row];
            }
        } else {
            let rows = gradient.chunks_exact_mut(count).zip(self.probabilities.chunks_exact(count));
            for ((gradient, probabilities), weighted) in rows.zip(weighted) {
                for (gradient, probability) in gradient.iter_mut().zip(probabilities) {
                    *gradient -= probability * weighted;
                }
            }
        }
        gradient.into_iter().map(|value| value as f32).collect()
    }
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> =
        logits.iter().map(|&logit| (f64::from(logit) - f64::from(largest)).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// The places of the largest values, ascending; of equal ones the first.
fn largest(values: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    places.truncate(count);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 12] = [0.3, 1.2, -0.4, 0.9, 2.0, 2.0, 2.0, -1.0, -0.2, 0.1, 0.0, 0.4];

    fn weights(routes: &Routes) -> Vec<(usize, u32, f32)> {
        let of_expert = |expert: &ExpertRows| {
            let number = expert.expert;
            let rows = expert.rows.iter().zip(&expert.weights);
            rows.map(|(&row, &weight)| (number, row, weight)).collect::<Vec<_>>()
        };
        routes.experts.iter().flat_map(of_expert).collect()
    }

    #[test]
    fn each_row_goes_through_its_most_probable_experts() {
        let routing = Routing { expert_count: 4, chosen: 2, is_normalised: true };
        let routes = Routes::choose(&LOGITS, routing, false);
        let chosen: Vec<_> =
            weights(&routes).iter().map(|&(expert, row, _)| (expert, row)).collect();
        assert_eq!(chosen, [(0, 1), (1, 0), (1, 1), (1, 2), (3, 0), (3, 2)]);
        let sums =
            (0..3).map(|row| weights(&routes).iter().filter(|w| w.1 == row).map(|w| w.2).sum());
        assert!(sums.map(|sum: f32| (sum - 1.0).abs()).all(|off| off < 1e-6));
        let all = Routes::choose(&LOGITS, routing, true);
        assert_eq!(all.experts[2], ExpertRows { expert: 2, rows: vec![0], weights: vec![0.0] });
        let alone = Routes::choose(&LOGITS[4..8], routing, false);
        assert_eq!(weights(&alone).iter().map(|w| w.2).collect::<Vec<_>>(), [0.5, 0.5]);
    }

    #[test]
    fn the_gradient_of_the_logits_is_the_slope_of_the_weights() {
        for is_normalised in [false, true] {
            let routing = Routing { expert_count: 4, chosen: 2, is_normalised };
            let coefficient =
                |expert: usize, row: u32| (1.3 * expert as f32 - 0.7 * row as f32).sin();
            let loss = |logits: &[f32]| -> f64 {
                let routes = Routes::choose(logits, routing, false);
                let terms = weights(&routes).into_iter();
                terms.map(|(e, row, weight)| f64::from(coefficient(e, row) * weight)).sum()
            };
            let routes = Routes::choose(&LOGITS, routing, true);
            let of_weights: Vec<Vec<f32>> = routes
                .experts
                .iter()
                .map(|expert| {
                    expert.rows.iter().map(|&row| coefficient(expert.expert, row)).collect()
                })
                .collect();
            let gradient = routes.logits_gradient(&of_weights);
            // the second row has equal logits, where a step would change the choice
            for place in (0..4).chain(8..12) {
                let at = |step: f32| {
                    let mut logits = LOGITS;
                    logits[place] += step;
                    loss(&logits)
                };
                let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!((f64::from(gradient[place]) - slope).abs() < 1e-4, "{place}");
            }
        }
    }
}
