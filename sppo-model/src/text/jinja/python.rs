//! Values as Python prints them: `str(value)` and `repr(value)`.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::{attributes, objects};

/// Lists in lists deeper than this are refused, as Python's limit of recursion does.
const DEEPEST: usize = 200;

/// The longest text that a template may make of shorter ones, in bytes.
const LONGEST_TEXT: usize = 16 << 20;

/// An error in the words of Python, where a template does what Python refuses too.
pub(super) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Pays for a text of so many bytes before it is made.
pub(super) fn pay_for(state: &State<'_, '_>, bytes: usize) -> Result<(), Error> {
    if bytes > LONGEST_TEXT {
        return Err(refused(format!("a text of {bytes} bytes is longer than any prompt")));
    }
    state.consume_fuel(1 + bytes as u64 / 64)
}

/// `str(value)`.
pub(super) fn text_of(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        return Ok(text.to_owned());
    }
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        _ => repr_of(value),
    }
}

/// `repr(value)`.
pub(super) fn repr_of(value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    write_repr(&mut text, value, 0)?;
    Ok(text)
}

fn write_repr(out: &mut String, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(refused("maximum recursion depth exceeded while printing a list"));
    }
    if let Some(text) = value.as_str() {
        write_text_repr(out, text);
        return Ok(());
    }
    if let Some(name) = attributes::method_name(value) {
        return Err(refused(format!("the method `{name}` is not called, and cannot be printed")));
    }
    if let Some(printed) = objects::printed(value) {
        let (before, inner, after) = printed;
        out.push_str(&before);
        if let Some(inner) = inner {
            write_repr(out, &inner, depth + 1)?;
        }
        out.push_str(after);
        return Ok(());
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number_text(value)),
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key, depth + 1)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?, depth + 1)?;
            }
            out.push('}');
        }
        // Parts and sums of lists, which minijinja makes one item at a time.
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ('(', ')') } else { ('[', ']') };
            out.push(open);
            let mut length = 0;
            for item in value.try_iter()? {
                out.push_str(if length > 0 { ", " } else { "" });
                write_repr(out, &item, depth + 1)?;
                length += 1;
            }
            out.push_str(if value.is_tuple() && length == 1 { "," } else { "" });
            out.push(close);
        }
        // What Python prints with an address in memory, or as bytes.
        kind => return Err(refused(format!("a value of the kind `{kind}` cannot be printed"))),
    }
    Ok(())
}

/// A whole number, or a float in Python's form.
pub(super) fn number_text(value: &Value) -> String {
    match float(value) {
        Some(number) => float_repr(number),
        None => value.to_string(),
    }
}

/// The value of a float; `None` for whole numbers and anything else.
pub(super) fn float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

/// A whole number (or a truth value, which is one in Python).
pub(super) fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Any number as a float.
pub(super) fn number(value: &Value) -> Option<f64> {
    float(value).or_else(|| integer(value).map(|number| number as f64))
}

/// `repr(float)`: the shortest digits that give the same number, and an exponent from 1e16 on and below
/// 1e-4.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".into();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf".into() } else { "-inf".into() };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

/// `repr(str)`: in single quotes, unless double quotes save an escape.
fn write_text_repr(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for character in text.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character == quote => out.extend(['\\', quote]),
            _ if is_printable(character) => out.push(character),
            _ => out.push_str(&escape(character)),
        }
    }
    out.push(quote);
}

/// The shortest of Python's escapes by number.
pub(super) fn escape(character: char) -> String {
    match u32::from(character) {
        code @ 0..=0xff => format!("\\x{code:02x}"),
        code @ 0x100..=0xffff => format!("\\u{code:04x}"),
        code => format!("\\U{code:08x}"),
    }
}

/// `str.isprintable` of a character. Rust escapes the same ones within a text.
pub(super) fn is_printable(character: char) -> bool {
    matches!(character, '\\' | '"' | '\'') || escapes_within_text(character) == 1
}

fn escapes_within_text(character: char) -> usize {
    // A mark that combines with the letter before is escaped by itself, but not behind a letter.
    let mut buffer = String::from("a");
    buffer.push(character);
    buffer.escape_debug().count() - 1
}
