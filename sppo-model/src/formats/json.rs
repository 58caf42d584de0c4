//! Typed access to the settings in a JSON file.

use std::path::Path;

use serde_json::{Map, Value};

use super::files::{cause, write_file};
use crate::error::{ModelError, Result};

/// Reads a JSON file.
pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let bytes = fs_err::read(path).map_err(|error| ModelError::file(path, cause(&error)))?;
    parse(path, &bytes)
}

/// Reads the `config.json` of a model directory.
pub(crate) fn read_config(path: &Path) -> Result<Value> {
    let bytes = fs_err::read(path).map_err(|error| {
        ModelError::file(path, cause(&error)).with_hint(
            "name a directory that holds config.json, tokenizer.json and model.safetensors",
        )
    })?;
    parse(path, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|error| ModelError::file(path, format!("is not JSON: {error}")))
}

/// Writes a JSON file, indented.
pub(crate) fn write_json(path: &Path, json: &Value) -> Result<()> {
    write_file(path, format!("{json:#}\n").as_bytes())
}

/// Typed access to a JSON object that names the key in errors; `null` counts as absent.
#[derive(Clone, Copy, Debug)]
pub struct JsonObject<'a> {
    object: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> JsonObject<'a> {
    /// The object in a file that was read from `path`.
    ///
    /// # Errors
    /// When it holds something else.
    pub fn of(json: &'a Value, path: &'a Path) -> Result<Self> {
        let object =
            json.as_object().ok_or_else(|| ModelError::file(path, "is not a JSON object"))?;
        Ok(Self { object, path })
    }

    /// The file, for errors.
    #[must_use]
    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// The object as JSON has it.
    #[must_use]
    pub fn value(&self) -> &'a Map<String, Value> {
        self.object
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.object.keys().map(String::as_str)
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The error of a value that is not as `expected`.
    #[must_use]
    pub fn wrong(&self, key: &str, expected: &str) -> ModelError {
        let found = self.object.get(key).map_or("nothing".to_string(), Value::to_string);
        ModelError::file(self.path, format!("key `{key}` must be {expected}; it is {found}"))
    }

    /// A value of the kind that `read` accepts and `expected` describes.
    ///
    /// # Errors
    /// When the value is of another kind; so for all of these.
    pub fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key).map(|value| read(value).ok_or_else(|| self.wrong(key, expected))).transpose()
    }

    /// A positive integer.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a positive integer", |value| {
            value.as_u64().filter(|&count| count > 0).and_then(|count| usize::try_from(count).ok())
        })
    }

    /// As [`Self::count`], with the default of a key that is not there, not even as `null`.
    pub fn count_or(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        if self.object.contains_key(key) { self.count(key) } else { Ok(default) }
    }

    /// A number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// As [`Self::number`], with the default of a key that is not there, not even as `null`.
    pub fn number_or(&self, key: &str, default: f64) -> Result<Option<f64>> {
        if self.object.contains_key(key) { self.number(key) } else { Ok(Some(default)) }
    }

    /// A truth value.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "text", Value::as_str)
    }

    /// An object within this one.
    pub fn object(&self, key: &str) -> Result<Option<JsonObject<'a>>> {
        let object = self.typed(key, "an object", Value::as_object)?;
        Ok(object.map(|object| JsonObject { object, path: self.path }))
    }

    /// A list of texts.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of texts", |value| {
            value.as_array()?.iter().map(Value::as_str).collect()
        })
    }

    /// Refuses a setting that changes the result, unless it has the one value that is supported.
    pub fn refuse_unless(&self, key: &str, supported: &Value) -> Result<()> {
        match self.get(key) {
            Some(value)
                if value != supported
                    && value.as_f64().is_none_or(|number| Some(number) != supported.as_f64()) =>
            {
                Err(ModelError::Unsupported(format!(
                    "{}: `{key}` = {value} is not supported; only {supported} is",
                    self.path.display()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a setting that changes the result, unless it is `null`, `[]` or `{}`.
    pub fn refuse_unless_empty(&self, key: &str) -> Result<()> {
        let empty = match self.get(key) {
            Some(Value::Array(values)) => values.is_empty(),
            Some(Value::Object(values)) => values.is_empty(),
            other => other.is_none(),
        };
        if empty { Ok(()) } else { self.refuse_unless(key, &Value::Null) }
    }
}
