//! Training examples of preference pairs from any source.

use super::{Pair, PairContent, PairTargets};
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
    let response = |(win_rate, score): (Option<f64>, Option<f64>)| TrainingResponse {
        win_rate: win_rate.unwrap_or(UNKNOWN_WIN_RATE),
        score,
        ..TrainingResponse::default()
    };
    let PairTargets { scores, values_of_all, starting_log_probs, earlier_log_probs } = pair.targets;
    let win_rates = [pair.chosen_win_rate, pair.rejected_win_rate];
    let mut example = TrainingExample {
        prompt_id,
        responses: win_rates.into_iter().zip(scores).map(response).collect(),
        chosen_probability: pair.chosen_probability,
        values_of_all,
        ..TrainingExample::default()
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
    let known = references.into_iter().zip(starting_log_probs).zip(earlier_log_probs);
    for (response, ((reference, starting), earlier)) in example.responses.iter_mut().zip(known) {
        // Those of a whole answer are not those of its beginning.
        response.reference_log_prob = reference.filter(|_| !is_cut);
        response.starting_log_prob = starting.filter(|_| !is_cut);
        response.earlier_log_probs = earlier.filter(|_| !is_cut);
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
