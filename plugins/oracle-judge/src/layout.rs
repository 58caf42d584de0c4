//! From a question to the judge's tokens.

use std::path::Path;

use sppo_model::checkpoint::Checkpoint;
use sppo_model::text::{TEMPLATE_HINT, TextCodec};
use sppo_plugin::{Message, PluginError};

use crate::config::{JudgeConfig, JudgePreset};
use crate::labels::Labels;
use crate::question::{
    DEFAULT_ANSWER_PREFIX, DEFAULT_SYSTEM, Question, QuestionTemplate, pair_preference,
};

/// A builder of the judge's sequences.
pub(crate) struct Layout {
    text: TextCodec,
    form: Form,
    labels: Labels,
    longest: usize,
}

/// The form of a sequence.
enum Form {
    /// A conversation with the judge, whose answer is to begin with a label.
    Chat {
        template: Box<QuestionTemplate>,
        system: String,
        /// Whether the judge's chat template knows system prompts.
        takes_system: bool,
        answer_prefix: String,
    },
    /// That of RLHFlow's pair-preference models.
    PairPreference,
}

impl Layout {
    /// The layout of the settings for the model at `path`.
    ///
    /// # Errors
    /// When the model cannot be opened, has no chat template or lacks a label, or the settings ask for more
    /// than it takes.
    pub(crate) fn open(config: &JudgeConfig, path: &Path) -> Result<Self, PluginError> {
        let checkpoint = Checkpoint::open(path)?;
        let context = checkpoint.config().context_length;
        let text = checkpoint.text().clone().with_template_variables(&config.template_variables)?;
        if let Some(fault) = text.template_fault() {
            let message = format!("{}: {fault}", path.display());
            return Err(PluginError::input(message).with_hint(TEMPLATE_HINT));
        }
        let form = Form::of(config, &text)?;
        let labels = Labels::find(config, &text, form.begins_with_label())?;
        let longest = config.maximum_tokens.unwrap_or(context);
        let layout = Self { form, text, labels, longest };
        let least =
            layout.tokens(Question { prompt: &[Message::user("")], first: "", second: "" })?;
        if longest > context || longest <= least.len() {
            return Err(PluginError::configuration(format!(
                "maximum_tokens: {longest} is not between the {} tokens of a question about nothing and the {context} \
                 that the model takes",
                least.len()
            ))
            .with_hint("leave it out to use all that the model takes"));
        }
        Ok(layout)
    }

    /// The labels.
    pub(crate) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The sequence that asks a question. Special tokens that a text spells are shown as text. A question that
    /// is too long, in either order of its responses, is shortened, as much in one order as in the other.
    pub(crate) fn sequence(&self, question: Question<'_>) -> Result<Vec<u32>, PluginError> {
        let tokens = self.tokens(question)?;
        // The same texts take about as many tokens in the other order.
        if tokens.len() + tokens.len() / 4 <= self.longest {
            return Ok(tokens);
        }
        let fits = |tokens: &[u32]| tokens.len() <= self.longest;
        if fits(&tokens) && fits(&self.tokens(question.swapped())?) {
            return Ok(tokens);
        }
        let parts = [question.first, question.second].map(|text| text.chars().count());
        let turns = question.prompt.iter().map(|turn| turn.content.chars().count());
        let mut too_many = parts.into_iter().chain([turns.sum()]).max().unwrap_or_default();
        let mut enough = 0_usize;
        while too_many - enough > 1 {
            let middle = enough.midpoint(too_many);
            let both = [question, question.swapped()];
            let both = both.map(|question| self.shortened(question, middle));
            match both {
                [Ok(one), Ok(other)] if fits(&one) && fits(&other) => enough = middle,
                [Err(error), _] | [_, Err(error)] => return Err(error),
                _ => too_many = middle,
            }
        }
        self.shortened(question, enough)
    }

    /// The sequence of a question of whose prompt and responses at most so many characters each are shown.
    fn shortened(&self, question: Question<'_>, most: usize) -> Result<Vec<u32>, PluginError> {
        let prompt = end_of(question.prompt, most);
        let [first, second] =
            [question.first, question.second].map(|text| &text[..byte_of(text, most)]);
        self.tokens(Question { prompt: &prompt, first, second })
    }

    fn tokens(&self, question: Question<'_>) -> Result<Vec<u32>, PluginError> {
        match &self.form {
            Form::Chat { template, system, takes_system, answer_prefix } => {
                let asked = template.render(question)?;
                let asked = match (*takes_system, system.as_str()) {
                    (true, _) | (_, "") => asked,
                    (false, system) => format!("{system}\n\n{asked}"),
                };
                let system = Some(system_turn(system)).filter(|turn| !turn.content.is_empty());
                let mut conversation: Vec<_> =
                    system.filter(|_| *takes_system).into_iter().collect();
                conversation.push(Message::user(self.text.without_special_tokens(&asked)));
                let text = self.text.render(&conversation, true)?;
                Ok(self.text.encode(&(text + answer_prefix), false)?)
            }
            Form::PairPreference => {
                let asked = pair_preference(question);
                let turn = Message::user(self.text.without_special_tokens(&asked));
                let text = self.text.render(&[turn], false)?;
                let mut tokens = self.text.encode(&text, false)?;
                let bos_token = self.text.special_tokens().bos_token;
                tokens.retain(|&token| Some(token) != bos_token);
                Ok(tokens)
            }
        }
    }
}

impl Form {
    fn of(config: &JudgeConfig, text: &TextCodec) -> Result<Self, PluginError> {
        if config.preset == JudgePreset::PairPreference {
            return Ok(Self::PairPreference);
        }
        let system = config.system.clone().unwrap_or_else(|| DEFAULT_SYSTEM.into());
        let trial = [system_turn(&system), Message::user("?")];
        let takes_system =
            text.render(&trial, true).is_ok_and(|shown| shown.contains(system.trim()));
        let answer_prefix = match &config.answer_prefix {
            Some(prefix) => prefix.clone(),
            None => default_prefix(config, text)?,
        };
        Ok(Self::Chat {
            template: Box::new(QuestionTemplate::of(config)?),
            system,
            takes_system,
            answer_prefix,
        })
    }

    /// Whether the judge's answer begins with the label.
    fn begins_with_label(&self) -> bool {
        match self {
            Self::Chat { answer_prefix, .. } => answer_prefix.is_empty(),
            Self::PairPreference => true,
        }
    }
}

/// The beginning of the answer where the settings name none.
fn default_prefix(config: &JudgeConfig, text: &TextCodec) -> Result<String, PluginError> {
    if config.template_file.is_some() {
        return Ok(String::new());
    }
    let before = text.encode(DEFAULT_ANSWER_PREFIX, false)?.len();
    let labels = [&config.label_first, &config.label_second].into_iter().chain(&config.label_tie);
    for label in labels {
        let with_label = text.encode(&format!("{DEFAULT_ANSWER_PREFIX} {label}"), false)?;
        if with_label.len() != before + 1 {
            return Ok(String::new());
        }
    }
    Ok(DEFAULT_ANSWER_PREFIX.into())
}

fn system_turn(text: &str) -> Message<'_> {
    Message { role: "system".into(), content: text.into() }
}

/// The last characters of a conversation, at most so many.
fn end_of<'a>(prompt: &'a [Message<'_>], most: usize) -> Vec<Message<'a>> {
    let mut left = most;
    let mut turns: Vec<Message<'a>> = Vec::with_capacity(prompt.len());
    for Message { role, content } in prompt.iter().rev() {
        let count = content.chars().count();
        let cut = byte_of(content, count.saturating_sub(left));
        left = left.saturating_sub(count);
        turns.push(Message { role: (&**role).into(), content: (&content[cut..]).into() });
    }
    turns.reverse();
    turns
}

/// Place of a character in a text, or of its end.
fn byte_of(text: &str, character: usize) -> usize {
    text.char_indices().nth(character).map_or(text.len(), |(byte, _)| byte)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn layout(config: JudgeConfig) -> Layout {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        Layout::open(&config, &fixtures.join("lm/llama")).unwrap()
    }

    fn model(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/lm").join(name)
    }

    #[test]
    fn a_long_question_is_cut_as_much_in_one_order_as_in_the_other() {
        let config = JudgeConfig { system: Some(String::new()), ..JudgeConfig::default() };
        let least = layout(config.clone());
        let prompt = [Message::user("One, two, three. ".repeat(30))];
        let (first, second) = ("Four. ".repeat(80), "Five, six, seven. ".repeat(20));
        let question = Question { prompt: &prompt, first: &first, second: &second };
        let empty = Question { prompt: &[Message::user("")], first: "", second: "" };
        let room = least.tokens(empty).unwrap().len() + 60;
        let cut = layout(JudgeConfig { maximum_tokens: Some(room), ..config });
        let both = [question, question.swapped()].map(|question| cut.sequence(question).unwrap());
        let text = both.each_ref().map(|tokens| cut.text.decode(tokens).unwrap());
        for (tokens, text) in both.iter().zip(&text) {
            assert!(tokens.len() <= room && tokens.len() + 20 > room, "{} of {room}", tokens.len());
            assert!(text.contains("three. ") && text.contains("Four. ") && text.contains("Five, "));
            assert!(text.contains("Which answer is better?"), "{text}");
        }
        let four = |text: &String| text.matches("Four.").count();
        assert_eq!(four(&text[0]), four(&text[1]));
    }

    #[test]
    fn a_system_prompt_that_the_template_does_not_know_stands_before_the_question() {
        let prompt = [Message::user("Hi?")];
        let question = Question { prompt: &prompt, first: "a b", second: "c d" };
        let config = JudgeConfig { system: Some("Be just.".into()), ..JudgeConfig::default() };
        for name in ["llama", "gemma2"] {
            let layout = Layout::open(&config, &model(name)).unwrap();
            let text = layout.text.decode(&layout.tokens(question).unwrap()).unwrap();
            let [system, asked] = ["Be just.", "# Request"].map(|part| text.find(part).unwrap());
            assert!(system < asked, "{name}: {text}");
        }
    }

    #[test]
    fn texts_that_spell_special_tokens_end_no_turn() {
        let layout = layout(JudgeConfig { system: Some(String::new()), ..JudgeConfig::default() });
        let prompt = [Message::user("Hi?")];
        let count = |first: &str| {
            let question = Question { prompt: &prompt, first, second: "b" };
            let tokens = layout.sequence(question).unwrap();
            let stops = &layout.text.special_tokens().stop_tokens;
            tokens.iter().filter(|token| stops.contains(token)).count()
        };
        assert_eq!(count("a"), count("a<|eot_id|><|end_of_text|>"));
    }

    #[test]
    fn what_the_model_does_not_take_is_refused() {
        let refused =
            |config: JudgeConfig| Layout::open(&config, &model("llama")).err().unwrap().to_string();
        let long = JudgeConfig { maximum_tokens: Some(1 << 20), ..JudgeConfig::default() };
        assert!(refused(long).contains("maximum_tokens"));
        let short = JudgeConfig { maximum_tokens: Some(10), ..JudgeConfig::default() };
        assert!(refused(short).contains("maximum_tokens"));
        let label =
            JudgeConfig { label_tie: Some("neither of them".into()), ..JudgeConfig::default() };
        assert!(refused(label).contains("label_tie"));
        let same = JudgeConfig { label_second: "A".into(), ..JudgeConfig::default() };
        assert!(refused(same).contains("same token"));
    }
}
