//! Checks a plugin's settings against the JSON Schema that the plugin publishes, before it sees them.
//!
//! Of JSON Schema this knows what describes types: `$ref`, `type`, `enum`, `const`, `oneOf`, `anyOf`,
//! `allOf`, `minimum`, `maximum`, `properties`, `required`, `additionalProperties` and `items`. What it
//! does not know allows everything: the plugin has the last word.

use serde_json::{Map, Value};

use crate::plugin::PluginError;
use crate::schema::{Schema, closest};

/// Deepest nesting that is followed: deeper than any settings. A schema may refer to itself.
const MAX_DEPTH: usize = 64;

/// Refuses settings that the schema does not allow. Values are not repeated: a secret may stand in the
/// wrong place.
///
/// # Errors
/// Names the key at fault.
pub(super) fn check_settings(
    plugin: &str,
    schema: &Value,
    settings: &Value,
) -> Result<(), PluginError> {
    check(Schema::new(schema), settings, "", 0).map_err(|refusal| {
        let about = format!("`sppo plugin info {plugin}` describes all settings");
        let hint = match refusal.meant {
            Some(meant) => format!("did you mean `{meant}`? {about}"),
            None if refusal.lacks_quotes => {
                format!("put the value in quotes, which make it a text; {about}")
            }
            None => about,
        };
        PluginError::configuration(refusal.message).with_hint(hint)
    })
}

#[derive(Debug, Default)]
struct Refusal {
    message: String,
    /// The name that a misspelt one stands for.
    meant: Option<String>,
    /// The values that would do, where these are all that would.
    choices: Vec<String>,
    /// Whether a number or the like stands where only a text would do.
    lacks_quotes: bool,
}

impl Refusal {
    fn new(place: &str, reason: &str) -> Self {
        let subject = if place.is_empty() { "its entry".into() } else { format!("`{place}`") };
        Self { message: format!("{subject} {reason}"), ..Self::default() }
    }

    fn not_one_of(place: &str, choices: Vec<String>) -> Self {
        Self {
            choices: choices.clone(),
            ..Self::new(place, &format!("is not one of {}", choices.join(", ")))
        }
    }
}

/// `place` is the dotted path of the value.
fn check(schema: Schema<'_>, value: &Value, place: &str, depth: usize) -> Result<(), Refusal> {
    if depth > MAX_DEPTH {
        return Ok(());
    }
    let deeper = |schema| check(schema, value, place, depth + 1);
    if let Some(target) = schema.referenced() {
        deeper(target)?;
    }
    check_type(schema, value, place)?;
    check_choices(schema, value, place)?;
    check_range(schema, value, place)?;
    schema.subschemas("allOf").try_for_each(deeper)?;
    for alternatives in ["oneOf", "anyOf"] {
        let outcomes: Vec<_> = schema
            .subschemas(alternatives)
            .filter(|schema| value.is_null() || schema.text("type") != Some("null"))
            .map(deeper)
            .collect();
        check_alternatives(outcomes, place)?;
    }
    match value {
        Value::Object(table) => check_table(schema, table, place, depth),
        Value::Array(items) => match schema.subschema("items") {
            Some(schema) => items.iter().enumerate().try_for_each(|(index, item)| {
                check(schema, item, &format!("{place}[{index}]"), depth + 1)
            }),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn check_table(
    schema: Schema<'_>,
    table: &Map<String, Value>,
    place: &str,
    depth: usize,
) -> Result<(), Refusal> {
    let join = |name: &str| match place {
        "" => name.to_owned(),
        place => format!("{place}.{name}"),
    };
    let other = schema.subschema("additionalProperties");
    for (name, value) in table {
        match schema.property(name).or(other) {
            Some(property) if property.allows_nothing() => {
                let known = schema.properties().map(|(name, _)| name);
                return Err(Refusal {
                    message: format!("unknown field `{}`", join(name)),
                    meant: closest(name, known).map(String::from),
                    ..Refusal::default()
                });
            }
            Some(schema) => check(schema, value, &join(name), depth + 1)?,
            None => {}
        }
    }
    let mut required = schema.list("required").iter().filter_map(Value::as_str);
    match required.find(|name| !table.contains_key(*name)) {
        Some(name) => Err(Refusal::new(place, &format!("lacks `{name}`"))),
        None => Ok(()),
    }
}

fn check_type(schema: Schema<'_>, value: &Value, place: &str) -> Result<(), Refusal> {
    let types = schema.types();
    let is_of = |name: &&str| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "null" => value.is_null(),
        _ => true,
    };
    let in_words = |name: &&str| match *name {
        "object" => "a table",
        "array" => "a list",
        "string" => "a text",
        "boolean" => "true or false",
        "integer" => "a whole number",
        _ => "a number",
    };
    if types.is_empty() || types.iter().any(is_of) {
        return Ok(());
    }
    let named = types.iter().filter(|name| **name != "null").map(in_words);
    let reason = format!("is not {}", named.collect::<Vec<_>>().join(" or "));
    let is_plain = value.is_number() || value.is_boolean();
    let lacks_quotes = is_plain && types.contains(&"string");
    Err(Refusal { lacks_quotes, ..Refusal::new(place, &reason) })
}

fn check_choices(schema: Schema<'_>, value: &Value, place: &str) -> Result<(), Refusal> {
    let choices: Vec<&Value> = match schema.keyword("const") {
        Some(only) => vec![only],
        None => schema.list("enum").iter().collect(),
    };
    if choices.is_empty() || choices.contains(&value) {
        return Ok(());
    }
    Err(Refusal::not_one_of(place, choices.into_iter().map(Value::to_string).collect()))
}

fn check_range(schema: Schema<'_>, value: &Value, place: &str) -> Result<(), Refusal> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let bound = |name| schema.keyword(name).and_then(Value::as_f64);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), _) if number < least => {
            Err(Refusal::new(place, &format!("is less than {least}")))
        }
        (_, Some(most)) if number > most => {
            Err(Refusal::new(place, &format!("is more than {most}")))
        }
        _ => Ok(()),
    }
}

/// One of several schemas must allow the value.
fn check_alternatives(outcomes: Vec<Result<(), Refusal>>, place: &str) -> Result<(), Refusal> {
    if outcomes.is_empty() || outcomes.iter().any(Result::is_ok) {
        return Ok(());
    }
    let mut refusals: Vec<Refusal> = outcomes.into_iter().filter_map(Result::err).collect();
    if refusals.iter().all(|refusal| !refusal.choices.is_empty()) {
        let choices = refusals.into_iter().flat_map(|refusal| refusal.choices).collect();
        return Err(Refusal::not_one_of(place, choices));
    }
    match (refusals.pop(), refusals.is_empty()) {
        (Some(only), true) => Err(only),
        _ => Err(Refusal::new(place, "matches none of its allowed forms")),
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde_json::json;

    use super::*;

    /// All kinds of settings.
    #[derive(JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Settings {
        /// A number.
        words: usize,
        length: Length,
        mode: Option<Mode>,
        size: Size,
    }

    #[derive(JsonSchema, Default)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only their schema matters")]
    struct Length {
        max_words: f64,
    }

    /// Each with a description, which makes another schema.
    #[derive(JsonSchema)]
    #[serde(rename_all = "kebab-case")]
    #[expect(dead_code, reason = "only their schema matters")]
    enum Mode {
        /// At once.
        Fast,
        /// Later.
        VerySlow,
    }

    #[derive(JsonSchema, Default)]
    #[serde(rename_all = "lowercase")]
    #[expect(dead_code, reason = "only their schema matters")]
    enum Size {
        #[default]
        Small,
        Large,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self { words: 1, length: Length::default(), mode: None, size: Size::Small }
        }
    }

    fn check(settings: &Value) -> Result<(), PluginError> {
        check_settings("mine", &schemars::schema_for!(Settings).to_value(), settings)
    }

    #[test]
    fn what_the_schema_allows_passes() {
        for settings in [
            json!({}),
            json!({"words": 3, "length": {"max_words": 5}, "mode": "very-slow", "size": "large"}),
            json!({"mode": null}),
        ] {
            check(&settings).unwrap();
        }
    }

    #[test]
    fn the_key_at_fault_is_named_and_its_value_is_not() {
        for (settings, told) in [
            (json!({"word": 3}), "unknown field `word`"),
            (json!({"length": {"max_words": 1, "max": "sk-1"}}), "unknown field `length.max`"),
            (json!({"length": {}}), "`length` lacks `max_words`"),
            (json!({"length": {"max_words": "sk-1"}}), "`length.max_words` is not a number"),
            (json!({"words": -1}), "`words` is less than 0"),
            (json!({"size": "sk-1"}), "`size` is not one of \"small\", \"large\""),
            (json!({"mode": "sk-1"}), "`mode` is not one of \"fast\", \"very-slow\""),
            (json!([]), "its entry is not a table"),
        ] {
            let error = check(&settings).unwrap_err();
            assert!(error.message.contains(told), "{settings}: {error}");
            assert!(!error.message.contains("sk-1"), "{error}");
            assert!(error.hint.unwrap().contains("sppo plugin info mine"));
        }
        let hint = check(&json!({"word": 3})).unwrap_err().hint.unwrap();
        assert!(hint.starts_with("did you mean `words`?"), "{hint}");
    }

    #[test]
    fn a_schema_without_sense_refuses_nothing_and_ends() {
        for schema in [json!({"$ref": "#"}), json!({"type": 7}), json!(true), json!("x")] {
            check_settings("mine", &schema, &json!({"a": [1]})).unwrap();
        }
    }
}
