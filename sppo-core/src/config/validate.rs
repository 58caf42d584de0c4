//! Checks of a configuration: keys that no setting has, with the key that was probably meant, the checks of
//! each section, and what sections ask of each other.

use std::sync::LazyLock;

use serde_json::Value;
use toml::Table;

use super::Config;
use crate::plugin::check::{self, Check};
use crate::schema::{Schema, closest_key};
use crate::selection::SelectionStrategy;
use crate::stages::ReferenceLogProbs;

/// A key that no setting has.
#[derive(Debug, PartialEq)]
pub(super) struct UnknownKey {
    pub(super) path: String,
    pub(super) hint: String,
}

pub(super) static DOCUMENT: LazyLock<Value> = LazyLock::new(Config::json_schema);

/// The first key of a layer that no setting has.
pub(super) fn first_unknown_key(layer: &Table) -> Option<UnknownKey> {
    let schema = Schema::new(&DOCUMENT);
    let path = unknown_in(&[schema], layer, "")?;
    Some(UnknownKey { hint: hint_for(&path, schema), path })
}

/// `forms` are all forms that the table may have.
fn unknown_in(forms: &[Schema<'_>], table: &Table, prefix: &str) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let path = joined(prefix, name);
        let found: Vec<Schema<'_>> =
            forms.iter().filter_map(|form| form.property(name)).flat_map(Schema::forms).collect();
        match value {
            _ if found.is_empty() => (!is_open(forms)).then_some(path),
            // A value that should not be a table cannot have keys; its deserialiser says so better.
            toml::Value::Table(inner) if has_keys(&found) => unknown_in(&found, inner, &path),
            _ => None,
        }
    })
}

/// Whether other keys are allowed too: those of plugins.
fn is_open(forms: &[Schema<'_>]) -> bool {
    let mut additional = forms.iter().filter_map(|form| form.keyword("additionalProperties"));
    additional.any(|value| value != &Value::Bool(false))
}

fn has_keys(forms: &[Schema<'_>]) -> bool {
    forms.iter().any(|form| form.properties().next().is_some()) || is_open(forms)
}

fn joined(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.into() } else { format!("{prefix}.{name}") }
}

fn hint_for(path: &str, schema: Schema<'_>) -> String {
    let mut all = Vec::new();
    collect(schema, "", &mut all);
    if let Some(key) = closest_key(path, all.iter().map(String::as_str)) {
        return format!("did you mean `{key}`?");
    }
    let table = path.rsplit_once('.').map_or("", |(table, _)| table);
    let forms = schema.at(table).map(Schema::forms).unwrap_or_default();
    let mut known: Vec<&str> =
        forms.iter().flat_map(|form| form.properties()).map(|(name, _)| name).collect();
    known.sort_unstable();
    known.dedup();
    format!("known here: {}; `sppo config schema` explains all keys", known.join(", "))
}

/// All dotted keys, those of a table before the table.
fn collect(schema: Schema<'_>, prefix: &str, found: &mut Vec<String>) {
    for (name, property) in schema.forms().into_iter().flat_map(Schema::properties) {
        let path = joined(prefix, name);
        collect(property, &path, found);
        found.push(path);
    }
}

impl Config {
    /// Checks everything that does not depend on which plugins there are.
    ///
    /// # Errors
    /// Names the key at fault.
    pub(super) fn check(&self) -> Check {
        self.check_run()?;
        self.sampler.check().map_err(|refusal| refusal.within("sampler"))?;
        self.sampling.check().map_err(|refusal| refusal.within("sampling"))?;
        self.preference.check().map_err(|refusal| refusal.within("preference"))?;
        self.training.check().map_err(|refusal| refusal.within("training"))?;
        self.check_reference()?;
        self.check_selection()?;
        self.evaluation.check().map_err(|refusal| refusal.within("evaluation"))?;
        self.notify.check().map_err(|refusal| refusal.within("notify"))
    }

    fn check_run(&self) -> Check {
        let plain = !matches!(self.name.as_str(), "" | "." | "..")
            && !self.name.contains(['/', '\\', '\0'])
            && !self.name.starts_with('.');
        check::require(
            plain,
            "name",
            format!("`{}` cannot be the name of a directory", self.name),
            "use letters, digits, `-` and `_`; the parent directory is `run_directory`",
        )?;
        check::require(
            !self.model.is_empty(),
            "model",
            "is empty",
            "name a model, a directory or a file",
        )?;
        check::at_least_one("iterations", self.iterations.into())?;
        check::require(
            i64::try_from(self.seed).is_ok(),
            "seed",
            format!("{} does not fit a TOML integer", self.seed),
            "give a number below 2^63",
        )
    }

    /// Log-probabilities that another engine reports are only compared, never trained on.
    fn check_reference(&self) -> Check {
        check::require(
            self.sampler.is_policy()
                || self.training.reference_log_probs == ReferenceLogProbs::Recomputed,
            "training.reference_log_probs",
            format!(
                "`recorded` are those of the sampler `{}`, not the policy's",
                self.sampler.name
            ),
            "leave it out, or set it to `recomputed`",
        )
    }

    /// As many responses must be selected as the objective takes.
    fn check_selection(&self) -> Check {
        let selected = match self.selection.strategy {
            SelectionStrategy::BestAndWorst => 2,
            SelectionStrategy::All => self.sampling.samples_per_prompt,
        };
        check::require(
            self.training.objective.requires().responses.is_none_or(|number| number == selected),
            "selection.strategy",
            "`all` trains on every answer, and the objective compares two",
            "set `training.objective = \"sppo_all\"`, or `selection.strategy = \"best-and-worst\"`",
        )
    }
}
