//! The functions and filters that transformers adds to chat templates.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind};
use serde::Serialize;

/// Marks an error as the template's own decision, so that it is told apart from a broken template.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Refusal;

pub(super) fn add_to(environment: &mut Environment<'static>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment.set_formatter(|output, state, value| match python_constant(value) {
        Some(text) => Ok(output.write_str(text)?),
        None => minijinja::escape_formatter(output, state, value),
    });
}

pub(super) fn is_refusal(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Refusal>())
}

/// Jinja2 prints constants as Python does.
fn python_constant(value: &Value) -> Option<&'static str> {
    if value.is_none() {
        Some("None")
    } else if value.kind() == minijinja::value::ValueKind::Bool {
        Some(if value.is_true() { "True" } else { "False" })
    } else {
        None
    }
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Refusal))
}

/// The date in UTC, of `SOURCE_DATE_EPOCH` where that is set, so that a run can be repeated.
fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|text| text.parse().ok())
        .or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time.as_secs()))
        .unwrap_or_default();
    format_time(format, seconds)
}

fn format_time(format: &str, seconds: u64) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let days = seconds / 86_400;
    let (year, month, day) = civil_date(days);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let month_name = MONTHS[(month - 1) as usize % 12];
    let day_name = DAYS[(days % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        let padded = |value: u64| if unpadded { value.to_string() } else { format!("{value:02}") };
        text.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => padded(year % 100),
            Some('m') => padded(month),
            Some('d') => padded(day),
            Some('H') => padded(hour),
            Some('I') => padded((hour + 11) % 12 + 1),
            Some('M') => padded(minute),
            Some('S') => padded(second),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_string(),
            other => {
                let name = other.map(String::from).unwrap_or_default();
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("strftime_now does not know %{name}"),
                ));
            }
        });
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts whole
/// 400-year cycles of years that begin in March, so that the leap day comes last.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let unsuitable = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::BadSerialization, format!("tojson: {error}"))
    };
    let indent: Option<Option<usize>> = options.get("indent")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let separators: Option<Option<Vec<String>>> = options.get("separators")?;
    options.assert_all_used()?;

    let mut json = serde_json::to_value(value).map_err(|error| unsuitable(&error))?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let indent = indent.flatten();
    if indent.is_some_and(|width| width > 16) {
        return Err(unsuitable(&"indent is larger than 16"));
    }
    let mut formatter = PythonFormatter::new(indent);
    if let Some(separators) = separators.flatten() {
        let [item, key] = separators.as_slice() else {
            return Err(unsuitable(&"separators is not a pair"));
        };
        (formatter.item_separator, formatter.key_separator) = (item.clone(), key.clone());
    }
    let mut bytes = Vec::new();
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        .map_err(|error| unsuitable(&error))?;
    let text = String::from_utf8(bytes).map_err(|error| unsuitable(&error))?;
    Ok(Value::from(if ensure_ascii == Some(true) { escape_non_ascii(&text) } else { text }))
}

/// Only strings hold other than ASCII in JSON, so escapes can be put in afterwards.
fn escape_non_ascii(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            result.push(character);
        } else {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                result.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    result
}

/// The layout of Python's `json.dumps`.
struct PythonFormatter {
    item_separator: String,
    key_separator: String,
    indent: Option<usize>,
    depth: usize,
    has_items: bool,
}

impl PythonFormatter {
    fn new(indent: Option<usize>) -> Self {
        let item_separator = if indent.is_some() { "," } else { ", " };
        Self {
            item_separator: item_separator.into(),
            key_separator: ": ".into(),
            indent,
            depth: 0,
            has_items: false,
        }
    }

    fn line<W: ?Sized + std::io::Write>(&self, writer: &mut W) -> std::io::Result<()> {
        match self.indent {
            Some(width) => {
                writer.write_all(format!("\n{}", " ".repeat(width * self.depth)).as_bytes())
            }
            None => Ok(()),
        }
    }

    fn open<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        bracket: &str,
    ) -> std::io::Result<()> {
        self.depth += 1;
        self.has_items = false;
        w.write_all(bracket.as_bytes())
    }

    fn close<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        bracket: &str,
    ) -> std::io::Result<()> {
        self.depth -= 1;
        if self.has_items {
            self.line(w)?;
        }
        w.write_all(bracket.as_bytes())
    }

    fn item<W: ?Sized + std::io::Write>(&self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if !first {
            writer.write_all(self.item_separator.as_bytes())?;
        }
        self.line(writer)
    }
}

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, "[")
    }
    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, "]")
    }
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }
    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.has_items = true;
        Ok(())
    }
    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.open(w, "{")
    }
    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.close(w, "}")
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        self.item(w, first)
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(self.key_separator.as_bytes())
    }
    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, _: &mut W) -> std::io::Result<()> {
        self.has_items = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_agree_with_python() {
        // datetime.fromtimestamp(s, timezone.utc).strftime(...)
        let format = "%d %b %Y|%A %B %-d|%y-%m|%I:%M %p|%T %%";
        let cases = [
            (0, "01 Jan 1970|Thursday January 1|70-01|12:00 AM|00:00:00 %"),
            (951_868_799, "29 Feb 2000|Tuesday February 29|00-02|11:59 PM|23:59:59 %"),
            (1_763_953_200, "24 Nov 2025|Monday November 24|25-11|03:00 AM|03:00:00 %"),
            (4_107_542_400, "01 Mar 2100|Monday March 1|00-03|12:00 AM|00:00:00 %"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(format_time(format, seconds).unwrap(), expected);
        }
    }
}
