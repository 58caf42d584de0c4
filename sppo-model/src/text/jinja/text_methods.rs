//! The methods of Python's `str`.

use minijinja::value::{Kwargs, Rest, Tuple, Value, from_args};
use minijinja::{Error, State};

use super::braces::braces;
use super::characters::{self, is_space};
use super::methods::Arguments;
use super::python::{is_printable, pay_for, refused};

/// Calls a method; `None` where `str` has none of this name, or its result has no use in a template.
pub(super) fn call(
    state: &mut State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    // Each method reads the text once.
    pay_for(state, text.len())?;
    if let Some(found) = question(text, method).or_else(|| change_of_case(text, method)) {
        Arguments::of(method, args, &[], 0)?;
        return Ok(Some(found));
    }
    let found = match method {
        "strip" | "lstrip" | "rstrip" => stripped(text, method, args)?,
        "split" | "rsplit" => split(text, method, args)?,
        "splitlines" => {
            let args = Arguments::of(method, args, &["keepends"], 0)?;
            Value::from(characters::lines(text, args.flag(0, false)))
        }
        "partition" | "rpartition" => partition(text, method, args)?,
        "removeprefix" | "removesuffix" => {
            let args = Arguments::of(method, args, &["affix"], 1)?;
            let affix = args.required_text(0)?;
            let rest = match method {
                "removeprefix" => text.strip_prefix(affix),
                _ => text.strip_suffix(affix),
            };
            Value::from(rest.unwrap_or(text))
        }
        "startswith" | "endswith" => Value::from(has_affix(text, method, args)?),
        "find" | "rfind" | "index" | "rindex" => position(text, method, args)?,
        "count" => {
            let args = Arguments::of(method, args, &["sub", "start", "end"], 1)?;
            let (part, _) = part_of(text, &args)?;
            Value::from(part.matches(args.required_text(0)?).count())
        }
        "replace" => {
            let args = Arguments::of(method, args, &["old", "new", "count"], 2)?;
            let count = args.integer(2)?.unwrap_or(-1);
            Value::from(replaced(
                state,
                text,
                args.required_text(0)?,
                args.required_text(1)?,
                count,
            )?)
        }
        "join" => joined(state, text, args)?,
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, method, args)?,
        "expandtabs" => {
            let args = Arguments::of(method, args, &["tabsize"], 0)?;
            let size = args.integer(0)?.unwrap_or(8);
            Value::from(without_tabs(state, text, usize::try_from(size).unwrap_or(0))?)
        }
        "format" => {
            let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
            Value::from(braces(state, text, &positional, &|name| named.get(name).ok())?)
        }
        _ => return Ok(None),
    };
    Ok(Some(found))
}

/// `isalpha` and its like.
fn question(text: &str, method: &str) -> Option<Value> {
    let all = |class: fn(char) -> bool| !text.is_empty() && text.chars().all(class);
    let cased = |class: fn(char) -> bool| {
        let mut letters = text.chars().filter(|c| characters::is_cased(*c)).peekable();
        letters.peek().is_some() && letters.all(class)
    };
    let answer = match method {
        "isalpha" => all(characters::is_letter),
        "isalnum" => all(characters::is_letter_or_number),
        "isdigit" => all(characters::is_digit),
        "isdecimal" => all(characters::is_decimal),
        "isnumeric" => all(characters::is_numeric),
        "isspace" => all(is_space),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => characters::is_identifier(text),
        "islower" => cased(char::is_lowercase),
        "isupper" => cased(char::is_uppercase),
        "istitle" => characters::is_titled(text),
        _ => return None,
    };
    Some(Value::from(answer))
}

fn change_of_case(text: &str, method: &str) -> Option<Value> {
    let changed = match method {
        "upper" => text.to_uppercase(),
        "lower" => text.to_lowercase(),
        "title" => characters::titled(text),
        "capitalize" => characters::capitalized(text),
        "swapcase" => characters::swapped(text),
        "casefold" => characters::folded(text),
        _ => return None,
    };
    Some(Value::from(changed))
}

fn stripped(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(method, args, &["chars"], 0)?;
    let set = args.text(0)?;
    Ok(Value::from(strip(text, set, method != "rstrip", method != "lstrip")))
}

/// The text without white space, or without these characters, at its ends.
pub(super) fn strip<'a>(text: &'a str, set: Option<&str>, start: bool, end: bool) -> &'a str {
    let unwanted = |c: char| set.map_or_else(|| is_space(c), |set| set.contains(c));
    let text = if start { text.trim_start_matches(unwanted) } else { text };
    if end { text.trim_end_matches(unwanted) } else { text }
}

fn split(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(method, args, &["sep", "maxsplit"], 0)?;
    let most = usize::try_from(args.integer(1)?.unwrap_or(-1)).unwrap_or(usize::MAX);
    let from_end = method == "rsplit";
    let mut parts: Vec<&str> = match args.text(0)? {
        Some("") => return Err(refused(format!("{method}: the separator is empty"))),
        Some(separator) if from_end => text.rsplitn(most.saturating_add(1), separator).collect(),
        Some(separator) => text.splitn(most.saturating_add(1), separator).collect(),
        None => words(text, most, from_end),
    };
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Words between white space; what is left after `most` splits stays as it is.
fn words(text: &str, most: usize, from_end: bool) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = strip(text, None, !from_end, from_end);
    while !rest.is_empty() {
        let gap = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(gap) = gap.filter(|_| words.len() < most) else {
            words.push(rest);
            break;
        };
        if from_end {
            let behind = rest[gap..].chars().next().map_or(gap, |c| gap + c.len_utf8());
            words.push(&rest[behind..]);
            rest = strip(&rest[..gap], None, false, true);
        } else {
            words.push(&rest[..gap]);
            rest = strip(&rest[gap..], None, true, false);
        }
    }
    words
}

fn partition(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(method, args, &["sep"], 1)?;
    let separator = args.required_text(0)?;
    if separator.is_empty() {
        return Err(refused(format!("{method}: the separator is empty")));
    }
    let parts = match method {
        "partition" => text.split_once(separator).map(|(a, b)| [a, separator, b]),
        _ => text.rsplit_once(separator).map(|(a, b)| [a, separator, b]),
    };
    let missing = if method == "partition" { [text, "", ""] } else { ["", "", text] };
    let parts: Vec<Value> = parts.unwrap_or(missing).into_iter().map(Value::from).collect();
    Ok(Value::from(Tuple::from(parts)))
}

/// The part of the text that the second and third arguments cut out, and the characters before it. Places
/// behind the end give a part that nothing is found in, not even an empty text.
fn part_of<'a>(text: &'a str, args: &Arguments) -> Result<(&'a str, usize), Error> {
    let length = text.chars().count() as i64;
    let place = |value: Option<i64>, default: i64| match value {
        None => default,
        Some(place) if place < 0 => (place + length).max(0),
        Some(place) => place.min(length),
    };
    let (start, end) = (place(args.integer(1)?, 0), place(args.integer(2)?, length));
    let byte =
        |place: i64| text.char_indices().nth(place as usize).map_or(text.len(), |(at, _)| at);
    let part = if start < end { &text[byte(start)..byte(end)] } else { "" };
    Ok((part, start as usize))
}

fn has_affix(text: &str, method: &str, args: &[Value]) -> Result<bool, Error> {
    let args = Arguments::of(method, args, &["affix", "start", "end"], 1)?;
    let (part, _) = part_of(text, &args)?;
    let fits = |affix: &Value| {
        let affix = affix.as_str().ok_or_else(|| {
            refused(format!("{method}: a value of the kind `{}` is not text", affix.kind()))
        })?;
        Ok(if method == "startswith" { part.starts_with(affix) } else { part.ends_with(affix) })
    };
    match args.get_any(0) {
        Some(several) if several.is_tuple() => {
            several.try_iter()?.try_fold(false, |found, affix| Ok(found || fits(&affix)?))
        }
        one => fits(one.unwrap_or(&Value::UNDEFINED)),
    }
}

fn position(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(method, args, &["sub", "start", "end"], 1)?;
    let (part, before) = part_of(text, &args)?;
    let wanted = args.required_text(0)?;
    let at = if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
    match at {
        Some(at) => Ok(Value::from(before + part[..at].chars().count())),
        None if method.ends_with("index") => Err(refused(format!("{method}: substring not found"))),
        None => Ok(Value::from(-1)),
    }
}

/// The text with `new` in place of the first `count` times that `old` stands there (all below 0).
pub(super) fn replaced(
    state: &State<'_, '_>,
    text: &str,
    old: &str,
    new: &str,
    count: i64,
) -> Result<String, Error> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let times = text.matches(old).count().min(count);
    pay_for(state, text.len().saturating_add(times.saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, count))
}

fn joined(state: &State<'_, '_>, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("join", args, &["iterable"], 1)?;
    let mut result = String::new();
    for (index, item) in args.get_any(0).unwrap_or(&Value::UNDEFINED).try_iter()?.enumerate() {
        let item = item.as_str().map(str::to_owned).ok_or_else(|| {
            refused(format!("join: item {index} is of the kind `{}`, not text", item.kind()))
        })?;
        let separator = if index > 0 { separator } else { "" };
        pay_for(state, separator.len() + item.len())?;
        result += separator;
        result += &item;
    }
    Ok(Value::from(result))
}

fn padded(state: &State<'_, '_>, text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of(method, args, &["width", "fillchar"], 1)?;
    let width = usize::try_from(args.integer(0)?.unwrap_or(0)).unwrap_or(0);
    let missing = width.saturating_sub(text.chars().count());
    let fill = args.text(1)?.unwrap_or(if method == "zfill" { "0" } else { " " });
    if fill.chars().count() != 1 {
        return Err(refused(format!("{method}: the fill character must be one character")));
    }
    pay_for(state, text.len().saturating_add(missing.saturating_mul(fill.len())))?;
    let fill = |count: usize| fill.repeat(count);
    Ok(Value::from(match method {
        "ljust" => text.to_owned() + &fill(missing),
        "rjust" => fill(missing) + text,
        "zfill" => {
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['+', '-'])));
            sign.to_owned() + &fill(missing) + digits
        }
        _ => {
            // Python puts the odd character left where the width is odd.
            let left = missing / 2 + (missing & width & 1);
            fill(left) + text + &fill(missing - left)
        }
    }))
}

fn without_tabs(state: &State<'_, '_>, text: &str, size: usize) -> Result<String, Error> {
    let tabs = text.matches('\t').count();
    pay_for(state, text.len().saturating_add(tabs.saturating_mul(size)))?;
    let mut result = String::new();
    let mut column = 0;
    for character in text.chars() {
        match character {
            '\t' if size == 0 => (),
            '\t' => {
                let spaces = size - column % size;
                result += &" ".repeat(spaces);
                column += spaces;
            }
            _ => {
                result.push(character);
                column = if matches!(character, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    Ok(result)
}
