//! Rows as they stand in a file: each value as JSON text, so that a column that only passes through comes
//! back as it was written, every digit of a number included.

use std::fmt;

use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::Place;
use crate::error::{Error, Result};

/// A row: the names of its columns and their values, in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    columns: Vec<(String, Box<RawValue>)>,
    /// Columns of Parquet that hold NaN or an infinity here, for which JSON has no number: their text is null.
    not_finite: Vec<String>,
}

impl Row {
    /// The names of all columns.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.columns.iter().map(|(name, _)| name.as_str())
    }

    /// Names and values, as JSON text.
    pub(super) fn columns(&self) -> impl Iterator<Item = (&str, &str)> {
        self.columns.iter().map(|(name, value)| (name.as_str(), value.get()))
    }

    /// Columns whose value is not finite.
    pub(crate) fn not_finite(&self) -> &[String] {
        &self.not_finite
    }

    /// Appends a column; `text` must be JSON.
    pub(super) fn push(
        &mut self,
        name: &str,
        text: String,
        is_finite: bool,
    ) -> serde_json::Result<()> {
        self.columns.push((name.to_owned(), RawValue::from_string(text)?));
        if !is_finite {
            self.not_finite.push(name.to_owned());
        }
        Ok(())
    }

    /// Sets a column, in its place where there is one of this name, else at the end.
    pub(crate) fn set(&mut self, name: &str, value: &impl Serialize) {
        // Only a table whose keys are not text has no JSON form.
        let value =
            serde_json::value::to_raw_value(value).unwrap_or_else(|_| RawValue::NULL.to_owned());
        match self.columns.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.columns.push((name.to_owned(), value)),
        }
    }

    /// Removes a column if it is there.
    pub(crate) fn remove(&mut self, name: &str) {
        self.columns.retain(|(known, _)| known != name);
    }

    /// The JSON text of a column; `None` without it, and where it is null.
    ///
    /// # Errors
    /// When the row holds the column twice, or a number that is not finite.
    pub(crate) fn text(&self, name: &str, place: &Place) -> Result<Option<&str>> {
        let mut found = self.columns.iter().filter(|(known, _)| known == name);
        let first = found.next();
        if found.next().is_some() {
            return Err(place
                .error(format!("the column `{name}` stands in this row twice"))
                .with_hint("leave one of them: readers do not agree on which counts"));
        }
        if self.not_finite.iter().any(|column| column == name) {
            return Err(place
                .error(format!("`{name}` is NaN or infinite, and a number is needed"))
                .with_hint("leave the row out, or give the number"));
        }
        Ok(first.map(|(_, value)| value.get()).filter(|text| *text != "null"))
    }

    /// The value of a column; `None` without it, and where it is null.
    ///
    /// # Errors
    /// When the value is of another kind; the error names the column.
    pub(crate) fn get<T: DeserializeOwned>(&self, name: &str, place: &Place) -> Result<Option<T>> {
        let Some(text) = self.text(name, place)? else { return Ok(None) };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut deserializer)
            .map(Some)
            .map_err(|error| misfit(&error, name, place))
    }
}

fn misfit(
    error: &serde_path_to_error::Error<serde_json::Error>,
    column: &str,
    place: &Place,
) -> Error {
    let inner = match error.path().to_string() {
        path if path == "." => String::new(),
        path if path.starts_with('[') => path,
        path => format!(".{path}"),
    };
    place.error(format!("`{column}{inner}`: {}", in_plain_words(error.inner())))
}

/// The message of a parser, without its own line and without names of Rust types.
pub(super) fn in_plain_words(error: &serde_json::Error) -> String {
    const TYPES: [(&str, &str); 4] = [
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected f64", "expected a number"),
        ("expected a string", "expected text"),
        ("expected a sequence", "expected a list"),
    ];
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    TYPES.iter().fold(reason.to_owned(), |text, (rust, plain)| text.replace(rust, plain))
}

/// The same JSON on one line. Only spaces between values can hold line breaks.
fn on_one_line(value: Box<RawValue>) -> Box<RawValue> {
    let text = value.get();
    // Two searches for one letter each are faster than one for two.
    if !text.contains('\n') && !text.contains('\r') {
        return value;
    }
    RawValue::from_string(text.replace(['\n', '\r'], " ")).unwrap_or(value)
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.columns().eq(other.columns()) && self.not_finite == other.not_finite
    }
}

impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.columns.len()))?;
        for (name, value) in &self.columns {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Columns;
        impl<'de> Visitor<'de> for Columns {
            type Value = Row;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Row, A::Error> {
                let mut row = Row::default();
                while let Some(name) = map.next_key()? {
                    row.columns.push((name, on_one_line(map.next_value()?)));
                }
                Ok(row)
            }
        }
        deserializer.deserialize_map(Columns)
    }
}
