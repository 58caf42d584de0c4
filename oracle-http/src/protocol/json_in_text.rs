//! JSON objects within the texts of language models, whatever stands around them.

use std::ops::Range;

use serde_json::{Map, Value};

/// An object, and its place in the text.
pub(super) struct Object {
    pub(super) place: Range<usize>,
    pub(super) fields: Map<String, Value>,
}

/// All objects that are not part of another, in order.
pub(super) fn objects(text: &str) -> Vec<Object> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = text[at..].find('{') {
        let start = at + start;
        let mut objects =
            serde_json::Deserializer::from_str(&text[start..]).into_iter::<Map<String, Value>>();
        let parsed = objects.next().and_then(Result::ok);
        at = start + 1;
        if let Some(fields) = parsed {
            at = start + objects.byte_offset();
            found.push(Object { place: start..at, fields });
        }
    }
    found
}

/// The value of a field of an object, or else of an object within it.
pub(super) fn field<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let within = |value: &'a Value| field(value.as_object()?, name);
    fields.get(name).or_else(|| fields.values().rev().find_map(within))
}

/// The last `name: value` in a text that is JSON not quite in form: single quotes or none, a comma too many, an end
/// that is missing.
pub(super) fn loose_field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let quotes = |letter: char| letter.is_whitespace() || "\"'`*_".contains(letter);
    let value = |(index, name): (usize, &str)| {
        let before = text[..index].chars().next_back();
        let rest = text[index + name.len()..].trim_start_matches(quotes);
        let rest = rest.strip_prefix([':', '=']).filter(|_| !before.is_some_and(is_of_word))?;
        rest.split([',', '}', '\n']).next()
    };
    text.rmatch_indices(name).find_map(value)
}

/// Whether a letter is part of a word or a name.
pub(super) fn is_of_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}
