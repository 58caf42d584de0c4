//! From text to the tokens that are sampled from and trained on.
//!
//! Self-play trains on the very tokens that were sampled; these rules are for prompts and for pairs
//! that come as text. `clean` puts one begin and one end token and cuts only what does not fit.
//! `official` repeats the released code step by step, its quirks included (`scripts/generate.py`,
//! `sppo/run_sppo.py` and `sppo/trainer.py` of uclaml/SPPO).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plugin::{Codec, Message, PluginError};
use crate::records::TrainingExample;

/// Rules of tokenization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizationRule {
    /// One begin token, one end token, and truncation only of what does not fit.
    #[default]
    Clean,
    /// The released code's rule: the prompt is cut at the first literal `None`, begin tokens
    /// double, an end token is always appended, and an overflowing pair is cut to fixed lengths.
    Official,
}

/// Settings of the tokenization of pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenizationSettings {
    /// The rule.
    pub rule: TokenizationRule,
    /// Longest prompt plus response, in tokens.
    pub max_length: usize,
    /// Longest prompt where a pair must be cut, in tokens.
    pub max_prompt_length: usize,
}

/// Tokens of a response and of the prompt that precedes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenizedResponse {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The response.
    pub response: Vec<u32>,
}

impl TokenizedResponse {
    /// Cuts the response where prompt and response together exceed `max_length` tokens.
    ///
    /// # Errors
    /// When the prompt leaves no room.
    pub fn cut_to_fit(mut self, max_length: usize) -> Result<Self> {
        let prompt = self.prompt.len();
        if prompt >= max_length {
            let message = format!(
                "the prompt has {prompt} tokens and leaves no room for an answer within {max_length}"
            );
            return Err(PluginError::input(message)
                .with_hint("shorten it, or raise `training.max_length` up to the model's context")
                .into());
        }
        self.response.truncate(max_length - prompt);
        Ok(self)
    }
}

/// A prompt's rendered text and its tokens, ready to be responded to.
///
/// # Errors
/// When the template refuses the conversation.
pub fn tokenize_prompt(
    codec: &dyn Codec,
    messages: &[Message],
    rule: TokenizationRule,
) -> Result<(String, Vec<u32>)> {
    match rule {
        TokenizationRule::Clean => {
            let text = codec.render(messages, true)?;
            let tokens = encode_with_one_beginning(codec, &text)?;
            Ok((text, tokens))
        }
        TokenizationRule::Official => {
            let text = official_prompt_text(codec, messages)?;
            let tokens = codec.encode(&text, true)?;
            Ok((text, tokens))
        }
    }
}

/// Tokens of `[chosen, rejected]` (or of any number of responses, under the clean rule).
///
/// # Errors
/// When the template refuses the conversation, or the official rule cannot be applied.
pub fn tokenize_responses(
    codec: &dyn Codec,
    messages: &[Message],
    responses: &[&str],
    settings: TokenizationSettings,
) -> Result<Vec<TokenizedResponse>> {
    tokenize_noting_cuts(codec, messages, responses, settings).map(|(tokenized, _)| tokenized)
}

/// As [`tokenize_responses`], and whether one of them, or its prompt, was cut to fit.
///
/// # Errors
/// As [`tokenize_responses`].
pub fn tokenize_noting_cuts(
    codec: &dyn Codec,
    messages: &[Message],
    responses: &[&str],
    settings: TokenizationSettings,
) -> Result<(Vec<TokenizedResponse>, bool)> {
    match settings.rule {
        TokenizationRule::Clean => {
            let (_, prompt) = tokenize_prompt(codec, messages, settings.rule)?;
            let whole = responses
                .iter()
                .map(|response| clean_response(codec, messages, &prompt, response))
                .collect::<Result<Vec<_>>>()?;
            cut_all_to_fit(whole, settings.max_length)
        }
        TokenizationRule::Official => official_responses(codec, messages, responses, settings),
    }
}

/// Cuts responses as [`TokenizedResponse::cut_to_fit`] does; the second is whether that changed any.
///
/// # Errors
/// As [`TokenizedResponse::cut_to_fit`].
pub fn cut_all_to_fit(
    whole: Vec<TokenizedResponse>,
    max_length: usize,
) -> Result<(Vec<TokenizedResponse>, bool)> {
    let is_cut = whole.iter().any(|split| split.prompt.len() + split.response.len() > max_length);
    let cut = whole.into_iter().map(|split| split.cut_to_fit(max_length));
    Ok((cut.collect::<Result<_>>()?, is_cut))
}

/// A message that so many of `examples` examples are trained on without their ends.
#[must_use]
pub fn cut_notice(cut: usize, examples: usize) -> String {
    format!(
        "{cut} of {examples} examples are cut to fit: the model trains on answers without an end; raise \
         `training.max_length`, or leave out what is longer than the model's context"
    )
}

/// Replaces the tokens of examples by those of their texts, and forgets the reference
/// log-probabilities, which belonged to the tokens that were sampled. Returns the number of examples that
/// were cut to fit.
///
/// # Errors
/// As [`tokenize_responses`].
pub fn retokenize(
    codec: &dyn Codec,
    examples: &mut [TrainingExample],
    settings: TokenizationSettings,
) -> Result<usize> {
    let mut cut = 0;
    for example in examples {
        let texts: Vec<&str> =
            example.responses.iter().map(|response| response.text.as_str()).collect();
        let (tokenized, is_cut) = tokenize_noting_cuts(codec, &example.messages, &texts, settings)?;
        set_tokens(example, tokenized);
        cut += usize::from(is_cut);
    }
    Ok(cut)
}

/// Sets an example's tokens, the prompt once where all responses agree about it.
pub fn set_tokens(example: &mut TrainingExample, tokenized: Vec<TokenizedResponse>) {
    if let Some(first) = tokenized.first() {
        example.prompt_tokens.clone_from(&first.prompt);
    }
    for (response, TokenizedResponse { prompt, response: tokens }) in
        example.responses.iter_mut().zip(tokenized)
    {
        response.prompt_tokens_override = (prompt != example.prompt_tokens).then_some(prompt);
        response.tokens = tokens;
        response.reference_log_prob = None;
    }
}

/// Rendered templates usually hold the begin token; where one does not, the tokenizer's is added.
fn encode_with_one_beginning(codec: &dyn Codec, text: &str) -> Result<Vec<u32>> {
    let mut tokens = codec.encode(text, false)?;
    if let Some(beginning) = codec.info().bos_token
        && tokens.first() != Some(&beginning)
        && codec.encode(text, true)?.first() == Some(&beginning)
    {
        tokens.insert(0, beginning);
    }
    Ok(tokens)
}

fn clean_response(
    codec: &dyn Codec,
    messages: &[Message],
    prompt: &[u32],
    response: &str,
) -> Result<TokenizedResponse> {
    let mut tokens = tokens_after_prompt(codec, messages, prompt, response)?;
    end_once(codec, &mut tokens);
    Ok(TokenizedResponse { prompt: prompt.to_vec(), response: tokens })
}

/// Tokens that the template writes after the generation prompt when the response is a finished turn.
///
/// They are read off the whole conversation: tokenizers like Llama 2's and Mistral's put a space before a
/// text of its own, which no model writes there. Where a response's beginning merges with the prompt's end,
/// or the template writes another prompt, the response is a text of its own.
fn tokens_after_prompt(
    codec: &dyn Codec,
    messages: &[Message],
    prompt: &[u32],
    response: &str,
) -> Result<Vec<u32>> {
    let prompt_text = codec.render(messages, true)?;
    let mut conversation = messages.to_vec();
    conversation.push(Message::assistant(response));
    let whole = codec.render(&conversation, false)?;
    let Some(rest) = whole.strip_prefix(&prompt_text) else {
        return Ok(codec.encode(response, false)?);
    };
    match encode_with_one_beginning(codec, &whole)?.strip_prefix(prompt) {
        Some(tokens) => Ok(tokens.to_vec()),
        None => Ok(codec.encode(rest, false)?),
    }
}

/// Cuts after the first end token (templates add line breaks after it), or adds one.
fn end_once(codec: &dyn Codec, tokens: &mut Vec<u32>) {
    let info = codec.info();
    match tokens.iter().position(|token| info.stop_tokens.contains(token)) {
        Some(end) => tokens.truncate(end + 1),
        None => tokens.extend(info.eos_token.or(info.stop_tokens.first().copied())),
    }
}

/// The template of `[prompt, assistant: "None"]`, up to the first literal `None`, wherever it stands.
fn official_prompt_text(codec: &dyn Codec, messages: &[Message]) -> Result<String> {
    const PLACEHOLDER: &str = "None";
    let mut conversation = messages.to_vec();
    conversation.push(Message::assistant(PLACEHOLDER));
    let text = codec.render(&conversation, false)?;
    let end = text.find(PLACEHOLDER).unwrap_or(text.len());
    Ok(text[..end].to_owned())
}

/// Both tokens, which the official rule adds to every text.
///
/// # Errors
/// When the tokenizer lacks one of them.
pub fn official_ends(beginning: Option<u32>, end: Option<u32>) -> Result<(u32, u32)> {
    let missing = match (beginning, end) {
        (Some(beginning), Some(end)) => return Ok((beginning, end)),
        (None, Some(_)) => "begin token",
        (Some(_), None) => "end token",
        (None, None) => "begin and no end token",
    };
    Err(Error::configuration(
        "training.tokenization",
        format!(
            "the official rule needs a tokenizer with a begin and an end token, and this one has no \
             {missing}"
        ),
    )
    .with_hint("use `training.tokenization = \"clean\"` (`--preset official` sets `official`)"))
}

fn official_responses(
    codec: &dyn Codec,
    messages: &[Message],
    responses: &[&str],
    settings: TokenizationSettings,
) -> Result<(Vec<TokenizedResponse>, bool)> {
    let info = codec.info();
    let (beginning, end) = official_ends(info.bos_token, info.eos_token)?;
    let prompt_text = codec.render(messages, false)?;
    let mut tokenized = responses
        .iter()
        .map(|response| {
            let mut split = official_split(codec, messages, &prompt_text, response)?;
            split.prompt.insert(0, beginning);
            split.response.push(end);
            Ok(split)
        })
        .collect::<Result<Vec<_>>>()?;
    require_similar_prompts(&tokenized)?;
    let is_cut = truncate_officially(&mut tokenized, settings);
    Ok((tokenized, is_cut))
}

/// Tokenises prompt and response together and cuts where the prompt alone ends, or one token earlier
/// when the response's beginning merged with the prompt's last token.
fn official_split(
    codec: &dyn Codec,
    messages: &[Message],
    prompt_text: &str,
    response: &str,
) -> Result<TokenizedResponse> {
    let mut conversation = messages.to_vec();
    conversation.push(Message::assistant(response));
    let whole = codec.render(&conversation, false)?;
    let response_text: String = whole.chars().skip(prompt_text.chars().count()).collect();

    let mut full = codec.encode(&format!("{prompt_text}{response_text}"), false)?;
    let prompt = codec.encode(prompt_text, false)?;
    let mut start = prompt.len().min(full.len());
    if full[..start] != prompt[..] {
        start = start.saturating_sub(1);
    }
    let response = full.split_off(start);
    Ok(TokenizedResponse { prompt: full, response })
}

fn require_similar_prompts(tokenized: &[TokenizedResponse]) -> Result<()> {
    for pair in tokenized.windows(2) {
        let (a, b) = (&pair[0].prompt, &pair[1].prompt);
        let differing = a.iter().zip(b).filter(|(x, y)| x != y).count();
        if differing > 1 || a.len().abs_diff(b.len()) > 1 {
            return Err(PluginError::input(
                "the chosen and the rejected answer change more than the prompt's last token",
            )
            .into());
        }
    }
    Ok(())
}

/// A pair that overflows keeps the end of the prompt; one that still overflows keeps the beginning
/// of both responses, `max_length - max_prompt_length` tokens, whatever room is left. Returns whether anything
/// was cut.
fn truncate_officially(
    tokenized: &mut [TokenizedResponse],
    settings: TokenizationSettings,
) -> bool {
    fn lengths(tokenized: &[TokenizedResponse]) -> usize {
        tokenized.iter().map(|split| split.prompt.len() + split.response.len()).sum()
    }
    let TokenizationSettings { max_length, max_prompt_length, .. } = settings;
    let before = lengths(tokenized);
    let longest = tokenized.iter().map(|split| split.response.len()).max().unwrap_or(0);
    for split in tokenized.iter_mut() {
        if split.prompt.len() + longest > max_length {
            let excess = split.prompt.len().saturating_sub(max_prompt_length);
            split.prompt.drain(..excess);
        }
        if split.prompt.len() + longest > max_length {
            split.response.truncate(max_length.saturating_sub(max_prompt_length));
        }
    }
    lengths(tokenized) < before
}
