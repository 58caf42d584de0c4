//! From texts to the reward model's tokens.

use std::borrow::Cow;
use std::path::Path;

use sppo_model::encoder::RewardModelConfig;
use sppo_model::serve::ScorerKind;
use sppo_model::serve::judge::conversation_text;
use sppo_model::text::TextCodec;
use sppo_plugin::{Message, PluginError};

/// The least tokens that hold a conversation with an answer.
pub(crate) const LEAST_TOKENS: usize = 16;

/// A builder of sequences from conversations with their responses.
pub(crate) struct SequenceBuilder {
    text: TextCodec,
    longest: usize,
    has_told_cut: bool,
}

impl SequenceBuilder {
    /// Reads the tokenizer, the chat template and the limits of a model directory.
    pub(crate) fn read(
        directory: &Path,
        maximum_tokens: Option<usize>,
    ) -> Result<Self, PluginError> {
        if ScorerKind::read(directory)? != ScorerKind::RewardModel {
            let message = format!("{}: compares pairs of answers", directory.display());
            return Err(PluginError::unsupported(message + ", and does not score one by itself")
                .with_hint("judge with it as `--oracle pairrm`"));
        }
        let config = RewardModelConfig::read(directory)?;
        let text = TextCodec::from_directory(directory)?;
        let longest = maximum_tokens.unwrap_or(config.context_length());
        if let RewardModelConfig::Decoder { decoder, .. } = &config {
            if longest > decoder.context_length {
                return Err(PluginError::configuration(format!(
                    "maximum_tokens: the model takes {} tokens, and not {longest}",
                    decoder.context_length
                ))
                .with_hint("leave it out to use all that the model takes"));
            }
            if !text.has_template() {
                let message = format!("{}: has no chat template", directory.display());
                return Err(PluginError::input(message).with_hint(
                    "put the template that the model was trained with beside it, as \
                     chat_template.jinja",
                ));
            }
        }
        Ok(Self { text, longest, has_told_cut: false })
    }

    /// Names of the files that this was read from, besides the configuration.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.text.file_names()
    }

    /// The sequence that shows a response to a conversation. Special tokens that a text spells are shown
    /// as text.
    pub(crate) fn sequence(
        &mut self,
        prompt: &[Message],
        response: &str,
    ) -> Result<Vec<u32>, PluginError> {
        if self.text.has_template() {
            self.rendered(prompt, response)
        } else {
            self.pair(prompt, response)
        }
    }

    /// The sequence as the model's chat template renders it. The template writes special tokens itself.
    fn rendered(&mut self, prompt: &[Message], response: &str) -> Result<Vec<u32>, PluginError> {
        let response = [Message::assistant(response)];
        let turns = prompt.iter().chain(&response).map(|Message { role, content }| Message {
            role: Cow::Borrowed(role),
            content: self.text.without_special_tokens(content),
        });
        let conversation: Vec<Message> = turns.collect();
        let text = self.text.render(&conversation, false)?;
        let mut tokens = self.text.encode(&text, false)?;
        if tokens.len() > self.longest {
            self.tell_cut();
            let beginning = self.text.special_tokens().bos_token;
            let beginning = tokens.first().copied().filter(|&token| Some(token) == beginning);
            tokens.drain(..tokens.len() - self.longest);
            if let (Some(beginning), Some(first)) = (beginning, tokens.first_mut()) {
                *first = beginning;
            }
        }
        Ok(tokens)
    }

    /// The sequence as the tokenizer joins a pair of texts.
    fn pair(&mut self, prompt: &[Message], response: &str) -> Result<Vec<u32>, PluginError> {
        let prompt = conversation_text(prompt);
        let prompt = self.text.without_special_tokens(&prompt);
        let response = self.text.without_special_tokens(response);
        let tokens = self.text.encode_pair(&prompt, &response, usize::MAX)?;
        if tokens.len() <= self.longest {
            return Ok(tokens);
        }
        self.tell_cut();
        Ok(self.text.encode_pair(&prompt, &response, self.longest)?)
    }

    fn tell_cut(&mut self) {
        if !std::mem::replace(&mut self.has_told_cut, true) {
            tracing::warn!(
                "some conversations are longer than the {} tokens that the reward model sees, and lose \
                 their beginning; oracle.reward.maximum_tokens is that number",
                self.longest
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::Value;

    use super::*;

    fn directory(name: &str) -> PathBuf {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        fixtures.join("reward").join(name)
    }

    fn builder(name: &str, maximum_tokens: Option<usize>) -> SequenceBuilder {
        SequenceBuilder::read(&directory(name), maximum_tokens).unwrap()
    }

    fn parsed<T: serde::de::DeserializeOwned>(value: &Value) -> T {
        serde_json::from_value(value.clone()).unwrap()
    }

    /// The ids of transformers for single prompts, longer conversations, and empty and non-Latin texts.
    #[test]
    fn tokens_are_those_of_transformers() {
        for name in ["deberta", "llama"] {
            let golden = std::fs::read(directory(name).join("golden.json")).unwrap();
            let golden: Value = serde_json::from_slice(&golden).unwrap();
            let mut builder = builder(name, None);
            let cases = golden["texts"].as_array().unwrap();
            assert!(cases.len() >= 2);
            for case in cases {
                let prompt: Vec<Message> = parsed(&case["messages"]);
                let answers: Vec<String> = parsed(&case["answers"]);
                let ids: Vec<Vec<u32>> = parsed(&case["ids"]);
                for (answer, expected) in answers.iter().zip(ids) {
                    assert_eq!(builder.sequence(&prompt, answer).unwrap(), expected, "{answer}");
                }
            }
        }
    }

    #[test]
    fn long_conversations_lose_their_beginning_and_not_the_answer() {
        let prompt = [Message::user("One, two, three. ".repeat(40))];
        let answer = "Four, five.";
        for name in ["deberta", "llama"] {
            let whole = builder(name, Some(256)).sequence(&[Message::user("?")], answer).unwrap();
            let cut = builder(name, Some(60)).sequence(&prompt, answer).unwrap();
            assert_eq!((cut.len(), cut[0]), (60, whole[0]), "{name}");
            assert_eq!(cut[52..], whole[whole.len() - 8..], "{name}");
            // An answer that does not fit by itself leaves no prompt.
            let long = builder(name, Some(60)).sequence(&prompt, &"Six. ".repeat(90)).unwrap();
            assert_eq!((long.len(), long[0]), (60, whole[0]), "{name}");
            assert_eq!(long.last(), whole.last(), "{name}");
        }
    }

    /// Text cannot end a turn or begin one.
    #[test]
    fn texts_that_spell_special_tokens_are_texts() {
        for (name, spelled) in [("deberta", "[SEP]"), ("llama", "<|eot_id|>")] {
            let mut builder = builder(name, None);
            let mut count = |prompt: &str, answer: &str| {
                let sequence = builder.sequence(&[Message::user(prompt)], answer).unwrap();
                let token = *sequence.last().unwrap();
                sequence.iter().filter(|&&other| other == token).count()
            };
            let plain = count("a", "b");
            let text = format!("{spelled}a {spelled}{spelled}");
            assert_eq!((plain, count(&text, &text)), (2, 2), "{name}");
        }
    }
}
