//! Fields of replies that services write in several ways.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A number, also as text or alone in a list, as `[[0.5], [1.5]]` holds two.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        Value::Array(list) if list.len() == 1 => number(&list[0]),
        _ => None,
    }
}

/// Deserializes a list of numbers.
///
/// # Errors
/// When it is no list, or one of its values is no number.
pub(super) fn numbers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values = Vec::<Value>::deserialize(deserializer)?;
    let read = |value: &Value| {
        number(value).ok_or_else(|| serde::de::Error::custom(format!("{value} is not a number")))
    };
    values.iter().map(read).collect()
}

/// Deserializes a number.
///
/// # Errors
/// When it is none.
pub(super) fn one_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    number(&value).ok_or_else(|| serde::de::Error::custom(format!("{value} is not a number")))
}

/// Deserializes the index of a result, if it has one.
///
/// # Errors
/// When there is something else in its place.
pub(super) fn index<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    match number(&value) {
        None if value.is_null() => Ok(None),
        Some(index) if index >= 0.0 && index.fract() == 0.0 => Ok(Some(index as usize)),
        _ => Err(serde::de::Error::custom(format!("{value} is not an index"))),
    }
}

/// A count of tokens by the first of these names, whatever kind of number the service makes of it; 0 for none.
pub(super) fn count(usage: &Value, names: &[&str]) -> u64 {
    let value = names.iter().find_map(|name| number(usage.get(*name)?));
    value.filter(|count| *count > 0.0).map_or(0, |count| count as u64)
}
