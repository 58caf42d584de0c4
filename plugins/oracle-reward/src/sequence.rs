//! From texts to the reward model's tokens.

use std::borrow::Cow;
use std::path::Path;

use sppo_model::decoder::GeneralPreferenceConfig;
use sppo_model::encoder::RewardModelConfig;
use sppo_model::serve::ScorerKind;
use sppo_model::serve::judge::conversation_text;
use sppo_model::text::TextCodec;
use sppo_plugin::{Message, PluginError};

use crate::general_preference::{BeginToken, GeneralPreferenceSettings, LastToken};

/// The least tokens that hold a conversation with an answer.
pub(crate) const LEAST_TOKENS: usize = 16;

/// A builder of sequences from conversations with their responses.
pub(crate) struct SequenceBuilder {
    text: TextCodec,
    longest: usize,
    /// Conventions of a model that gives vectors; `None` for one that gives scores.
    vectors: Option<VectorConventions>,
    has_told_cut: bool,
}

/// The way in which a General Preference Model is shown a conversation.
struct VectorConventions {
    begin_token: BeginToken,
    /// The token that takes the place of the last one.
    last_token: Option<u32>,
    has_prompt_head: bool,
}

impl VectorConventions {
    fn new(
        settings: &GeneralPreferenceSettings,
        model: &GeneralPreferenceConfig,
        text: &TextCodec,
    ) -> Result<Self, PluginError> {
        let last_token = match settings.last_token() {
            LastToken::Template => None,
            LastToken::EndOfSequence => Some(text.special_tokens().eos_token.ok_or_else(|| {
                PluginError::input("the model's tokenizer names no end-of-sequence token")
                    .with_hint("set oracle.reward.general_preference.last_token = \"template\"")
            })?),
        };
        let begin_token = settings.begin_token();
        Ok(Self { begin_token, last_token, has_prompt_head: model.has_prompt_head })
    }
}

/// Refuses more tokens than a decoder takes, and a decoder without a chat template.
fn check_decoder(
    directory: &Path,
    text: &TextCodec,
    longest: usize,
    context: usize,
) -> Result<(), PluginError> {
    if longest > context {
        return Err(PluginError::configuration(format!(
            "maximum_tokens: the model takes {context} tokens, and not {longest}"
        ))
        .with_hint("leave it out to use all that the model takes"));
    }
    if text.has_template() {
        return Ok(());
    }
    let message = format!("{}: has no chat template", directory.display());
    Err(PluginError::input(message).with_hint(
        "put the template that the model was trained with beside it, as chat_template.jinja",
    ))
}

impl SequenceBuilder {
    /// Reads the tokenizer, the chat template and the limits of a model directory.
    pub(crate) fn read(
        directory: &Path,
        maximum_tokens: Option<usize>,
        general_preference: &GeneralPreferenceSettings,
    ) -> Result<Self, PluginError> {
        let kind = ScorerKind::read(directory)?;
        if kind == ScorerKind::PairRanker {
            let message = format!("{}: compares pairs of answers", directory.display());
            return Err(PluginError::unsupported(message + ", and does not score one by itself")
                .with_hint("judge with it as `--oracle pairrm`"));
        }
        let text = TextCodec::from_directory(directory)?;
        let (is_decoder, context, vectors) = if kind == ScorerKind::GeneralPreference {
            let config = GeneralPreferenceConfig::read(directory)?;
            let conventions = VectorConventions::new(general_preference, &config, &text)?;
            (true, config.decoder.context_length, Some(conventions))
        } else {
            let config = RewardModelConfig::read(directory)?;
            let is_decoder = matches!(config, RewardModelConfig::Decoder { .. });
            (is_decoder, config.context_length(), None)
        };
        if vectors.is_none() && *general_preference != GeneralPreferenceSettings::default() {
            let message = "general_preference: the model has no `value_head` and gives scores";
            return Err(PluginError::configuration(message).with_hint("leave these settings out"));
        }
        let longest = maximum_tokens.unwrap_or(context);
        if is_decoder {
            check_decoder(directory, &text, longest, context)?;
        }
        Ok(Self { text, longest, vectors, has_told_cut: false })
    }

    /// Whether the model gives vectors in place of scores.
    pub(crate) fn gives_vectors(&self) -> bool {
        self.vectors.is_some()
    }

    /// Whether the model is asked about prompts too.
    pub(crate) fn reads_prompts(&self) -> bool {
        self.vectors.as_ref().is_some_and(|vectors| vectors.has_prompt_head)
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

    /// The sequence that shows a prompt alone.
    pub(crate) fn prompt(&mut self, prompt: &[Message]) -> Result<Vec<u32>, PluginError> {
        self.conversation(prompt.iter())
    }

    /// The sequence as the model's chat template renders it, with the last token that the model looks at.
    fn rendered(&mut self, prompt: &[Message], response: &str) -> Result<Vec<u32>, PluginError> {
        let response = [Message::assistant(response)];
        let mut tokens = self.conversation(prompt.iter().chain(&response))?;
        let replaced = self.vectors.as_ref().and_then(|vectors| vectors.last_token);
        if let (Some(replaced), Some(last)) = (replaced, tokens.last_mut()) {
            *last = replaced;
        }
        Ok(tokens)
    }

    /// Turns as the model's chat template renders them. The template writes special tokens itself.
    fn conversation<'a>(
        &mut self,
        turns: impl Iterator<Item = &'a Message<'a>>,
    ) -> Result<Vec<u32>, PluginError> {
        let turns = turns.map(|Message { role, content }| Message {
            role: Cow::Borrowed(role),
            content: self.text.without_special_tokens(content),
        });
        let conversation: Vec<Message> = turns.collect();
        let text = self.text.render(&conversation, false)?;
        let begin_token = self.vectors.as_ref().map(|vectors| vectors.begin_token);
        let tokenizer_begins = begin_token == Some(BeginToken::TemplateAndTokenizer);
        let mut tokens = self.text.encode(&text, tokenizer_begins)?;
        if begin_token == Some(BeginToken::None) {
            let bos_token = self.text.special_tokens().bos_token;
            tokens.retain(|&token| Some(token) != bos_token);
        }
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
        let settings = GeneralPreferenceSettings::default();
        SequenceBuilder::read(&directory(name), maximum_tokens, &settings).unwrap()
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
