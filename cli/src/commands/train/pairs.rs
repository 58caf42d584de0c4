//! From pairs in a file to training examples.

use std::path::Path;

use sppo_core::Error;
use sppo_core::datasets::{Pair, PairContent};
use sppo_core::plugin::Policy;
use sppo_core::records::{TrainingExample, TrainingResponse};
use sppo_core::stages::{self, TokenizationSettings, TokenizedAnswer};

use super::Session;
use crate::failure::Result;
use crate::prompts;

/// Stands for a win rate that the objective does not look at.
const UNKNOWN_WIN_RATE: f64 = 0.5;

/// Pairs as training examples, text made into tokens by the rule of the settings.
///
/// # Errors
/// When a pair cannot be tokenised, does not fit, or holds tokens that the model does not have; the
/// error names the line.
pub(super) fn examples(
    policy: &dyn Policy,
    pairs: Vec<Pair>,
    file: &Path,
    session: &Session,
) -> Result<Vec<TrainingExample>> {
    let context = policy.info().context_length;
    let settings = session.config.training.tokenization_settings(context);
    (0..)
        .zip(pairs)
        .map(|(row, pair)| {
            let example = example(policy, row, pair, settings)
                .and_then(|example| check(policy, example))
                .map_err(|error| prompts::locate(file, row, error))?;
            Ok(example)
        })
        .collect()
}

fn example(
    policy: &dyn Policy,
    row: u64,
    pair: Pair,
    settings: TokenizationSettings,
) -> sppo_core::Result<TrainingExample> {
    let response = |win_rate: Option<f64>, reference_log_prob| TrainingResponse {
        text: String::new(),
        tokens: Vec::new(),
        own_prompt_tokens: None,
        win_rate: win_rate.unwrap_or(UNKNOWN_WIN_RATE),
        reference_log_prob,
    };
    let mut example = TrainingExample {
        prompt_id: row,
        messages: Vec::new(),
        prompt_tokens: Vec::new(),
        responses: vec![
            response(pair.chosen_win_rate, None),
            response(pair.rejected_win_rate, None),
        ],
        chosen_probability: pair.chosen_probability,
    };
    let tokenized = match pair.content {
        PairContent::Text { messages, chosen, rejected } => {
            let tokenized =
                stages::tokenize_answers(policy, &messages, &[&chosen, &rejected], settings)?;
            example.messages = messages;
            for (response, text) in example.responses.iter_mut().zip([chosen, rejected]) {
                response.text = text;
            }
            tokenized
        }
        PairContent::Tokens { prompt, chosen, rejected, chosen_prompt, rejected_prompt } => {
            [(chosen_prompt, chosen), (rejected_prompt, rejected)]
                .into_iter()
                .map(|(own, answer)| TokenizedAnswer {
                    prompt: own.unwrap_or_else(|| prompt.clone()),
                    answer,
                })
                .map(|split| cut_to_fit(split, settings.max_length))
                .collect::<sppo_core::Result<_>>()?
        }
    };
    stages::set_tokens(&mut example, tokenized);
    let references = [pair.reference_chosen_log_prob, pair.reference_rejected_log_prob];
    for (response, reference) in example.responses.iter_mut().zip(references) {
        response.reference_log_prob = reference;
    }
    Ok(example)
}

/// Cuts only what does not fit.
fn cut_to_fit(mut split: TokenizedAnswer, max_length: usize) -> sppo_core::Result<TokenizedAnswer> {
    if split.prompt.len() >= max_length {
        return Err(fault(format!(
            "the prompt has {} tokens and leaves no room for an answer within {max_length}",
            split.prompt.len()
        ))
        .with_hint("shorten it, or raise `training.max_length` up to the model's context"));
    }
    split.answer.truncate(max_length - split.prompt.len());
    Ok(split)
}

/// Refuses tokens that the model does not have and sequences that it cannot hold.
fn check(policy: &dyn Policy, example: TrainingExample) -> sppo_core::Result<TrainingExample> {
    let info = policy.info();
    for response in &example.responses {
        let prompt = response.own_prompt_tokens.as_ref().unwrap_or(&example.prompt_tokens);
        let mut tokens = prompt.iter().chain(&response.tokens);
        if let Some(token) = tokens.find(|token| **token as usize >= info.vocabulary_size) {
            return Err(fault(format!(
                "token {token} is not in the model's vocabulary of {}",
                info.vocabulary_size
            ))
            .with_hint("tokenise the pairs with this model's tokenizer"));
        }
        if response.tokens.is_empty() {
            return Err(fault("an answer has no tokens".into())
                .with_hint("remove the pair, or leave more room with `training.max_length`"));
        }
        let length = prompt.len() + response.tokens.len();
        if length > info.context_length {
            return Err(fault(format!(
                "prompt and answer have {length} tokens, and the model's context holds {}",
                info.context_length
            ))
            .with_hint("lower `training.max_length`"));
        }
    }
    Ok(example)
}

/// Only its message and hint are used: the file is added by the caller.
fn fault(message: String) -> Error {
    sppo_core::plugin::PluginError::input(message).into()
}
