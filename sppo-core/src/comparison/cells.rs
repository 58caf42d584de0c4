//! The runs of a comparison: every combination of its axes, each a cell with settings of its own.

use std::collections::BTreeMap;
use std::path::Path;

use super::file::{Choice, ComparisonFile, PRESET};
use crate::config::{Config, Layers, Override, Preset, Resolved, Source};
use crate::datasets::PromptsPerIteration;
use crate::error::{Error, Result};

/// A run of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Its name, also that of its run directory.
    pub name: String,
    /// The choices of all axes but that of the seed, in words: the cells of an arm differ in their seeds.
    pub arm: String,
    choices: Vec<Choice>,
}

/// The name of the only arm, where nothing but the seed varies.
const ONLY_ARM: &str = "run";
const SEED: &str = "seed";

impl ComparisonFile {
    /// All cells, the seeds of an arm one after the other.
    ///
    /// # Errors
    /// When there is nothing to compare, or two cells would have the same name.
    pub fn cells(&self) -> Result<Vec<Cell>> {
        let is_seed = |key: &Option<String>| key.as_deref() == Some(SEED);
        let mut axes: Vec<_> = self.axes.iter().collect();
        axes.sort_by_key(|axis| is_seed(&axis.key));
        let mut cells = vec![Cell { name: String::new(), arm: String::new(), choices: Vec::new() }];
        for axis in axes {
            let is_seed = is_seed(&axis.key);
            let with = |cell: &Cell| -> Vec<Cell> {
                axis.choices.iter().map(|choice| cell.with(choice, is_seed)).collect()
            };
            cells = cells.iter().flat_map(with).collect();
        }
        if cells.len() < 2 {
            return Err(Error::configuration("axes", "there is only one run, and nothing to compare")
                .with_hint("give an axis with several values, for instance `[axes]` and below it `seed = [1, 2, 3]`"));
        }
        let mut by_name: BTreeMap<String, &Cell> = BTreeMap::new();
        for cell in &mut cells {
            if cell.arm.is_empty() {
                cell.arm = ONLY_ARM.into();
            }
        }
        for cell in &cells {
            if by_name.insert(cell.name.to_lowercase(), cell).is_some() {
                let message = format!("two runs would have the same directory, `{}`", cell.name);
                return Err(Error::configuration("axes", message)
                    .with_hint("give variants names that differ in letters and digits"));
            }
        }
        Ok(cells)
    }

    /// The layers of a cell's settings; those of `base` are the user's files and flags. The run directory is
    /// named after the cell, within `directory`.
    ///
    /// # Errors
    /// When the directory's name is not UTF-8.
    pub fn layers(&self, cell: &Cell, base: &Layers, directory: &Path) -> Result<Layers> {
        let place = "the comparison";
        let mut overrides = self.common_settings();
        overrides.extend(cell.choices.iter().flat_map(|choice| choice.settings.clone()));
        overrides.extend(base.overrides.clone());
        overrides.push(Override::set(place, "name", cell.name.as_str())?);
        overrides.push(Override::set(place, "run_directory", utf8(directory)?)?);
        let preset = cell.choices.iter().find_map(|choice| choice.preset);
        if let (Some(_), Some(given)) = (preset, base.preset) {
            let message = format!("is what runs differ in, and {given} is asked for all");
            return Err(Error::configuration("preset", message)
                .with_hint("leave out --preset, or the presets of the comparison"));
        }
        Ok(Layers {
            preset: Some(preset.or(base.preset).or(self.preset).unwrap_or(Preset::Quick)),
            files: base.files.clone(),
            overrides,
        })
    }

    /// The layers of the judge's settings.
    #[must_use]
    pub fn judge_layers(&self, base: &Layers) -> Layers {
        let mut overrides = self.common_settings();
        overrides.extend(base.overrides.clone());
        overrides.extend(self.judge.clone());
        let preset = base.preset.or(self.preset).unwrap_or(Preset::Quick);
        Layers { preset: Some(preset), files: base.files.clone(), overrides }
    }

    fn common_settings(&self) -> Vec<Override> {
        self.settings.iter().chain(&self.budget.iterations).cloned().collect()
    }

    /// The settings of a cell once its layers are put together, within the budget.
    ///
    /// # Errors
    /// When something above an axis sets what the axis varies, or the budget cannot be spent.
    pub fn settle(&self, cell: &Cell, resolved: &Resolved) -> Result<Config> {
        let choices = cell.choices.iter().flat_map(|choice| &choice.settings);
        for setting in choices.chain(&self.budget.iterations) {
            require_effect(setting, resolved)?;
        }
        let mut config = resolved.config.clone();
        if let Some(responses) = self.budget.responses {
            config.prompts.limit = Some(prompts_for(responses, &config)?);
        }
        Ok(config)
    }
}

impl Cell {
    /// The settings that its choices set, by dotted key, in TOML notation.
    #[must_use]
    pub fn settings(&self) -> BTreeMap<String, String> {
        let mut settings = BTreeMap::new();
        for choice in &self.choices {
            settings.extend(choice.preset.map(|preset| (PRESET.into(), preset.name().into())));
            settings.extend(choice.settings.iter().flat_map(Override::values));
        }
        settings
    }

    /// Those of its arm: all but the seed.
    #[must_use]
    pub fn arm_settings(&self) -> BTreeMap<String, String> {
        let mut settings = self.settings();
        settings.remove(SEED);
        settings
    }

    fn with(&self, choice: &Choice, is_seed: bool) -> Self {
        let joined = |text: &str, separator: &str, more: &str| match text.is_empty() {
            true => more.to_owned(),
            false => format!("{text}{separator}{more}"),
        };
        let arm = match is_seed {
            true => self.arm.clone(),
            false => joined(&self.arm, ", ", &choice.label),
        };
        let choices = self.choices.iter().chain([choice]).cloned().collect();
        Self { name: joined(&self.name, "-", &plain(&choice.label)), arm, choices }
    }
}

/// A label as a part of a directory's name.
fn plain(label: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
    let text: String = label.chars().map(plain).collect();
    text.trim_matches(['.', '-']).to_owned()
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        Error::configuration("--output", format!("{} is not UTF-8", path.display()))
            .with_hint("choose another directory")
    })
}

/// Refuses a choice that another layer replaces.
fn require_effect(setting: &Override, resolved: &Resolved) -> Result<()> {
    let own = Source::Flag(setting.source().into());
    for (key, _) in setting.values() {
        let below = format!("{key}.");
        let mut set =
            resolved.sources.iter().filter(|(name, _)| **name == key || name.starts_with(&below));
        if let Some((key, other)) = set.find(|(_, source)| **source != own) {
            let message = format!("is what runs differ in, and {other} sets it for all");
            return Err(Error::configuration(format!("{}: {key}", setting.source()), message)
                .with_hint("leave it out here or there"));
        }
    }
    Ok(())
}

/// Number of training prompts that so many responses to train on are sampled for.
fn prompts_for(responses: u64, config: &Config) -> Result<usize> {
    let place = "budget.responses";
    if let Some(limit) = config.prompts.limit {
        let message = format!("decides the number of prompts, and prompts.limit is {limit}");
        return Err(Error::configuration(place, message).with_hint("leave one of the two out"));
    }
    let passes = match config.prompts.per_iteration {
        PromptsPerIteration::All => u64::from(config.iterations),
        PromptsPerIteration::Portions => 1,
    };
    let each = passes * config.sampling.samples_per_prompt as u64;
    let least = match config.prompts.per_iteration {
        PromptsPerIteration::All => 1,
        PromptsPerIteration::Portions => u64::from(config.iterations),
    };
    let prompts = responses / each;
    if prompts < least {
        let message = format!(
            "{responses} responses are too few: {each} are sampled to each prompt, of which {least} are needed"
        );
        return Err(Error::configuration(place, message).with_hint("give more"));
    }
    Ok(prompts as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> ComparisonFile {
        ComparisonFile::parse(text, "c.toml").unwrap()
    }

    fn settled(file: &ComparisonFile, overrides: &[&str]) -> Result<Vec<Config>> {
        let overrides = overrides.iter().map(|set| Override::parse("--set", set));
        let base = Layers { overrides: overrides.collect::<Result<_>>()?, ..Layers::default() };
        let settle = |cell: &Cell| {
            let layers = file.layers(cell, &base, Path::new("out"))?;
            file.settle(cell, &Config::resolve(&layers)?)
        };
        file.cells()?.iter().map(settle).collect()
    }

    const TWO_AXES: &str = "
        [axes]
        training.eta = [10.0, 1e3]
        seed = [1, 2]
        [[variants]]
        name = 'Soft SPPO'
        [[variants]]
        name = 'dpo'
        training.objective = 'dpo'
    ";

    #[test]
    fn every_combination_is_a_cell_and_seeds_belong_to_one_arm() {
        let cells = file(TWO_AXES).cells().unwrap();
        assert_eq!(cells.len(), 8);
        let by_arm = |arm: &str| -> Vec<String> {
            let of_arm = cells.iter().filter(|cell| cell.arm == arm);
            of_arm.map(|cell| cell.name.clone()).collect()
        };
        let expected = ["Soft-SPPO-eta-10-seed-1", "Soft-SPPO-eta-10-seed-2"];
        assert_eq!(by_arm("Soft SPPO, eta=10"), expected, "{cells:?}");
        let only_seeds = file("[axes]\nseed = [1, 2]").cells().unwrap();
        assert!(only_seeds.iter().all(|cell| cell.arm == "run"));
    }

    #[test]
    fn a_cell_has_the_settings_of_its_choices() {
        let configs = settled(&file(TWO_AXES), &["iterations=7"]).unwrap();
        let last = configs.last().unwrap();
        assert_eq!((last.training.eta, last.seed, last.iterations), (1000.0, 2, 7));
        assert_eq!(last.run_path(), Path::new("out").join(&last.name));
        assert_ne!(last.training.objective, configs[0].training.objective);
    }

    #[test]
    fn a_flag_that_would_make_all_runs_equal_is_refused() {
        let error = settled(&file(TWO_AXES), &["training.eta=5"]).unwrap_err();
        let expected =
            "c.toml: axes: training.eta: is what runs differ in, and --set sets it for all";
        assert_eq!(error.to_string(), expected);
        let budget = file("[axes]\nseed = [1, 2]\n[budget]\niterations = 2");
        assert_eq!(settled(&budget, &[]).unwrap()[0].iterations, 2);
        assert!(settled(&budget, &["iterations=3"]).is_err());
    }

    #[test]
    fn a_budget_of_responses_buys_fewer_prompts_where_each_gets_more() {
        let text = "[axes]\nsampling.samples_per_prompt = [2, 5]\n[budget]\nresponses = 60";
        let limits = |set: &str| -> Result<Vec<Option<usize>>> {
            let configs = settled(&file(text), &[set])?;
            Ok(configs.iter().map(|config| config.prompts.limit).collect())
        };
        assert_eq!(limits("prompts.per_iteration=portions").unwrap(), [Some(30), Some(12)]);
        assert_eq!(limits("prompts.per_iteration=all").unwrap(), [Some(10), Some(4)]);
        assert!(limits("prompts.limit=3").is_err());
        assert!(limits("iterations=50").is_err());
    }

    #[test]
    fn nothing_to_compare_and_equal_names_are_refused() {
        let refused = |text: &str| file(text).cells().unwrap_err().to_string();
        assert!(refused("[axes]\nseed = [1]").contains("only one run"));
        let alike = "[[variants]]\nname = 'a b'\n[[variants]]\nname = 'a-b'";
        assert!(refused(alike).contains("the same directory, `a-b`"));
    }
}
