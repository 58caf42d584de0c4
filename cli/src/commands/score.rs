//! `sppo score`: per-token log-probabilities of given responses.

use std::path::Path;

use sppo_core::datasets::{ScoreContent, ScoreRequest, ScoredResponse, read_score_requests};
use sppo_core::observer::Stage;
use sppo_core::plugin::{PluginError, Policy, SequenceBatch};
use sppo_core::stages::{self, TokenizedAnswer};
use sppo_core::{Error, tables};

use super::session::Session;
use crate::args::ScoreArguments;
use crate::failure::Result;
use crate::output::RowsTo;
use crate::prompts;
use crate::settings::Flags;
use crate::terminal::Terminal;

pub(super) fn score(arguments: &ScoreArguments, terminal: &Terminal) -> Result<()> {
    let flags = Flags::of(&[&arguments.settings, &arguments.model, &arguments.backend])?;
    let session = Session::open(arguments.settings.resolve(flags)?.config, terminal)?;
    let requests = read_score_requests(&arguments.responses)?;
    let scores_to = RowsTo::new(arguments.output.as_deref())?;

    let model = session.find_whole_model(arguments.model.offline)?;
    let mut policy = session.load(model)?;
    let tokenized = tokenize(&session, policy.as_ref(), requests, &arguments.responses)?;
    let scored = log_probs(&session, policy.as_mut(), &tokenized)?;
    tables::write(scores_to.path(), &scored)?;
    scores_to.finish(scored.len(), arguments.report)
}

fn tokenize(
    session: &Session,
    policy: &dyn Policy,
    requests: Vec<ScoreRequest>,
    file: &Path,
) -> Result<Vec<TokenizedAnswer>> {
    let info = policy.info();
    let settings = session.config.training.tokenization_settings(info.context_length);
    requests
        .into_iter()
        .map(|ScoreRequest { content, row }| {
            let located = |error| prompts::locate(file, row as u64, error);
            let split = match content {
                ScoreContent::Text { messages, response } => {
                    stages::tokenize_answers(policy, &messages, &[&response], settings)
                        .map_err(located)?
                        .pop()
                        .ok_or_else(|| located(PluginError::input("has no tokens").into()))?
                }
                ScoreContent::Tokens { prompt, response } => {
                    TokenizedAnswer { prompt, answer: response }
                }
            };
            check(&split, policy).map_err(|error| located(error.into()))?;
            Ok(split)
        })
        .collect()
}

fn check(split: &TokenizedAnswer, policy: &dyn Policy) -> std::result::Result<(), PluginError> {
    let info = policy.info();
    let mut tokens = split.prompt.iter().chain(&split.answer);
    if let Some(token) = tokens.find(|token| **token as usize >= info.vocabulary_size) {
        return Err(PluginError::input(format!(
            "token {token} is not in the model's vocabulary of {}",
            info.vocabulary_size
        )));
    }
    let length = split.prompt.len() + split.answer.len();
    if length > info.context_length {
        return Err(PluginError::input(format!(
            "prompt and response have {length} tokens, and the model's context holds {}",
            info.context_length
        )));
    }
    Ok(())
}

fn log_probs(
    session: &Session,
    policy: &mut dyn Policy,
    requests: &[TokenizedAnswer],
) -> Result<Vec<ScoredResponse>> {
    let meter = session.stage(Stage::Reference, requests.len(), "responses");
    let mut scored = Vec::with_capacity(requests.len());
    let budget = session.config.training.micro_batch_tokens;
    for part in parts(requests, budget) {
        let lists = policy
            .token_log_probs(&pack(part))
            .map_err(|error| session.blame_backend(error.into()))?;
        for (request, log_probs) in part.iter().zip(lists) {
            if log_probs.len() != request.answer.len() {
                let message = format!(
                    "asked for {} log-probabilities, it returned {}",
                    request.answer.len(),
                    log_probs.len()
                );
                let error = Error::from(PluginError::failed(message));
                return Err(session.blame_backend(error).into());
            }
            let log_prob = log_probs.iter().map(|value| f64::from(*value)).sum();
            scored.push(ScoredResponse { tokens: request.answer.clone(), log_probs, log_prob });
        }
        meter.reach(scored.len())?;
    }
    meter.finish(format!("{} responses", scored.len()));
    Ok(scored)
}

/// Consecutive requests whose tokens stay within the budget, at least one each.
fn parts(requests: &[TokenizedAnswer], budget: usize) -> Vec<&[TokenizedAnswer]> {
    let mut parts = Vec::new();
    let (mut start, mut tokens) = (0, 0);
    for (index, request) in requests.iter().enumerate() {
        let length = request.prompt.len() + request.answer.len();
        if index > start && tokens + length > budget {
            parts.push(&requests[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += length;
    }
    parts.push(&requests[start..]);
    parts
}

/// Packs requests; a prompt that follows itself is stored once.
fn pack(part: &[TokenizedAnswer]) -> SequenceBatch {
    let mut batch = SequenceBatch::new();
    let mut last: Option<(&[u32], usize)> = None;
    for request in part {
        let prompt = match last {
            Some((tokens, index)) if tokens == request.prompt => index,
            _ => batch.push_prompt(&request.prompt),
        };
        last = Some((&request.prompt, prompt));
        batch.push_response(prompt, &request.answer);
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_the_budget_and_the_order() {
        let request = |length: usize| TokenizedAnswer { prompt: vec![1], answer: vec![2; length] };
        let requests = [3, 3, 9, 1].map(request);
        let lengths: Vec<usize> = parts(&requests, 8).iter().map(|part| part.len()).collect();
        assert_eq!(lengths, [2, 1, 1]);
        assert_eq!(pack(&requests).segments().len(), 5);
    }
}
