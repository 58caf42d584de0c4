//! Rows on disk: Parquet (`.parquet`) or JSON lines (`.jsonl`, `.json-lines`), by the file's extension. JSON is
//! also read from one document (`.json`, or an array in any file), and from files compressed with gzip.

mod arrow_json;
mod exact;
mod json_lines;
mod parquet_check;
mod parquet_file;
mod row;
mod thrift;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_schema::{DataType, FieldRef, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_arrow::schema::{SchemaLike, TracingOptions};
use serde_json::{Map, Value};

pub(crate) use arrow_json::has_json_form;
pub(crate) use row::Row;

use crate::error::{Error, Result};

/// File formats of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableFormat {
    /// JSON objects in UTF-8: one per line, or in one document.
    JsonLines,
    /// Apache Parquet; written files are compressed with Snappy.
    Parquet,
}

impl TableFormat {
    /// The format of a file to read, by its extension.
    ///
    /// # Errors
    /// When the extension is unknown.
    pub fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
        let unpacked = name.strip_suffix(".gz").unwrap_or(&name);
        match unpacked.rsplit_once('.').map(|(_, extension)| extension) {
            Some("parquet") if unpacked == name => Ok(Self::Parquet),
            Some("jsonl" | "json-lines" | "ndjson" | "json") => Ok(Self::JsonLines),
            other => Err(unknown_extension(path, other.unwrap_or_default())),
        }
    }

    /// The format of a file to write, by its extension.
    ///
    /// # Errors
    /// When the extension is unknown, or one that is only read.
    pub fn to_write(path: &Path) -> Result<Self> {
        let extension = path.extension().map(|text| text.to_string_lossy().to_ascii_lowercase());
        match extension.as_deref() {
            Some("json" | "gz") => Err(Error::input(path, "files of this kind are only read")
                .with_hint("name it `.jsonl` (one JSON object per line) or `.parquet`")),
            _ => Self::of(path),
        }
    }
}

fn unknown_extension(path: &Path, extension: &str) -> Error {
    const NAMES: &str = "name it `.jsonl` (one JSON object per line) or `.parquet`";
    let (what, hint) = match extension {
        "csv" | "tsv" => (
            "tables with commas or tabs are not read",
            "write it as `.jsonl` or `.parquet`, for instance with pandas: \
             `read_csv(...).to_json(\"rows.jsonl\", orient=\"records\", lines=True)`",
        ),
        "arrow" | "feather" => (
            "Arrow files are not read",
            "write it as `.parquet` or `.jsonl`, for instance with `datasets`: `dataset.to_parquet(...)`",
        ),
        "zst" | "bz2" | "xz" | "zip" => {
            ("files compressed in this way are not read", "unpack it, or compress it with gzip")
        }
        _ => ("the extension does not say how the rows are stored", NAMES),
    };
    Error::input(path, what).with_hint(hint)
}

/// A row's place in its file, for errors.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    path: PathBuf,
    format: TableFormat,
    /// The line or the row, from 1.
    number: u64,
    /// The names of all columns of a Parquet file, those that are not read included.
    columns: Option<Arc<[String]>>,
}

impl Place {
    /// The names of all columns of the file, where the file says them.
    pub(crate) fn columns(&self) -> Option<Vec<&str>> {
        Some(self.columns.as_ref()?.iter().map(String::as_str).collect())
    }

    /// The place of this many lines later.
    fn after(&self, lines: u64) -> Self {
        Self { number: self.number + lines, ..self.clone() }
    }

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
    read_with(path, |row, _| Ok(row))
}

/// Reads some columns of a file that this program wrote, those of `T` by their names.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_columns<T: DeserializeOwned>(path: &Path, columns: &[&str]) -> Result<Vec<T>> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => read(path),
        TableFormat::Parquet => parquet_file::read_columns(path, columns),
    }
}

/// Reads all rows and converts each, which may then be refused with its place.
pub(crate) fn read_with<T: DeserializeOwned, U>(
    path: &Path,
    convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => json_lines::read(path, convert),
        TableFormat::Parquet => parquet_file::read(path, convert),
    }
}

/// Reads rows as they stand in a file of the user and converts each. Of Parquet, only the columns whose
/// numbers `wanted` gives are read; JSON lines have no others to avoid.
pub(crate) fn read_rows<U>(
    path: &Path,
    wanted: impl Fn(&Schema) -> Vec<usize>,
    convert: impl FnMut(Row, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    match TableFormat::of(path)? {
        TableFormat::JsonLines => json_lines::read(path, convert),
        TableFormat::Parquet => parquet_file::read_rows(path, wanted, convert),
    }
}

/// As [`read_rows`], for JSON lines that are part of the program.
pub(crate) fn read_text_rows<U>(
    name: &str,
    text: &str,
    convert: impl FnMut(Row, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    json_lines::read_from(Path::new(name), text.as_bytes(), convert)
}

/// The line of a file that holds this row (from 0); `None` for Parquet, which has no lines.
#[must_use]
pub fn line_of_row(path: &Path, row: u64) -> Option<u64> {
    match TableFormat::of(path).ok()? {
        TableFormat::JsonLines => json_lines::line_of(path, row),
        TableFormat::Parquet => None,
    }
}

/// Writes rows; the columns are the fields of `T`, also when there are no rows.
///
/// # Errors
/// When the file cannot be written.
pub fn write<T: Serialize + DeserializeOwned>(path: &Path, rows: &[T]) -> Result<()> {
    write_without(path, rows, &[])
}

/// As [`write`], without the fields of these names, wherever they stand in `T`: optional ones that no row has,
/// which are not serialised either.
///
/// # Errors
/// As [`write`].
pub(crate) fn write_without<T: Serialize + DeserializeOwned>(
    path: &Path,
    rows: &[T],
    absent: &[&str],
) -> Result<()> {
    match TableFormat::to_write(path)? {
        TableFormat::JsonLines => json_lines::write(path, rows.iter()),
        TableFormat::Parquet => {
            let columns = Vec::<FieldRef>::from_type::<T>(tracing_options())
                .map_err(|error| parquet_file::fault(path, &error))?;
            parquet_file::write(path, &without(&columns, absent), rows)
        }
    }
}

/// The columns without the fields of these names, within lists and structs too.
fn without(columns: &[FieldRef], absent: &[&str]) -> Vec<FieldRef> {
    let present = columns.iter().filter(|column| !absent.contains(&column.name().as_str()));
    let inner = |column: &FieldRef| match column.data_type() {
        DataType::Struct(fields) => {
            let fields = DataType::Struct(without(fields, absent).into());
            Arc::new(column.as_ref().clone().with_data_type(fields))
        }
        DataType::List(item) => {
            let item = without(std::slice::from_ref(item), absent).pop();
            let list = item.map(DataType::List).unwrap_or_else(|| column.data_type().clone());
            Arc::new(column.as_ref().clone().with_data_type(list))
        }
        _ => Arc::clone(column),
    };
    present.map(inner).collect()
}

/// Writes rows whose columns are found by looking at the rows themselves, in the order in which they
/// first appear.
pub(crate) fn write_samples(path: &Path, rows: &[Map<String, Value>]) -> Result<()> {
    match TableFormat::to_write(path)? {
        TableFormat::JsonLines => json_lines::write(path, rows.iter()),
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

/// Writes rows of a file as they stood there: to JSON lines letter by letter, to Parquet where its columns
/// can hold every number.
pub(crate) fn write_rows(path: &Path, rows: impl Iterator<Item = Row>) -> Result<()> {
    match TableFormat::to_write(path)? {
        TableFormat::JsonLines => json_lines::write(path, rows),
        TableFormat::Parquet => write_samples(path, &exact::values(path, rows)?),
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
