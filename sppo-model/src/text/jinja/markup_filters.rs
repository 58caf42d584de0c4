//! Jinja2's filters for HTML and addresses.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, State};

use super::methods::Arguments;
use super::objects;
use super::python::{refused, text_of};

/// Markup's escapes.
fn escape(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => result += "&amp;",
            '<' => result += "&lt;",
            '>' => result += "&gt;",
            '"' => result += "&#34;",
            '\'' => result += "&#39;",
            _ => result.push(character),
        }
    }
    result
}

pub(super) fn escaped(
    state: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    if value.is_safe() { Ok(value.clone()) } else { escaped_again(state, value, args) }
}

pub(super) fn escaped_again(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    Arguments::of("escape", args, &[], 0)?;
    Ok(Value::from_safe_string(escape(&text_of(value)?)))
}

pub(super) fn without_tags(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    Arguments::of("striptags", args, &[], 0)?;
    let mut text = text_of(value)?;
    for (open, close) in [("<!--", "-->"), ("<", ">")] {
        while let Some(start) = text.find(open) {
            let Some(length) = text[start..].find(close) else { break };
            text.replace_range(start..start + length + close.len(), "");
        }
    }
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let entities = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&#39;", "'"),
        ("&quot;", "\""),
        ("&amp;", "&"),
    ];
    let unknown = text.match_indices('&').any(|(at, _)| {
        !entities.iter().any(|(entity, _)| text[at..].starts_with(entity))
            && text[at + 1..].starts_with(|c: char| c == '#' || c.is_ascii_alphabetic())
    });
    if unknown {
        return Err(refused("the filter `striptags` does not know this entity of HTML"));
    }
    Ok(Value::from(
        entities.iter().fold(text, |text, (entity, character)| text.replace(entity, character)),
    ))
}

pub(super) fn url_encoded(
    _: &mut State<'_, '_>,
    value: &Value,
    args: &[Value],
) -> Result<Value, Error> {
    Arguments::of("urlencode", args, &[], 0)?;
    let pairs = match value.kind() {
        ValueKind::Map => objects::dict_view(value, "items").unwrap_or(Ok(Value::UNDEFINED))?,
        ValueKind::Seq | ValueKind::Iterable => value.clone(),
        _ => return Ok(Value::from(quoted(&text_of(value)?, "/", "%20"))),
    };
    let mut parts = Vec::new();
    for pair in pairs.try_iter()? {
        let part = |index: usize| -> Result<String, Error> {
            Ok(quoted(&text_of(&pair.get_item_by_index(index)?)?, "", "+"))
        };
        parts.push(format!("{}={}", part(0)?, part(1)?));
    }
    Ok(Value::from(parts.join("&")))
}

fn quoted(text: &str, kept: &str, space: &str) -> String {
    let quote = |byte: u8| match byte {
        b' ' => space.to_owned(),
        _ if byte.is_ascii_alphanumeric()
            || b"_.-~".contains(&byte)
            || kept.as_bytes().contains(&byte) =>
        {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(quote).collect()
}

pub(super) fn xml(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("xmlattr", args, &["autospace"], 0)?;
    let mut parts = Vec::new();
    for key in value.try_iter()? {
        let item = value.get_item(&key)?;
        if item.is_none() || item.is_undefined() {
            continue;
        }
        let name = text_of(&key)?;
        if name.contains(|c: char| c.is_ascii_whitespace() || "/>=".contains(c)) {
            return Err(refused(format!("xmlattr: `{name}` is not the name of an attribute")));
        }
        parts.push(format!("{}=\"{}\"", escape(&name), escape(&text_of(&item)?)));
    }
    let space = if args.flag(0, true) && !parts.is_empty() { " " } else { "" };
    Ok(Value::from(space.to_owned() + &parts.join(" ")))
}
