//! Python's format specifications: the form of one value.

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::python::{float_repr, integer, number, refused, text_of};

/// The form of one value.
#[derive(Clone, Debug, Default)]
pub(super) struct Form {
    pub(super) fill: Option<char>,
    pub(super) align: Option<char>,
    pub(super) sign: Option<char>,
    pub(super) alternate: bool,
    pub(super) width: usize,
    pub(super) grouping: Option<char>,
    pub(super) precision: Option<usize>,
    pub(super) kind: Option<char>,
}

impl Form {
    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let mut form = Self::default();
        let characters: Vec<char> = text.chars().collect();
        let is_align = |index: usize| characters.get(index).filter(|c| "<>=^".contains(**c));
        let mut at = 0;
        if let Some(align) = is_align(1) {
            (form.fill, form.align, at) = (Some(characters[0]), Some(*align), 2);
        } else if let Some(align) = is_align(0) {
            (form.align, at) = (Some(*align), 1);
        }
        let take = |allowed: &str, at: &mut usize| {
            let found = characters.get(*at).copied().filter(|c| allowed.contains(*c));
            *at += usize::from(found.is_some());
            found
        };
        form.sign = take("+- ", &mut at);
        form.alternate = take("#", &mut at).is_some();
        if take("0", &mut at).is_some() && form.align.is_none() {
            (form.fill, form.align) = (Some('0'), Some('='));
        }
        form.width = digits(&characters, &mut at)?.unwrap_or(0);
        form.grouping = take(",_", &mut at);
        if take(".", &mut at).is_some() {
            form.precision = digits(&characters, &mut at)?;
        }
        form.kind = take("bcdeEfFgGnosxX%", &mut at);
        match characters.get(at) {
            None => Ok(form),
            Some(_) => Err(refused(format!("the format specification `{text}` is not Python's"))),
        }
    }

    pub(super) fn pad(&self, text: &str, default: char) -> String {
        let missing = self.width.saturating_sub(text.chars().count());
        let fill = |count: usize| String::from(self.fill.unwrap_or(' ')).repeat(count);
        match self.align.unwrap_or(default) {
            '<' => text.to_owned() + &fill(missing),
            '^' => fill(missing / 2) + text + &fill(missing - missing / 2),
            '=' => {
                let signed = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
                let prefixed =
                    if text[signed..].starts_with("0x") || text[signed..].starts_with("0X") {
                        2
                    } else {
                        0
                    };
                let (sign, digits) =
                    text.split_at(signed + if self.alternate { prefixed } else { 0 });
                sign.to_owned() + &fill(missing) + digits
            }
            _ => fill(missing) + text,
        }
    }
}

/// Digits that stand at a place; no more than any text needs.
pub(super) fn digits(characters: &[char], at: &mut usize) -> Result<Option<usize>, Error> {
    let mut number: Option<usize> = None;
    while let Some(digit) = characters.get(*at).and_then(|c| c.to_digit(10)) {
        let longer = number.unwrap_or(0) * 10 + digit as usize;
        if longer > 1_000_000 {
            return Err(refused("a width or precision is larger than 1000000"));
        }
        number = Some(longer);
        *at += 1;
    }
    Ok(number)
}

/// `format(value, form)`.
pub(super) fn formatted(value: &Value, form: &Form) -> Result<String, Error> {
    let unknown = |kind: char, name: &str| {
        refused(format!("unknown format code `{kind}` for a value of the kind `{name}`"))
    };
    if value.kind() != ValueKind::Number {
        return match (value.kind(), form.kind) {
            (ValueKind::Bool, Some(kind)) if kind != 's' => formatted_number(value, form),
            (_, None | Some('s')) => {
                let text = text_of(value)?;
                let kept = form.precision.map(|length| text.chars().take(length).collect());
                Ok(form.pad(&kept.unwrap_or(text), '<'))
            }
            (kind, Some(code)) => Err(unknown(code, &kind.to_string())),
        };
    }
    match form.kind {
        Some('s') => Err(unknown('s', "number")),
        _ => formatted_number(value, form),
    }
}

pub(super) fn formatted_number(value: &Value, form: &Form) -> Result<String, Error> {
    let wrong = || refused(format!("the number `{value}` does not have this format"));
    let body = match (form.kind, integer(value)) {
        (Some('c'), Some(code)) => {
            let character = u32::try_from(code).ok().and_then(char::from_u32).ok_or_else(wrong)?;
            return Ok(form.pad(&character.to_string(), '<'));
        }
        (None | Some('d' | 'n' | 'b' | 'o' | 'x' | 'X'), Some(whole)) => {
            if form.precision.is_some() {
                return Err(refused("a precision is not allowed for whole numbers"));
            }
            whole_number(whole, form)
        }
        (Some('d' | 'n' | 'b' | 'o' | 'x' | 'X' | 'c'), None) => return Err(wrong()),
        _ => float_number(number(value).ok_or_else(wrong)?, form),
    };
    Ok(form.pad(&body, '>'))
}

pub(super) fn signed(negative: bool, form: &Form, magnitude: &str) -> String {
    match (negative, form.sign) {
        (true, _) => format!("-{magnitude}"),
        (false, Some(sign @ ('+' | ' '))) => format!("{sign}{magnitude}"),
        _ => magnitude.to_owned(),
    }
}

fn whole_number(whole: i128, form: &Form) -> String {
    let magnitude = whole.unsigned_abs();
    let (digits, prefix) = match form.kind {
        Some('b') => (format!("{magnitude:b}"), "0b"),
        Some('o') => (format!("{magnitude:o}"), "0o"),
        Some('x') => (format!("{magnitude:x}"), "0x"),
        Some('X') => (format!("{magnitude:X}"), "0X"),
        _ => (magnitude.to_string(), ""),
    };
    let every = if prefix.is_empty() { 3 } else { 4 };
    let digits = grouped(&digits, form.grouping, every);
    let prefix = if form.alternate { prefix } else { "" };
    signed(whole < 0, form, &format!("{prefix}{digits}"))
}

/// Digits with a separator between groups.
fn grouped(digits: &str, separator: Option<char>, every: usize) -> String {
    let Some(separator) = separator else { return digits.to_owned() };
    let mut result = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(every) {
            result.push(separator);
        }
        result.push(digit);
    }
    result
}

pub(super) fn float_number(number: f64, form: &Form) -> String {
    let magnitude = number.abs();
    let precision = form.precision.unwrap_or(6);
    let upper = form.kind.is_some_and(|kind| kind.is_ascii_uppercase());
    let mut text = if !number.is_finite() {
        float_repr(magnitude)
    } else {
        match form.kind {
            Some('f' | 'F') => format!("{magnitude:.precision$}"),
            Some('e' | 'E') => scientific(magnitude, precision),
            Some('%') => format!("{:.precision$}", magnitude * 100.0),
            Some('g' | 'G' | 'n') => general(magnitude, precision, form.alternate),
            _ => match form.precision {
                None => float_repr(magnitude),
                Some(precision) => {
                    let text = general(magnitude, precision, false);
                    if text.contains(['.', 'e']) { text } else { text + ".0" }
                }
            },
        }
    };
    if form.kind == Some('%') {
        text.push('%');
    }
    if let Some(separator) = form.grouping {
        let whole = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text = grouped(&text[..whole], Some(separator), 3) + &text[whole..];
    }
    let text = signed(number.is_sign_negative() && !number.is_nan(), form, &text);
    if upper { text.to_uppercase() } else { text }
}

/// Digits, and an exponent of at least two.
fn scientific(magnitude: f64, precision: usize) -> String {
    let text = format!("{magnitude:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// As C's `%g`: so many significant digits, without zeros at the end.
fn general(magnitude: f64, precision: usize, keep_zeros: bool) -> String {
    let significant = precision.max(1);
    let text = scientific(magnitude, significant - 1);
    let exponent: i32 = text.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
    let trim = |text: &str| match text.contains('.') && !keep_zeros {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text.to_owned(),
    };
    if (-4..significant as i32).contains(&exponent) {
        let decimals = usize::try_from(significant as i32 - 1 - exponent).unwrap_or(0);
        return trim(&format!("{magnitude:.decimals$}"));
    }
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{}e{exponent}", trim(digits)),
        None => text,
    }
}
