//! Jinja2 as transformers sets it up, on top of minijinja.
//!
//! Templates are written for Jinja2 with Python's values. minijinja differs in what it parses ([`source`]),
//! in its filters, tests and methods, and in how it prints values; all of that is made here as it is there.
//! What cannot be had is refused by its name, never rendered otherwise.

mod attributes;
mod braces;
mod characters;
mod expressions;
mod filters;
mod format;
mod json;
mod layout_filters;
mod lexer;
mod markup_filters;
mod methods;
mod number_filters;
mod objects;
mod percent;
mod predicates;
mod python;
mod source;
mod text_methods;
mod time;

use minijinja::value::{Rest, Value, ValueKind, ValueOrKwargs, from_args};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};

/// Work units per rendering: about one per instruction and one per 64 bytes of text.
const FUEL: u64 = 5_000_000;
const RECURSION_LIMIT: usize = 200;

/// Stack, in bytes, for values as deeply nested as the work units allow. Only what is used takes memory.
const ROOM_FOR_NESTED_VALUES: usize = 1 << 30;

/// The name of the template in its environment.
const NAME: &str = "chat_template";

/// Marks an error as the template's own decision, so that it is told apart from a broken template.
#[derive(Debug, thiserror::Error)]
#[error("raised by the template")]
struct Refusal;

/// Compiles a template, in an environment that holds it alone.
///
/// # Errors
/// What is wrong with the template, in one sentence.
pub(super) fn template(source: &str) -> Result<Template, String> {
    let prepared = source::prepared(source).map_err(|error| {
        format!("syntax error: {} (line {} of the template)", error.message, error.line)
    })?;
    let environment = compiled(prepared.source).map_err(|error| describe(&error))?;
    Ok(Template { environment, nests: prepared.nests })
}

/// A template that was compiled.
#[derive(Clone, Debug)]
pub(super) struct Template {
    environment: Environment<'static>,
    nests: bool,
}

impl Template {
    /// The text that the template makes of these variables.
    ///
    /// # Errors
    /// What went wrong, in one sentence.
    pub(super) fn render(&self, variables: Value) -> Result<String, String> {
        if !self.nests {
            return self.render_here(variables);
        }
        // Lists in lists are freed one within the other, however many there are.
        let render = || self.render_here(variables);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(ROOM_FOR_NESTED_VALUES);
            let thread = thread.spawn_scoped(scope, render);
            let thread = thread.map_err(|error| format!("no thread to render in: {error}"))?;
            thread.join().unwrap_or_else(|_| Err("rendering failed".into()))
        })
    }

    fn render_here(&self, variables: Value) -> Result<String, String> {
        let template = self.environment.get_template(NAME);
        template.and_then(|template| template.render(variables)).map_err(|error| describe(&error))
    }
}

fn compiled(source: String) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?,
    );
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|output, state, value| match value.kind() {
        ValueKind::String | ValueKind::Undefined | ValueKind::Invalid => {
            minijinja::escape_formatter(output, state, value)
        }
        _ => {
            let text = python::text_of(value)?;
            python::pay_for(state, text.len())?;
            Ok(output.write_str(&text)?)
        }
    });
    filters::add_to(&mut environment);
    filters::add_operators_to(&mut environment);
    predicates::add_to(&mut environment);
    environment.add_filter("tojson", json::to_json);
    add_functions_to(&mut environment);
    environment.add_template_owned(NAME, source)?;
    Ok(environment)
}

fn add_functions_to(environment: &mut Environment<'static>) {
    environment.remove_global("debug");
    environment.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        let message = python::text_of(message)?;
        Err(Error::new(ErrorKind::InvalidOperation, message).with_source(Refusal))
    });
    environment.add_function("strftime_now", time::strftime_now);
    environment.add_function("range", objects::range);
    environment.add_function("namespace", namespace);
    environment.add_global("dict", Value::from_object(objects::DictType));
    for name in ["cycler", "joiner", "lipsum"] {
        let refuse = move |_: Rest<Value>| -> Result<Value, Error> {
            Err(python::refused(format!("the function `{name}` is not supported")))
        };
        environment.add_function(name, refuse);
    }
}

/// `namespace`, which refuses names that begin with an underscore, as transformers does.
fn namespace(given: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let pairs = objects::pairs_of(&given.into_values())?;
    if let Some((name, _)) =
        pairs.iter().find(|(name, _)| name.as_str().is_some_and(|name| name.starts_with('_')))
    {
        return Err(python::refused(format!(
            "namespace: the name `{name}` begins with an underscore"
        )));
    }
    let pairs = objects::dict_of(pairs);
    minijinja::functions::namespace(Some(from_args::<(ValueOrKwargs,)>(&[pairs])?.0))
}

/// One sentence for a template's failure.
fn describe(error: &Error) -> String {
    let cause = match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("it does too much work (more than {FUEL} steps); does it loop without end?")
        }
        kind => match error.detail() {
            Some(detail) if is_refusal(error) => format!("refused the conversation: {detail}"),
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    match error.line() {
        Some(line) => format!("{cause} (line {line} of the template)"),
        None => cause,
    }
}

fn is_refusal(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<Refusal>())
}
