//! Stage 3: the responses to train on, each with its win rate.

use crate::error::Result;
use crate::plugin::PluginError;
use crate::preference::PreferenceMatrix;
use crate::records::{Judgment, Rollout, TrainingExample, TrainingResponse};
use crate::selection::{Selection, SelectionRule, SkipCounts, select};
use crate::target::{Baseline, TargetMeasure, TargetSettings};

/// Selects responses of every rollout and attaches their estimated win rates
/// `P(y > pi_t | x) = (1/K) sum_k P(y > y_k | x)` (Algorithm 1, lines 5 and 6).
///
/// Responses are cut where prompt and response together exceed `max_length` tokens; the last result is the
/// number of examples of which one is.
///
/// # Errors
/// When the judgments are not about these rollouts, one by one and response
/// by response.
pub fn assemble(
    rollouts: &[Rollout],
    judgments: &[Judgment],
    rule: &SelectionRule,
    targets: &TargetSettings,
    max_length: Option<usize>,
) -> Result<(Vec<TrainingExample>, SkipCounts, usize)> {
    let judged = judgments.iter().map(|judgment| judgment.prompt_id);
    if !judged.eq(rollouts.iter().map(|rollout| rollout.prompt.id)) {
        return Err(PluginError::failed("the judgments are about other prompts").into());
    }
    let mut examples = Vec::with_capacity(rollouts.len());
    let mut skipped = SkipCounts::default();
    let mut cut = 0;
    for (rollout, judgment) in rollouts.iter().zip(judgments) {
        let Judgment { prompt_id, matrix, scores, .. } = judgment;
        let (judged, sampled) = (matrix.size(), rollout.responses.len());
        if (judged, scores.len()) != (sampled, sampled) {
            let message =
                format!("prompt {prompt_id} has {sampled} responses and a judgment of {judged}");
            return Err(PluginError::failed(message).into());
        }
        let texts: Vec<&str> =
            rollout.responses.iter().map(|response| response.text.as_str()).collect();
        match select(scores, &texts, rule) {
            Selection::Chosen { indices } => {
                let mut example = example(rollout, matrix, &indices, max_length);
                add_values(&mut example, matrix, &indices, targets);
                cut += usize::from(is_cut(&example, rollout, &indices));
                examples.push(example);
            }
            Selection::Skipped(reason) => skipped.add(reason),
        }
    }
    Ok((examples, skipped, cut))
}

/// Adds what targets other than the win rates' distance from 1/2 are made of.
fn add_values(
    example: &mut TrainingExample,
    matrix: &PreferenceMatrix,
    indices: &[usize],
    targets: &TargetSettings,
) {
    let is_score = targets.measure == TargetMeasure::Score;
    let is_partition = targets.baseline == Baseline::LogPartition;
    if !is_score && !is_partition {
        return;
    }
    let values = targets.measures(matrix);
    if is_score {
        for (response, &index) in example.responses.iter_mut().zip(indices) {
            response.score = Some(values[index]);
        }
    }
    example.values_of_all = is_partition.then_some(values);
}

fn is_cut(example: &TrainingExample, rollout: &Rollout, indices: &[usize]) -> bool {
    let kept = example.responses.iter().map(|response| response.tokens.len());
    kept.ne(indices.iter().map(|&index| rollout.responses[index].tokens.len()))
}

fn example(
    rollout: &Rollout,
    matrix: &PreferenceMatrix,
    indices: &[usize],
    max_length: Option<usize>,
) -> TrainingExample {
    let room = max_length
        .map_or(usize::MAX, |length| length.saturating_sub(rollout.prompt_tokens.len()).max(1));
    let responses = indices
        .iter()
        .map(|&index| {
            let response = &rollout.responses[index];
            let kept = response.tokens.len().min(room);
            TrainingResponse {
                text: response.text.clone(),
                tokens: response.tokens[..kept].to_vec(),
                prompt_tokens_override: None,
                win_rate: matrix.win_rate(index),
                reference_log_prob: Some(
                    response.log_probs[..kept].iter().map(|value| f64::from(*value)).sum(),
                ),
                ..TrainingResponse::default()
            }
        })
        .collect();
    let chosen_probability = match indices {
        [chosen, rejected] => Some(matrix.get(*chosen, *rejected)),
        _ => None,
    };
    TrainingExample {
        prompt_id: rollout.prompt.id,
        messages: rollout.prompt.messages.clone(),
        prompt_tokens: rollout.prompt_tokens.clone(),
        responses,
        chosen_probability,
        values_of_all: None,
    }
}
