//! From what a user calls a model, a backend or an oracle to the thing itself.

use std::path::Path;

use sppo_core::config::Config;
use sppo_core::observer::{Event, Observer, PluginServices, SilentObserver, Stage, StageHost};
use sppo_core::plugin::{Backend, Oracle, PluginKind, Policy, PolicySpec};
use sppo_core::plugins::PluginRegistry;
use sppo_core::records::Prompt;
use sppo_core::{Error, Result as CoreResult};
use sppo_model::ModelError;
use sppo_model::checkpoint::Checkpoint;
use sppo_model::checkpoint::source::{self, ModelSourceOptions, ResolvedModel};

use crate::failure::{Failure, Result};
use crate::prompts;
use crate::terminal::Terminal;

/// The plugins at hand. Libraries that were named must be of use.
pub(crate) fn plugins(config: &Config) -> CoreResult<PluginRegistry> {
    let plugins = PluginRegistry::discover(&config.plugins)?;
    plugins.check_named()?;
    Ok(plugins)
}

/// Backends of this repository that are not built with the program, and what builds them.
const BACKENDS_ON_REQUEST: [(&str, &str); 1] =
    [("tch", "build it with `backend-tch/install`, in the repository of sppo")];

/// The backend that the settings name.
pub(crate) fn backend(plugins: &PluginRegistry, config: &Config) -> CoreResult<Box<dyn Backend>> {
    let name = config.backend.name.as_str();
    let created = plugins.create_backend(name, config.backend.chosen_settings());
    match BACKENDS_ON_REQUEST.iter().find(|(on_request, _)| *on_request == name) {
        Some((_, hint)) if !plugins.names(PluginKind::BACKEND).contains(&name) => {
            created.map_err(|error| error.with_hint(*hint))
        }
        _ => created,
    }
}

/// The oracle that the settings name.
pub(crate) fn oracle(plugins: &PluginRegistry, config: &Config) -> CoreResult<Box<dyn Oracle>> {
    plugins.create_oracle(&config.oracle.name, config.oracle.chosen_settings())
}

/// The oracle that the settings name, ready to judge.
pub(crate) fn ready_oracle(services: PluginServices<'_>) -> CoreResult<Box<dyn Oracle>> {
    let config = services.config;
    let mut oracle = oracle(services.plugins, config)?;
    let host = StageHost::new(&SilentObserver, services, 0, 1);
    oracle.prepare(&host, &host)?;
    Ok(oracle)
}

/// Who judges, for the record: name, version, and what the oracle says of itself.
pub(crate) fn describe_oracle(
    plugins: &PluginRegistry,
    config: &Config,
    oracle: &dyn Oracle,
) -> String {
    let name = &config.oracle.name;
    let found = plugins.find(PluginKind::ORACLE, name).ok();
    let version = found
        .and_then(|entry| entry.manifest())
        .map_or(String::new(), |manifest| format!(" {}", manifest.version));
    match oracle.identity() {
        Some(identity) => format!("{name}{version} ({identity})"),
        None => format!("{name}{version}"),
    }
}

/// Finds a model, and fetches it where that is needed and allowed. The revision in the settings is that of
/// the model in the settings.
pub(crate) fn find(
    model: &str,
    config: &Config,
    offline: bool,
    terminal: &Terminal,
) -> Result<ResolvedModel> {
    let options = ModelSourceOptions { offline, ..ModelSourceOptions::default() };
    let revision = config.revision.as_deref().filter(|_| model == config.model);
    let download = terminal.download();
    let found = source::resolve(model, revision, &options, &|progress| {
        download.show(&progress);
    })?;
    Ok(found)
}

/// Opens a model to see what it is, and refuses one that is damaged or of an unknown kind.
pub(crate) fn open(path: &Path) -> Result<Checkpoint> {
    Checkpoint::open(path).map_err(|error| match error {
        ModelError::Unsupported(message) | ModelError::Input(message) => {
            Error::input(path, message)
                .with_hint("choose another model: README.md says which kinds are supported")
                .into()
        }
        other => other.into(),
    })
}

/// Loads a policy.
pub(crate) fn load_policy(
    backend: &dyn Backend,
    spec: &PolicySpec,
    observer: &dyn Observer,
) -> CoreResult<Box<dyn Policy>> {
    let started = std::time::Instant::now();
    observer.event(Event::StageStarted { stage: Stage::Load, total: 1, unit: "model" });
    let policy = backend.load_policy(spec)?;
    observer.event(Event::StageFinished {
        elapsed: started.elapsed(),
        summary: spec.path.display().to_string(),
    });
    Ok(policy)
}

/// Names the backend in an error that came out of a policy.
pub(crate) fn blame_backend(config: &Config) -> impl Fn(Error) -> Error {
    let name = format!("backend `{}`", config.backend.name);
    move |error| error.from_plugin(&name)
}

/// Refuses prompts that the model cannot answer, before any work is done: those that its chat template
/// refuses, and those that fill its context or `training.max_length`, where that is given. Returns the tokens
/// of the longest.
///
/// # Errors
/// The first such prompt, with its line.
pub(crate) fn check_prompts(
    checkpoint: &Checkpoint,
    prompts: &[Prompt],
    file: Option<&Path>,
    max_length: Option<usize>,
) -> Result<usize> {
    let context = checkpoint.config().context_length;
    let mut longest = 0;
    for prompt in prompts {
        let refused = |message: String, hint: &str| {
            Failure::from(prompts::error_about(file, prompt.id, message).with_hint(hint))
        };
        let text = checkpoint.text().render(&prompt.messages, true).map_err(|error| {
            refused(
                format!("the model's chat template refuses this prompt: {error}"),
                "change the conversation's roles, or choose a model with another chat template",
            )
        })?;
        let tokens = checkpoint.text().encode(&text, false)?.len();
        if tokens >= context {
            return Err(refused(
                format!("this prompt has {tokens} tokens, and the model's context holds {context}"),
                "shorten it, or choose a model with a longer context",
            ));
        }
        if let Some(max_length) = max_length.filter(|max_length| tokens >= *max_length) {
            return Err(refused(
                format!(
                    "this prompt has {tokens} tokens, and no answer fits into `training.max_length` \
                     ({max_length}) beside it"
                ),
                "shorten it, leave it out, or raise --max-length",
            ));
        }
        longest = longest.max(tokens);
    }
    Ok(longest)
}
