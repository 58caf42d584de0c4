//! Attributes of Python's values, methods that are not called among them, and parts of lists and texts.

use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, Rest, Tuple, Value, ValueKind};
use minijinja::{Error, State};

use super::methods::CHANGING;
use super::objects::{Range, is_dict_view};
use super::python::{float, integer, pay_for, refused};

/// Methods of `str`.
const OF_TEXT: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];
/// Methods of `dict` that change nothing.
const OF_DICT: [&str; 6] = ["copy", "fromkeys", "get", "items", "keys", "values"];
/// Methods of `list` and `tuple` that change nothing; a tuple has no `copy`.
const OF_LIST: [&str; 3] = ["copy", "count", "index"];
/// Methods of `int` and `float`.
const OF_NUMBER: [&str; 9] = [
    "as_integer_ratio",
    "bit_count",
    "bit_length",
    "conjugate",
    "from_bytes",
    "fromhex",
    "hex",
    "is_integer",
    "to_bytes",
];
/// Parts of numbers.
const PARTS: [&str; 4] = ["real", "imag", "numerator", "denominator"];
/// Attributes of macros that minijinja has otherwise, or not at all.
const OF_MACRO: [&str; 3] = ["arguments", "catch_kwargs", "catch_varargs"];

/// Whether values of Python have an attribute of this name, of which minijinja knows nothing.
pub(super) fn are_pythons(name: &str) -> bool {
    let lists: [&[&str]; 7] =
        [&OF_TEXT, &OF_DICT, &OF_LIST, &OF_NUMBER, &PARTS, &OF_MACRO, &CHANGING];
    lists.iter().any(|names| names.contains(&name))
}

/// `value.name`, where it is not called.
pub(super) fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let method = || Value::from_object(Method { receiver: value.clone(), name: name.to_owned() });
    if is_object(value, "::Macro") {
        return attribute_of_macro(value, name);
    }
    let names: &[&str] = match value.kind() {
        ValueKind::String => &OF_TEXT,
        ValueKind::Number | ValueKind::Bool if PARTS.contains(&name) => {
            return Ok(part_of_number(value, name));
        }
        ValueKind::Number | ValueKind::Bool => &OF_NUMBER,
        ValueKind::Seq | ValueKind::Iterable if is_dict_view(value) => &[],
        ValueKind::Seq | ValueKind::Iterable => &OF_LIST,
        // The attributes of a namespace are those that it was given.
        ValueKind::Map if !is_object(value, "::Namespace") => &OF_DICT,
        _ => &[],
    };
    let is_list_or_dict = names == OF_LIST || names == OF_DICT;
    match (names.contains(&name), is_list_or_dict && CHANGING.contains(&name)) {
        (true, _) if !(name == "copy" && value.is_tuple()) => Ok(method()),
        // Jinja2's sandbox hands out none that changes something.
        (_, true) => Ok(Value::UNDEFINED),
        _ => value.get_attr(name),
    }
}

fn part_of_number(value: &Value, name: &str) -> Value {
    match (name, integer(value), float(value)) {
        ("imag", None, _) => Value::from(0.0),
        ("imag", ..) => Value::from(0),
        ("denominator", Some(_), _) => Value::from(1),
        ("real" | "numerator", Some(whole), _) => Value::from(whole),
        ("real", _, Some(number)) => Value::from(number),
        _ => Value::UNDEFINED,
    }
}

fn attribute_of_macro(value: &Value, name: &str) -> Result<Value, Error> {
    match name {
        "arguments" => {
            let names: Vec<Value> = value.get_attr(name)?.try_iter()?.collect();
            Ok(Value::from(Tuple::from(names)))
        }
        _ if OF_MACRO.contains(&name) => {
            Err(refused(format!("the attribute `{name}` of a macro is not supported")))
        }
        _ => value.get_attr(name),
    }
}

/// Whether a value is an object of minijinja of this type.
fn is_object(value: &Value, name: &str) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with(name))
}

/// A method and the value that it belongs to.
#[derive(Debug)]
struct Method {
    receiver: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.receiver.call_method(state, &self.name, args)
    }
}

/// The name of a method that is not called.
pub(super) fn method_name(value: &Value) -> Option<&str> {
    value.downcast_object_ref::<Method>().map(|method| method.name.as_str())
}

/// `value[start:stop:step]`.
pub(super) fn slice(
    state: &mut State<'_, '_>,
    value: &Value,
    start: &Value,
    stop: &Value,
    step: &Value,
) -> Result<Value, Error> {
    let cut = Cut { start: bound(start)?, stop: bound(stop)?, step: bound(step)?.unwrap_or(1) };
    if cut.step == 0 {
        return Err(refused("a slice's step is zero"));
    }
    if let Some(text) = value.as_str() {
        pay_for(state, text.len())?;
        let letters: Vec<char> = text.chars().collect();
        return Ok(cut.places(letters.len()).map(|at| letters[at]).collect::<String>().into());
    }
    if let Some(range) = value.downcast_object_ref::<Range>() {
        let (start, stop) = cut.bounds(range.length());
        return range.part(start, stop, cut.step);
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) || is_dict_view(value) {
        return Err(refused(format!("a value of the kind `{}` has no parts", value.kind())));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    state.consume_fuel(1 + items.len() as u64 / 2)?;
    let part: Vec<Value> = cut.places(items.len()).map(|at| items[at].clone()).collect();
    Ok(if value.is_tuple() { Value::from(Tuple::from(part)) } else { Value::from(part) })
}

/// A bound of a slice, which may be left out.
fn bound(value: &Value) -> Result<Option<i64>, Error> {
    if value.is_none() {
        return Ok(None);
    }
    let whole = integer(value).map(|whole| whole.clamp(i64::MIN.into(), i64::MAX.into()) as i64);
    whole.map(Some).ok_or_else(|| {
        refused(format!("a value of the kind `{}` is no place in a list", value.kind()))
    })
}

struct Cut {
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
}

impl Cut {
    /// Python's `slice.indices`: first place, and the one before which to stop.
    fn bounds(&self, length: usize) -> (i64, i64) {
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        let (least, most) = if self.step > 0 { (0, length) } else { (-1, length - 1) };
        let place = |bound: i64| match bound {
            bound if bound < 0 => bound.saturating_add(length).max(least),
            bound => bound.min(most),
        };
        let (first, last) = if self.step > 0 { (least, most) } else { (most, least) };
        (self.start.map_or(first, place), self.stop.map_or(last, place))
    }

    fn places(&self, length: usize) -> impl Iterator<Item = usize> {
        let (start, stop) = self.bounds(length);
        let step = self.step;
        let is_inside = move |at: &i64| if step > 0 { *at < stop } else { *at > stop };
        std::iter::successors(Some(start), move |at| Some(at.saturating_add(step)))
            .take_while(is_inside)
            .filter_map(|at| usize::try_from(at).ok())
    }
}

/// What `loop.cycle` chooses from; minijinja divides by its number.
pub(super) fn choices(args: Rest<Value>) -> Result<Value, Error> {
    match args.is_empty() {
        true => Err(refused("cycle: no items for cycling given")),
        false => Ok(Value::from(args.0)),
    }
}
