//! Paths among the settings, made to hold from every directory: a run may be resumed from another one.

use std::path::{Path, PathBuf, absolute};

use serde_json::Value;

use super::{Config, PluginSchema};
use crate::plugin::PluginKind;
use crate::schema::Schema;

/// Deepest nesting of settings that is followed. A schema may refer to itself.
const MAX_DEPTH: usize = 16;

impl Config {
    /// The same settings with absolute paths, as a run records them. `plugin_schema` gives the schema of a
    /// plugin's own settings, in which a path has the format `path`, and a model, which may be a path or a
    /// name, the format `model`. The run directory stays as it is: it is what may be moved.
    #[must_use]
    pub fn with_absolute_paths(&self, plugin_schema: &PluginSchema<'_>) -> Self {
        let mut config = self.clone();
        let prompts = [&mut config.prompts.train, &mut config.prompts.held_out];
        prompts.into_iter().flatten().for_each(make_absolute);
        config.plugins.files.iter_mut().chain(&mut config.plugins.path).for_each(make_absolute);
        config.model = absolute_model(&config.model);
        let sections = [
            (PluginKind::BACKEND, &mut config.backend.settings),
            (PluginKind::ORACLE, &mut config.oracle.settings),
            (PluginKind::SAMPLER, &mut config.sampler.settings),
        ];
        for (kind, section) in sections {
            for (name, settings) in section {
                if let Some(document) = plugin_schema(kind, name, &self.plugins) {
                    make_all_absolute(Schema::new(&document), settings, 0);
                }
            }
        }
        config
    }
}

/// Names that stand for models of the run itself, where a setting has the format `policy-or-model`.
const MODELS_OF_A_RUN: [&str; 2] = ["policy", "start"];

/// Whether two settings, as JSON, are the same path: one as it was given, one made absolute.
pub(crate) fn is_same_path(one: &str, other: &str) -> bool {
    let path = |text: &str| match serde_json::from_str(text) {
        Ok(Value::String(text)) => absolute(text).ok(),
        _ => None,
    };
    path(one).is_some_and(|one| path(other) == Some(one))
}

fn make_absolute(path: &mut PathBuf) {
    if let Ok(full) = absolute(&*path) {
        *path = full;
    }
}

/// A model that is a file or a directory here by its absolute path; a name of another kind stays.
fn absolute_model(model: &str) -> String {
    let full = absolute(model).ok().filter(|_| Path::new(model).exists());
    full.and_then(|path| path.to_str().map(String::from)).unwrap_or_else(|| model.into())
}

fn make_all_absolute(schema: Schema<'_>, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    let forms = schema.forms();
    match value {
        Value::Object(table) => {
            for (name, value) in table {
                let schema = forms.iter().find_map(|form| form.property(name));
                if let Some(schema) = schema {
                    make_all_absolute(schema, value, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            let schema = forms.iter().find_map(|form| form.subschema("items"));
            for item in items {
                if let Some(schema) = schema {
                    make_all_absolute(schema, item, depth + 1);
                }
            }
        }
        Value::String(text) => match forms.iter().find_map(|form| form.text("format")) {
            Some("path") => {
                let full = absolute(&*text).ok();
                if let Some(full) = full.as_deref().and_then(Path::to_str) {
                    *text = full.into();
                }
            }
            Some("model") => *text = absolute_model(text),
            Some("policy-or-model") if !MODELS_OF_A_RUN.contains(&text.as_str()) => {
                *text = absolute_model(text);
            }
            _ => {}
        },
        _ => {}
    }
}
