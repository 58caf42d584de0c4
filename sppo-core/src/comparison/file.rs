//! The file that describes a comparison.
//!
//! ```toml
//! preset = "quick"                     # below all other settings
//!
//! [settings]                           # of all runs, as in any configuration file
//! evaluation.samples_per_prompt = 4
//!
//! [axes]                               # every combination of their values is a run
//! sampling.samples_per_prompt = [2, 5]
//! seed = [1, 2, 3]
//!
//! [[variants]]                         # one more axis, whose values set several settings each
//! name = "sppo"
//! training.objective = "sppo"
//! training.eta = 1000.0
//!
//! [budget]                             # the same for every run
//! iterations = 3
//! responses = 1920                     # sampled to train on, in all iterations together
//!
//! [judge]                              # who judges the runs, if it is not the oracle of all runs
//! oracle.name = "rules"
//! ```

use std::path::Path;

use toml::{Table, Value};

use crate::config::{Override, Preset, parse_toml, short_text};
use crate::error::{Error, Result};
use crate::files::input_error;
use crate::schema::closest;

/// A comparison of runs that differ in some settings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ComparisonFile {
    /// The file's name in error messages.
    source: String,
    /// The preset of all runs.
    pub preset: Option<Preset>,
    /// Settings of all runs.
    pub settings: Vec<Override>,
    /// Settings in which the runs differ.
    pub axes: Vec<Axis>,
    /// Limits of all runs.
    pub budget: Budget,
    /// Settings of the judge, over those of the runs.
    pub judge: Vec<Override>,
}

/// Something that runs differ in.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The setting's dotted key; `None` for variants.
    pub key: Option<String>,
    /// The choices, in order.
    pub choices: Vec<Choice>,
}

/// One choice of an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// Its name, for people and in paths.
    pub label: String,
    /// The preset that it chooses, if it does.
    pub preset: Option<Preset>,
    /// Its settings.
    pub settings: Vec<Override>,
}

/// Limits of every run; what is left out is as the settings say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budget {
    /// Iterations of self-play.
    pub iterations: Option<Override>,
    /// Responses sampled to train on, in all iterations together: the number of training prompts follows.
    pub responses: Option<u64>,
}

/// The key of the axis that is no setting.
pub(super) const PRESET: &str = "preset";
const SECTIONS: [&str; 6] = [PRESET, "settings", "axes", "variants", "budget", "judge"];
/// Settings that a judge may be given; the rest is the runs'.
const OF_JUDGE: [&str; 3] = ["oracle", "preference", "backend"];

impl ComparisonFile {
    /// Reads a file.
    ///
    /// # Errors
    /// When the file cannot be read or says something else than a comparison. Whether there are such settings
    /// is found out where the runs' settings are put together.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| input_error(path, "read this comparison", &error))?;
        Self::parse(&text, &path.display().to_string())
    }

    /// As [`Self::read`], from a text; `source` stands for the file in errors.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str, source: &str) -> Result<Self> {
        let mut file = Self { source: source.into(), ..Self::default() };
        for (name, value) in parse_toml(text, source)? {
            match (name.as_str(), value) {
                (PRESET, value) => file.preset = Some(preset_of(&value, source)?),
                ("variants", Value::Array(variants)) => file.set_variants(variants)?,
                ("variants", _) => return Err(file.refuse(&name, "write `[[variants]]` for each")),
                (section, Value::Table(table)) => file.set_section(section, table)?,
                (section, _) if SECTIONS.contains(&section) => {
                    return Err(file.refuse(section, &format!("write `[{section}]`")));
                }
                (unknown, _) => return Err(file.unknown(unknown, &SECTIONS)),
            }
        }
        Ok(file)
    }

    /// Adds an axis from `KEY=VALUE,VALUE`, as `flag` gives it.
    ///
    /// # Errors
    /// When there is no value, or the key is malformed.
    pub fn add_axis(&mut self, flag: &str, assignment: &str) -> Result<()> {
        let Some((key, values)) = assignment.split_once('=') else {
            return Err(Error::configuration(flag, format!("`{assignment}` has no `=`"))
                .with_hint("write key=value,value, for instance `training.eta=100,1000`"));
        };
        let choice = |value: &str| {
            let value = value.trim();
            if key == PRESET {
                return Ok(Choice::of_preset(value.parse()?));
            }
            let setting = Override::parse(flag, &format!("{key}={value}"))?;
            Ok(Choice { label: label(key, value), preset: None, settings: vec![setting] })
        };
        let choices = values.split(',').map(choice).collect::<Result<_>>()?;
        self.push_axis(flag, Axis { key: Some(key.into()), choices })
    }

    /// Whether it says who judges the runs.
    #[must_use]
    pub fn names_a_judge(&self) -> bool {
        !self.judge.is_empty()
    }

    fn set_section(&mut self, section: &str, table: Table) -> Result<()> {
        let place = format!("{}: {section}", self.source);
        match section {
            "settings" => self.settings = overrides(&place, table)?,
            "axes" => self.add_axes(&place, "", table)?,
            "budget" => self.set_budget(&place, table)?,
            "judge" => {
                if let Some(other) = table.keys().find(|key| !OF_JUDGE.contains(&key.as_str())) {
                    return Err(self.unknown(&format!("{section}.{other}"), &OF_JUDGE));
                }
                self.judge = overrides(&place, table)?;
            }
            unknown => return Err(self.unknown(unknown, &SECTIONS)),
        }
        Ok(())
    }

    fn set_budget(&mut self, place: &str, table: Table) -> Result<()> {
        for (key, value) in table {
            match key.as_str() {
                "iterations" => {
                    self.budget.iterations = Some(Override::set(place, "iterations", value)?);
                }
                "responses" => {
                    let number = value.as_integer().and_then(|number| u64::try_from(number).ok());
                    let number = number.filter(|number| *number > 0);
                    self.budget.responses = Some(number.ok_or_else(|| {
                        Error::configuration(format!("{place}.{key}"), "is no number of responses")
                            .with_hint("give a whole number above 0")
                    })?);
                }
                unknown => {
                    let known = ["iterations", "responses"];
                    return Err(self.unknown(&format!("budget.{unknown}"), &known));
                }
            }
        }
        Ok(())
    }

    fn set_variants(&mut self, variants: Vec<Value>) -> Result<()> {
        let variant = |value: Value| {
            let Value::Table(mut settings) = value else {
                return Err(self.refuse("variants", "write `[[variants]]` for each"));
            };
            let Some(Value::String(label)) = settings.remove("name") else {
                return Err(Error::configuration(
                    format!("{}: variants", self.source),
                    "a variant has no name",
                )
                .with_hint("begin each with `name = \"...\"`"));
            };
            let place = format!("{}: variants.{label}", self.source);
            let preset = settings.remove(PRESET).map(|value| preset_of(&value, &place));
            Ok(Choice {
                preset: preset.transpose()?,
                settings: overrides(&place, settings)?,
                label,
            })
        };
        let choices = variants.into_iter().map(variant).collect::<Result<_>>()?;
        let place = format!("{}: variants", self.source);
        self.push_axis(&place, Axis { key: None, choices })
    }

    /// Dotted keys are nested tables, with a list at the end.
    fn add_axes(&mut self, place: &str, prefix: &str, table: Table) -> Result<()> {
        for (name, value) in table {
            let key = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
            match value {
                Value::Table(inner) => self.add_axes(place, &key, inner)?,
                Value::Array(values) => {
                    let choice = |value| Choice::of_setting(place, &key, value);
                    let choices = values.into_iter().map(choice).collect::<Result<_>>()?;
                    self.push_axis(place, Axis { key: Some(key.clone()), choices })?;
                }
                _ => {
                    let message = "an axis is a list of values";
                    return Err(Error::configuration(format!("{place}.{key}"), message)
                        .with_hint("put the value in brackets, or under `[settings]`"));
                }
            }
        }
        Ok(())
    }

    fn push_axis(&mut self, place: &str, axis: Axis) -> Result<()> {
        let place = axis.key.as_ref().map_or(place.into(), |key| format!("{place}: {key}"));
        let mut labels: Vec<&str> =
            axis.choices.iter().map(|choice| choice.label.as_str()).collect();
        labels.sort_unstable();
        if labels.is_empty() {
            return Err(Error::configuration(place, "has no values").with_hint("leave it out"));
        }
        if let Some(twice) = labels.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Error::configuration(place, format!("has `{}` twice", twice[0]))
                .with_hint("leave one of them out"));
        }
        if axis.key.is_some() && self.axes.iter().any(|other| other.key == axis.key) {
            return Err(Error::configuration(place, "is an axis already")
                .with_hint("leave it out here or there"));
        }
        // Variants come first in names.
        let position = if axis.key.is_some() { self.axes.len() } else { 0 };
        self.axes.insert(position, axis);
        Ok(())
    }

    fn refuse(&self, section: &str, hint: &str) -> Error {
        let message = "is not a section of a comparison";
        Error::configuration(format!("{}: {section}", self.source), message).with_hint(hint)
    }

    fn unknown(&self, key: &str, known: &[&str]) -> Error {
        let name = key.rsplit_once('.').map_or(key, |(_, name)| name);
        let hint = match closest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        let message = "a comparison has no such key";
        Error::configuration(format!("{}: {key}", self.source), message).with_hint(hint)
    }
}

impl Choice {
    fn of_preset(preset: Preset) -> Self {
        Self { label: preset.name().into(), preset: Some(preset), settings: Vec::new() }
    }

    fn of_setting(place: &str, key: &str, value: Value) -> Result<Self> {
        if key == PRESET {
            return preset_of(&value, place).map(Self::of_preset);
        }
        let text = match &value {
            Value::String(text) => text.clone(),
            Value::Table(_) => {
                let message = "the values of an axis are no tables";
                return Err(Error::configuration(format!("{place}.{key}"), message)
                    .with_hint("give each a name and its settings as one of `[[variants]]`"));
            }
            other => short_text(other),
        };
        let settings = vec![Override::set(place, key, value)?];
        Ok(Self { label: label(key, &text), preset: None, settings })
    }
}

/// The last part of the key that says something, and the value.
fn label(key: &str, value: &str) -> String {
    let telling = |part: &&str| !matches!(*part, "name" | "type");
    let name = key.rsplit('.').find(telling).unwrap_or(key);
    format!("{name}={value}")
}

fn overrides(place: &str, table: Table) -> Result<Vec<Override>> {
    table.into_iter().map(|(key, value)| Override::set(place, &key, value)).collect()
}

fn preset_of(value: &Value, place: &str) -> Result<Preset> {
    let Value::String(name) = value else {
        return Err(Error::configuration(format!("{place}: {PRESET}"), "must be a name"));
    };
    name.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(file: &ComparisonFile) -> Vec<Vec<&str>> {
        file.axes
            .iter()
            .map(|axis| axis.choices.iter().map(|choice| choice.label.as_str()).collect())
            .collect()
    }

    #[test]
    fn axes_are_lists_of_values_and_variants_set_several_settings() {
        let text = "
            preset = 'paper'
            [settings]
            evaluation.samples_per_prompt = 4
            [axes]
            seed = [1, 2]
            oracle.name = ['rules', 'http']
            [[variants]]
            name = 'sppo'
            training.objective = 'sppo'
            training.eta = 1000.0
            [[variants]]
            name = 'dpo'
            [budget]
            iterations = 2
            responses = 100
        ";
        let file = ComparisonFile::parse(text, "c.toml").unwrap();
        assert_eq!(file.preset, Some(Preset::Paper));
        let mut found = labels(&file);
        found.sort();
        let expected =
            [vec!["oracle=rules", "oracle=http"], vec!["seed=1", "seed=2"], vec!["sppo", "dpo"]];
        assert_eq!(found, expected);
        assert_eq!(file.budget.responses, Some(100));
        assert!(file.budget.iterations.is_some());
    }

    #[test]
    fn flags_add_axes() {
        let mut file = ComparisonFile::default();
        file.add_axis("--axis", "training.eta=100, 1e3").unwrap();
        file.add_axis("--axis", "preset=quick,paper").unwrap();
        assert_eq!(labels(&file), [vec!["eta=100", "eta=1e3"], vec!["quick", "paper"]]);
        let error = file.add_axis("--axis", "training.eta=5").unwrap_err();
        assert_eq!(error.to_string(), "--axis: training.eta: is an axis already");
        assert!(file.add_axis("--axis", "training.eta").is_err());
    }

    #[test]
    fn what_a_comparison_does_not_have_is_refused_with_what_was_meant() {
        let refused = |text: &str| {
            let error = ComparisonFile::parse(text, "c.toml").unwrap_err();
            format!("{error} / {}", error.hint().unwrap_or_default())
        };
        for (text, told) in [
            (
                "[axis]\nseed = [1]",
                "c.toml: axis: a comparison has no such key / did you mean `axes`?",
            ),
            (
                "settings = 3",
                "c.toml: settings: is not a section of a comparison / write `[settings]`",
            ),
            ("[axes]\nseed = 1", "c.toml: axes.seed: an axis is a list of values"),
            ("[axes]\nseed = []", "c.toml: axes: seed: has no values"),
            ("[axes]\nseed = [1, 1]", "c.toml: axes: seed: has `seed=1` twice"),
            ("[axes]\nseed = [{ a = 1 }]", "the values of an axis are no tables"),
            ("[[variants]]\niterations = 1", "c.toml: variants: a variant has no name"),
            ("[budget]\nresponse = 3", "did you mean `responses`?"),
            ("[budget]\nresponses = 0", "c.toml: budget.responses: is no number of responses"),
            ("[judge]\ntraining.eta = 3", "c.toml: judge.training: a comparison has no such key"),
            ("preset = 'quik'", "there is no preset named `quik`"),
            ("[axes", "c.toml:1"),
        ] {
            let message = refused(text);
            assert!(message.contains(told), "{message}");
        }
    }
}
