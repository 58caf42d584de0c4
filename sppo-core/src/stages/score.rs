//! Per-token log-probabilities of given responses.

use super::tokenize::TokenizedResponse;
use super::train::group_lengths;
use crate::datasets::ScoredResponse;
use crate::error::Result;
use crate::plugin::{Learner, PluginError, SequenceBatch};

/// Scores responses under the policy, at most `micro_batch_tokens` tokens at once but at least one
/// response. Calls `done` with the responses finished so far.
///
/// # Errors
/// When the policy or `done` fails.
pub fn score(
    policy: &mut dyn Learner,
    responses: &[TokenizedResponse],
    micro_batch_tokens: usize,
    done: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Vec<ScoredResponse>> {
    let mut scored = Vec::with_capacity(responses.len());
    let mut rest = responses;
    let tokens = responses.iter().map(|split| split.prompt.len() + split.response.len());
    let lengths = group_lengths(tokens, micro_batch_tokens);
    for together in lengths.chunks(policy.info().replicas.max(1)) {
        let (round, after) = rest.split_at(together.iter().sum());
        rest = after;
        let mut left = round;
        let mut next = |length: &usize| pack(left.split_off(..*length).unwrap_or_default());
        let packed: Vec<SequenceBatch> = together.iter().map(&mut next).collect();
        let log_probs = policy.token_log_probs_each(&packed)?;
        for (response, log_probs) in round.iter().zip(log_probs.into_iter().flatten()) {
            scored.push(
                scored_response(response, log_probs)
                    .map_err(|message| PluginError::failed(message).of_plugin(policy.plugin()))?,
            );
        }
        done(scored.len())?;
    }
    Ok(scored)
}

fn scored_response(
    split: &TokenizedResponse,
    log_probs: Vec<f32>,
) -> std::result::Result<ScoredResponse, String> {
    let (expected, actual) = (split.response.len(), log_probs.len());
    if actual != expected {
        return Err(format!("asked for {expected} log-probabilities, it returned {actual}"));
    }
    if let Some(value) = log_probs.iter().find(|value| !value.is_finite()) {
        return Err(format!(
            "a log-probability is {value}: the model's computation overflowed, or its weights are damaged"
        ));
    }
    let log_prob = log_probs.iter().map(|value| f64::from(*value)).sum();
    Ok(ScoredResponse { tokens: split.response.clone(), log_probs, log_prob })
}

/// Packs responses; a prompt that follows itself is stored once.
fn pack(responses: &[TokenizedResponse]) -> SequenceBatch {
    let mut batch = SequenceBatch::new();
    let mut last: Option<(&[u32], usize)> = None;
    for response in responses {
        let prompt = match last {
            Some((tokens, index)) if tokens == response.prompt => index,
            _ => batch.push_prompt(&response.prompt),
        };
        last = Some((&response.prompt, prompt));
        batch.push_response(prompt, &response.response);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_probability_that_is_no_number_is_no_score() {
        let split = TokenizedResponse { prompt: vec![1], response: vec![2, 3] };
        assert!(scored_response(&split, vec![-1.0, -2.0]).is_ok());
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = scored_response(&split, vec![-1.0, value]).unwrap_err();
            assert!(error.contains("a log-probability is"), "{error}");
        }
    }

    #[test]
    fn micro_batches_keep_the_budget_and_the_order() {
        let response =
            |length: usize| TokenizedResponse { prompt: vec![1], response: vec![2; length] };
        let responses = [3, 3, 9, 1].map(response);
        let tokens = responses.iter().map(|split| split.prompt.len() + split.response.len());
        assert_eq!(group_lengths(tokens, 8), [2, 1, 1]);
        assert_eq!(pack(&responses).segments().len(), 5);
    }
}
