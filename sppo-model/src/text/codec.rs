//! The text side of a model: tokenizer, chat template and special tokens, and the files they are
//! kept in.

use std::borrow::Cow;
use std::path::Path;

use serde_json::Value;
use sppo_plugin::Message;

use super::chat_template::{ChatTemplate, TemplateVariables};
use super::files::{END_OF_TURN_TOKENS, FileReader, TextFile, is_template_file, read_files};
use super::gguf_tokenizer::tokenizer_files;
use super::tokenizer::Tokenizer;
use crate::error::{ModelError, Result};
use crate::formats::GgufMetadata;
use crate::formats::files::write_file;

/// The special tokens that transformers hands to chat templates.
const TEMPLATE_VARIABLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Of a tokenizer with more tokens than this beyond the model's, it is not said that they were added.
const MOST_ADDED_TOKENS: usize = 64;

/// Remedy where a model has no chat template.
pub const TEMPLATE_HINT: &str = "put the one that it was trained with beside it, as chat_template.jinja, or take \
                                 the instruction-tuned model";

/// Variables that the program itself gives to chat templates.
const OWN_VARIABLES: [&str; 2] = ["messages", "add_generation_prompt"];

/// The tokens that begin and end texts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// The token that begins a text, if the tokenizer names one.
    pub bos_token: Option<u32>,
    /// The tokenizer's end-of-sequence token.
    pub eos_token: Option<u32>,
    /// Every token that ends an answer, in ascending order: those of `generation_config.json` (or,
    /// without one, of `config.json`), the end-of-sequence token, and the end-of-turn tokens that the
    /// chat template writes.
    pub stop_tokens: Vec<u32>,
}

/// Tokenizer, chat template and special tokens of a model.
#[derive(Clone, Debug)]
pub struct TextCodec {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    special_tokens: SpecialTokens,
    files: Vec<TextFile>,
    /// Special tokens by their names in transformers, `pad_token` for instance.
    named_tokens: Vec<(String, String)>,
    /// Token ids from here on are none that the model knows.
    limit: Option<usize>,
}

impl TextCodec {
    /// Reads the tokenizer files of a Hugging Face model directory.
    ///
    /// # Errors
    /// When there is no `tokenizer.json` or a file is malformed.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let files = read_files(directory)?;
        let config = directory.join("config.json");
        let config =
            fs_err::read(&config).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self::from_files(directory, files, config.as_ref())
    }

    /// Builds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When its kind is not supported or its tables contradict each other.
    pub fn from_gguf(metadata: &GgufMetadata, context_length: usize) -> Result<Self> {
        let files = Self::files_of_gguf(metadata, context_length)?;
        Self::from_files(metadata.path(), files, None)
    }

    /// The files of the tokenizer that a GGUF file describes.
    pub(crate) fn files_of_gguf(
        metadata: &GgufMetadata,
        context_length: usize,
    ) -> Result<Vec<TextFile>> {
        tokenizer_files(metadata, context_length)
    }

    /// This text side with the files of another directory in place of its own, where that has them: the
    /// tokenizer and the template that adapters were trained with stand beside the adapters.
    ///
    /// # Errors
    /// When a file is malformed.
    pub fn with_files_of(&self, directory: &Path, model_config: Option<&Value>) -> Result<Self> {
        let own = read_files(directory)?;
        if own.is_empty() {
            return Ok(self.clone());
        }
        let reader = FileReader { path: directory, files: &own };
        let has_template =
            reader.template_source(&reader.json("tokenizer_config.json")?)?.is_some();
        let is_own = |name: &str| own.iter().any(|file| file.name == name);
        let mut files: Vec<TextFile> = self.files.clone();
        let is_replaced = |name: &str| is_own(name) || (has_template && is_template_file(name));
        files.retain(|file| !is_replaced(&file.name));
        if !has_template && let Some(template) = &self.template {
            files.retain(|file| !is_template_file(&file.name));
            let bytes = template.source().as_bytes().to_vec();
            files.push(TextFile { name: "chat_template.jinja".into(), bytes });
        }
        files.extend(own);
        Self::from_files(directory, files, model_config)
    }

    /// This text side with variables of its chat template, `enable_thinking` for instance.
    ///
    /// # Errors
    /// When one of them has the name of a variable that the program gives.
    pub fn with_template_variables(mut self, variables: &TemplateVariables) -> Result<Self> {
        if let Some(name) = OWN_VARIABLES.into_iter().find(|name| variables.contains_key(*name)) {
            return Err(ModelError::Input(format!(
                "template_variables: `{name}` is what the program itself gives to chat templates"
            )));
        }
        self.template = self.template.map(|template| template.with_variables(variables));
        Ok(self)
    }

    pub(crate) fn from_files(
        path: &Path,
        files: Vec<TextFile>,
        model_config: Option<&Value>,
    ) -> Result<Self> {
        let reader = FileReader { path, files: &files };
        let Some(tokenizer_file) = reader.find("tokenizer.json") else {
            return Err(ModelError::file(path, "holds no tokenizer.json").with_hint(
                "re-save the tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)",
            ));
        };
        let mut tokenizer =
            Tokenizer::from_json(&tokenizer_file.bytes, &path.join("tokenizer.json"))?;
        let config = reader.json("tokenizer_config.json")?;
        let map = reader.json("special_tokens_map.json")?;
        let variables: Vec<(String, String)> = TEMPLATE_VARIABLES
            .iter()
            .filter_map(|name| {
                let token = spelling(&config[*name]).or_else(|| spelling(&map[*name]))?;
                Some(((*name).to_string(), token.to_string()))
            })
            .collect();
        let named: Vec<&str> = variables.iter().map(|(_, token)| &**token).collect();
        tokenizer.make_special(&named)?;
        let id = |name: &str| {
            let (_, token) = variables.iter().find(|(variable, _)| variable == name)?;
            tokenizer.token_id(token)
        };
        let source = reader.template_source(&config)?;
        let mut special_tokens = SpecialTokens {
            bos_token: id("bos_token"),
            eos_token: id("eos_token"),
            stop_tokens: Vec::new(),
        };
        let generation = reader.json("generation_config.json")?;
        let settings =
            if generation.is_null() { model_config.unwrap_or(&Value::Null) } else { &generation };
        let mut stop_tokens = ids(&settings["eos_token_id"]);
        stop_tokens.extend(special_tokens.eos_token);
        stop_tokens.extend(
            END_OF_TURN_TOKENS
                .iter()
                .filter(|token| source.as_ref().is_some_and(|source| source.contains(**token)))
                .filter(|token| tokenizer.is_special(token))
                .filter_map(|token| tokenizer.token_id(token)),
        );
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        special_tokens.stop_tokens = stop_tokens;
        let named_tokens = variables.clone();
        let template = source.map(|source| ChatTemplate::new(source, variables));
        Ok(Self { tokenizer, template, special_tokens, files, named_tokens, limit: None })
    }

    /// Renders a conversation with the model's chat template.
    ///
    /// # Errors
    /// When the model has no template or the template refuses the conversation.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        match &self.template {
            Some(template) => template.render(messages, add_generation_prompt),
            None => Err(ModelError::Template(format!("the model has none; {TEMPLATE_HINT}"))),
        }
    }

    /// The reason why no conversation can be rendered: the model has no chat template, or one that does not
    /// compile.
    #[must_use]
    pub fn template_fault(&self) -> Option<String> {
        match &self.template {
            None => Some("the model has no chat template".into()),
            Some(template) => Some(format!("the model's chat template: {}", template.fault()?)),
        }
    }

    /// Whether the model has a chat template.
    #[must_use]
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Token ids of a text. `add_special_tokens` lets the tokenizer add its own begin and end tokens;
    /// rendered templates already hold them.
    ///
    /// # Errors
    /// When the tokenizer fails on this text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(text, add_special_tokens)?;
        match self.limit.and_then(|limit| tokens.iter().find(|&&token| token as usize >= limit)) {
            None => Ok(tokens),
            Some(token) => Err(ModelError::Input(format!(
                "the text has the token {token}, which was added to the tokenizer without a row in the \
                 model's embedding table"
            ))),
        }
    }

    /// Token ids of a pair of texts; see [`Tokenizer::encode_pair`].
    ///
    /// # Errors
    /// As there.
    pub fn encode_pair(&self, first: &str, second: &str, limit: usize) -> Result<Vec<u32>> {
        self.tokenizer.encode_pair(first, second, limit)
    }

    /// The text, spelling no special token; see [`Tokenizer::without_special_tokens`].
    #[must_use]
    pub fn without_special_tokens<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.tokenizer.without_special_tokens(text)
    }

    /// Text of token ids, special tokens left out (see [`Tokenizer::decode`]), and every token that ends an
    /// answer, whatever its mark.
    ///
    /// # Errors
    /// When the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let ends = &self.special_tokens.stop_tokens;
        let spoken: Vec<u32> = tokens.iter().copied().filter(|id| !ends.contains(id)).collect();
        self.tokenizer.decode(&spoken)
    }

    /// The tokenizer's largest token id plus one; the model's vocabulary may be larger.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.tokenizer.vocabulary_size()
    }

    /// Refuses a tokenizer with tokens for which the model's embedding table, of so many rows, has none,
    /// unless these are for padding alone: then only texts that spell them are refused.
    ///
    /// # Errors
    /// What is wrong, and what to do.
    pub(crate) fn limit_to(
        &mut self,
        rows: usize,
    ) -> std::result::Result<(), (String, &'static str)> {
        let beyond = self.tokenizer.tokens_from(rows);
        let Some((_, first)) = beyond.iter().find(|(id, token)| !self.only_pads(*id, token)) else {
            for (id, token) in &beyond {
                tracing::warn!(
                    "the model has no row for the padding token `{token}` ({id}), which nothing needs"
                );
            }
            self.limit = (!beyond.is_empty()).then_some(rows);
            return Ok(());
        };
        let known = self.vocabulary_size();
        let few = beyond.len() <= MOST_ADDED_TOKENS;
        let (message, hint) = if few && self.tokenizer.is_added(first) {
            (
                format!(", and `{first}` was added without resizing the model"),
                "resize the model with transformers, model.resize_token_embeddings(len(tokenizer)), and \
                 save both; or use the tokenizer that the model was trained with",
            )
        } else {
            (
                String::new(),
                "the tokenizer does not belong to this model; use the one it was trained with",
            )
        };
        Err((format!("the tokenizer knows {known} tokens, the model only {rows}{message}"), hint))
    }

    /// Whether a token is a special one for padding, which neither begins nor ends a text and which the
    /// chat template does not write.
    fn only_pads(&self, id: u32, token: &str) -> bool {
        let SpecialTokens { bos_token, eos_token, stop_tokens } = &self.special_tokens;
        let is_in_use =
            *bos_token == Some(id) || *eos_token == Some(id) || stop_tokens.contains(&id);
        let is_named_so =
            || token.to_lowercase().contains("pad") && self.tokenizer.is_special(token);
        let is_padding = self.spelling("pad_token") == Some(token) || is_named_so();
        let is_written = self.template.as_ref().is_some_and(|template| {
            template.source().contains(token) || template.source().contains("pad_token")
        });
        is_padding && !is_in_use && !is_written
    }

    /// The tokens that begin and end texts.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// The chat template, if the model has one.
    pub(super) fn template_source(&self) -> Option<&str> {
        self.template.as_ref().map(ChatTemplate::source)
    }

    /// The special token with this name in transformers, `unk_token` for instance.
    pub(super) fn spelling(&self, name: &str) -> Option<&str> {
        let (_, token) = self.named_tokens.iter().find(|(known, _)| known == name)?;
        Some(token)
    }

    /// The id of a token by its exact spelling.
    pub(super) fn token_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_id(token)
    }

    /// The spelling of a token.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.token(id)
    }

    /// Whether the token stands for no text.
    pub(super) fn is_special(&self, token: &str) -> bool {
        self.tokenizer.is_special(token)
    }

    /// One of the files that [`Self::save`] writes, as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(super) fn json(&self, name: &str) -> Result<Value> {
        FileReader { path: Path::new(""), files: &self.files }.json(name)
    }

    /// Names of the files that [`Self::save`] writes.
    pub fn file_names(&self) -> impl Iterator<Item = &str> {
        self.files.iter().map(|file| file.name.as_str())
    }

    /// Writes the tokenizer files into a directory: copies of those that were read, or, for a model
    /// from GGUF, files from which transformers builds the same tokenizer and chat template.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, directory: &Path) -> Result<()> {
        self.files.iter().try_for_each(|file| write_file(&directory.join(&file.name), &file.bytes))
    }
}

/// A special token stands as its spelling or as an object that describes it.
fn spelling(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// One token id or a list of them.
fn ids(value: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Value::Array(values) => values.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
