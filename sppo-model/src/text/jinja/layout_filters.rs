//! Jinja2's filters that lay text out: widths, indents and line breaks.

use minijinja::value::Value;
use minijinja::{Error, State};

use super::characters;
use super::methods::Arguments;
use super::python::{pay_for, refused, text_of};

pub(super) fn center(
    state: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::of("center", args, &["width"], 0)?;
    let width = Value::from(args.integer(0)?.unwrap_or(80));
    let text = text_of(value)?;
    let centred = super::text_methods::call(state, &text, "center", &[width])?;
    Ok(centred.unwrap_or_default())
}

pub(super) fn indented(
    state: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::of("indent", args, &["width", "first", "blank"], 0)?;
    let indent = match args.get(0).and_then(Value::as_str) {
        Some(text) => text.to_owned(),
        None => {
            let width = usize::try_from(args.integer(0)?.unwrap_or(4)).unwrap_or(0);
            pay_for(state, width)?;
            " ".repeat(width)
        }
    };
    let text = text_of(value)? + "\n";
    let count = text.matches('\n').count();
    pay_for(state, text.len().saturating_add(count.saturating_mul(indent.len())))?;
    let blank = args.flag(2, false);
    // Jinja2 takes the lines apart, and leaves the last line break out.
    let lines: Vec<String> = characters::lines(&text, false)
        .into_iter()
        .enumerate()
        .map(|(index, line)| {
            if index > 0 && (blank || !line.is_empty()) { format!("{indent}{line}") } else { line }
        })
        .collect();
    let first = if args.flag(1, false) { indent } else { String::new() };
    Ok(Value::from(first + &lines.join("\n")))
}

pub(super) fn truncated(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let args = Arguments::of("truncate", args, &["length", "killwords", "end", "leeway"], 0)?;
    let text = text_of(value)?;
    let length = usize::try_from(args.integer(0)?.unwrap_or(255)).unwrap_or(0);
    let end = args.text(2)?.unwrap_or("...");
    let leeway = usize::try_from(args.integer(3)?.unwrap_or(5)).unwrap_or(0);
    if length < end.chars().count() {
        return Err(refused("truncate: the length is shorter than the end"));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::from(text));
    }
    let mut kept: String = text.chars().take(length - end.chars().count()).collect();
    if !args.flag(1, false) {
        kept.truncate(kept.rfind(' ').unwrap_or(kept.len()));
    }
    Ok(Value::from(kept + end))
}

pub(super) fn wrapped(
    state: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
    let args = Arguments::of("wordwrap", args, &names, 0)?;
    let text = text_of(value)?;
    let width = usize::try_from(args.integer(0)?.unwrap_or(79)).unwrap_or(0);
    if width == 0 {
        return Err(refused("wordwrap: the width is not above 0"));
    }
    let hyphens = args.flag(3, true);
    if hyphens && text.contains('-') {
        return Err(refused("the filter `wordwrap` is not supported for words with hyphens"));
    }
    let break_words = args.flag(1, true);
    let separator = args.text(2)?.unwrap_or("\n");
    let lines = characters::lines(&text, false);
    let wrapped: Vec<String> =
        lines.iter().map(|line| wrap(line, width, break_words).join(separator)).collect();
    let result = wrapped.join(separator);
    pay_for(state, result.len())?;
    Ok(Value::from(result))
}

/// `textwrap.wrap` without its changes to white space.
fn wrap(line: &str, width: usize, break_words: bool) -> Vec<String> {
    let length = |text: &str| text.chars().count();
    let mut chunks: Vec<String> = Vec::new();
    for character in line.chars() {
        let space = characters::is_space(character);
        match chunks.last_mut().filter(|chunk| chunk.starts_with(characters::is_space) == space) {
            Some(chunk) => chunk.push(character),
            None => chunks.push(character.to_string()),
        }
    }
    let mut lines: Vec<String> = Vec::new();
    let mut current = String::new();
    let mut pending = chunks.into_iter().rev().collect::<Vec<_>>();
    while let Some(chunk) = pending.pop() {
        let is_space = chunk.starts_with(characters::is_space);
        if current.is_empty() && is_space && !lines.is_empty() {
            continue;
        }
        if length(&current) + length(&chunk) <= width {
            current += &chunk;
        } else if length(&chunk) > width && (break_words || current.is_empty()) {
            let room = if break_words { width - length(&current) } else { length(&chunk) };
            current.extend(chunk.chars().take(room));
            let rest: String = chunk.chars().skip(room).collect();
            if !rest.is_empty() {
                pending.push(rest);
            }
            finish(&mut current, &mut lines);
        } else {
            pending.push(chunk);
            finish(&mut current, &mut lines);
        }
    }
    finish(&mut current, &mut lines);
    lines
}

/// Ends a line; white space at its end is left out.
fn finish(current: &mut String, lines: &mut Vec<String>) {
    let line = current.trim_end_matches(characters::is_space);
    if !line.is_empty() {
        lines.push(line.to_owned());
    }
    current.clear();
}
