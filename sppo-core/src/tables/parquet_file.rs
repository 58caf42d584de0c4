//! Parquet, by way of Arrow.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow_schema::{Field, FieldRef, Schema};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Place, TableFormat};
use crate::error::{Error, Result};
use crate::files::input_error;

/// Rows that are turned into Arrow arrays at a time; bounds the memory beside the rows themselves.
const ROWS_PER_BATCH: usize = 4096;

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
        .with_hint("rename the columns: README.md says under \"Files\" which each command reads")
}

pub(super) fn read<T: DeserializeOwned, U>(
    path: &Path,
    wanted: impl Fn(&Field) -> bool,
    mut convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    const DOING: &str = "read this Parquet file";
    let file = File::open(path).map_err(|error| input_error(path, "read this file", &error))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file)
        .map_err(|error| parquet_fault(path, DOING, &error))?;
    let fields = builder.schema().fields().iter().enumerate();
    let columns: Vec<usize> =
        fields.filter(|(_, field)| wanted(field)).map(|(index, _)| index).collect();
    if columns.is_empty() {
        return Err(no_such_columns(path, builder.schema()));
    }
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    let batches = builder
        .with_projection(mask)
        .with_batch_size(ROWS_PER_BATCH)
        .build()
        .map_err(|error| parquet_fault(path, DOING, &error))?;

    let mut rows = Vec::new();
    let mut place = Place { path: path.into(), format: TableFormat::Parquet, number: 0 };
    for batch in batches {
        let batch =
            batch.map_err(|error| Error::input(path, format!("cannot {DOING}: {error}")))?;
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
