//! Chat templates: a conversation rendered to the text that a model was trained on.
//!
//! Templates come with downloaded models and are not trusted. They run in an environment without a
//! loader (no file can be reached), with a budget of work and a limit on recursion. Settings and
//! extra functions are those of transformers' `apply_chat_template`.

use minijinja::value::{Serde, Value};
use sppo_plugin::Message;

use super::jinja;
use crate::error::{ModelError, Result};

/// Variables of a chat template by name, as JSON.
pub type TemplateVariables = serde_json::Map<String, serde_json::Value>;

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// `bos_token`, `eos_token` and the other special tokens that transformers hands to templates, then
    /// what the user sets.
    variables: Vec<(String, Value)>,
    /// The compiled template, or why it could not be compiled: a model whose template is broken can
    /// still be used on tokens.
    template: std::result::Result<jinja::Template, String>,
}

impl ChatTemplate {
    /// Compiles a template. A template that does not compile reports so when it is first rendered.
    #[must_use]
    pub fn new(source: impl Into<String>, variables: Vec<(String, String)>) -> Self {
        let source = source.into();
        let template = jinja::template(&source);
        let variables =
            variables.into_iter().map(|(name, token)| (name, Value::from(token))).collect();
        Self { source, variables, template }
    }

    /// The template with these variables too, `enable_thinking` for instance.
    #[must_use]
    pub fn with_variables(mut self, variables: &TemplateVariables) -> Self {
        let set = variables.iter().map(|(name, value)| (name.clone(), Value::from(Serde(value))));
        self.variables.extend(set);
        self
    }

    /// The template's source text.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The fault of a template that does not compile.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.template.as_ref().err().map(String::as_str)
    }

    /// Renders a conversation; `add_generation_prompt` appends what introduces the model's answer.
    ///
    /// # Errors
    /// [`ModelError::Template`] when the template does not compile, refuses the conversation, calls
    /// what does not exist, or uses up its budget of work.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template =
            self.template.as_ref().map_err(|cause| ModelError::Template(cause.clone()))?;
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
        context.extend(self.variables.iter().cloned());
        template.render(Value::from_pairs(context)).map_err(ModelError::Template)
    }
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
