//! Plan of a comparison: its runs with their settings, and the judge's.

use std::path::{Path, PathBuf};

use sppo_core::comparison::{Cell, ComparisonFile};
use sppo_core::config::{Config, Layers, Resolved};
use sppo_core::run_directory::RunDirectory;
use sppo_core::{Error, Result};

use super::super::run::RunPlan;
use crate::args::CompareArguments;
use crate::models;
use crate::settings::{self, Flags};
use crate::terminal::counted;

/// Runs that will be played, and their judge.
pub(super) struct ComparisonPlan {
    pub(super) directory: PathBuf,
    pub(super) runs: Vec<PlannedRun>,
    /// The settings of whoever judges the runs.
    pub(super) judge: Config,
}

/// A run of the comparison.
pub(super) struct PlannedRun {
    pub(super) cell: Cell,
    pub(super) plan: RunPlan,
}

impl ComparisonPlan {
    /// Reads the file, and puts the settings of all runs together.
    pub(super) fn new(arguments: &CompareArguments) -> Result<Self> {
        let mut file = match &arguments.file {
            Some(path) => ComparisonFile::read(path)?,
            None => ComparisonFile::default(),
        };
        for axis in &arguments.axis {
            file.add_axis("--axis", axis)?;
        }
        let directory = directory(arguments);
        let flags = Flags::of(&[
            &arguments.settings,
            &arguments.model,
            &arguments.backend,
            &arguments.oracle,
        ])?;
        let base = arguments.settings.layers(flags);
        let judge = settings::resolve(&file.judge_layers(&base))?.config;
        let runs = file
            .cells()?
            .into_iter()
            .map(|cell| PlannedRun::new(cell, &file, &base, &directory, &arguments.allow))
            .collect::<Result<Vec<_>>>()?;
        let plan = Self { directory, runs, judge };
        plan.require_comparable(&file)?;
        Ok(plan)
    }

    /// Largest number of requests of all oracles to services; `None` when none asks a service.
    pub(super) fn requests(&self) -> Result<Option<u64>> {
        let table = &self.judge.oracle;
        let judge =
            models::plugins(&self.judge)?.create_oracle(&table.name, table.chosen_settings())?;
        let of_runs: Vec<Option<u64>> =
            self.runs.iter().map(|run| run.plan.requests()).collect::<Result<_>>()?;
        let all: Vec<u64> = of_runs
            .into_iter()
            .chain([judge.expected_requests(self.duels(), 2)])
            .flatten()
            .collect();
        Ok((!all.is_empty()).then(|| all.iter().sum()))
    }

    /// Pairs of answers that the judge compares: after every iteration with the start, after the last with those
    /// of other arms.
    fn duels(&self) -> u64 {
        let Some(first) = self.runs.first() else { return 0 };
        let answers =
            first.plan.prompts.held_out.len() * first.plan.config.evaluation.samples_per_prompt;
        let with_start: u64 =
            self.runs.iter().map(|run| u64::from(run.plan.config.iterations)).sum();
        let seeds = self.runs.iter().filter(|run| run.cell.arm == first.cell.arm).count() as u64;
        let arms = self.runs.len() as u64 / seeds;
        answers as u64 * (with_start + arms * (arms - 1) / 2 * seeds)
    }

    /// Refuses runs whose answers could not be compared, before anything is played.
    fn require_comparable(&self, file: &ComparisonFile) -> Result<()> {
        for PlannedRun { cell, plan } in &self.runs {
            let refused = |key: &str, message: &str, hint: &str| {
                let message = format!("{message} (run {})", cell.name);
                Err(Error::configuration(key, message).with_hint(hint))
            };
            let (config, first) = (&plan.config, &self.runs[0].plan);
            if !config.evaluation.enabled || plan.prompts.held_out.is_empty() {
                let hint = "set evaluation.enabled = true, and give held-out prompts";
                return refused("evaluation", "without held-out answers nothing is compared", hint);
            }
            let samples = config.evaluation.samples_per_prompt;
            if plan.prompts.held_out != first.prompts.held_out
                || samples != first.config.evaluation.samples_per_prompt
            {
                let message = "all runs must answer the same held-out prompts, equally often";
                let hint =
                    "leave prompts.held_out and evaluation.samples_per_prompt out of the axes";
                return refused("prompts.held_out", message, hint);
            }
            let judged_alike =
                config.oracle == self.judge.oracle && config.preference == self.judge.preference;
            if !judged_alike && !file.names_a_judge() {
                let message = "the runs have different oracles, and one must judge them all";
                let hint = "name it: `[judge]`, and below it `oracle.name = \"...\"`";
                return refused("judge", message, hint);
            }
            let (limit, found) = (config.prompts.limit, plan.prompts.training.len());
            if file.budget.responses.is_some() && limit.is_some_and(|limit| limit > found) {
                let message = format!(
                    "asks for {} to train on, and there are {found}",
                    counted(limit.unwrap_or_default(), "prompt")
                );
                let hint = "give more prompts with prompts.train, or fewer responses";
                return refused("budget.responses", &message, hint);
            }
        }
        Ok(())
    }
}

impl PlannedRun {
    fn new(
        cell: Cell,
        file: &ComparisonFile,
        base: &Layers,
        directory: &Path,
        allow: &[String],
    ) -> Result<Self> {
        let layers = file.layers(&cell, base, &directory.join("runs"))?;
        let resolved = settings::resolve(&layers)?;
        let mut config = file.settle(&cell, &resolved)?;
        let path = config.run_path();
        let is_begun = path.join("run.json").exists();
        if is_begun {
            // Smaller than asked for, where memory was short.
            let recorded = RunDirectory::read_identity(&path)?.config;
            config.training.micro_batch_tokens = recorded.training.micro_batch_tokens;
        }
        let resolved = Resolved { config, sources: resolved.sources };
        let plan = RunPlan::of(resolved, is_begun, allow.to_vec())?;
        Ok(Self { cell, plan })
    }
}

/// The comparison's directory: the one that was named, or one named after the file.
fn directory(arguments: &CompareArguments) -> PathBuf {
    let of_file =
        |file: &PathBuf| Path::new("comparisons").join(file.file_stem().unwrap_or_default());
    let named = arguments.output.clone().or_else(|| arguments.file.as_ref().map(of_file));
    named.unwrap_or_else(|| "comparisons".into())
}
