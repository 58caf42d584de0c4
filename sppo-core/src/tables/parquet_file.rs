//! Parquet, by way of Arrow.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::{FieldRef, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::arrow_json::JsonText;
use super::{Place, Row, TableFormat, parquet_check};
use crate::error::{Error, Result};
use crate::files::input_error;

/// Rows that are turned into Arrow arrays at a time; bounds the memory beside the rows themselves.
const ROWS_PER_BATCH: usize = 4096;

/// Bytes that the rows of a batch may take if each of them is the longest value of a dictionary.
const BYTES_PER_BATCH: u64 = 512 << 20;

/// An error of serde_arrow, in words for users.
pub(super) fn fault(path: &Path, error: &serde_arrow::Error) -> Error {
    Error::input(path, reason(error))
}

fn reason(error: &serde_arrow::Error) -> String {
    error.message().replace("missing field", "missing column")
}

fn parquet_fault(path: &Path, doing: &str, error: &ParquetError) -> Error {
    if let ParquetError::External(source) = error
        && let Some(source) = source.downcast_ref::<io::Error>()
    {
        return input_error(path, doing, source);
    }
    Error::input(path, format!("cannot {doing}: {error}"))
        .with_hint("check that the file is complete and that it is Parquet")
}

/// Without any column there would be no rows either.
fn no_such_columns(path: &Path, schema: &Schema) -> Error {
    let names: Vec<String> =
        schema.fields().iter().map(|field| format!("`{}`", field.name())).collect();
    Error::input(path, format!("no column is one that is looked for; it has {}", names.join(", ")))
        .with_hint("rename the columns: docs/files.md says which each command reads")
}

const READING: &str = "read this Parquet file";

/// Rows of a file that this program wrote.
pub(super) fn read<T: DeserializeOwned, U>(
    path: &Path,
    convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    read_wanted(path, |schema| (0..schema.fields().len()).collect(), convert)
}

/// Rows of a file that this program wrote, with the columns of these names.
pub(super) fn read_columns<T: DeserializeOwned>(path: &Path, columns: &[&str]) -> Result<Vec<T>> {
    let index = |schema: &Schema, name: &&str| schema.index_of(name).ok();
    let wanted = |schema: &Schema| columns.iter().filter_map(|name| index(schema, name)).collect();
    read_wanted(path, wanted, |row, _| Ok(row))
}

fn read_wanted<T: DeserializeOwned, U>(
    path: &Path,
    wanted: impl Fn(&Schema) -> Vec<usize>,
    mut convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let (mut batches, mut place) = open(path, wanted)?;
    let mut rows = Vec::new();
    while let Some(batch) = next_batch(path, &mut batches)? {
        let deserializer = serde_arrow::Deserializer::from_record_batch(&batch)
            .map_err(|error| fault(path, &error))?;
        for item in &deserializer {
            place.number += 1;
            let row = T::deserialize(item).map_err(|error| place.error(reason(&error)))?;
            rows.push(convert(row, &place)?);
        }
    }
    Ok(rows)
}

/// Rows of a file of the user, with the columns of these numbers.
pub(super) fn read_rows<U>(
    path: &Path,
    wanted: impl Fn(&Schema) -> Vec<usize>,
    mut convert: impl FnMut(Row, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let (mut batches, mut place) = open(path, wanted)?;
    let mut rows = Vec::new();
    while let Some(batch) = next_batch(path, &mut batches)? {
        for number in 0..batch.num_rows() {
            place.number += 1;
            rows.push(convert(row(&batch, number, &place)?, &place)?);
        }
    }
    Ok(rows)
}

fn row(batch: &RecordBatch, number: usize, place: &Place) -> Result<Row> {
    let mut row = Row::default();
    for (field, values) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let name = field.name();
        let (text, is_finite) = JsonText::of(values.as_ref(), number)
            .map_err(|reason| place.error(format!("`{name}` {reason}")))?;
        row.push(name, text, is_finite)
            .map_err(|error| place.error(format!("`{name}`: {error}")))?;
    }
    Ok(row)
}

fn next_batch(path: &Path, batches: &mut ParquetRecordBatchReader) -> Result<Option<RecordBatch>> {
    guarded(path, || batches.next())?.map(|batch| complete(path, batch)).transpose()
}

/// Calls the `parquet` crate, which panics over pages that contradict themselves or the file's footer.
fn guarded<T>(path: &Path, call: impl FnOnce() -> T) -> Result<T> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| {
        Error::input(path, format!("cannot {READING}: it contradicts itself"))
            .with_hint("check that the file is complete, or write it again")
    })
}

fn complete<E: std::fmt::Display>(
    path: &Path,
    batch: std::result::Result<RecordBatch, E>,
) -> Result<RecordBatch> {
    batch.map_err(|error| {
        let reason = error.to_string();
        let refused = Error::input(path, format!("cannot {READING}: {reason}"));
        // Some codecs of the format are read by hardly any program.
        match reason.contains("codec") || reason.contains("Disabled feature") {
            true => {
                refused.with_hint("write the file with another compression: snappy, zstd or gzip")
            }
            false => refused.with_hint("check that the file is complete"),
        }
    })
}

/// JSON under the name of Parquet is told apart.
fn refuse_json(path: &Path, file: &mut File) -> Result<()> {
    let mut first = [0];
    let is_json = file.read(&mut first).is_ok_and(|read| read > 0) && b"{[".contains(&first[0]);
    match file.rewind() {
        Ok(()) if is_json => Err(Error::input(path, "is JSON and not Parquet")
            .with_hint("name it `.jsonl` (one JSON object per line) or `.json`")),
        Ok(()) => Ok(()),
        Err(error) => Err(input_error(path, "read this file", &error)),
    }
}

/// The batches of a file, with the columns of these numbers, and the place before its first row.
fn open(
    path: &Path,
    wanted: impl Fn(&Schema) -> Vec<usize>,
) -> Result<(ParquetRecordBatchReader, Place)> {
    let refused = |error: &ParquetError| parquet_fault(path, READING, error);
    let mut file = File::open(path).map_err(|error| input_error(path, "read this file", &error))?;
    refuse_json(path, &mut file)?;
    let pages = file.try_clone().map_err(|error| input_error(path, "read this file", &error))?;
    let unsound = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => Error::input(path, format!("cannot {READING}: {error}"))
            .with_hint("check that the file is complete, or write it again"),
        _ => input_error(path, "read this file", &error),
    };
    parquet_check::check_footer(&pages).map_err(unsound)?;
    let builder = guarded(path, || ParquetRecordBatchReaderBuilder::try_new(file))?
        .map_err(|error| refused(&error))?;
    let columns = wanted(builder.schema());
    if columns.is_empty() {
        return Err(no_such_columns(path, builder.schema()));
    }
    let names = builder.schema().fields().iter().map(|field| field.name().clone());
    let place = Place {
        path: path.into(),
        format: TableFormat::Parquet,
        number: 0,
        columns: Some(names.collect()),
    };
    let dictionary = guarded(path, || parquet_check::check_pages(&pages, builder.metadata()))?
        .map_err(unsound)?;
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    let rows = (BYTES_PER_BATCH / dictionary.max(1)).clamp(1, ROWS_PER_BATCH as u64) as usize;
    let builder = builder.with_projection(mask).with_batch_size(rows);
    let batches = guarded(path, || builder.build())?.map_err(|error| refused(&error))?;
    Ok((batches, place))
}

pub(super) fn write<T: Serialize>(path: &Path, columns: &[FieldRef], rows: &[T]) -> Result<()> {
    const DOING: &str = "write this file";
    let file = File::create(path).map_err(|error| input_error(path, DOING, &error))?;
    let schema = Arc::new(Schema::new(columns.to_vec()));
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_created_by("sppo".into())
        .build();
    let mut writer = ArrowWriter::try_new(file, schema, Some(properties))
        .map_err(|error| parquet_fault(path, DOING, &error))?;
    for chunk in rows.chunks(ROWS_PER_BATCH) {
        let batch =
            serde_arrow::to_record_batch(columns, &chunk).map_err(|error| fault(path, &error))?;
        writer.write(&batch).map_err(|error| parquet_fault(path, DOING, &error))?;
    }
    writer.close().map_err(|error| parquet_fault(path, DOING, &error))?;
    Ok(())
}
