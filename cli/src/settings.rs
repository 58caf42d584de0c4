//! From what was typed to the settings of a run: flags become a layer of the configuration.

use std::path::{Path, PathBuf};

use sppo_core::config::{Config, Layers, Override, Resolved};
use sppo_core::{Error, Result};

use crate::args::{
    BackendArguments, ModelArguments, OracleArguments, SamplingArguments, SettingsArguments,
    TrainingArguments,
};

/// The uppermost layer: settings from flags, each remembered with its flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(Vec<Override>);

/// Flags that stand for settings.
pub(crate) trait SettingFlags {
    /// Adds those that were given.
    fn add_to(&self, flags: &mut Flags) -> Result<()>;
}

impl Flags {
    /// What these groups of flags say; of two that set the same, the later counts.
    pub(crate) fn of(groups: &[&dyn SettingFlags]) -> Result<Self> {
        let mut flags = Self::default();
        for group in groups {
            group.add_to(&mut flags)?;
        }
        Ok(flags)
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

fn path_text<'a>(flag: &str, path: &'a Path) -> Result<&'a str> {
    path.to_str().ok_or_else(|| {
        Error::configuration(flag, format!("{} is not UTF-8", path.display()))
            .with_hint("rename the file or directory")
    })
}

impl SettingsArguments {
    /// The settings of all layers, these flags uppermost.
    ///
    /// # Errors
    /// When a file cannot be read, or a setting is unknown or makes no sense.
    pub(crate) fn resolve(&self, flags: Flags) -> Result<Resolved> {
        Config::resolve(&Layers {
            preset: Some(self.preset.unwrap_or_default().into()),
            files: self.config.clone(),
            overrides: flags.0,
        })
    }

    /// As [`Self::resolve`], on top of settings that are complete, such as those of an earlier run. A
    /// preset or a file that was named replaces these.
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
        Config::resolve(&Layers { preset: None, files: Vec::new(), overrides })
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
        flags.set("--model", "model", self.model.as_deref())?;
        flags.set("--revision", "revision", self.revision.as_deref())
    }
}

impl SettingFlags for BackendArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        flags.set("--backend", "backend.name", self.backend.as_deref())
    }
}

impl SettingFlags for OracleArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        flags.set("--oracle", "oracle.name", self.oracle.as_deref())
    }
}

impl SettingFlags for SamplingArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        flags.set("--samples", "sampling.samples_per_prompt", self.samples)?;
        flags.set("--temperature", "sampling.temperature", self.temperature)?;
        flags.set("--top-p", "sampling.top_p", self.top_p)?;
        flags.set("--top-k", "sampling.top_k", self.top_k)?;
        flags.set("--max-new-tokens", "sampling.max_new_tokens", self.max_new_tokens)?;
        flags.set("--min-new-tokens", "sampling.min_new_tokens", self.min_new_tokens)
    }
}

impl SettingFlags for TrainingArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        let mut set_text =
            |flag: &str, key: &str, value: &Option<String>| flags.set(flag, key, value.as_deref());
        set_text("--objective", "training.objective", &self.objective)?;
        set_text("--schedule", "training.schedule", &self.schedule)?;
        set_text("--tokenization", "training.tokenization", &self.tokenization)?;
        set_text(
            "--reference-log-probs",
            "training.reference_log_probs",
            &self.reference_log_probs,
        )?;
        let mut set_number =
            |flag: &str, key: &str, value: Option<f64>| flags.set(flag, key, value);
        set_number("--eta", "training.eta", self.eta)?;
        set_number("--learning-rate", "training.learning_rate", self.learning_rate)?;
        set_number("--label-smoothing", "training.label_smoothing", self.label_smoothing)?;
        set_number("--warmup-ratio", "training.warmup_ratio", self.warmup_ratio)?;
        set_number("--max-gradient-norm", "training.max_gradient_norm", self.max_gradient_norm)?;
        let mut set_count = |flag: &str, key: &str, value: Option<i64>| flags.set(flag, key, value);
        set_count("--epochs", "training.epochs", self.epochs)?;
        set_count("--planned-epochs", "training.planned_epochs", self.planned_epochs)?;
        set_count("--global-batch-size", "training.global_batch_size", self.global_batch_size)?;
        set_count("--micro-batch-tokens", "training.micro_batch_tokens", self.micro_batch_tokens)?;
        set_count("--max-length", "training.max_length", self.max_length)?;
        set_count("--max-prompt-length", "training.max_prompt_length", self.max_prompt_length)?;
        self.optimizer.add_to(flags)?;
        self.lora.add_to(flags)
    }
}

impl SettingFlags for crate::args::LoraArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        flags.set("--lora-rank", "training.lora.rank", self.lora_rank)?;
        flags.set("--lora-alpha", "training.lora.alpha", self.lora_alpha)?;
        flags.set("--lora-dropout", "training.lora.dropout", self.lora_dropout)?;
        let modules = self.lora_target_modules.clone();
        flags.set("--lora-target-modules", "training.lora.target_modules", modules)
    }
}

impl SettingFlags for crate::args::OptimizerArguments {
    fn add_to(&self, flags: &mut Flags) -> Result<()> {
        // The type first: another type replaces the constants.
        let name = self.optimizer.map(|name| name.in_config());
        flags.set("--optimizer", "training.optimizer.type", name)?;
        flags.set("--alpha", "training.optimizer.alpha", self.alpha)?;
        flags.set("--epsilon", "training.optimizer.epsilon", self.epsilon)?;
        flags.set("--beta1", "training.optimizer.beta1", self.beta1)?;
        flags.set("--beta2", "training.optimizer.beta2", self.beta2)?;
        flags.set("--weight-decay", "training.optimizer.weight_decay", self.weight_decay)?;
        flags.set("--momentum", "training.optimizer.momentum", self.momentum)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
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
        use crate::args::{OBJECTIVES, REFERENCES, SCHEDULES, TOKENIZATIONS};
        let groups: [(&str, &[&str]); 4] = [
            ("--objective", &OBJECTIVES),
            ("--schedule", &SCHEDULES),
            ("--tokenization", &TOKENIZATIONS),
            ("--reference-log-probs", &REFERENCES),
        ];
        for (flag, names) in groups {
            for name in names {
                let mut words = vec![flag, name];
                if *name == "official" {
                    words.extend(["--max-length", "9", "--max-prompt-length", "4"]);
                    words.extend(["--set", "training.reference_log_probs=\"recomputed\""]);
                }
                resolve(&train(&words)).unwrap();
            }
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
