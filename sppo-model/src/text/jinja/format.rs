//! Python's format specifications, for `str.format` and for `%`.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::python::{float_repr, integer, number, pay_for, refused, repr_of, text_of};

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
    fn parse(text: &str) -> Result<Self, Error> {
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

    fn pad(&self, text: &str, default: char) -> String {
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
fn digits(characters: &[char], at: &mut usize) -> Result<Option<usize>, Error> {
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
fn formatted(value: &Value, form: &Form) -> Result<String, Error> {
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

fn formatted_number(value: &Value, form: &Form) -> Result<String, Error> {
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

fn signed(negative: bool, form: &Form, magnitude: &str) -> String {
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

fn float_number(number: f64, form: &Form) -> String {
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

/// `text % values`: a tuple gives several values, a dict those with names, anything else is one.
pub(super) fn percent(state: &State<'_, '_>, text: &str, values: &Value) -> Result<String, Error> {
    let list: Vec<Value> = match values.is_tuple() {
        true => values.try_iter()?.collect(),
        false => vec![values.clone()],
    };
    let mut values = Values { list: list.into_iter(), whole: values, named: false };
    let mut result = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character != '%' {
            result.push(character);
            continue;
        }
        let piece = percent_value(&mut characters, &mut values)?;
        pay_for(state, result.len() + piece.len())?;
        result.push_str(&piece);
    }
    let is_named = values.named || values.whole.kind() == ValueKind::Map;
    if !is_named && values.list.next().is_some() {
        return Err(refused("not all arguments converted during string formatting"));
    }
    Ok(result)
}

struct Values<'a> {
    list: std::vec::IntoIter<Value>,
    whole: &'a Value,
    named: bool,
}

impl Values<'_> {
    fn next(&mut self) -> Result<Value, Error> {
        self.list.next().ok_or_else(|| refused("not enough arguments for format string"))
    }
}

fn percent_value(
    characters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &mut Values<'_>,
) -> Result<String, Error> {
    let mut named = None;
    if characters.next_if_eq(&'(').is_some() {
        let name: String = characters.by_ref().take_while(|c| *c != ')').collect();
        values.named = true;
        named = Some(values.whole.get_item(&Value::from(name))?);
    }
    let mut form = Form { align: Some('>'), ..Form::default() };
    while let Some(flag) = characters.next_if(|c| "-+ #0".contains(*c)) {
        match flag {
            '-' => (form.align, form.fill) = (Some('<'), None),
            '0' if form.align != Some('<') => (form.align, form.fill) = (Some('='), Some('0')),
            '0' => (),
            '#' => form.alternate = true,
            // A plus counts for more than a space.
            sign => form.sign = form.sign.filter(|sign| *sign == '+').or(Some(sign)),
        }
    }
    if let Some(width) = percent_number(characters, values)? {
        if width < 0 {
            (form.align, form.fill) = (Some('<'), None);
        }
        form.width = width.unsigned_abs() as usize;
    }
    if characters.next_if_eq(&'.').is_some() {
        let precision = percent_number(characters, values)?.unwrap_or(0);
        form.precision = Some(usize::try_from(precision).unwrap_or(0));
    }
    while characters.next_if(|c| "hlL".contains(*c)).is_some() {}
    let code = characters.next().ok_or_else(|| refused("incomplete format"))?;
    if code == '%' {
        return Ok("%".into());
    }
    let value = match named {
        Some(value) => value,
        None => values.next()?,
    };
    form.kind = Some(code);
    percent_form(&value, form)
}

/// A number in the format, or `*` for one among the values.
fn percent_number(
    characters: &mut std::iter::Peekable<std::str::Chars<'_>>,
    values: &mut Values<'_>,
) -> Result<Option<i64>, Error> {
    if characters.next_if_eq(&'*').is_some() {
        let value = values.next()?.as_i64().filter(|number| number.abs() <= 1_000_000);
        return value.map(Some).ok_or_else(|| refused("* wants a whole number up to 1000000"));
    }
    let mut found = Vec::new();
    while let Some(digit) = characters.next_if(char::is_ascii_digit) {
        found.push(digit);
    }
    Ok(digits(&found, &mut 0)?.map(|number| number as i64))
}

fn percent_form(value: &Value, mut form: Form) -> Result<String, Error> {
    let needs_number = |value: &Value| {
        number(value).ok_or_else(|| {
            refused(format!("%{}: a number is required, not `{value}`", form.kind.unwrap_or('d')))
        })
    };
    match form.kind {
        Some('s' | 'r' | 'a') => {
            let text = match form.kind {
                Some('s') => text_of(value)?,
                Some('r') => repr_of(value)?,
                _ => repr_of(value)?
                    .chars()
                    .map(|c| if c.is_ascii() { c.to_string() } else { super::python::escape(c) })
                    .collect(),
            };
            // Zeros fill numbers only.
            (form.kind, form.fill) = (None, None);
            form.align = form.align.map(|align| if align == '=' { '>' } else { align });
            formatted(&Value::from(text), &form)
        }
        Some('c') => match value.as_str() {
            Some(text) if text.chars().count() == 1 => Ok(form.pad(text, '>')),
            Some(_) => Err(refused("%c requires a whole number or one character")),
            None => formatted_number(value, &form),
        },
        Some('d' | 'i' | 'u') => {
            let whole = match integer(value) {
                Some(whole) => whole,
                None => needs_number(value)?.trunc() as i128,
            };
            form.kind = Some('d');
            let least = form.precision.take().unwrap_or(0);
            let digits = format!("{:0>least$}", whole.unsigned_abs());
            Ok(form.pad(&signed(whole < 0, &form, &digits), '>'))
        }
        Some('x' | 'X' | 'o') => {
            integer(value).ok_or_else(|| refused("%x and %o require a whole number"))?;
            formatted_number(value, &form)
        }
        Some('e' | 'E' | 'f' | 'F' | 'g' | 'G') => {
            Ok(form.pad(&float_number(needs_number(value)?, &form), '>'))
        }
        other => Err(refused(format!("unsupported format character `{}`", other.unwrap_or(' ')))),
    }
}

/// `text.format(*positional, **named)`.
pub(super) fn braces(
    state: &State<'_, '_>,
    text: &str,
    positional: &[Value],
    named: &dyn Fn(&str) -> Option<Value>,
) -> Result<String, Error> {
    let mut fields = Fields { positional, named, next: 0 };
    let mut result = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        result.push_str(&rest[..at]);
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(behind) = rest.strip_prefix(brace) {
            result.push_str(brace);
            rest = behind;
        } else if brace == "}" {
            return Err(refused("single '}' encountered in format string"));
        } else {
            let end = end_of_field(rest)?;
            let piece = fields.piece(&rest[..end])?;
            pay_for(state, result.len() + piece.len())?;
            result.push_str(&piece);
            rest = &rest[end + 1..];
        }
    }
    Ok(result + rest)
}

/// Where the brace stands that closes a field; specifications may hold fields themselves.
fn end_of_field(text: &str) -> Result<usize, Error> {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => return Ok(at),
            '}' => depth -= 1,
            _ => (),
        }
    }
    Err(refused("expected '}' before end of string"))
}

struct Fields<'a> {
    positional: &'a [Value],
    named: &'a dyn Fn(&str) -> Option<Value>,
    next: usize,
}

impl Fields<'_> {
    fn piece(&mut self, field: &str) -> Result<String, Error> {
        let (place, specification) = field.split_once(':').unwrap_or((field, ""));
        let (path, conversion) = place.split_once('!').unwrap_or((place, "s"));
        let value = self.value(path)?;
        let value = match (conversion, place.contains('!')) {
            (_, false) => value,
            ("r", _) => Value::from(repr_of(&value)?),
            ("s", _) => Value::from(text_of(&value)?),
            _ => return Err(refused(format!("unknown conversion `!{conversion}`"))),
        };
        let mut form = String::new();
        let mut rest = specification;
        while let Some((before, behind)) = rest.split_once('{') {
            let (inner, behind) =
                behind.split_once('}').ok_or_else(|| refused("unmatched '{' in format spec"))?;
            form += before;
            form += &text_of(&self.value(inner)?)?;
            rest = behind;
        }
        formatted(&value, &Form::parse(&(form + rest))?)
    }

    /// The value that `0`, `name`, `0[key]` or `name.attribute` stands for.
    fn value(&mut self, path: &str) -> Result<Value, Error> {
        let end = path.find(['.', '[']).unwrap_or(path.len());
        let (name, mut rest) = path.split_at(end);
        let index = match name {
            "" => {
                self.next += 1;
                Some(self.next - 1)
            }
            name => name.parse().ok(),
        };
        let found = match index {
            Some(index) => self.positional.get(index).cloned(),
            None => (self.named)(name),
        };
        let mut value =
            found.ok_or_else(|| refused(format!("format: there is no argument `{path}`")))?;
        while !rest.is_empty() {
            let key = rest.strip_prefix('[').and_then(|inner| inner.split_once(']'));
            let (key, behind) =
                key.ok_or_else(|| refused(format!("format: `{path}` is not supported")))?;
            let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
            value = value.get_item(&key)?;
            rest = behind;
        }
        Ok(value)
    }
}

/// The filter `format`, and what the operator `%` does with numbers.
pub(super) fn remainder(
    state: &State<'_, '_>,
    left: &Value,
    right: &Value,
) -> Result<Value, Error> {
    if let Some(text) = left.as_str() {
        return Ok(Value::from(percent(state, text, right)?));
    }
    let zero = || refused("division by zero: the right side of % is 0");
    match (integer(left), integer(right)) {
        (Some(_), Some(0)) => Err(zero()),
        (Some(left), Some(right)) => {
            let rest = left.checked_rem(right).unwrap_or(0);
            let wrapped = rest != 0 && (rest < 0) != (right < 0);
            Ok(Value::from(if wrapped { rest + right } else { rest }))
        }
        _ => match (number(left), number(right)) {
            (Some(_), Some(0.0)) => Err(zero()),
            (Some(left), Some(right)) => {
                let rest = left % right;
                let wrapped = rest != 0.0 && (rest < 0.0) != (right < 0.0);
                let rest = if wrapped { rest + right } else { rest };
                Ok(Value::from(if rest == 0.0 { 0.0_f64.copysign(right) } else { rest }))
            }
            _ => Err(refused(format!(
                "unsupported operand types for %: {} and {}",
                left.kind(),
                right.kind()
            ))),
        },
    }
}
