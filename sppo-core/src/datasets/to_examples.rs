//! Training examples of preference pairs from any source.

use super::{Pair, PairContent};
use crate::error::Result;
use crate::plugin::{Codec, PluginError, PolicyInfo};
use crate::records::{TrainingExample, TrainingResponse};
use crate::stages::{self, TokenizationSettings, TokenizedResponse};

/// Stands for a win rate that the objective does not look at.
const UNKNOWN_WIN_RATE: f64 = 0.5;

/// The training example of a pair, text made into tokens by the rule of the settings, and whether something
/// of it was cut to fit. `prompt_id` numbers the example.
///
/// # Errors
/// When the pair cannot be tokenised, does not fit, or holds tokens that the model does not have.
pub fn to_example(
    codec: &dyn Codec,
    prompt_id: u64,
    pair: Pair,
    settings: TokenizationSettings,
) -> Result<(TrainingExample, bool)> {
    let response = |win_rate: Option<f64>| TrainingResponse {
        text: String::new(),
        tokens: Vec::new(),
        prompt_tokens_override: None,
        win_rate: win_rate.unwrap_or(UNKNOWN_WIN_RATE),
        reference_log_prob: None,
    };
    let mut example = TrainingExample {
        prompt_id,
        messages: Vec::new(),
        prompt_tokens: Vec::new(),
        responses: vec![response(pair.chosen_win_rate), response(pair.rejected_win_rate)],
        chosen_probability: pair.chosen_probability,
    };
    let (tokenized, is_cut) = match pair.content {
        PairContent::Text { messages, chosen, rejected } => {
            let texts = [chosen.as_str(), rejected.as_str()];
            let tokenized = stages::tokenize_noting_cuts(codec, &messages, &texts, settings)?;
            example.messages = messages;
            for (response, text) in example.responses.iter_mut().zip([chosen, rejected]) {
                response.text = text;
            }
            tokenized
        }
        PairContent::Tokens { prompt, chosen, rejected, chosen_prompt, rejected_prompt } => {
            let splits = [(chosen_prompt, chosen), (rejected_prompt, rejected)];
            let whole = splits.into_iter().map(|(own_prompt, response)| TokenizedResponse {
                prompt: own_prompt.unwrap_or_else(|| prompt.clone()),
                response,
            });
            stages::cut_all_to_fit(whole.collect(), settings.max_length)?
        }
    };
    for split in &tokenized {
        check_tokens(split, codec.info())?;
        if split.response.is_empty() {
            return Err(PluginError::input("an answer has no tokens")
                .with_hint("remove the pair, or leave more room with `training.max_length`")
                .into());
        }
    }
    stages::set_tokens(&mut example, tokenized);
    let references = [pair.reference_chosen_log_prob, pair.reference_rejected_log_prob];
    for (response, reference) in example.responses.iter_mut().zip(references) {
        // That of a whole answer is not that of its beginning.
        response.reference_log_prob = reference.filter(|_| !is_cut);
    }
    Ok((example, is_cut))
}

/// Refuses tokens that the model does not have, and sequences that it cannot hold.
///
/// # Errors
/// The first such token, or the length of the sequence.
pub fn check_tokens(split: &TokenizedResponse, info: &PolicyInfo) -> Result<()> {
    let mut tokens = split.prompt.iter().chain(&split.response);
    if let Some(token) = tokens.find(|token| **token as usize >= info.vocabulary_size) {
        let vocabulary = info.vocabulary_size;
        let message = format!("token {token} is not in the model's vocabulary of {vocabulary}");
        return Err(PluginError::input(message)
            .with_hint("make the tokens with this model's tokenizer")
            .into());
    }
    let (length, context) = (split.prompt.len() + split.response.len(), info.context_length);
    if length > context {
        let message = format!(
            "prompt and answer have {length} tokens, and the model's context holds {context}"
        );
        return Err(PluginError::input(message)
            .with_hint("shorten them, or lower `training.max_length`")
            .into());
    }
    Ok(())
}
