//! The filter `tojson`, which is Python's `json.dumps` in transformers.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::methods::Arguments;
use super::objects;
use super::python::{float, float_repr, pay_for, refused, text_of};

/// Lists in lists deeper than this are refused.
const DEEPEST: usize = 200;

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(
    state: &mut State<'_, '_>,
    value: &Value,
    options: minijinja::value::Rest<minijinja::value::ValueOrKwargs>,
) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let options = Arguments::of("tojson", &options.into_values(), &names, 0)?;
    let indent = match options.get(1).and_then(Value::as_str) {
        Some(text) => Some(text.to_owned()),
        None => match options.integer(1)? {
            Some(width) if width > 64 => return Err(unsuitable("the indent is larger than 64")),
            width => width.map(|width| " ".repeat(usize::try_from(width).unwrap_or(0))),
        },
    };
    let mut separators = [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()];
    if let Some(given) = options.get(2) {
        let given: Vec<Value> = given.try_iter()?.collect();
        let [item, key] = given.as_slice() else {
            return Err(unsuitable("`separators` is not a pair"));
        };
        separators = [text_of(item)?, text_of(key)?];
    }
    let mut writer = Writer {
        out: String::new(),
        ascii: options.flag(0, false),
        indent,
        separators,
        sort_keys: options.flag(3, false),
    };
    writer.value(state, value, 0)?;
    Ok(Value::from(writer.out))
}

fn unsuitable(reason: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::BadSerialization, format!("tojson: {reason}"))
}

struct Writer {
    out: String,
    ascii: bool,
    indent: Option<String>,
    /// Between items, and between key and value.
    separators: [String; 2],
    sort_keys: bool,
}

impl Writer {
    fn value(&mut self, state: &State<'_, '_>, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(refused("tojson: lists are nested too deeply"));
        }
        pay_for(state, 64)?;
        if let Some(text) = value.as_str() {
            pay_for(state, text.len())?;
            self.text(text);
            return Ok(());
        }
        if objects::printed(value).is_some() {
            return Err(unsuitable("a range or a view of a dict is not JSON"));
        }
        match value.kind() {
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    keys.sort();
                }
                self.list(state, '{', '}', keys, depth, Some(value))
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.list(state, '[', ']', value.try_iter()?.collect(), depth, None)
            }
            _ => {
                let scalar = scalar(value)?;
                self.out += &scalar;
                Ok(())
            }
        }
    }

    fn list(
        &mut self,
        state: &State<'_, '_>,
        open: char,
        close: char,
        items: Vec<Value>,
        depth: usize,
        dict: Option<&Value>,
    ) -> Result<(), Error> {
        self.out.push(open);
        let is_empty = items.is_empty();
        for (index, item) in items.into_iter().enumerate() {
            if index > 0 {
                self.out += &self.separators[0];
            }
            self.line(depth + 1);
            match dict {
                None => self.value(state, &item, depth + 1)?,
                Some(dict) => {
                    match item.as_str() {
                        Some(key) => self.text(key),
                        None => self.text(&scalar(&item)?),
                    }
                    self.out += &self.separators[1];
                    self.value(state, &dict.get_item(&item)?, depth + 1)?;
                }
            }
        }
        if !is_empty {
            self.line(depth);
        }
        self.out.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
    }

    fn text(&mut self, text: &str) {
        self.out.push('"');
        for character in text.chars() {
            match character {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\x08' => self.out += "\\b",
                '\x0c' => self.out += "\\f",
                '\0'..='\x1f' => self.escape(character),
                '\x7f'.. if self.ascii && character != '\x7f' => self.escape(character),
                _ => self.out.push(character),
            }
        }
        self.out.push('"');
    }

    fn escape(&mut self, character: char) {
        for unit in character.encode_utf16(&mut [0; 2]) {
            self.out += &format!("\\u{unit:04x}");
        }
    }
}

/// What is neither text nor a list, as a value or as a key.
fn scalar(value: &Value) -> Result<String, Error> {
    Ok(match (value.kind(), float(value)) {
        (ValueKind::None, _) => "null".into(),
        (ValueKind::Bool, _) => value.is_true().to_string(),
        (_, Some(number)) if number.is_nan() => "NaN".into(),
        (_, Some(number)) if number.is_infinite() => {
            if number > 0.0 {
                "Infinity".into()
            } else {
                "-Infinity".into()
            }
        }
        (_, Some(number)) => float_repr(number),
        (ValueKind::Number, _) => value.to_string(),
        (kind, _) => return Err(unsuitable(format!("a value of the kind `{kind}` is not JSON"))),
    })
}
