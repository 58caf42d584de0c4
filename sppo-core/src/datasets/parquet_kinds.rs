//! Tests of Parquet files as other writers make them: every codec, and every type of a column that says a text, a
//! number or messages.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow_array::types::{ArrowPrimitiveType, Float16Type, Int32Type};
use arrow_array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray,
    FixedSizeListArray, Float16Array, Float32Array, Float64Array, Int8Array, Int32Array,
    Int64Array, LargeStringArray, ListArray, RecordBatch, StringArray, StringViewArray,
    StructArray, TimestampSecondArray, UInt64Array,
};
use arrow_schema::Field;
use parquet::arrow::ArrowWriter;
use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;

use super::other_forms::{message, words};
use super::*;
use crate::objective::Objective;

/// A Parquet file of one batch.
fn parquet_file(path: &Path, columns: Vec<(&str, ArrayRef)>, compression: Compression) {
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn texts(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

#[test]
fn parquet_is_read_in_every_codec() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.parquet");
    for codec in [
        Compression::UNCOMPRESSED,
        Compression::SNAPPY,
        Compression::GZIP(GzipLevel::default()),
        Compression::BROTLI(BrotliLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
        Compression::LZ4_RAW,
    ] {
        parquet_file(&path, vec![("prompt", texts("Hi"))], codec);
        let prompts = read_prompts(&path).unwrap_or_else(|error| panic!("{codec}: {error}"));
        assert_eq!(prompts[0].messages, [message("user", "Hi")]);
    }
}

/// The library that reads Parquet panics over pages that contradict each other.
#[test]
fn a_damaged_parquet_file_is_read_or_refused_wherever_the_damage_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.parquet");
    for codec in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
        parquet_file(&path, vec![("prompt", texts("Hi"))], codec);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            fs::write(&path, &damaged).unwrap();
            let _ = read_prompts(&path);
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(read_prompts(&path).is_err());
    }
}

#[test]
fn probabilities_in_parquet_are_numbers_of_any_kind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.parquet");
    let decimal = Decimal128Array::from(vec![100]).with_precision_and_scale(5, 2).unwrap();
    let half = <Float16Type as ArrowPrimitiveType>::Native::from_f32(1.0);
    let ones: [ArrayRef; 8] = [
        Arc::new(Int8Array::from(vec![1])),
        Arc::new(Int32Array::from(vec![1])),
        Arc::new(Int64Array::from(vec![1])),
        Arc::new(UInt64Array::from(vec![1])),
        Arc::new(Float16Array::from(vec![half])),
        Arc::new(Float32Array::from(vec![1.0])),
        Arc::new(Float64Array::from(vec![1.0])),
        Arc::new(decimal),
    ];
    let write = |probability: ArrayRef| {
        let columns = vec![
            ("prompt", texts("Hi")),
            ("chosen", texts("a")),
            ("rejected", texts("b")),
            ("chosen_probs", probability),
        ];
        parquet_file(&path, columns, Compression::SNAPPY);
    };
    for probability in ones {
        let kind = probability.data_type().clone();
        write(probability);
        let pairs = read_pairs(&path, Objective::SppoSingle);
        let pairs = pairs.unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(pairs[0].chosen_probability, Some(1.0), "{kind}");
    }
    let others: [(ArrayRef, &str); 5] = [
        (texts("0.9"), "`chosen_probs`: invalid type: string \"0.9\", expected a number"),
        (
            Arc::new(BooleanArray::from(vec![true])),
            "`chosen_probs`: invalid type: boolean `true`, expected a number",
        ),
        (Arc::new(Float64Array::from(vec![f64::NAN])), "`chosen_probs` is NaN or infinite"),
        (Arc::new(Int64Array::from(vec![None])), "missing column `chosen_probs`"),
        (
            Arc::new(TimestampSecondArray::from(vec![1])),
            "`chosen_probs` holds values of the type Timestamp(s), which are not read",
        ),
    ];
    for (probability, told) in others {
        write(probability);
        let error = words(&read_pairs(&path, Objective::SppoSingle).unwrap_err());
        assert!(error.contains("row 1: ") && error.contains(told), "{told}: {error}");
    }
}

#[test]
fn texts_and_messages_in_parquet_are_of_any_kind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.parquet");
    let dictionary: DictionaryArray<Int32Type> = vec!["Hi"].into_iter().collect();
    let role_and_content = |lists: bool| -> StructArray {
        let column = |text: &str| match lists {
            true => list(texts(text)),
            false => texts(text),
        };
        let fields = [("role", "user"), ("content", "Hi")];
        let columns: Vec<(Arc<Field>, ArrayRef)> = fields
            .into_iter()
            .map(|(name, text)| {
                let column = column(text);
                (Arc::new(Field::new(name, column.data_type().clone(), true)), column)
            })
            .collect();
        columns.into()
    };
    let columns: [(&str, ArrayRef); 7] = [
        ("prompt", Arc::new(LargeStringArray::from(vec!["Hi"]))),
        ("prompt", Arc::new(StringViewArray::from(vec!["Hi"]))),
        ("prompt", Arc::new(BinaryArray::from(vec![b"Hi".as_slice()]))),
        ("prompt", Arc::new(dictionary)),
        ("prompt", Arc::new(role_and_content(false))),
        ("messages", list(Arc::new(role_and_content(false)))),
        ("messages", Arc::new(role_and_content(true))),
    ];
    for (name, column) in columns {
        let kind = column.data_type().clone();
        parquet_file(&path, vec![(name, column)], Compression::SNAPPY);
        let prompts = read_prompts(&path).unwrap_or_else(|error| panic!("{kind}: {error}"));
        assert_eq!(prompts[0].messages, [message("user", "Hi")], "{kind}");
    }
}

/// A list of one row that holds all of these values.
fn list(values: ArrayRef) -> ArrayRef {
    let field = Arc::new(Field::new("element", values.data_type().clone(), true));
    let length = i32::try_from(values.len()).unwrap();
    Arc::new(ListArray::from(FixedSizeListArray::new(field, length, values, None)))
}
