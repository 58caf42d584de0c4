//! The operator `%`: formats in the manner of C for texts, and remainders for numbers.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::format::{Form, digits, float_number, formatted, formatted_number, signed};
use super::python::{escape, integer, number, pay_for, refused, repr_of, text_of};

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
                    .map(|c| if c.is_ascii() { c.to_string() } else { escape(c) })
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

/// `left % right`.
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
