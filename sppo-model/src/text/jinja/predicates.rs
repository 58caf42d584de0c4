//! Jinja2's tests (`is ...`), where minijinja has none of the name or another answer.

use minijinja::Environment;
use minijinja::value::{Value, ValueKind};

use super::objects;

/// Tests of minijinja that Jinja2 does not have.
const FOREIGN: [&str; 5] = ["safe", "int", "startingwith", "endingwith", "containing"];

pub(super) fn add_to(environment: &mut Environment<'static>) {
    for name in FOREIGN {
        environment.remove_test(name);
    }
    environment.add_test("iterable", |value: &Value| is_iterable(value));
    // Python: what has a length and items by index or key.
    environment
        .add_test("sequence", |value: &Value| is_iterable(value) && !objects::is_dict_view(value));
    environment.add_test("callable", is_callable);
}

fn is_iterable(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::String
            | ValueKind::Seq
            | ValueKind::Map
            | ValueKind::Iterable
    )
}

/// Functions and macros, and, as in Python, what is undefined (which methods are that are not called).
fn is_callable(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined)
        || value.to_string().starts_with("<macro ")
}
