//! Jinja2's filters that make numbers of texts, and texts of numbers.

use minijinja::value::Value;
use minijinja::{Error, State};

use super::methods::Arguments;
use super::python::{float, integer, number, refused};
use super::text_methods::strip;

pub(super) fn file_size(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::of("filesizeformat", args, &["binary"], 0)?;
    let (base, marks): (f64, _) = match args.flag(0, false) {
        true => (1024.0, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"]),
        false => (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"]),
    };
    let parsed = || value.as_str().and_then(|text| text.trim().parse().ok());
    let bytes =
        number(value).or_else(parsed).ok_or_else(|| refused("filesizeformat: not a number"))?;
    if bytes == 1.0 {
        return Ok(Value::from("1 Byte"));
    }
    if bytes < base {
        return Ok(Value::from(format!("{} Bytes", bytes.trunc())));
    }
    let steps = (1..).zip(marks).find(|(power, _)| bytes < base.powi(power + 1));
    let (power, mark) = steps.unwrap_or((8, marks[7]));
    Ok(Value::from(format!("{:.1} {mark}", bytes / base.powi(power))))
}

pub(super) fn to_float(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::of("float", args, &["default"], 0)?;
    let parsed = value.as_str().and_then(python_float).or_else(|| number(value));
    let default = || args.get_any(0).cloned().unwrap_or_else(|| Value::from(0.0));
    Ok(parsed.map_or_else(default, Value::from))
}

/// `float(text)`.
fn python_float(text: &str) -> Option<f64> {
    let text = without_underscores(strip(text, None, true, true))?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let word = text.trim_start_matches(['+', '-']).to_ascii_lowercase();
    let named = matches!(word.as_str(), "inf" | "infinity" | "nan");
    (plain || named).then(|| text.parse().ok()).flatten()
}

/// Underscores may stand between digits alone.
fn without_underscores(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let digit =
        |at: Option<usize>| at.and_then(|at| bytes.get(at)).is_some_and(u8::is_ascii_alphanumeric);
    let misplaced =
        text.match_indices('_').any(|(at, _)| !digit(at.checked_sub(1)) || !digit(Some(at + 1)));
    (!misplaced).then(|| text.replace('_', ""))
}

pub(super) fn to_int(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("int", args, &["default", "base"], 0)?;
    let base = args.integer(1)?.unwrap_or(10);
    let whole = |number: f64| number.is_finite().then(|| number.trunc() as i128);
    let parsed = match value.as_str() {
        Some(text) => python_int(text, base).or_else(|| python_float(text).and_then(whole)),
        None => integer(value).or_else(|| float(value).and_then(whole)),
    };
    if parsed.is_some_and(|number| number == i128::MAX || number == i128::MIN) {
        return Err(refused("int: the number is too large"));
    }
    let default = || args.get_any(0).cloned().unwrap_or_else(|| Value::from(0));
    Ok(parsed.map_or_else(default, Value::from))
}

/// `int(text, base)`.
fn python_int(text: &str, base: i64) -> Option<i128> {
    let text = without_underscores(strip(text, None, true, true))?;
    let (negative, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (text.starts_with('-'), digits),
        None => (false, &text[..]),
    };
    let prefixed =
        |prefix: &str| digits.get(..2).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    let (base, digits) = match base {
        16 | 0 if prefixed("0x") => (16, &digits[2..]),
        8 | 0 if prefixed("0o") => (8, &digits[2..]),
        2 | 0 if prefixed("0b") => (2, &digits[2..]),
        0 => (10, digits),
        base => (base, digits),
    };
    let base = u32::try_from(base).ok().filter(|base| (2..=36).contains(base))?;
    let digits = digits.trim_start_matches('_');
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
    let magnitude = plain.then(|| i128::from_str_radix(digits, base).unwrap_or(i128::MAX))?;
    Some(if negative { -magnitude } else { magnitude })
}
