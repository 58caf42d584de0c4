//! One JSON object per line.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Place, TableFormat};
use crate::error::{Error, Result};
use crate::files::input_error;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) fn read<T: DeserializeOwned, U>(
    path: &Path,
    convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let file = File::open(path).map_err(|error| input_error(path, "read this file", &error))?;
    read_from(path, BufReader::new(file), convert)
}

pub(super) fn read_from<T: DeserializeOwned, U>(
    path: &Path,
    mut source: impl BufRead,
    mut convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let mut rows = Vec::new();
    let mut place = Place { path: path.into(), format: TableFormat::JsonLines, number: 0 };
    let mut line = Vec::new();
    loop {
        line.clear();
        let count = source
            .read_until(b'\n', &mut line)
            .map_err(|error| input_error(path, "read this file", &error))?;
        if count == 0 {
            return Ok(rows);
        }
        place.number += 1;
        let bytes = match place.number {
            1 => line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&line),
            _ => &line,
        };
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let column = error.valid_up_to() + 1;
            place
                .error(format!("not UTF-8 text (byte {column} of the line)"))
                .with_hint("convert the file, for instance with `iconv -t utf-8`")
        })?;
        if !text.trim().is_empty() {
            let row = parse(text, &place)?;
            rows.push(convert(row, &place)?);
        }
    }
}

fn parse<T: DeserializeOwned>(text: &str, place: &Place) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let row = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| explain(error.inner(), &error.path().to_string(), place))?;
    deserializer.end().map_err(|error| explain(&error, ".", place))?;
    Ok(row)
}

fn explain(error: &serde_json::Error, column: &str, place: &Place) -> Error {
    // Each line is parsed by itself, so that the parser's own line is always 1.
    let text = error.to_string();
    let reason = text.split(" at line ").next().unwrap_or(&text);
    if error.is_data() {
        let reason = match column {
            "." => reason.replace("missing field", "missing column"),
            _ => format!("`{column}`: {reason}"),
        };
        return place.error(reason);
    }
    place
        .error(format!("not a JSON object: {reason} (character {})", error.column()))
        .with_hint("every line must hold one complete JSON object")
}

pub(super) fn write<T: Serialize>(path: &Path, rows: &[T]) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for row in rows {
            serde_json::to_writer(&mut file, row)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().map_err(|error| input_error(path, "write this file", &error))
}
