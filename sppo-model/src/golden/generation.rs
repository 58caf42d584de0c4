//! Checks of generation.

use sppo_plugin::{
    GenerationPrompt, GenerationRequest, SamplingParameters, SequenceBatch, SilentHost,
};

use super::{Failures, MakeOps, compare, golden, load_tiny, widen};
use crate::decoder::InputLimits;
use crate::generation::GenerationLimits;
use crate::ops::Ops;

/// Sixteen most probable tokens after two prompts that decode together.
pub(super) fn check_greedy<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let prompt = |id: usize| {
        let tokens = golden.sequences[golden.greedy[id].prompt_index].clone();
        GenerationPrompt { id: id as u64, tokens }
    };
    let request = GenerationRequest {
        prompts: (0..golden.greedy.len()).map(prompt).collect(),
        samples_per_prompt: 1,
        sampling: SamplingParameters { temperature: 0.0, max_new_tokens: 16, ..Default::default() },
        seed: 0,
        stream: 0,
    };
    let responses = load_tiny(make()?, family)?.generate(&request, &[], &SilentHost)?;
    let pairs = responses.iter().zip(&golden.greedy).enumerate();
    Ok(pairs
        .filter(|(_, (response, golden))| response.tokens != golden.tokens)
        .map(|(index, (response, golden))| {
            format!("prompt {index}: {:?} instead of {:?}", response.tokens, golden.tokens)
        })
        .collect())
}

/// Recorded log-probabilities are those of a training forward within 1e-4 (but where a sequence became long on
/// the way, and its first tokens were rotated as of a short one), and neither the number of
/// rows that decode together nor the order of prompts changes a token.
pub(super) fn check_sampling<O: Ops>(make: &MakeOps<'_, O>, family: &str) -> Failures {
    let golden = golden(family)?;
    let prompt = |(id, tokens): (usize, &Vec<u32>)| GenerationPrompt {
        id: id as u64,
        tokens: tokens.clone(),
    };
    let sampling = SamplingParameters {
        temperature: 0.8,
        top_p: 0.95,
        top_k: 300,
        max_new_tokens: 24,
        min_new_tokens: 3,
        ..Default::default()
    };
    let mut request = GenerationRequest {
        prompts: golden.sequences.iter().enumerate().map(prompt).collect(),
        samples_per_prompt: 3,
        sampling,
        seed: 11,
        stream: 1,
    };
    // Many end tokens, so that rows leave at different times.
    let mut model = load_tiny(make()?, family)?;
    let stop_tokens: Vec<u32> = (0..model.config().vocabulary_size as u32).step_by(16).collect();
    let responses = model.generate(&request, &stop_tokens, &SilentHost)?;
    let mut batch = SequenceBatch::new();
    for (prompt, responses) in request.prompts.iter().zip(responses.chunks(3)) {
        let prompt = batch.push_prompt(&prompt.tokens);
        responses.iter().for_each(|response| batch.push_response(prompt, &response.tokens));
    }
    let expected = model.token_log_probs(&batch)?;
    let limits = InputLimits::of(model.config());
    let became_long = |index: usize| {
        let prompt = request.prompts[index / 3].tokens.len();
        !limits.is_long(prompt) && limits.is_long(prompt + responses[index].tokens.len())
    };
    let mut failures: Vec<String> = (responses.iter().zip(&expected).enumerate())
        .filter(|(index, _)| !became_long(*index))
        .filter_map(|(index, (response, expected))| {
            let what = format!("recorded log-probabilities of response {index}");
            compare(&what, &widen(&response.log_probs), &widen(expected), 1e-4)
        })
        .collect();
    let few = GenerationLimits { max_batch_size: 4, prefill_tokens: 20, ..Default::default() };
    let mut model = model.with_generation_limits(few);
    request.prompts.reverse();
    let again = model.generate(&request, &stop_tokens, &SilentHost)?;
    for (index, (response, again)) in responses
        .chunks(3)
        .zip(again.chunks(3).rev())
        .flat_map(|(a, b)| a.iter().zip(b))
        .enumerate()
    {
        if response.tokens != again.tokens || response.finish_reason != again.finish_reason {
            failures.push(format!("response {index} changes with scheduling"));
        }
    }
    Ok(failures)
}
