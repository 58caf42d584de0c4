//! Typed access to the metadata keys of one architecture.

use std::path::Path;

use super::{GgufMetadata, GgufValue};
use crate::error::{ModelError, Result};

/// The `general.type` of a model.
const MODEL: &str = "model";

/// Metadata keys of an architecture, given without the name that they begin with.
#[derive(Clone, Copy, Debug)]
pub struct GgufKeys<'a> {
    metadata: &'a GgufMetadata,
    architecture: &'a str,
}

impl<'a> GgufKeys<'a> {
    /// The keys of the architecture that the metadata name.
    ///
    /// # Errors
    /// When they name none, or are those of adapters or of anything else than a model.
    pub fn of(metadata: &'a GgufMetadata) -> Result<Self> {
        let kind = metadata.text("general.type")?.unwrap_or(MODEL);
        if kind != MODEL {
            return Err(ModelError::file(
                metadata.path(),
                format!("holds no model: its `general.type` is `{kind}`"),
            )
            .with_hint("name the GGUF file of the model itself"));
        }
        let architecture = metadata
            .text("general.architecture")?
            .ok_or_else(|| metadata.missing("general.architecture"))?;
        Ok(Self { metadata, architecture })
    }

    /// The architecture, for instance `llama`.
    #[must_use]
    pub fn architecture(&self) -> &'a str {
        self.architecture
    }

    /// The file, for errors.
    #[must_use]
    pub fn path(&self) -> &'a Path {
        self.metadata.path()
    }

    /// A text, if the key is there.
    ///
    /// # Errors
    /// When the value is of another kind; so for all of these.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.metadata.text(&self.full(key))
    }

    /// The whole key.
    #[must_use]
    pub fn full(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    /// The error of a key that must be there.
    #[must_use]
    pub fn missing(&self, key: &str) -> ModelError {
        self.metadata.missing(&self.full(key))
    }

    /// A number, if the key is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.number(&self.full(key))
    }

    /// A count below 2^32, if the key is there.
    pub fn count(&self, key: &str) -> Result<Option<usize>> {
        let value = self.metadata.integer(&self.full(key))?;
        value.map(|value| self.small(key, value)).transpose()
    }

    /// A count that must be there.
    pub fn required_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.missing(key))
    }

    fn small(&self, key: &str, value: u64) -> Result<usize> {
        u32::try_from(value).map(|value| value as usize).map_err(|_| {
            ModelError::file(
                self.metadata.path(),
                format!("metadata key `{}` is {value}, which no model has", self.full(key)),
            )
        })
    }

    /// Refuses a setting that changes the result, unless it has the one value that is supported.
    pub fn refuse_unless(&self, key: &str, supported: u64) -> Result<()> {
        match self.metadata.integer(&self.full(key))? {
            Some(value) if value != supported => Err(ModelError::Unsupported(format!(
                "{}: `{}` = {value} is not supported; only {supported} is",
                self.metadata.path().display(),
                self.full(key)
            ))),
            _ => Ok(()),
        }
    }

    /// As [`Self::refuse_unless`], of a setting that is no integer.
    pub fn refuse_unless_number(&self, key: &str, supported: f64) -> Result<()> {
        match self.number(key)? {
            Some(value) if value != supported => Err(ModelError::Unsupported(format!(
                "{}: `{}` = {value} is not supported; only {supported} is",
                self.metadata.path().display(),
                self.full(key)
            ))),
            _ => Ok(()),
        }
    }

    /// Truth values, if the key is there and holds an array.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>> {
        let Some(GgufValue::Array(values)) = self.metadata.get(&self.full(key)) else {
            return Ok(None);
        };
        let flag = |value: &GgufValue| match value {
            GgufValue::Flag(flag) => Some(*flag),
            _ => None,
        };
        let flags: Option<Vec<bool>> = values.iter().map(flag).collect();
        flags.map(Some).ok_or_else(|| {
            ModelError::file(
                self.metadata.path(),
                format!("metadata key `{}` must hold truth values", self.full(key)),
            )
        })
    }

    /// A count that may be given once, or for each layer, and must then be the same for all.
    pub fn uniform_count(&self, key: &str) -> Result<Option<usize>> {
        let Some(GgufValue::Array(values)) = self.metadata.get(&self.full(key)) else {
            return self.count(key);
        };
        match values.first() {
            Some(GgufValue::Integer(first))
                if values.iter().all(|value| value == &GgufValue::Integer(*first)) =>
            {
                self.small(key, u64::try_from(*first).unwrap_or(u64::MAX)).map(Some)
            }
            _ => Err(ModelError::Unsupported(format!(
                "{}: `{}` differs between layers, which is not supported",
                self.metadata.path().display(),
                self.full(key)
            ))),
        }
    }
}
