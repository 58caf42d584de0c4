//! Texts for services, made from conversations and responses by Jinja templates.

use minijinja::value::merge_maps;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use sppo_plugin::{Comparison, Message, PluginError};

use crate::question::Question;

const NAME: &str = "template";

/// A compiled template, named by its setting in errors.
pub(crate) struct Template {
    setting: &'static str,
    environment: Environment<'static>,
}

impl Template {
    /// Compiles a template and tries it on `sample`, in which every text must appear.
    pub(crate) fn new(
        setting: &'static str,
        source: &str,
        sample: Value,
        must_show: &[&str],
    ) -> Result<Self, PluginError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| unusable(setting, &error))?;
        let template = Self { setting, environment };
        let text = template.render(sample)?;
        match must_show.iter().find(|wanted| !text.contains(**wanted)) {
            Some(missing) => Err(PluginError::configuration(format!(
                "{setting}: the template leaves out {missing}"
            ))
            .with_hint("`sppo plugin info http` lists the names that a template may use")),
            None => Ok(template),
        }
    }

    pub(crate) fn render(&self, values: Value) -> Result<String, PluginError> {
        self.environment
            .get_template(NAME)
            .and_then(|template| template.render(values))
            .map_err(|error| unusable(self.setting, &error))
    }
}

fn unusable(setting: &str, error: &minijinja::Error) -> PluginError {
    let line = error.line().map_or(String::new(), |line| format!(" (line {line})"));
    let reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    PluginError::configuration(format!("{setting}: {reason}{line}"))
        .with_hint("`sppo plugin info http` lists the names that a template may use")
}

/// A prompt to try templates on; its text is `the prompt`.
pub(crate) fn sample_prompt() -> Value {
    context! {
        conversation => "the prompt", messages => [context! { role => "user", content => "the prompt" }],
        prompt => "the prompt", rendered_prompt => "the prompt",
    }
}

/// A template for prompt and answer in one text, named by its setting in errors.
pub(crate) fn response_template(
    setting: &'static str,
    source: &str,
) -> Result<Template, PluginError> {
    let sample = context! { response => "the response", ..sample_prompt() };
    Template::new(setting, source, sample, &["the response"])
}

/// The template of reward models.
pub(crate) fn scoring_template(source: &str) -> Result<Template, PluginError> {
    response_template("scoring.template", source)
}

/// A template for a prompt and a list of answers, named by its setting in errors.
pub(crate) fn answers_template(
    setting: &'static str,
    source: &str,
    more: Value,
) -> Result<Template, PluginError> {
    let answers = ["the first answer", "the second answer"];
    let sample = context! { answers, ..merge_maps([sample_prompt(), more]) };
    Template::new(setting, source, sample, &answers)
}

pub(crate) fn render_response(
    template: &Template,
    question: Question<'_>,
) -> Result<String, PluginError> {
    let prompt: Value = prompt_values(question.comparison);
    template.render(context! { response => question.first_text(), ..prompt })
}

/// The values that describe a prompt in templates.
pub(crate) fn prompt_values(comparison: &Comparison) -> Value {
    let prompt = &comparison.prompt;
    let turns: Vec<Value> = prompt
        .iter()
        .map(|Message { role, content }| {
            Value::from_pairs([("role", &**role), ("content", &**content)])
        })
        .collect();
    let last = prompt.iter().rev().find(|message| message.role == "user");
    context! {
        conversation => conversation(prompt),
        messages => turns,
        prompt => last.map(|message| &*message.content),
        rendered_prompt => comparison.rendered_prompt.as_deref(),
    }
}

/// The value of a list of texts.
pub(crate) fn texts(texts: &[&str]) -> Value {
    texts.iter().map(|text| Value::from(*text)).collect()
}

/// The conversation as text: one user's turn as it stands, several turns under their roles.
pub(crate) fn conversation(messages: &[Message]) -> String {
    match messages {
        [only] if only.role == "user" => only.content.to_string(),
        _ => {
            let turns = messages.iter().map(|Message { role, content }| {
                let mut letters = role.chars();
                let first = letters.next().map(char::to_uppercase);
                let role: String = first.into_iter().flatten().chain(letters).collect();
                format!("{role}: {content}")
            });
            turns.collect::<Vec<_>>().join("\n\n")
        }
    }
}
