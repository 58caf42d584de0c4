//! The key-value metadata of a GGUF file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::reader::ByteReader;
use crate::error::{ModelError, Result};

/// No vocabulary or merge list comes near this; it bounds what a hostile header can make us allocate.
const LONGEST_ARRAY: u64 = 4_000_000;

/// One metadata value; the widths of numbers are not kept.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// Any integer type.
    Integer(i128),
    /// Any floating-point type.
    Number(f64),
    /// A truth value.
    Flag(bool),
    /// UTF-8 text.
    Text(String),
    /// Values of one type.
    Array(Vec<GgufValue>),
}

impl GgufValue {
    fn kind(&self) -> &'static str {
        match self {
            Self::Integer(_) => "an integer",
            Self::Number(_) => "a number",
            Self::Flag(_) => "a truth value",
            Self::Text(_) => "text",
            Self::Array(_) => "an array",
        }
    }
}

/// The metadata of one GGUF file, with typed access that names the key in errors.
#[derive(Clone, Debug)]
pub struct GgufMetadata {
    path: PathBuf,
    entries: HashMap<String, GgufValue>,
}

impl GgufMetadata {
    /// Metadata of the file at `path`.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, entries: HashMap<String, GgufValue>) -> Self {
        Self { path: path.into(), entries }
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&GgufValue> {
        self.entries.get(key)
    }

    /// Forgets the keys that begin so.
    pub(super) fn release(&mut self, prefix: &str) {
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }

    /// A non-negative integer.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "a non-negative integer", |value| match value {
            GgufValue::Integer(integer) => u64::try_from(*integer).ok(),
            _ => None,
        })
    }

    /// A floating-point number; integers will do.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", as_number)
    }

    /// A truth value.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", |value| match value {
            GgufValue::Flag(flag) => Some(*flag),
            _ => None,
        })
    }

    /// Text.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", as_text)
    }

    /// An array of texts.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.array(key, "an array of texts", as_text)
    }

    /// An array of numbers.
    ///
    /// # Errors
    /// When the value is something else.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.array(key, "an array of numbers", as_number)
    }

    /// The error of a key that must be there and is not.
    #[must_use]
    pub fn missing(&self, key: &str) -> ModelError {
        ModelError::file(&self.path, format!("metadata key `{key}` is missing"))
            .with_hint("convert the model again with a current convert_hf_to_gguf.py of llama.cpp")
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.entries.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ModelError::file(
                &self.path,
                format!("metadata key `{key}` is {}, not {expected}", value.kind()),
            )),
        }
    }

    fn array<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        self.typed(key, expected, |value| match value {
            GgufValue::Array(values) => values.iter().map(&read).collect(),
            _ => None,
        })
    }
}

fn as_text(value: &GgufValue) -> Option<&str> {
    match value {
        GgufValue::Text(text) => Some(text),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "metadata integers are small")]
fn as_number(value: &GgufValue) -> Option<f64> {
    match value {
        GgufValue::Number(number) => Some(*number),
        GgufValue::Integer(integer) => Some(*integer as f64),
        _ => None,
    }
}

/// The bytes of each value with its type, by key, in the order of the file.
pub(super) type EntryPlaces = Vec<(String, Range<usize>)>;

/// Reads `count` key-value pairs.
pub(super) fn read_entries(
    reader: &mut ByteReader<'_>,
    count: u64,
) -> Result<(HashMap<String, GgufValue>, EntryPlaces)> {
    let mut entries = HashMap::new();
    let mut places = Vec::new();
    for _ in 0..count {
        let key = reader.text()?.to_string();
        let start = reader.position();
        let kind = reader.u32()?;
        let value = read_value(reader, kind, &key)?;
        if entries.insert(key.clone(), value).is_some() {
            return Err(reader.error(format!("metadata key `{key}` stands there twice")));
        }
        places.push((key, start..reader.position()));
    }
    Ok((entries, places))
}

fn read_value(reader: &mut ByteReader<'_>, kind: u32, key: &str) -> Result<GgufValue> {
    Ok(match kind {
        0 => GgufValue::Integer(u8::from_le_bytes(reader.array()?).into()),
        1 => GgufValue::Integer(i8::from_le_bytes(reader.array()?).into()),
        2 => GgufValue::Integer(u16::from_le_bytes(reader.array()?).into()),
        3 => GgufValue::Integer(i16::from_le_bytes(reader.array()?).into()),
        4 => GgufValue::Integer(u32::from_le_bytes(reader.array()?).into()),
        5 => GgufValue::Integer(i32::from_le_bytes(reader.array()?).into()),
        6 => GgufValue::Number(f32::from_le_bytes(reader.array()?).into()),
        7 => GgufValue::Flag(u8::from_le_bytes(reader.array()?) != 0),
        8 => GgufValue::Text(reader.text()?.to_string()),
        9 => read_array(reader, key)?,
        10 => GgufValue::Integer(u64::from_le_bytes(reader.array()?).into()),
        11 => GgufValue::Integer(i64::from_le_bytes(reader.array()?).into()),
        12 => GgufValue::Number(f64::from_le_bytes(reader.array()?)),
        _ => {
            return Err(reader.error(format!("metadata key `{key}` has the unknown type {kind}")));
        }
    })
}

fn read_array(reader: &mut ByteReader<'_>, key: &str) -> Result<GgufValue> {
    let kind = reader.u32()?;
    let length = reader.u64()?;
    // every element takes at least one byte, so a length beyond the file is refused before any work
    if kind == 9 || length > LONGEST_ARRAY || length > reader.remaining() {
        return Err(reader.error(format!(
            "metadata key `{key}` announces an array of {length} elements of type {kind}, \
             which cannot be in this file"
        )));
    }
    let mut values = Vec::new();
    for _ in 0..length {
        values.push(read_value(reader, kind, key)?);
    }
    Ok(GgufValue::Array(values))
}
