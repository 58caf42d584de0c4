//! Methods of Python's values: which there are, and with which arguments they are called.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use super::objects::dict_view;
use super::python::{float, integer, refused};
use super::text_methods;

/// Methods that change a list or a dict where it stands, which Jinja2's sandbox refuses.
pub(super) const CHANGING: [&str; 12] = [
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "discard",
];

/// Arguments of a call, by position or name.
pub(super) struct Arguments {
    method: String,
    given: Vec<Option<Value>>,
}

impl Arguments {
    /// Matches what was given with the names of the parameters, which can be left out from `required` on.
    pub(super) fn of(
        method: &str,
        args: &[Value],
        names: &[&str],
        required: usize,
    ) -> Result<Self, Error> {
        let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
        if positional.len() > names.len() {
            return Err(refused(format!(
                "{method} takes at most {} arguments, and {} are given",
                names.len(),
                positional.len()
            )));
        }
        let mut given: Vec<Option<Value>> = positional.0.into_iter().map(Some).collect();
        given.resize(names.len(), None);
        for name in named.args() {
            let slot = names.iter().position(|known| *known == name);
            match slot.and_then(|slot| given.get_mut(slot)) {
                Some(slot) if slot.is_none() => *slot = Some(named.peek(name)?),
                Some(_) => return Err(refused(format!("{method}: `{name}` is given twice"))),
                None => return Err(refused(format!("{method} takes no argument `{name}`"))),
            }
        }
        if let Some(missing) =
            (0..required).find(|index| given.get(*index).is_none_or(Option::is_none))
        {
            return Err(refused(format!("{method}: the argument `{}` is missing", names[missing])));
        }
        Ok(Self { method: method.to_owned(), given })
    }

    /// The argument, unless it is left out or `none`.
    pub(super) fn get(&self, index: usize) -> Option<&Value> {
        self.given.get(index)?.as_ref().filter(|value| !value.is_none())
    }

    /// The argument, be it `none`.
    pub(super) fn get_any(&self, index: usize) -> Option<&Value> {
        self.given.get(index)?.as_ref()
    }

    fn wrong(&self, value: &Value, wanted: &str) -> Error {
        refused(format!("{}: a value of the kind `{}` is not {wanted}", self.method, value.kind()))
    }

    /// A text; `None` where it is left out or `none`.
    pub(super) fn text(&self, index: usize) -> Result<Option<&str>, Error> {
        let text = |value: &'_ Value| self.wrong(value, "text");
        self.get(index).map(|value| value.as_str().ok_or_else(|| text(value))).transpose()
    }

    /// A text that must be given.
    pub(super) fn required_text(&self, index: usize) -> Result<&str, Error> {
        let missing = || refused(format!("{}: text is needed, not none", self.method));
        self.text(index)?.ok_or_else(missing)
    }

    /// A whole number; `None` where it is left out or `none`.
    pub(super) fn integer(&self, index: usize) -> Result<Option<i64>, Error> {
        let whole = |value: &Value| {
            let number =
                integer(value).map(|number| number.clamp(i64::MIN.into(), i64::MAX.into()));
            number.and_then(|number| i64::try_from(number).ok())
        };
        self.get(index)
            .map(|value| whole(value).ok_or_else(|| self.wrong(value, "a whole number")))
            .transpose()
    }

    /// Whether the argument is true; `default` where it is left out.
    pub(super) fn flag(&self, index: usize, default: bool) -> bool {
        self.get_any(index).map_or(default, Value::is_true)
    }
}

/// A method that minijinja does not know by itself.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => text_methods::call(state, text, method, args)?,
        (None, ValueKind::Map) => dict_method(value, method, args)?,
        (None, ValueKind::Seq) => list_method(state, value, method, args)?,
        (None, ValueKind::Number | ValueKind::Bool) => number_method(value, method),
        _ => None,
    };
    let changing =
        matches!(value.kind(), ValueKind::Map | ValueKind::Seq) && CHANGING.contains(&method);
    found.ok_or_else(|| match changing {
        true => refused(format!(
            "the method `{method}` changes a value in place, which chat templates may not, as in Jinja2's \
             sandbox"
        )),
        false => Error::new(
            ErrorKind::UnknownMethod,
            format!("a value of the kind `{}` has no method `{method}`", value.kind()),
        ),
    })
}

fn dict_method(dict: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    if let Some(view) = dict_view(dict, method) {
        Arguments::of(method, args, &[], 0)?;
        return view.map(Some);
    }
    Ok(match method {
        "copy" => Some(dict.clone()),
        "get" => {
            let args = Arguments::of(method, args, &["key", "default"], 1)?;
            let key = args.get_any(0).cloned().unwrap_or_default();
            let found = dict.get_item(&key).ok().filter(|found| !found.is_undefined());
            Some(found.or_else(|| args.get_any(1).cloned()).unwrap_or_else(|| Value::from(())))
        }
        _ => None,
    })
}

fn list_method(
    state: &State<'_, '_>,
    list: &Value,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    state.consume_fuel(1 + list.len().unwrap_or(0) as u64 / 2)?;
    Ok(match method {
        "copy" if !list.is_tuple() => Some(list.clone()),
        "count" => {
            let args = Arguments::of(method, args, &["value"], 1)?;
            let same = list.try_iter()?.filter(|item| Some(item) == args.get_any(0));
            Some(Value::from(same.count()))
        }
        "index" => {
            let args = Arguments::of(method, args, &["value", "start", "stop"], 1)?;
            let (start, stop) =
                (args.integer(1)?.unwrap_or(0), args.integer(2)?.unwrap_or(i64::MAX));
            if start < 0 || stop < 0 {
                return Err(refused("index: negative places are not supported"));
            }
            let within = |index: &usize| (start..stop).contains(&(*index as i64));
            let mut items = list.try_iter()?.enumerate().filter(|(index, _)| within(index));
            let found = items.find(|(_, item)| Some(item) == args.get_any(0));
            let (index, _) = found.ok_or_else(|| refused("index: the value is not in the list"))?;
            Some(Value::from(index))
        }
        _ => None,
    })
}

fn number_method(value: &Value, method: &str) -> Option<Value> {
    match (method, float(value)) {
        ("is_integer", Some(number)) => Some(Value::from(number.fract() == 0.0)),
        ("is_integer", None) => Some(Value::from(true)),
        ("bit_length", None) => {
            let magnitude = integer(value)?.unsigned_abs();
            Some(Value::from(u128::BITS - magnitude.leading_zeros()))
        }
        _ => None,
    }
}
