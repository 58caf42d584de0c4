//! Chat templates: a conversation rendered to the text that a model was trained on.
//!
//! Templates come with downloaded models and are not trusted. They run in an environment without a
//! loader (no file can be reached), with a budget of work and a limit on recursion. Settings and
//! extra functions are those of transformers' `apply_chat_template`.

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, UndefinedBehavior};
use sppo_plugin::Message;

use super::template_functions;
use crate::error::{ModelError, Result};

/// Work units per rendering: about one per instruction and one per 64 bytes of text.
const FUEL: u64 = 5_000_000;
const RECURSION_LIMIT: usize = 200;
const NAME: &str = "chat_template";

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// `bos_token`, `eos_token` and the other special tokens that transformers hands to templates.
    variables: Vec<(String, String)>,
    /// The compiled template, or why it could not be compiled: a model whose template is broken can
    /// still be used on tokens.
    environment: std::result::Result<Environment<'static>, String>,
}

impl ChatTemplate {
    /// Compiles a template. A template that does not compile reports so when it is first rendered.
    #[must_use]
    pub fn new(source: impl Into<String>, variables: Vec<(String, String)>) -> Self {
        let source = source.into();
        let environment = compile(&source).map_err(|error| describe(&error));
        Self { source, variables, environment }
    }

    /// The template's source text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation; `add_generation_prompt` appends what introduces the model's answer.
    ///
    /// # Errors
    /// [`ModelError::Template`] when the template does not compile, refuses the conversation, calls
    /// what does not exist, or uses up its budget of work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let environment =
            self.environment.as_ref().map_err(|cause| ModelError::Template(cause.clone()))?;
        let turns: Vec<Value> = messages
            .iter()
            .map(|turn| Value::from_pairs([("role", &*turn.role), ("content", &*turn.content)]))
            .collect();
        let mut context: Vec<(String, Value)> = vec![
            ("messages".into(), turns.into()),
            ("add_generation_prompt".into(), add_generation_prompt.into()),
            // transformers defines these two even where there are none
            ("tools".into(), ().into()),
            ("documents".into(), ().into()),
        ];
        context.extend(self.variables.iter().map(|(name, token)| (name.clone(), token.into())));
        environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(context)))
            .map_err(|error| ModelError::Template(describe(&error)))
    }
}

fn compile(source: &str) -> std::result::Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(
        minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?,
    );
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    template_functions::add_to(&mut environment);
    environment.add_template_owned(NAME, without_generation_tags(source))?;
    Ok(environment)
}

/// One sentence for a template's failure.
fn describe(error: &minijinja::Error) -> String {
    let cause = match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("it does too much work (more than {FUEL} steps); does it loop without end?")
        }
        kind => match error.detail() {
            Some(detail) if template_functions::is_refusal(error) => {
                format!("refused the conversation: {detail}")
            }
            Some(detail) => format!("{kind}: {detail}"),
            None => kind.to_string(),
        },
    };
    match error.line() {
        Some(line) => format!("{cause} (line {line} of the template)"),
        None => cause,
    }
}

/// transformers' `{% generation %}` tags mark the answer for its loss mask and print what stands
/// between them; as blocks that are always taken they do the same.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (before, tag) = (&rest[..start], &rest[start + 2..start + length]);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => word,
        };
        result.push_str(before);
        result.push_str("{%");
        result.push_str(&tag.replacen(word, replacement, 1));
        result.push_str("%}");
        rest = &rest[start + length + 2..];
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation() -> Vec<Message<'static>> {
        vec![Message { role: "user".into(), content: "Hi <b> \"é\"".into() }]
    }

    fn render(source: &str) -> Result<String> {
        let variables = vec![("bos_token".to_string(), "<s>".to_string())];
        ChatTemplate::new(source, variables).render(&conversation(), true)
    }

    #[test]
    fn helpers_behave_as_in_transformers() {
        let cases = [
            // json.dumps(ensure_ascii=False): no HTML escapes, ", " and ": "
            ("{{ messages | tojson }}", r#"[{"role": "user", "content": "Hi <b> \"é\""}]"#),
            (
                "{{ {'b': [1, []], 'a': none} | tojson(indent=2) }}",
                "{\n  \"b\": [\n    1,\n    []\n  ],\n  \"a\": null\n}",
            ),
            (
                "{{ {'b': 'é', 'a': true} | tojson(sort_keys=true, ensure_ascii=true) }}",
                "{\"a\": true, \"b\": \"\\u00e9\"}",
            ),
            ("{{ bos_token }}{{ eos_token }}|{{ nothing }}|{{ nothing is defined }}", "<s>||False"),
            ("{% if tools is none and add_generation_prompt %}\n  yes\n{% endif %}\n", "  yes\n"),
            ("a\n  {% set x = 1 %}\nb", "a\nb"),
            ("{%- for m in messages %}{{ m.content.split(' ')[0].strip('H') }}{% endfor %}", "i"),
            ("{% generation %}x{%- endgeneration -%} y", "xy"),
            (
                "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}\
              {% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
                "3",
            ),
            ("{{ true }} {{ none }} {{ [1, 'a'] }} {{ 'a' ~ 1 }}", "True None [1, 'a'] a1"),
            ("{{ messages[0]['content'][:2] + messages[-1].role | upper }}", "HiUSER"),
        ];
        for (source, expected) in cases {
            assert_eq!(render(source).unwrap(), expected, "{source}");
        }
    }

    #[test]
    fn a_hostile_template_gives_one_error() {
        let cases = [
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
                "too much work",
            ),
            ("{% for a in range(1000000000) %}x{% endfor %}", "too many elements"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
            ("{{ 'x' * 1000000000 }}", "too much work"),
            ("{{ open('/etc/passwd') }}", "unknown function"),
            ("{{ messages | read_file }}", "unknown filter"),
            ("{% include '/etc/passwd' %}", "syntax error"),
            ("{{ messages.__class__.__mro__ }}", "undefined value"),
            (
                "{{ raise_exception('roles must alternate') }}",
                "refused the conversation: roles must alternate",
            ),
            ("{% if %}", "syntax error"),
            ("{{ strftime_now('%Q') }}", "%Q"),
        ];
        for (source, expected) in cases {
            let error = render(source).unwrap_err().to_string();
            assert!(error.starts_with("chat template: "), "{error}");
            assert!(error.contains(expected) && error.lines().count() == 1, "{source}: {error}");
        }
    }
}
