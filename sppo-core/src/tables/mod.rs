//! Rows on disk: Parquet (`.parquet`) or JSON lines (`.jsonl`, `.json-lines`), by the file's extension.

mod json_lines;
mod parquet_file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use arrow_schema::{Field, FieldRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_arrow::schema::{SchemaLike, TracingOptions};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// File formats of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// One JSON object per line, UTF-8.
    JsonLines,
    /// Apache Parquet, compressed with Snappy.
    Parquet,
}

impl TableFormat {
    /// The format of a file by its extension.
    ///
    /// # Errors
    /// When the extension is unknown.
    pub fn of(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("parquet") => Ok(Self::Parquet),
            Some("jsonl" | "json-lines" | "ndjson") => Ok(Self::JsonLines),
            _ => Err(Error::input(path, "the extension does not say how the rows are stored")
                .with_hint("name it `.jsonl` (one JSON object per line) or `.parquet`")),
        }
    }
}

/// A row's place in its file, for errors.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    format: TableFormat,
    /// The line or the row, from 1.
    number: u64,
}

impl Place {
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        let message = message.into();
        let path = self.path.clone();
        match self.format {
            TableFormat::JsonLines => {
                Error::Input { path, line: Some(self.number), message, hint: None }
            }
            TableFormat::Parquet => Error::input(path, format!("row {}: {message}", self.number)),
        }
    }
}

/// Reads all rows.
///
/// # Errors
/// When the file cannot be read, or a row does not have the columns of `T`; the error names the line.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    read_with(path, |_| true, |row, _| Ok(row))
}

/// Reads the columns that `wanted` names (of Parquet; JSON lines have no others to avoid) and converts
/// each row, which may then be refused with its place.
pub(crate) fn read_with<T: DeserializeOwned, U>(
    path: &Path,
    wanted: impl Fn(&Field) -> bool,
    convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => json_lines::read(path, convert),
        TableFormat::Parquet => parquet_file::read(path, wanted, convert),
    }
}

/// As [`read_with`], for JSON lines that are part of the program.
pub(crate) fn read_text_with<T: DeserializeOwned, U>(
    name: &str,
    text: &str,
    convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    json_lines::read_from(Path::new(name), text.as_bytes(), convert)
}

/// Writes rows; the columns are the fields of `T`, also when there are no rows.
///
/// # Errors
/// When the file cannot be written.
pub fn write<T: Serialize + DeserializeOwned>(path: &Path, rows: &[T]) -> Result<()> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => json_lines::write(path, rows),
        TableFormat::Parquet => {
            let columns = Vec::<FieldRef>::from_type::<T>(tracing_options())
                .map_err(|error| parquet_file::fault(path, &error))?;
            parquet_file::write(path, &columns, rows)
        }
    }
}

/// Writes rows whose columns are found by looking at the rows themselves, in the order in which they
/// first appear.
pub(crate) fn write_samples(path: &Path, rows: &[Map<String, Value>]) -> Result<()> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => json_lines::write(path, rows),
        TableFormat::Parquet => {
            let mut columns =
                Vec::<FieldRef>::from_samples(rows, tracing_options()).map_err(|error| {
                    parquet_file::fault(path, &error)
                        .with_hint("values of one column must be of one kind; `.jsonl` takes any")
                })?;
            let mut order = HashMap::new();
            for name in rows.iter().flat_map(Map::keys) {
                let next = order.len();
                order.entry(name.as_str()).or_insert(next);
            }
            columns.sort_by_key(|column| order.get(column.name().as_str()).copied());
            parquet_file::write(path, &columns, rows)
        }
    }
}

/// Types that pandas and `datasets` use themselves.
fn tracing_options() -> TracingOptions {
    TracingOptions::default()
        .sequence_as_large_list(false)
        .strings_as_large_utf8(false)
        .enums_without_data_as_strings(true)
        .allow_null_fields(true)
        .coerce_numbers(true)
}

#[cfg(test)]
mod tests;
