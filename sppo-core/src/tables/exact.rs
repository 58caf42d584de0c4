//! Rows of JSON text as values for Parquet, whose columns hold whole numbers of at most 64 bits, or doubles. A
//! number that would come back changed is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::Row;
use crate::error::{Error, Result};

/// Largest whole number up to which a double holds all of them.
const LARGEST_IN_A_DOUBLE: u64 = 1 << 53;

const HINT: &str = "write `.jsonl`, which keeps every digit, or make the column text";

/// The rows' values, by column.
///
/// # Errors
/// When a number does not fit; the error names the column.
pub(super) fn values(
    path: &Path,
    rows: impl Iterator<Item = Row>,
) -> Result<Vec<Map<String, Value>>> {
    let mut seen: BTreeMap<String, Numbers> = BTreeMap::new();
    let mut all = Vec::new();
    for (row, number) in rows.zip(1u64..) {
        let refused = |name: &str, reason: String| {
            Error::input(path, format!("row {number}: `{name}` {reason}")).with_hint(HINT)
        };
        let mut values = Map::new();
        for (name, text) in row.columns() {
            if let Some(number) = numbers_of(text).find(|number| !is_kept(number)) {
                let reason = format!("holds {number}, which a number in Parquet cannot hold");
                return Err(refused(name, reason));
            }
            let value = serde_json::from_str(text)
                .map_err(|error| refused(name, format!("has no form in Parquet: {error}")))?;
            note_numbers(name, &value, &mut seen);
            if values.insert(name.to_owned(), value).is_some() {
                return Err(refused(name, "stands there twice, and Parquet has it once".into()));
            }
        }
        all.push(values);
    }
    match seen.iter().find(|(_, numbers)| numbers.are_mixed()) {
        Some((name, numbers)) => Err(numbers.mixed(path, name)),
        None => Ok(all),
    }
}

/// The numbers in a JSON text, as they are written.
fn numbers_of(text: &str) -> impl Iterator<Item = &str> {
    let begins = |byte: &u8| matches!(byte, b'"' | b'-' | b'0'..=b'9');
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            rest = &rest[rest.as_bytes().iter().position(begins)?..];
            if let Some(string) = rest.strip_prefix('"') {
                rest = after_string(string);
                continue;
            }
            let end = rest.bytes().position(|byte| !is_part(&byte)).unwrap_or(rest.len());
            let (number, after) = rest.split_at(end);
            rest = after;
            return Some(number);
        }
    })
}

/// What follows a string whose opening quote is gone.
fn after_string(text: &str) -> &str {
    let mut from = 0;
    while let Some(quote) = text[from..].find('"') {
        let (before, after) = (&text[..from + quote], &text[from + quote + 1..]);
        let escapes = before.bytes().rev().take_while(|byte| *byte == b'\\').count();
        if escapes % 2 == 0 {
            return after;
        }
        from += quote + 1;
    }
    ""
}

/// Whether Parquet holds this number: a whole number exactly, another as a double with all of its digits.
fn is_kept(number: &str) -> bool {
    /// Digits that tell every double apart.
    const DIGITS_OF_A_DOUBLE: usize = 17;
    if !number.contains(['.', 'e', 'E']) {
        return number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok();
    }
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let significant = digits.trim_matches('0').len();
    significant <= DIGITS_OF_A_DOUBLE
        && number
            .parse::<f64>()
            .is_ok_and(|value| value.is_finite() && (value != 0.0 || significant == 0))
}

/// The numbers in one place of all rows, which share one type in Parquet.
#[derive(Debug, Default)]
struct Numbers {
    has_decimals: bool,
    has_negative: bool,
    largest: u64,
}

impl Numbers {
    /// Whether no one type holds all of them exactly.
    fn are_mixed(&self) -> bool {
        let needs_unsigned = i64::try_from(self.largest).is_err();
        self.has_decimals && self.largest > LARGEST_IN_A_DOUBLE
            || self.has_negative && needs_unsigned
    }

    fn mixed(&self, path: &Path, name: &str) -> Error {
        let others = if self.has_decimals { "decimal" } else { "negative" };
        let message = format!(
            "`{name}` holds {} and {others} numbers, and a column of Parquet has one type for both",
            self.largest
        );
        Error::input(path, message).with_hint(HINT)
    }

    fn note(&mut self, number: &serde_json::Number) {
        match (number.as_u64(), number.as_i64()) {
            (Some(whole), _) => self.largest = self.largest.max(whole),
            (None, Some(negative)) => {
                self.has_negative = true;
                // A double holds negative numbers as far as positive ones.
                if negative.unsigned_abs() > LARGEST_IN_A_DOUBLE {
                    self.largest = self.largest.max(LARGEST_IN_A_DOUBLE + 1);
                }
            }
            (None, None) => self.has_decimals = true,
        }
    }
}

fn note_numbers(place: &str, value: &Value, seen: &mut BTreeMap<String, Numbers>) {
    match value {
        Value::Number(number) => match seen.get_mut(place) {
            Some(numbers) => numbers.note(number),
            None => seen.entry(place.to_owned()).or_default().note(number),
        },
        Value::Array(items) => items.iter().for_each(|item| note_numbers(place, item, seen)),
        Value::Object(table) => {
            for (name, value) in table {
                note_numbers(&format!("{place}.{name}"), value, seen);
            }
        }
        _ => {}
    }
}
