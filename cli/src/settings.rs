//! Settings of a command from its flags, which are the uppermost layer of the configuration.

use std::path::{Path, PathBuf};

use sppo_core::config::{Config, Layers, Override, Resolved};
use sppo_core::plugin::check::{self, InvalidSetting};
use sppo_core::plugins::{check_sections, schema_of};
use sppo_core::stages::SamplingSettings;
use sppo_core::{Error, Result};

use crate::args::{ModelArguments, SamplingArguments, SettingsArguments, TrainingArguments};
use crate::flags::GivenFlags;

/// The uppermost layer: settings from flags, each remembered with its flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(Vec<Override>);

/// Flags that stand for settings.
pub(crate) trait SettingFlags {
    /// Adds those that were given.
    fn add_to(&self, flags: &mut Flags) -> Result<()>;
}

impl Flags {
    /// Settings of these groups of flags; of two that set the same key, the later counts.
    pub(crate) fn of(groups: &[&dyn SettingFlags]) -> Result<Self> {
        let mut flags = Self::default();
        for group in groups {
            group.add_to(&mut flags)?;
        }
        Ok(flags)
    }

    /// Those whose settings are in these sections.
    pub(crate) fn within(mut self, sections: &[&str]) -> Self {
        self.0.retain(|given| sections.iter().any(|section| given.is_in(section)));
        self
    }

    /// One setting, if its flag was given.
    pub(crate) fn set<T: Into<toml::Value>>(
        &mut self,
        flag: &str,
        key: &str,
        value: Option<T>,
    ) -> Result<()> {
        if let Some(value) = value {
            self.0.push(Override::set(flag, key, value)?);
        }
        Ok(())
    }

    /// A setting that is a list of paths, which hold from every directory, if any was given.
    fn set_paths(&mut self, flag: &str, key: &str, paths: &[PathBuf]) -> Result<()> {
        let text = |path: &PathBuf| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            path_text(flag, &path).map(toml::Value::from)
        };
        let values = paths.iter().map(text).collect::<Result<Vec<_>>>()?;
        self.set(flag, key, (!values.is_empty()).then_some(values))
    }

    /// A setting that is a path.
    pub(crate) fn set_path(&mut self, flag: &str, key: &str, path: Option<&Path>) -> Result<()> {
        let text = path.map(|path| path_text(flag, path)).transpose()?;
        self.set(flag, key, text)
    }
}

/// Puts the layers together, and refuses settings of plugins that do not exist.
///
/// # Errors
/// When a file cannot be read, or a setting is unknown or makes no sense.
pub(crate) fn resolve(layers: &Layers) -> Result<Resolved> {
    let resolved = Config::resolve_with(layers, &schema_of)?;
    check_sections(&resolved)?;
    Ok(resolved)
}

fn path_text<'a>(flag: &str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| {
        Error::configuration(flag, format!("{} is not UTF-8", path.display()))
            .with_hint("rename the file or directory")
    })
}

impl SettingsArguments {
    /// The layers that these flags name, with flags uppermost; no preset where none is named.
    pub(crate) fn layers(&self, flags: Flags) -> Layers {
        Layers {
            preset: self.preset.map(Into::into),
            files: self.config.clone(),
            overrides: flags.0,
        }
    }

    /// The settings of all layers, these flags uppermost.
    ///
    /// # Errors
    /// When a file cannot be read, or a setting is unknown or makes no sense.
    pub(crate) fn resolve(&self, flags: Flags) -> Result<Resolved> {
        let preset = Some(self.preset.unwrap_or_default().into());
        resolve(&Layers { preset, ..self.layers(flags) })
    }

    /// As [`Self::resolve`], on top of complete settings such as those of an earlier run. A named preset or
    /// file replaces these.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub(crate) fn resolve_on(&self, base: &Config, flags: Flags) -> Result<Resolved> {
        if self.preset.is_some() || !self.config.is_empty() {
            return self.resolve(flags);
        }
        let recorded: toml::Table = toml::from_str(&base.to_toml()?)
            .map_err(|error| Error::configuration("run.json", error.to_string()))?;
        let recorded = recorded
            .into_iter()
            .map(|(key, value)| Override::set("run.json", &key, value))
            .collect::<Result<Vec<_>>>()?;
        let overrides = recorded.into_iter().chain(flags.0).collect();
        resolve(&Layers { preset: None, files: Vec::new(), overrides })
    }
}

impl SettingFlags for SettingsArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        for assignment in &self.set {
            flags.0.push(Override::parse("--set", assignment)?);
        }
        flags.set_paths("--plugin", "plugins.files", &self.plugin)
    }
}

impl SettingFlags for ModelArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        self.given.add_to(flags)
    }
}

impl SettingFlags for TrainingArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        self.training.add_to(flags)?;
        self.optimizer.add_to(flags)?;
        self.lora.add_to(flags)
    }
}

impl<G> SettingFlags for GivenFlags<G> {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        self.iter().try_for_each(|(flag, key, value)| flags.set(flag, key, Some(value.clone())))
    }
}

impl SamplingArguments {
    /// Sampling settings with these flags over them, for commands that only show responses: unlike in
    /// self-play, one response per prompt and a temperature of 0 are fine.
    ///
    /// # Errors
    /// When a value is out of its range.
    pub(crate) fn over(&self, base: SamplingSettings) -> Result<SamplingSettings> {
        const SECTION: &str = "sampling";
        let refused = |refusal: InvalidSetting| {
            let key = format!("{SECTION}.{}", refusal.key);
            let flag = self.iter().find(|(_, given, _)| *given == key).map(|(flag, ..)| *flag);
            let place = flag.map_or(key.clone(), |flag| format!("{flag}: {key}"));
            Error::configuration(place, refusal.message).with_hint(refusal.hint)
        };
        let unreadable =
            |error: &dyn std::fmt::Display| Error::configuration(SECTION, error.to_string());
        let mut section = toml::Table::try_from(base).map_err(|error| unreadable(&error))?;
        for (_, key, value) in self.iter() {
            section.insert(key.trim_start_matches("sampling.").into(), value.clone());
        }
        let sampling: SamplingSettings = section.try_into().map_err(|error| unreadable(&error))?;
        check::at_least_one("samples_per_prompt", sampling.samples_per_prompt as u64)
            .and_then(|()| sampling.parameters().check())
            .map_err(refused)?;
        Ok(sampling)
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};
    use sppo_core::config::{Preset, Source};
    use sppo_core::plugin::Optimizer;

    use super::*;
    use crate::args::{Arguments, Command, TrainArguments};

    fn train(flags: &[&str]) -> TrainArguments {
        let words = ["sppo", "train", "pairs.jsonl", "--output", "out"];
        match Arguments::try_parse_from(words.iter().chain(flags)).unwrap().command {
            Command::Train(arguments) => *arguments,
            _ => unreachable!(),
        }
    }

    fn resolve(arguments: &TrainArguments) -> Result<Resolved> {
        let flags = Flags::of(&[&arguments.settings, &arguments.training])?;
        arguments.settings.resolve(flags)
    }

    #[test]
    fn flags_lie_above_set_which_lies_above_the_preset() {
        let arguments =
            train(&["--set", "training.eta=5", "--learning-rate", "1e-4", "--eta", "7"]);
        let resolved = resolve(&arguments).unwrap();
        assert_eq!(
            (resolved.config.training.eta, resolved.config.training.learning_rate),
            (7.0, 1e-4)
        );
        assert_eq!(resolved.sources["training.eta"], Source::Flag("--eta".into()));
        assert_eq!(resolved.sources["training.global_batch_size"], Source::Preset(Preset::Quick));
    }

    #[test]
    fn every_name_that_a_flag_accepts_is_a_setting() {
        let command = Arguments::command();
        let train = command.find_subcommand("train").unwrap();
        for id in ["objective", "schedule", "tokenization", "reference-log-probs", "optimizer"] {
            let argument = train.get_arguments().find(|argument| argument.get_id() == id).unwrap();
            let names = argument.get_possible_values();
            assert!(names.len() > 1, "{id}");
            for name in names {
                let flag = format!("--{id}");
                let mut words = vec![flag.as_str(), name.get_name()];
                if name.get_name() == "official" {
                    words.extend(["--max-length", "9", "--max-prompt-length", "4"]);
                    words.extend(["--set", "training.reference_log_probs=\"recomputed\""]);
                }
                resolve(&self::train(&words)).unwrap();
            }
        }
    }

    #[test]
    fn answers_that_are_only_looked_at_may_be_single_and_greedy() {
        let eval = |flags: &[&str]| {
            let words = ["sppo", "eval", "--model", "m"];
            match Arguments::try_parse_from(words.iter().chain(flags)).unwrap().command {
                Command::Eval(arguments) => arguments.sampling.over(SamplingSettings::default()),
                _ => unreachable!(),
            }
        };
        let sampling = eval(&["--samples", "1", "--temperature", "0"]).unwrap();
        assert_eq!((sampling.samples_per_prompt, sampling.temperature), (1, 0.0));
        for [flag, value] in [
            ["--samples", "0"],
            ["--temperature", "inf"],
            ["--top-p", "0"],
            ["--max-new-tokens", "0"],
            ["--min-new-tokens", "513"],
        ] {
            let error = eval(&[flag, value]).unwrap_err();
            assert!(error.to_string().starts_with(&format!("{flag}: sampling.")), "{error}");
            assert!(error.hint().is_some());
        }
    }

    #[test]
    fn another_optimizer_brings_its_own_constants() {
        for name in ["rmsprop", "sgd"] {
            resolve(&train(&["--optimizer", name])).unwrap();
        }
        let arguments = train(&["--optimizer", "adamw", "--weight-decay", "0.1"]);
        let expected =
            Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        assert_eq!(resolve(&arguments).unwrap().config.training.optimizer, expected);
    }

    #[test]
    fn recorded_settings_are_kept_but_for_what_is_typed() {
        let mut base = Config::default();
        base.training.eta = 3.0;
        base.seed = 9;
        let arguments = train(&["--eta", "4"]);
        let flags = Flags::of(&[&arguments.training]).unwrap();
        let config = arguments.settings.resolve_on(&base, flags).unwrap().config;
        base.training.eta = 4.0;
        assert_eq!(config, base);
        let named = train(&["--preset", "paper"]);
        let config = named.settings.resolve_on(&base, Flags::default()).unwrap().config;
        assert_eq!(config.training.planned_epochs, Some(18));
    }
}
