//! Plan of a run, made before it starts.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Serialize;
use sppo_core::config::{Config, Resolved, Source};
use sppo_core::datasets::{PromptSet, PromptsPerIteration};
use sppo_core::observer::{Observer, SilentObserver, Stage};
use sppo_core::plugin::{Backend, Manifest, Oracle, PluginKind};
use sppo_core::plugins::PluginRegistry;
use sppo_core::run_directory::RunDirectory;
use sppo_core::session::Session;
use sppo_core::stages::{TokenizationRule, official_ends};
use sppo_core::{Error, Result};

use crate::args::RunArguments;
use crate::memory::{self, MemoryPlan, PromptSizes};
use crate::models::LocalModel;
use crate::settings::Flags;
use crate::terminal::{ExpectedStage, Terminal, counted};
use crate::{models, output, prompts};

/// Settings, prompts, and whether to go on with an earlier run.
pub(in crate::commands) struct RunPlan {
    pub(in crate::commands) config: Config,
    pub(super) plugins: PluginRegistry,
    sources: BTreeMap<String, Source>,
    pub(in crate::commands) resume: bool,
    pub(super) allow: Vec<String>,
    pub(in crate::commands) prompts: PromptSet,
}

impl RunPlan {
    pub(super) fn new(arguments: &RunArguments) -> Result<Self> {
        let earlier = earlier_run(arguments)?;
        let resume = earlier.is_some();
        let resolved = match earlier {
            Some(resolved) => resolved,
            None => new_run(arguments)?,
        };
        Self::of(resolved, resume, arguments.allow.clone())
    }

    /// The plan of a run with these settings, which goes on if it was begun. `allow` holds keys in which it
    /// may differ from its start.
    pub(in crate::commands) fn of(
        resolved: Resolved,
        resume: bool,
        allow: Vec<String>,
    ) -> Result<Self> {
        let Resolved { config, sources } = resolved;
        let plugins = models::plugins(&config)?;
        let prompts = prompts::load(&config.prompts)?;
        require_enough(prompts.training.len(), &config)?;
        Ok(Self { config, plugins, sources, resume, allow, prompts })
    }

    /// A session under the settings of the run.
    pub(super) fn session<'a>(
        &'a self,
        backend: &'a dyn Backend,
        observer: &'a dyn Observer,
    ) -> Session<'a> {
        let (config, plugins) = (&self.config, &self.plugins);
        Session { config, plugins, backend, observer, lent_policy: None }
    }

    /// The chosen plugins that are there.
    fn chosen_plugins(&self) -> Vec<Manifest> {
        let chosen = [
            (PluginKind::BACKEND, &self.config.backend.name),
            (PluginKind::ORACLE, &self.config.oracle.name),
            (PluginKind::SAMPLER, &self.config.sampler.name),
        ];
        let found = chosen.iter().filter_map(|(kind, name)| self.plugins.find(*kind, name).ok());
        found.filter_map(|entry| entry.manifest().cloned()).collect()
    }

    /// One line on what begins.
    pub(super) fn headline(&self) -> String {
        let Config { iterations, model, oracle, backend, .. } = &self.config;
        format!(
            "{}: {} of {model} against the oracle {} on {}, backend {}",
            self.config.run_path().display(),
            counted(*iterations as usize, "iteration"),
            oracle.name,
            counted(self.prompts.training.len(), "prompt"),
            backend.name
        )
    }

    /// One line on what another engine than the policy changes.
    pub(super) fn note_on_sampler(&self) -> Option<String> {
        let sampler = &self.config.sampler;
        (!sampler.is_policy()).then(|| {
            format!(
                "the sampler {} draws the answers; its log-probabilities are compared and not trained on \
                 (training.reference_log_probs is recomputed)",
                sampler.name
            )
        })
    }

    /// The long stages, with the work that each is expected to be, in sampled tokens.
    pub(super) fn expected_stages(&self) -> Vec<ExpectedStage> {
        /// Cost of forward, backward and update per token, in sampled tokens.
        const TRAINED_TOKEN: f64 = 2.0;
        let config = &self.config;
        let longest = config.sampling.max_new_tokens as f64;
        let evaluation = if config.evaluation.enabled {
            (self.prompts.held_out.len() * config.evaluation.samples_per_prompt) as f64 * longest
        } else {
            0.0
        };
        let expected = |iteration, stage, work| ExpectedStage { iteration, stage, work };
        let mut stages = vec![expected(0, Stage::Evaluate, evaluation)];
        for iteration in 1..=config.iterations {
            let prompts = self.prompts_of(iteration) as f64;
            let answers = prompts * config.sampling.samples_per_prompt as f64;
            let trained = prompts * 2.0 * longest * f64::from(config.training.epochs);
            stages.push(expected(iteration, Stage::Sample, answers * longest));
            stages.push(expected(iteration, Stage::Train, TRAINED_TOKEN * trained));
            stages.push(expected(iteration, Stage::Evaluate, evaluation));
        }
        stages
    }

    /// Prints the plan, and refuses one that does not fit into memory.
    pub(super) fn show(
        &mut self,
        arguments: &RunArguments,
        terminal: &Terminal,
    ) -> crate::failure::Result<()> {
        // Plugins refuse senseless settings of theirs when they are made.
        let backend = models::backend(&self.plugins, &self.config)?;
        let table = &self.config.oracle;
        let oracle = self.plugins.create_oracle(&table.name, table.chosen_settings())?;
        let requests = self.expected_requests(oracle.as_ref());
        let sequences = self.expected_sequences(oracle.as_ref());
        self.session(backend.as_ref(), &SilentObserver).sampling_engine()?;
        let memory = match LocalModel::find_at_hand(&self.config.model, &self.config, terminal)? {
            Some(model) => self.fit_memory(backend.as_ref(), &model, terminal)?,
            None => None,
        };
        if arguments.report.json {
            output::json(&self.summary(requests, sequences, memory))?;
        } else {
            let style = terminal.stdout_style();
            let mut sections = self.sections(requests, sequences);
            let lines = match memory {
                Some(memory) => memory.lines(style),
                None => vec![
                    "not known: the model is not on this machine yet, or the backend does \
                              not say"
                        .into(),
                ],
            };
            sections.push(("Memory", lines));
            let mut text = String::new();
            for (heading, lines) in sections {
                text.push_str(&format!("{}\n", style.bold(heading)));
                lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
            }
            output::text(&text)?;
        }
        match memory.filter(|_| !arguments.ignore_memory) {
            Some(memory) => Ok(memory.require_fit()?),
            None => Ok(()),
        }
    }

    /// Largest number of requests of the oracle to a service in the whole run; `None` when it asks none.
    pub(in crate::commands) fn requests(&self) -> Result<Option<u64>> {
        let table = &self.config.oracle;
        let oracle = self.plugins.create_oracle(&table.name, table.chosen_settings())?;
        Ok(self.expected_requests(oracle.as_ref()))
    }

    /// The sizes of the prompts, once the model is known to be able to answer them all.
    fn check_prompts(&self, model: &LocalModel) -> crate::failure::Result<PromptSizes> {
        let Config { prompts: table, training, .. } = &self.config;
        // The official rule cuts them.
        let clean = training.tokenization == TokenizationRule::Clean;
        if !clean {
            let special_tokens = model.checkpoint.text().special_tokens();
            official_ends(special_tokens.bos_token, special_tokens.eos_token)?;
        }
        let max_length = training.max_length.filter(|_| clean);
        let PromptSet { training, held_out } = &self.prompts;
        let longest = model.check_prompts(training, table.train.as_deref(), max_length)?;
        let longest_held_out = model.check_prompts(held_out, table.held_out.as_deref(), None)?;
        Ok(PromptSizes {
            training: self.prompts_of(1),
            held_out: held_out.len(),
            longest: longest.max(longest_held_out),
            context_length: model.checkpoint.config().context_length,
        })
    }

    /// The memory that the run takes, where the backend knows. The micro-batches of a new run become
    /// smaller where that lets it fit into what is free now, or else into the machine.
    ///
    /// # Errors
    /// When the model cannot answer one of the prompts.
    pub(super) fn fit_memory(
        &mut self,
        backend: &dyn Backend,
        model: &LocalModel,
        terminal: &Terminal,
    ) -> crate::failure::Result<Option<MemoryPlan>> {
        let prompts = self.check_prompts(model)?;
        let wanted = self.config.training.micro_batch_tokens;
        let ranks = backend.place().size;
        memory::note_if_alone(&self.config, ranks, terminal);
        let Some((found, plan)) = self.fitting_work(backend, &model.path, prompts) else {
            if ranks > 1 {
                self.config.training.fitting_sharding = memory::UNPREDICTED_SHARDING;
            }
            return Ok(None);
        };
        self.config.training.fitting_sharding = plan.sharding;
        self.config.training.recomputes_to_fit = plan.recompute_activations;
        memory::note_recomputation(&self.config, terminal);
        if found < wanted {
            terminal.note(&format!(
                "memory is short: training.micro_batch_tokens is {found} instead of {wanted}"
            ));
            self.config.training.micro_batch_tokens = found;
            self.sources.remove("training.micro_batch_tokens");
        }
        if let Some(warning) = plan.warning() {
            terminal.note(&warning);
        }
        Ok(Some(plan))
    }

    /// The largest micro-batches that fit, up to those of the settings, with as little division among ranks as
    /// they need; where none fit, the largest with which activations are computed again; or those of the
    /// settings where that does not help either.
    fn fitting_work(
        &self,
        backend: &dyn Backend,
        model: &Path,
        prompts: PromptSizes,
    ) -> Option<(usize, MemoryPlan)> {
        /// Smaller ones save nothing that matters.
        const SMALLEST: usize = 64;
        let sizes =
            std::iter::successors(Some(self.config.training.micro_batch_tokens), |tokens| {
                (!self.resume && *tokens >= 2 * SMALLEST).then_some(tokens / 2)
            });
        let ranks = backend.place().size;
        let shardings = memory::shardings(&self.config, ranks);
        let sizes: Vec<usize> = sizes.collect();
        let candidates = memory::recomputations(&self.config).iter().flat_map(|&recompute| {
            let shardings = &shardings;
            sizes.iter().flat_map(move |&tokens| {
                shardings.iter().map(move |&sharding| (recompute, tokens, sharding))
            })
        });
        let mut plans: Vec<(usize, MemoryPlan)> = Vec::new();
        for (recompute, tokens, sharding) in candidates {
            if !memory::comes_to(sharding, plans.last().map(|(_, plan)| plan)) {
                continue;
            }
            let mut config = self.config.clone();
            config.training.micro_batch_tokens = tokens;
            config.training.fitting_sharding = sharding;
            config.training.recomputes_to_fit = recompute;
            let work = memory::run_work(&config, prompts, ranks);
            let spec = config.policy_spec(model.to_path_buf());
            plans.push((tokens, MemoryPlan::new(backend, &spec, &work)?));
            if plans.last().is_some_and(|(_, plan)| plan.fits_now()) {
                break;
            }
        }
        let fitting = plans.iter().find(|(_, plan)| plan.fits_now());
        let fitting = fitting.or_else(|| plans.iter().find(|(_, plan)| plan.fits_machine()));
        let whole =
            plans.iter().rfind(|(tokens, _)| *tokens == self.config.training.micro_batch_tokens);
        fitting.or(whole).copied()
    }

    fn prompts_of(&self, iteration: u32) -> usize {
        let table = &self.config.prompts;
        table.of_iteration(&self.prompts.training, iteration, self.config.iterations).len()
    }

    /// Largest number of requests of the oracle to a service in the whole run, without failures.
    fn expected_requests(&self, oracle: &dyn Oracle) -> Option<u64> {
        let ask = |comparisons, answers| oracle.expected_requests(comparisons, answers);
        // One question before all others; see `Session::try_oracle`.
        Some(self.judged_in_all(&ask, &|_| 1)? + ask(1, 2)?)
    }

    /// Largest number of sequences that a model of the oracle's computes in the whole run.
    fn expected_sequences(&self, oracle: &dyn Oracle) -> Option<u64> {
        let ask = |comparisons, answers| oracle.expected_sequences(comparisons, answers);
        self.judged_in_all(&ask, &u64::from)
    }

    /// Sum of a cost of judging (of so many comparisons of so many answers) over the whole run, in which the
    /// held-out responses of an iteration meet those of so many `opponents`.
    fn judged_in_all(
        &self,
        cost: &dyn Fn(u64, u64) -> Option<u64>,
        opponents: &dyn Fn(u32) -> u64,
    ) -> Option<u64> {
        let Config { iterations, sampling, evaluation, preference, .. } = &self.config;
        let answers = sampling.samples_per_prompt as u64;
        let duels = match evaluation.enabled {
            true => self.prompts.held_out.len() * evaluation.samples_per_prompt,
            false => 0,
        };
        let of_iteration = |iteration| {
            let prompts = self.prompts_of(iteration) as u64;
            let judged = preference.expected_cost(cost, prompts, answers)?;
            Some(judged + cost(duels as u64 * opponents(iteration), 2)?)
        };
        (1..=*iterations).map(of_iteration).sum()
    }

    fn sections(
        &self,
        requests: Option<u64>,
        sequences: Option<u64>,
    ) -> Vec<(&'static str, Vec<String>)> {
        let config = &self.config;
        let state = if self.resume { "goes on" } else { "new" };
        let table = &config.prompts;
        let plugins = self.chosen_plugins().into_iter().map(|plugin| {
            format!("{} {} {}: {}", plugin.kind.name(), plugin.name, plugin.version, plugin.summary)
        });
        vec![
            ("Run", vec![format!("{} ({state})", config.run_path().display())]),
            ("Model", vec![config.model.clone()]),
            ("Plugins", plugins.collect()),
            (
                "Prompts",
                vec![
                    format!(
                        "{} to train on ({})",
                        self.prompts.training.len(),
                        prompts::source(table.train.as_deref())
                    ),
                    format!(
                        "{} held out ({})",
                        self.prompts.held_out.len(),
                        prompts::source(table.held_out.as_deref())
                    ),
                ],
            ),
            ("Stages of each iteration", self.stages()),
            (
                "Requests of the oracle",
                vec![match requests {
                    Some(requests) => format!(
                        "up to {requests} in all, failures and answers that are known already aside"
                    ),
                    None => match sequences {
                        Some(sequences) => format!(
                            "none; its model computes up to {sequences} sequences on the backend"
                        ),
                        None => "none, it asks no service".into(),
                    },
                }],
            ),
            (
                "Files",
                vec![
                    "iteration-N/: rollouts, judgments, training-set.parquet, checkpoint, \
                     held-out.parquet, report.json"
                        .into(),
                    "run.json, metrics.jsonl, tensorboard/, manifests/".into(),
                ],
            ),
            ("Settings other than the defaults", self.changed_settings()),
        ]
    }

    fn stages(&self) -> Vec<String> {
        let Config { iterations, sampling, selection, training, evaluation, .. } = &self.config;
        let prompts = self.prompts_of(1);
        let mut stages = vec![
            format!("{iterations} iterations"),
            format!(
                "sample    {} answers to each of {prompts} prompts, up to {} tokens each, \
                 temperature {}",
                sampling.samples_per_prompt, sampling.max_new_tokens, sampling.temperature
            ),
            format!("judge     {prompts} comparisons of {} answers", sampling.samples_per_prompt),
            format!("select    {}", plain(&selection.strategy)),
            format!(
                "train     up to {} steps of {} pairs, objective {}, eta {}, learning rate {:e}",
                training.steps(prompts),
                training.global_batch_size,
                plain(&training.objective),
                training.eta,
                training.learning_rate
            ),
        ];
        if evaluation.enabled {
            stages.push(format!(
                "evaluate  {} to each of {} held-out prompts, against the starting model",
                counted(evaluation.samples_per_prompt, "answer"),
                self.prompts.held_out.len()
            ));
        }
        stages
    }

    fn changed_settings(&self) -> Vec<String> {
        let changed = Config::default().differences(&self.config).unwrap_or_default();
        let described = changed.iter().map(|change| {
            let value = change.after.as_deref().unwrap_or("not set");
            match self.sources.get(&change.key) {
                Some(Source::Default) | None => format!("{} = {value}", change.key),
                Some(source) => format!("{} = {value}  ({source})", change.key),
            }
        });
        described.collect()
    }

    fn summary(
        &self,
        expected_requests: Option<u64>,
        expected_sequences: Option<u64>,
        memory: Option<MemoryPlan>,
    ) -> PlanSummary<'_> {
        PlanSummary {
            run: self.config.run_path().display().to_string(),
            resume: self.resume,
            plugins: self.chosen_plugins(),
            training_prompts: self.prompts.training.len(),
            held_out_prompts: self.prompts.held_out.len(),
            stages: self.stages(),
            expected_requests,
            expected_sequences,
            memory,
            config: &self.config,
        }
    }
}

/// The plan as JSON.
#[derive(Serialize)]
struct PlanSummary<'a> {
    run: String,
    resume: bool,
    plugins: Vec<Manifest>,
    training_prompts: usize,
    held_out_prompts: usize,
    stages: Vec<String>,
    /// To a service, at most; `null` when the oracle asks none.
    expected_requests: Option<u64>,
    /// By a model of the oracle on the run's backend, at most; `null` when it has none.
    expected_sequences: Option<u64>,
    /// In bytes; `null` where it is not known.
    memory: Option<MemoryPlan>,
    config: &'a Config,
}

/// A choice by the name that it has in the configuration.
fn plain(choice: &impl Serialize) -> String {
    match serde_json::to_value(choice) {
        Ok(serde_json::Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

fn flags(arguments: &RunArguments) -> Result<Flags> {
    Flags::of(&[
        &arguments.settings,
        &arguments.model,
        &arguments.backend,
        &arguments.oracle,
        &arguments.sampler,
        &arguments.sampling,
        &arguments.training,
        arguments,
    ])
}

fn new_run(arguments: &RunArguments) -> Result<Resolved> {
    let mut resolved = arguments.settings.resolve(flags(arguments)?)?;
    if resolved.sources.get("name").is_none_or(|source| *source == Source::Default) {
        resolved.config.name = free_name(&resolved.config);
    }
    Ok(resolved)
}

/// Refuses prompts that leave an iteration without any.
fn require_enough(prompts: usize, config: &Config) -> Result<()> {
    let divided = config.prompts.per_iteration == PromptsPerIteration::Portions;
    if !divided || prompts >= config.iterations as usize {
        return Ok(());
    }
    let message = format!(
        "{} cannot be divided among {} iterations",
        counted(prompts, "prompt"),
        config.iterations
    );
    Err(Error::configuration("prompts.per_iteration", message).with_hint(
        "give more prompts, ask for fewer --iterations, or take all of them in each: --set \
         prompts.per_iteration=all",
    ))
}

/// The settings that the run has, but for what was typed. What differs is refused when the run is
/// opened, unless it is allowed. `None` for a run that is to be started, or was stopped before it had
/// recorded anything.
pub(super) fn earlier_run(arguments: &RunArguments) -> Result<Option<Resolved>> {
    if !arguments.resume && !arguments.resume_or_start {
        return Ok(None);
    }
    let Resolved { config, sources } = arguments.settings.resolve(flags(arguments)?)?;
    let name = match sources.get("name") {
        None | Some(Source::Default) => latest_run(&config.run_directory)?,
        Some(_) => config.name,
    };
    let path = config.run_directory.join(&name);
    let is_recorded = path.join("run.json").exists();
    if !is_recorded && (path.is_dir() || arguments.resume_or_start) {
        return Ok(None);
    }
    if !path.is_dir() {
        return Err(Error::run_directory(&path, "there is no run to resume")
            .with_hint("leave out --resume to start one, or check --name and --run-directory"));
    }
    let recorded = RunDirectory::read_identity(&path)?.config;
    let mut resolved = arguments.settings.resolve_on(&recorded, flags(arguments)?)?;
    resolved.config.name = name;
    resolved.config.run_directory = config.run_directory;
    require_recorded_files(&recorded, &resolved.config)?;
    Ok(Some(resolved))
}

/// Refuses to resume a run from another directory if it recorded paths relative to the one where it was
/// started, as earlier versions did.
fn require_recorded_files(recorded: &Config, config: &Config) -> Result<()> {
    let prompts = [
        (&recorded.prompts.train, &config.prompts.train, "--prompts"),
        (&recorded.prompts.held_out, &config.prompts.held_out, "--held-out"),
    ];
    for (recorded, now, flag) in prompts {
        let (Some(path), true) = (recorded, recorded == now) else { continue };
        if path.is_relative() && !path.exists() {
            let message = "is not here: the run was started in another directory, and its record has this \
                           path relative to that one";
            return Err(Error::input(path, message)
                .with_hint(format!("resume the run there, or say where the file is with {flag}")));
        }
    }
    let model = Path::new(&config.model);
    let is_relative = model.starts_with(".") || model.starts_with("..");
    if recorded.model == config.model && is_relative && !model.exists() {
        let message = "is not here: the run was started in another directory, and its record has the \
                       model's path relative to that one";
        return Err(Error::input(model, message)
            .with_hint("resume the run there, or say where the model is with --model"));
    }
    Ok(())
}

/// The run that was worked on last.
fn latest_run(directory: &Path) -> Result<String> {
    let worked_on = |entry: fs::DirEntry| {
        fs::metadata(entry.path().join("run.json")).ok()?;
        let lock = fs::metadata(entry.path().join("run.lock")).ok()?;
        Some((lock.modified().ok()?, entry.file_name().into_string().ok()?))
    };
    let latest =
        fs::read_dir(directory).into_iter().flatten().flatten().filter_map(worked_on).max();
    match latest {
        Some((_, name)) => Ok(name),
        None => Err(Error::run_directory(directory, "there is no run to resume")
            .with_hint("leave out --resume to start one, or check --run-directory")),
    }
}

/// `MODEL-ORACLE-NUMBER` with the next number.
fn free_name(config: &Config) -> String {
    let model = Path::new(&config.model);
    let model = if model.extension().is_some_and(|extension| extension == "gguf") {
        model.file_stem()
    } else {
        model.file_name()
    };
    let model = model.map_or("model".into(), |name| name.to_string_lossy().to_lowercase());
    let stem: String = format!("{model}-{}", config.oracle.name)
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .collect();
    let stem = format!("{}-", stem.trim_start_matches('.'));
    let taken = fs::read_dir(&config.run_directory).into_iter().flatten().flatten();
    let last = taken
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix(&stem)?.parse::<u64>().ok())
        .max();
    format!("{stem}{}", last.unwrap_or(0) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_says_model_and_oracle_and_takes_the_next_number() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config { run_directory: directory.path().into(), ..Config::default() };
        assert_eq!(free_name(&config), "smollm2-135m-instruct-rules-1");
        for taken in ["smollm2-135m-instruct-rules-7", "smollm2-135m-instruct-rules-x"] {
            fs::create_dir(directory.path().join(taken)).unwrap();
        }
        assert_eq!(free_name(&config), "smollm2-135m-instruct-rules-8");
        config.model = "/models/My Model.Q4.gguf".into();
        assert_eq!(free_name(&config), "my-model.q4-rules-1");
    }
}
