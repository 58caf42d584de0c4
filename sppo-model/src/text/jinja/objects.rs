//! Objects that Python has and minijinja has not: ranges, the views of dicts, arguments of macros.

use std::sync::Arc;

use minijinja::value::{
    Enumerator, Kwargs, Object, ObjectRepr, Rest, Tuple, Value, ValueKind, from_args,
};
use minijinja::{Error, State};

use super::methods::Arguments;
use super::python::{integer, refused};

/// Ranges may have so many numbers, as in Jinja2's sandbox.
const LONGEST_RANGE: i128 = 100_000;

/// `range(start, stop, step)`.
#[derive(Debug)]
pub(super) struct Range {
    start: i128,
    stop: i128,
    step: i128,
}

impl Range {
    pub(super) fn length(&self) -> usize {
        let distance = if self.step > 0 { self.stop - self.start } else { self.start - self.stop };
        usize::try_from((distance + self.step.abs() - 1) / self.step.abs()).unwrap_or(0)
    }

    /// The part between two places in it.
    pub(super) fn part(&self, start: i64, stop: i64, step: i64) -> Result<Value, Error> {
        let place = |at: i64| self.step.checked_mul(at.into())?.checked_add(self.start);
        let found = (|| {
            let step = self.step.checked_mul(step.into())?;
            Some(Self { start: place(start)?, stop: place(stop)?, step })
        })();
        // As far below what overflows as `range` takes them.
        let is_small = |range: &Self| range.step.unsigned_abs() < 1 << 100;
        let range = found.filter(is_small).ok_or_else(|| refused("range: too large a step"))?;
        Ok(Value::from_object(range))
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        match key.as_str() {
            Some("start") => return Some(Value::from(self.start)),
            Some("stop") => return Some(Value::from(self.stop)),
            Some("step") => return Some(Value::from(self.step)),
            _ => (),
        }
        let index = key.as_usize().filter(|&index| index < self.length())?;
        Some(Value::from(self.start + self.step * index as i128))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.length())
    }
}

/// Jinja2's global function `range`.
pub(super) fn range(
    first: &Value,
    second: Option<Value>,
    step: Option<Value>,
) -> Result<Value, Error> {
    let whole = |value: &Value| {
        // Far below what overflows, and far above what a range may hold.
        integer(value)
            .filter(|number| number.abs() < 1 << 100)
            .ok_or_else(|| refused(format!("range: `{value}` is not a whole number")))
    };
    let (start, stop) = match &second {
        Some(second) => (whole(first)?, whole(second)?),
        None => (0, whole(first)?),
    };
    let step = step.as_ref().map_or(Ok(1), whole)?;
    if step == 0 {
        return Err(refused("range: the step is zero"));
    }
    let range = Range { start, stop, step };
    if (stop - start).abs() / step.abs() > LONGEST_RANGE {
        return Err(refused(format!(
            "range: too many elements, more than {LONGEST_RANGE}, which Jinja2's sandbox refuses too"
        )));
    }
    Ok(Value::from_object(range))
}

/// `dict.items()`, `dict.keys()` or `dict.values()`.
#[derive(Debug)]
pub(super) struct DictView {
    name: &'static str,
    items: Vec<Value>,
}

impl Object for DictView {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.items.clone())
    }
}

/// The view of a dict that its method `name` gives; `None` for another method.
pub(super) fn dict_view(dict: &Value, name: &str) -> Option<Result<Value, Error>> {
    let name = ["items", "keys", "values"].into_iter().find(|known| *known == name)?;
    let view = || {
        let mut items = Vec::new();
        for key in dict.try_iter()? {
            items.push(match name {
                "keys" => key,
                "values" => dict.get_item(&key)?,
                _ => Value::from(Tuple::from(vec![key.clone(), dict.get_item(&key)?])),
            });
        }
        Ok(Value::from_object(DictView { name, items }))
    };
    Some(view())
}

/// Whether the value is the view of a dict.
pub(super) fn is_dict_view(value: &Value) -> bool {
    value.downcast_object_ref::<DictView>().is_some()
}

/// The function `dict`, and its method `fromkeys`.
#[derive(Debug)]
pub(super) struct DictType;

impl Object for DictType {
    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        Ok(dict_of(pairs_of(args)?))
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        if method != "fromkeys" {
            return Err(refused(format!("`dict` has no method `{method}`")));
        }
        let args = Arguments::of(method, args, &["iterable", "value"], 1)?;
        let value = args.get_any(1).cloned().unwrap_or_else(|| Value::from(()));
        let keys = args.get_any(0).cloned().unwrap_or_default();
        Ok(dict_of(keys.try_iter()?.map(|key| (key, value.clone())).collect()))
    }
}

/// A dict of these keys and values, in their order.
pub(super) fn dict_of(pairs: Vec<(Value, Value)>) -> Value {
    Value::from_pairs(pairs)
}

/// Keys and values as `dict` takes them: dicts or lists of pairs, then names with values.
pub(super) fn pairs_of(args: &[Value]) -> Result<Vec<(Value, Value)>, Error> {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let mut pairs = Vec::new();
    for given in positional.iter() {
        for item in given.try_iter()? {
            pairs.push(match given.kind() {
                ValueKind::Map => (item.clone(), given.get_item(&item)?),
                _ => (item.get_item_by_index(0)?, item.get_item_by_index(1)?),
            });
        }
    }
    for name in named.args() {
        pairs.push((Value::from(name), named.peek(name)?));
    }
    Ok(pairs)
}

/// Arguments of a call to a macro that uses `varargs` or `kwargs`.
#[derive(Debug)]
struct MacroArguments {
    positional: Vec<Value>,
    named: Vec<(String, Value)>,
}

impl Object for MacroArguments {
    fn call_method(
        self: &Arc<Self>,
        _state: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let names = || args.iter().filter_map(Value::as_str);
        match (method, args) {
            ("take", [index, name]) => {
                let positional = index.as_usize().and_then(|index| self.positional.get(index));
                let named = self.named.iter().find(|(given, _)| Some(&**given) == name.as_str());
                Ok(positional.or(named.map(|(_, value)| value)).cloned().unwrap_or_default())
            }
            ("rest", _) => {
                let rest: Vec<Value> = self.positional.iter().skip(args.len()).cloned().collect();
                Ok(Value::from(Tuple::from(rest)))
            }
            _ => {
                let others =
                    self.named.iter().filter(|(given, _)| names().all(|name| name != given));
                Ok(Value::from_pairs(others.cloned()))
            }
        }
    }
}

/// Packs the arguments of a call to such a macro.
pub(super) fn pack(args: &[Value]) -> Result<Value, Error> {
    let (positional, options): (Rest<Value>, Kwargs) = from_args(args)?;
    let named = options.args().map(|name| Ok((name.to_owned(), options.get(name)?)));
    let named = named.collect::<Result<_, Error>>()?;
    Ok(Value::from_object(MacroArguments { positional: positional.0, named }))
}

/// How Python prints one of these objects: what stands before and behind a list.
pub(super) fn printed(value: &Value) -> Option<(String, Option<Value>, &'static str)> {
    if value.kind() == ValueKind::Undefined {
        return None;
    }
    if let Some(Range { start, stop, step }) = value.downcast_object_ref() {
        let step = if *step == 1 { String::new() } else { format!(", {step}") };
        return Some((format!("range({start}, {stop}{step})"), None, ""));
    }
    let view: &DictView = value.downcast_object_ref()?;
    Some((format!("dict_{}(", view.name), Some(Value::from(view.items.clone())), ")"))
}
