//! Jinja2's filters, where minijinja has none of the name or another result.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, State};

use super::characters::{self, is_letter_or_number};
use super::methods::Arguments;
use super::percent::{percent, remainder};
use super::python::{pay_for, refused, repr_of, text_of};
use super::text_methods::{replaced, strip};
use super::{attributes, layout_filters, markup_filters, number_filters, objects};

/// Filters of minijinja that Jinja2 does not have.
const FOREIGN: [&str; 6] = ["bool", "chain", "lines", "split", "zip", "urlencode"];

/// Filters of Jinja2 that are left out, by reason.
const LEFT_OUT: [(&str, &str); 3] = [
    ("attr", "it gives methods, which are not values here"),
    ("random", "its result differs from run to run"),
    ("urlize", "it makes HTML links"),
];

pub(super) fn add_to(environment: &mut Environment<'static>) {
    for name in FOREIGN {
        environment.remove_filter(name);
    }
    for (name, reason) in LEFT_OUT {
        let refuse = move |_: Rest<ValueOrKwargs>| -> Result<Value, Error> {
            Err(refused(format!("the filter `{name}` is not supported: {reason}")))
        };
        environment.add_filter(name, refuse);
    }
    let named: [(&'static str, Filter); 24] = [
        ("capitalize", |_, value, args| case(value, args, "capitalize", characters::capitalized)),
        ("center", layout_filters::center),
        ("default", default),
        ("d", default),
        ("dictsort", sorted_dict),
        ("e", markup_filters::escaped),
        ("escape", markup_filters::escaped),
        ("filesizeformat", number_filters::file_size),
        ("float", number_filters::to_float),
        ("forceescape", markup_filters::escaped_again),
        ("format", format),
        ("indent", layout_filters::indented),
        ("int", number_filters::to_int),
        ("join", joined),
        ("lower", |_, value, args| case(value, args, "lower", str::to_lowercase)),
        ("pprint", printed),
        ("replace", replace),
        ("string", |_, value, _| Ok(Value::from(text_of(value)?))),
        ("striptags", markup_filters::without_tags),
        ("trim", trimmed),
        ("truncate", layout_filters::truncated),
        ("upper", |_, value, args| case(value, args, "upper", str::to_uppercase)),
        ("urlencode", markup_filters::url_encoded),
        ("wordcount", word_count),
    ];
    for (name, filter) in named
        .into_iter()
        .chain([("wordwrap", layout_filters::wrapped as Filter), ("xmlattr", markup_filters::xml)])
    {
        let call = move |state: &mut State<'_, '_>, value: &Value, args: Rest<ValueOrKwargs>| {
            filter(state, value, &args.into_values())
        };
        environment.add_filter(name, call);
    }
}

/// A filter as Jinja2's functions are: the value, and arguments by position or name.
type Filter = fn(&mut State<'_, '_>, &Value, &[Value]) -> Result<Value, Error>;

/// What operators, attributes, parts, `for` and calls become; see [`super::expressions`].
pub(super) fn add_operators_to(environment: &mut Environment<'static>) {
    environment.add_function(
        "jinja_remainder",
        |state: &mut State<'_, '_>, left: &Value, right: &Value| remainder(state, left, right),
    );
    environment.add_function("jinja_attribute", attributes::attribute);
    environment.add_function("jinja_slice", attributes::slice);
    environment.add_function("jinja_choices", attributes::choices);
    environment.add_function("jinja_concatenation", concatenation);
    environment.add_function("jinja_items", iterated);
    environment.add_function("jinja_arguments", |args: Rest<ValueOrKwargs>| {
        objects::pack(&args.into_values())
    });
}

fn concatenation(state: &mut State<'_, '_>, parts: Rest<Value>) -> Result<Value, Error> {
    let mut result = String::new();
    for part in parts.iter() {
        let text = text_of(part)?;
        pay_for(state, text.len())?;
        result += &text;
    }
    Ok(Value::from(result))
}

/// What a loop goes through: minijinja takes `none` for an empty list, and Python does not.
fn iterated(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => {
            Err(refused(format!("a value of the kind `{}` cannot be iterated over", value.kind())))
        }
        _ => Ok(value.clone()),
    }
}

fn case(
    value: &Value,
    args: &[Value],
    name: &str,
    change: impl Fn(&str) -> String,
) -> Result<Value, Error> {
    Arguments::of(name, args, &[], 0)?;
    Ok(Value::from(change(&text_of(value)?)))
}

fn default(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("default", args, &["default_value", "boolean"], 0)?;
    if value.is_undefined() || (args.flag(1, false) && !value.is_true()) {
        return Ok(args.get_any(0).cloned().unwrap_or_else(|| Value::from("")));
    }
    Ok(value.clone())
}

fn sorted_dict(state: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("dictsort", args, &["case_sensitive", "by", "reverse"], 0)?;
    let column = match args.text(1)?.unwrap_or("key") {
        "key" => "0",
        "value" => "1",
        _ => return Err(refused("dictsort: `by` is neither `key` nor `value`")),
    };
    let items = objects::dict_view(value, "items").unwrap_or(Ok(Value::UNDEFINED))?;
    let items: Value = items.try_iter()?.collect();
    let options = [
        ("attribute", Value::from(column)),
        ("case_sensitive", Value::from(args.flag(0, false))),
        ("reverse", Value::from(args.flag(2, false))),
    ];
    state.apply_filter("sort", &[items, Kwargs::from_iter(options).into()])
}

fn format(state: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let names: Vec<&str> = named.args().collect();
    let values = match (positional.is_empty(), names.is_empty()) {
        (false, false) => return Err(refused("format: values by position or by name, not both")),
        (_, false) => {
            let pairs = names.iter().map(|name| Ok((*name, named.get::<Value>(name)?)));
            Value::from_pairs(pairs.collect::<Result<Vec<_>, Error>>()?)
        }
        _ => Value::from(minijinja::value::Tuple::from(positional.0)),
    };
    Ok(Value::from(percent(state, &text_of(value)?, &values)?))
}

fn joined(state: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("join", args, &["d", "attribute"], 0)?;
    let separator = args.get_any(0).map_or(Ok(String::new()), text_of)?;
    let items = match args.get(1) {
        Some(attribute) => {
            let named = Kwargs::from_iter([("attribute", attribute.clone())]);
            state.apply_filter("map", &[value.clone(), named.into()])?
        }
        None => iterated(value)?,
    };
    let mut parts = Vec::new();
    for (index, item) in items.try_iter()?.enumerate() {
        if index > 0 {
            parts.push(Value::from(separator.clone()));
        }
        parts.push(item);
    }
    concatenation(state, Rest(parts))
}

/// `pprint.pformat`, of what fits on one line.
fn printed(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    Arguments::of("pprint", args, &[], 0)?;
    let text = repr_of(&with_sorted_keys(value, 0)?)?;
    match text.chars().count() {
        0..80 => Ok(Value::from(text)),
        _ => Err(refused("the filter `pprint` is not supported for what does not fit on one line")),
    }
}

fn with_sorted_keys(value: &Value, depth: usize) -> Result<Value, Error> {
    if depth > 20 || objects::printed(value).is_some() {
        return Ok(value.clone());
    }
    match value.kind() {
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            keys.sort();
            let pairs = keys
                .into_iter()
                .map(|key| Ok((key.clone(), with_sorted_keys(&value.get_item(&key)?, depth + 1)?)));
            Ok(objects::dict_of(pairs.collect::<Result<_, Error>>()?))
        }
        ValueKind::Seq if !value.is_tuple() => {
            value.try_iter()?.map(|item| with_sorted_keys(&item, depth + 1)).collect()
        }
        _ => Ok(value.clone()),
    }
}

fn replace(state: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("replace", args, &["old", "new", "count"], 2)?;
    let text = |index| args.get_any(index).map_or(Ok(String::new()), text_of);
    let count = args.integer(2)?.unwrap_or(-1);
    Ok(Value::from(replaced(state, &text_of(value)?, &text(0)?, &text(1)?, count)?))
}

fn trimmed(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let args = Arguments::of("trim", args, &["chars"], 0)?;
    Ok(Value::from(strip(&text_of(value)?, args.text(0)?, true, true)))
}

/// Runs of letters, digits and underscores.
fn word_count(_: &mut State<'_, '_>, value: &Value, args: &[Value]) -> Result<Value, Error> {
    Arguments::of("wordcount", args, &[], 0)?;
    let text = text_of(value)?;
    let words = text.split(|c: char| c != '_' && !is_letter_or_number(c));
    Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
}
