//! JSON objects: one per line, or in one document, as an array or one after the other. Also compressed with
//! gzip.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use serde::Serialize;
use serde::de::{Deserialize, DeserializeOwned};
use serde_json::value::RawValue;

use super::row::in_plain_words;
use super::{Place, TableFormat};
use crate::error::{Error, Result};
use crate::files::input_error;

/// Bytes of a line, or of a document, that are unpacked at most: a small file may unpack to any size.
const MOST_UNPACKED: u64 = 256 << 20;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The first bytes of files that are something else, and what to do about it.
const OTHER_CONTENT: [(&[u8], &str, &str); 5] = [
    (b"PAR1", "Parquet", "name it `.parquet`"),
    (b"\xff\xfe", "UTF-16 text", "convert it, for instance with `iconv -f utf-16 -t utf-8`"),
    (b"\xfe\xff", "UTF-16 text", "convert it, for instance with `iconv -f utf-16 -t utf-8`"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with `zstd -d`"),
    (b"PK\x03\x04", "a zip archive", "unpack it"),
];

/// Rows of a file, each converted where it stands.
pub(super) fn read<T: DeserializeOwned, U>(
    path: &Path,
    mut convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let mut rows = Vec::new();
    for_each_object(path, &mut |text, place| {
        rows.push(convert(parse(text, place)?, place)?);
        Ok(())
    })?;
    Ok(rows)
}

/// As [`read`], from JSON lines in memory; `path` stands for the file in errors.
pub(super) fn read_from<T: DeserializeOwned, U>(
    path: &Path,
    source: impl BufRead,
    mut convert: impl FnMut(T, &Place) -> Result<U>,
) -> Result<Vec<U>> {
    let mut rows = Vec::new();
    for_each_object_in(path, source, false, None, &mut |text, place| {
        rows.push(convert(parse(text, place)?, place)?);
        Ok(())
    })?;
    Ok(rows)
}

/// The line on which the object of this number (from 0) begins.
pub(super) fn line_of(path: &Path, row: u64) -> Option<u64> {
    let (mut seen, mut line) = (0, None);
    // A file that was read before is read once more, and an error has nothing to add.
    let _ = for_each_object(path, &mut |_, place| {
        if seen == row {
            line = Some(place.number);
        }
        seen += 1;
        Ok(())
    });
    line
}

type Visit<'a> = dyn FnMut(&str, &Place) -> Result<()> + 'a;

fn for_each_object(path: &Path, visit: &mut Visit<'_>) -> Result<()> {
    const GZIP: &[u8] = b"\x1f\x8b";
    let unreadable = |error| input_error(path, "read this file", &error);
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let beginning = file.fill_buf().map_err(unreadable)?;
    let is_document = path.file_name().is_some_and(|name| {
        let name = name.to_string_lossy().to_ascii_lowercase();
        name.trim_end_matches(".gz").ends_with(".json")
    });
    if let Some((_, what, hint)) =
        OTHER_CONTENT.iter().find(|(magic, ..)| beginning.starts_with(magic))
    {
        return Err(
            Error::input(path, format!("is {what}, and not JSON in UTF-8")).with_hint(*hint)
        );
    }
    if beginning.starts_with(GZIP) {
        let source = BufReader::new(MultiGzDecoder::new(file));
        return for_each_object_in(path, source, is_document, Some(MOST_UNPACKED), visit);
    }
    for_each_object_in(path, file, is_document, None, visit)
}

/// `most` is the limit of a line, and of a document, in bytes.
fn for_each_object_in(
    path: &Path,
    mut source: impl BufRead,
    is_document: bool,
    most: Option<u64>,
    visit: &mut Visit<'_>,
) -> Result<()> {
    let unreadable = |error| input_error(path, "read this file", &error);
    let most = most.unwrap_or(u64::MAX);
    let within = |line: &[u8], place: &Place| match line.len() as u64 >= most {
        true => Err(place
            .error(format!("a line or document unpacks to more than {} MiB", most >> 20))
            .with_hint("unpack the file; if it is one JSON document, write one object per line")),
        false => Ok(()),
    };
    let mut place =
        Place { path: path.into(), format: TableFormat::JsonLines, number: 0, columns: None };
    let (mut line, mut is_first) = (Vec::new(), true);
    loop {
        line.clear();
        if source.by_ref().take(most).read_until(b'\n', &mut line).map_err(unreadable)? == 0 {
            return Ok(());
        }
        place.number += 1;
        within(&line, &place)?;
        if place.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        let text = text_of(&line, &place)?.trim();
        if text.is_empty() {
            continue;
        }
        if is_first && (is_document || text.starts_with('[') || text == "{") {
            source.take(most).read_to_end(&mut line).map_err(unreadable)?;
            within(&line, &place)?;
            return for_each_object_of_document(text_of(&line, &place)?, place, visit);
        }
        is_first = false;
        visit(text, &place)?;
    }
}

fn text_of<'a>(bytes: &'a [u8], place: &Place) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let begun = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() as u64;
        let column = before.len() - begun + 1;
        place
            .after(line)
            .error(format!("not UTF-8 text (byte {column} of the line)"))
            .with_hint("convert the file, for instance with `iconv -t utf-8`")
    })
}

/// `first` is the place of the text's first line.
fn for_each_object_of_document(text: &str, first: Place, visit: &mut Visit<'_>) -> Result<()> {
    let refused = |error: &serde_json::Error| {
        let line = error.line().saturating_sub(1);
        let content = text.lines().nth(line).unwrap_or_default();
        explain_syntax(error, content, &first.after(line as u64))
    };
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let objects = if text.trim_start().starts_with('[') {
        Vec::<&RawValue>::deserialize(&mut deserializer)
            .and_then(|objects| deserializer.end().map(|()| objects))
    } else {
        deserializer.into_iter::<&RawValue>().collect()
    };
    let (mut counted, mut lines) = (0, 0);
    for object in objects.map_err(|error| refused(&error))? {
        let begins = object.get().as_ptr() as usize - text.as_ptr() as usize;
        lines += text[counted..begins].matches('\n').count() as u64;
        counted = begins;
        visit(object.get(), &first.after(lines))?;
    }
    Ok(())
}

fn parse<T: DeserializeOwned>(text: &str, place: &Place) -> Result<T> {
    // Following the path of every value takes time, and only an error needs it.
    serde_json::from_str(text).or_else(|_| parse_and_explain(text, place))
}

fn parse_and_explain<T: DeserializeOwned>(text: &str, place: &Place) -> Result<T> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let row = serde_path_to_error::deserialize(&mut deserializer)
        .map_err(|error| explain(error.inner(), &error.path().to_string(), text, place))?;
    deserializer.end().map_err(|error| explain(&error, ".", text, place))?;
    Ok(row)
}

fn explain(error: &serde_json::Error, column: &str, text: &str, place: &Place) -> Error {
    if !error.is_data() {
        return explain_syntax(error, text, place);
    }
    let reason = in_plain_words(error);
    place.error(match column {
        "." => reason.replace("missing field", "missing column"),
        _ => format!("`{column}`: {reason}"),
    })
}

/// An error about a line that is not JSON, with the remedy for what other programs write in its place.
fn explain_syntax(error: &serde_json::Error, line: &str, place: &Place) -> Error {
    let column = error.column();
    let (what, hint) =
        word_at(line, column).and_then(of_word).or_else(|| of_form(line, column)).unwrap_or_else(
            || (in_plain_words(error), "every line must hold one complete JSON object"),
        );
    let what = format!("not a JSON object: {what} (character {column})");
    place.error(what).with_hint(hint)
}

type Explanation = Option<(String, &'static str)>;

/// The word at a column (a byte, from 1), if there is one there that JSON does not have.
fn word_at(line: &str, column: usize) -> Option<&str> {
    let is_part = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let bytes = line.as_bytes();
    let at = [column.saturating_sub(1), column.saturating_sub(2)]
        .into_iter()
        .find(|at| bytes.get(*at).is_some_and(is_part))?;
    let start = bytes[..at].iter().rposition(|byte| !is_part(byte)).map_or(0, |end| end + 1);
    let length = bytes[start..].iter().take_while(|byte| is_part(byte)).count();
    line.get(start..start + length)
}

fn of_word(word: &str) -> Explanation {
    let (what, hint) = match word.trim_start_matches('-').to_ascii_lowercase().as_str() {
        "nan" | "inf" | "infinity" => (
            format!("{word} is not a number of JSON, though Python's `json` writes it"),
            "write null in its place, or leave the column out",
        ),
        "none" | "true" | "false" | "undefined" if !matches!(word, "true" | "false") => (
            format!("{word} is not JSON: is this the text of a Python object?"),
            "write each row with `json.dumps`: null, true and false are JSON's names",
        ),
        _ => return None,
    };
    Some((what, hint))
}

fn of_form(line: &str, column: usize) -> Explanation {
    let before = line.as_bytes().get(..column).unwrap_or(line.as_bytes());
    let at = before.last().copied();
    let (what, hint) = match at {
        Some(b'\'') => (
            "texts stand in double quotes in JSON, not in single ones",
            "write each row with `json.dumps`, not with `str`",
        ),
        Some(b'}' | b']') if before.iter().rev().nth(1) == Some(&b',') => {
            ("a comma stands before a closing bracket", "leave out the last comma")
        }
        _ if !line.trim_start().starts_with(['{', '[']) => (
            "the line begins with no bracket",
            "every line must hold one complete JSON object; a table with commas (CSV) is not read: \
             write it as `.jsonl` or `.parquet`",
        ),
        _ => return None,
    };
    Some((what.to_owned(), hint))
}

pub(super) fn write<T: Serialize>(path: &Path, rows: impl Iterator<Item = T>) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for row in rows {
            serde_json::to_writer(&mut file, &row)?;
            file.write_all(b"\n")?;
        }
        file.flush()
    };
    write().map_err(|error| input_error(path, "write this file", &error))
}
