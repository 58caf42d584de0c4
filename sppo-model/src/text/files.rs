//! The files that hold the text side of a model.

use std::path::Path;

use serde_json::Value;

use crate::error::{ModelError, Result};

/// Every file of a model directory that has to do with text.
const FILE_NAMES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Tokens that end a turn in the known chat formats.
pub(super) const END_OF_TURN_TOKENS: [&str; 5] =
    ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>", "<|endofturn|>"];

/// A file as it was read or made up, to be written beside new weights.
#[derive(Clone, Debug)]
pub(crate) struct TextFile {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// Whether a file holds a chat template and nothing else.
pub(super) fn is_template_file(name: &str) -> bool {
    matches!(name, "chat_template.jinja" | "chat_template.json")
}

/// The text files of a model directory.
pub(super) fn read_files(directory: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    for name in FILE_NAMES {
        let path = directory.join(name);
        if path.is_file() {
            let bytes =
                fs_err::read(&path).map_err(|error| ModelError::file(&path, error.to_string()))?;
            files.push(TextFile { name: name.to_string(), bytes });
        }
    }
    Ok(files)
}

/// The files of one model, by name.
pub(super) struct FileReader<'a> {
    pub(super) path: &'a Path,
    pub(super) files: &'a [TextFile],
}

impl FileReader<'_> {
    pub(super) fn find(&self, name: &str) -> Option<&TextFile> {
        self.files.iter().find(|file| file.name == name)
    }

    /// A JSON object, or `null` where there is no such file.
    pub(super) fn json(&self, name: &str) -> Result<Value> {
        let Some(file) = self.find(name) else { return Ok(Value::Null) };
        let wrong = |cause: String| ModelError::file(self.path.join(name), cause);
        let json: Value = serde_json::from_slice(&file.bytes)
            .map_err(|error| wrong(format!("is not JSON: {error}")))?;
        if json.is_object() { Ok(json) } else { Err(wrong("is not a JSON object".into())) }
    }

    /// `chat_template.jinja`, else the template in `tokenizer_config.json`: one text, or several with
    /// names, of which `default` is taken; else that in `chat_template.json`, where processors keep it.
    pub(super) fn template_source(&self, config: &Value) -> Result<Option<String>> {
        if let Some(file) = self.find("chat_template.jinja") {
            let source = String::from_utf8(file.bytes.clone())
                .map_err(|_| ModelError::file(self.path.join(&file.name), "is not UTF-8"))?;
            return Ok(Some(source));
        }
        match &config["chat_template"] {
            Value::Null => {
                Ok(self.json("chat_template.json")?["chat_template"].as_str().map(String::from))
            }
            Value::String(source) => Ok(Some(source.clone())),
            Value::Array(named) => {
                let default = named.iter().find(|entry| entry["name"] == "default");
                let entry = default.or_else(|| named.first().filter(|_| named.len() == 1));
                match entry.and_then(|entry| entry["template"].as_str()) {
                    Some(source) => Ok(Some(source.to_string())),
                    None => Err(self.wrong_template(
                        "holds several chat templates and none is named `default`",
                    )),
                }
            }
            _ => Err(self.wrong_template("key `chat_template` is neither text nor a list")),
        }
    }

    fn wrong_template(&self, message: &str) -> ModelError {
        ModelError::file(self.path.join("tokenizer_config.json"), message)
    }
}
