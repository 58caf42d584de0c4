//! `str.format`: fields in braces.

use minijinja::value::Value;
use minijinja::{Error, State};

use super::format::{Form, formatted};
use super::python::{pay_for, refused, repr_of, text_of};

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
