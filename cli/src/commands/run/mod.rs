//! `sppo run`: self-play from start to end, or from where it was stopped.

mod live_report;
mod notifier;
mod plan;
mod report;

use sppo_core::config::Config;
use sppo_core::observer::{IterationReport, Observers, SilentObserver};
use sppo_core::plugin::PluginKind;
use sppo_core::plugins::{UsedPlugin, schema_of};
use sppo_core::run_directory::{ModelIdentity, PluginIdentity, RunDirectory, RunIdentity};
use sppo_core::self_play::{RunInputs, self_play};
use sppo_core::session::{LentPolicy, Session};
use sppo_core::{Error, Result as CoreResult};

use crate::args::RunArguments;
use crate::failure::{Failure, Result};
use crate::interrupt;
use crate::models::{self, LocalModel};
use crate::settings::{Flags, SettingFlags};
use crate::terminal::Terminal;
use live_report::LiveReport;
use notifier::Notifier;
pub(super) use plan::RunPlan;
pub(super) use report::typed_command;

pub(crate) use live_report::FILE_NAME as REPORT_FILE_NAME;

/// Settings that may differ on resuming: a run and its plugins may be moved, others may be told of it, and prices
/// change.
const ALWAYS_ALLOWED: [&str; 5] =
    ["name", "run_directory", "plugins", "notify", "preference.prices"];

impl SettingFlags for RunArguments {
    fn add_to(&self, flags: &mut Flags) -> CoreResult<()> {
        flags.set("--name", "name", self.name.as_deref())?;
        flags.set_path("--run-directory", "run_directory", self.run_directory.as_deref())?;
        self.length.add_to(flags)?;
        self.seed.add_to(flags)?;
        flags.set_path("--prompts", "prompts.train", self.prompts.as_deref())?;
        flags.set_path("--held-out", "prompts.held_out", self.held_out.as_deref())
    }
}

/// Conditions of a run that are no settings.
#[derive(Clone, Debug, Default)]
pub(super) struct PlayOptions {
    /// Use only files on this machine.
    pub(super) offline: bool,
    /// Start even if the run needs more memory than this machine has.
    pub(super) ignore_memory: bool,
    /// The command that goes on with the work; that of the run alone if it is left out.
    pub(super) go_on: Option<String>,
}

/// A last step before a run begins or goes on.
pub(super) type Preparation<'a> = dyn FnMut(&mut RunDirectory, &RunInputs) -> CoreResult<()> + 'a;

pub(super) fn run(arguments: &RunArguments, terminal: &Terminal) -> Result<()> {
    let mut plan = RunPlan::new(arguments)?;
    if arguments.dry_run {
        return plan.show(arguments, terminal);
    }
    let options = PlayOptions {
        offline: arguments.model.offline,
        ignore_memory: arguments.ignore_memory,
        go_on: None,
    };
    let reports = play(&mut plan, &options, &mut |_, _| Ok(()), terminal)?;
    report::show(&plan, reports, arguments.report.json, terminal)
}

/// Plays a run from start to end, or what is left of it.
pub(super) fn play(
    plan: &mut RunPlan,
    options: &PlayOptions,
    prepare: &mut Preparation<'_>,
    terminal: &Terminal,
) -> Result<Vec<IterationReport>> {
    let notifier = Notifier::new(&plan.config)?;
    let backend = models::backend(&plan.plugins, &plan.config)?;
    let (name, config) = (plan.config.model.clone(), plan.config.clone());
    let find_model = || {
        let found = LocalModel::find(&name, &config, options.offline, terminal);
        found.map(|model| model.path).map_err(Failure::into_plugin_error)
    };
    let lent_policy = LentPolicy::new(&find_model, backend.place().size);
    let lent_policy = Some(&lent_policy);
    let session = Session { lent_policy, ..plan.session(backend.as_ref(), &SilentObserver) };
    let mut oracle = session.oracle()?;
    let engine = plan.session(backend.as_ref(), &SilentObserver).sampling_engine()?;
    let model = LocalModel::find(&plan.config.model, &plan.config, options.offline, terminal)?;
    let memory = plan.fit_memory(backend.as_ref(), &model, terminal)?;
    if let Some(memory) = memory.filter(|_| !options.ignore_memory) {
        memory.require_fit()?;
    }
    let go_on = options.go_on.clone().unwrap_or_else(|| report::resume_command(&plan.config));
    let identity = identity(plan, &model, oracle.identity())?;
    let session = Session { lent_policy, ..plan.session(backend.as_ref(), &SilentObserver) };
    if let Err(error) = session.try_oracle_for_training(oracle.as_mut()) {
        return Err(not_begun(error, plan, identity, go_on, terminal));
    }
    let LocalModel { path: starting_model, checkpoint, .. } = model;
    drop(checkpoint);
    let inputs = RunInputs { starting_model, prompts: plan.prompts.clone() };
    let mut directory = open(plan, identity)?;
    for set_aside in directory.set_aside() {
        terminal.note(&set_aside.to_string());
    }
    prepare(&mut directory, &inputs)?;

    terminal.note(&plan.headline());
    if let Some(note) = plan.note_on_sampler() {
        terminal.note(&note);
    }
    interrupt::watch();
    let display = terminal.progress().with_forecast(plan.expected_stages());
    let live_report = LiveReport::new(&directory, memory, terminal);
    let observers = Observers(&[&display, &live_report, &notifier]);
    let session = Session { lent_policy, ..plan.session(backend.as_ref(), &observers) };
    let played = self_play(session, oracle.as_mut(), engine, inputs, &mut directory);
    drop((display, directory));
    // Once the directory is given up, a run that is not at its end is one that was stopped.
    live_report.write();
    notifier.ended(&played);
    played.map_err(|error| stopped(error, go_on, terminal))
}

/// The settings of the run that these arguments go on with, if it is on this machine: those of the record,
/// or none. The record of another machine is rank 0's.
pub(crate) fn earlier_settings(arguments: &RunArguments) -> CoreResult<Option<Config>> {
    let is_here = plan::earlier_run(arguments);
    match is_here {
        Ok(earlier) => Ok(earlier.map(|resolved| resolved.config)),
        Err(Error::RunDirectory { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Tells how to go on, whatever stopped the run.
pub(super) fn stopped(error: Error, go_on: String, terminal: &Terminal) -> Failure {
    if matches!(error, Error::Cancelled) {
        return Failure::Stopped { go_on: Some(go_on) };
    }
    terminal.note(&format!("what was committed is kept; to go on: {go_on}"));
    error.into()
}

/// Leaves nothing behind, unless the oracle advises to go on later: then there must be a run to resume.
fn not_begun(
    error: Error,
    plan: &RunPlan,
    identity: RunIdentity,
    go_on: String,
    terminal: &Terminal,
) -> Failure {
    if !error.hint().is_some_and(|hint| hint.contains("--resume")) {
        return error.into();
    }
    match open(plan, identity) {
        Ok(_) => stopped(error, go_on, terminal),
        Err(other) => other.into(),
    }
}

fn open(plan: &RunPlan, identity: RunIdentity) -> CoreResult<RunDirectory> {
    let path = plan.config.run_path();
    if plan.resume {
        let mut allow = plan.allow.clone();
        allow.extend(ALWAYS_ALLOWED.map(String::from));
        RunDirectory::resume(path, identity, &allow)
    } else {
        RunDirectory::create(path, identity)
    }
}

fn identity(plan: &RunPlan, model: &LocalModel, oracle: Option<String>) -> Result<RunIdentity> {
    let config = &plan.config;
    let model = ModelIdentity {
        name: config.model.clone(),
        sha256: model.checkpoint.identity()?.sha256,
        hub_id: model.hub_id.clone(),
        license: model.license(),
    };
    Ok(RunIdentity {
        config: config.with_absolute_paths(&schema_of),
        prompts_sha256: plan.prompts.sha256(),
        model,
        plugins: plan
            .plugins
            .used()
            .into_iter()
            .map(|plugin| plugin_identity(plugin, config, &oracle))
            .collect(),
    })
}

/// `oracle` is what the chosen oracle says of itself.
fn plugin_identity(plugin: UsedPlugin, config: &Config, oracle: &Option<String>) -> PluginIdentity {
    let UsedPlugin { kind, name, version, sha256 } = plugin;
    let is_judge = kind == PluginKind::ORACLE && name == config.oracle.name;
    let identity = oracle.clone().filter(|_| is_judge);
    PluginIdentity { kind: kind.name().into(), name, version, sha256, identity }
}
