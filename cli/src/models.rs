//! Models, backends and oracles by the names that users give them.

use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::thread::{self, available_parallelism};

use sppo_core::config::Config;
use sppo_core::model_card::{MODEL_CARD, declared_license};
use sppo_core::plugin::{Backend, Oracle, PluginKind};
use sppo_core::plugins::PluginRegistry;
use sppo_core::records::Prompt;
use sppo_core::{Error, Result as CoreResult};
use sppo_model::ModelError;
use sppo_model::checkpoint::Checkpoint;
use sppo_model::checkpoint::source::{self, ModelSourceOptions, ResolvedModel};
use sppo_model::formats::GgufFile;
use sppo_model::text::{TEMPLATE_HINT, TextCodec};

use crate::failure::{Failure, Result};
use crate::prompts;
use crate::team;
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
    let created = match BACKENDS_ON_REQUEST.iter().find(|(on_request, _)| *on_request == name) {
        Some((_, hint)) if !plugins.names(PluginKind::BACKEND).contains(&name) => {
            created.map_err(|error| error.with_hint(*hint))
        }
        _ => created,
    }?;
    team::require_team(name, created.as_ref())?;
    Ok(created)
}

/// The judge as it is recorded: name, version, and the identity that the oracle reports.
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

/// A model on this machine, opened to see what it is.
pub(crate) struct LocalModel {
    pub(crate) path: PathBuf,
    pub(crate) checkpoint: Checkpoint,
    /// Its id on the Hugging Face hub, if that is where it comes from.
    pub(crate) hub_id: Option<String>,
}

impl LocalModel {
    /// Finds a model, fetching it where that is needed and allowed, and opens it. The revision in the
    /// settings is that of the model in the settings.
    ///
    /// # Errors
    /// When there is no such model, or it is damaged or of an unknown kind.
    pub(crate) fn find(
        model: &str,
        config: &Config,
        offline: bool,
        terminal: &Terminal,
    ) -> Result<Self> {
        Self::of(&found(model, config, offline, terminal)?, config)
    }

    /// As [`Self::find`], without fetching: `None` for a model that may still be fetched.
    ///
    /// # Errors
    /// As [`Self::find`].
    pub(crate) fn find_at_hand(
        model: &str,
        config: &Config,
        terminal: &Terminal,
    ) -> Result<Option<Self>> {
        match found(model, config, true, terminal) {
            Ok(found) => Self::of(&found, config).map(Some),
            Err(_) if source::may_be_fetched(model) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Opens a model at this path, and refuses one that is damaged or of an unknown kind.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let checkpoint = Checkpoint::open(path).map_err(|error| match error {
            ModelError::Unsupported(message) | ModelError::Input(message) => {
                Error::input(path, message)
                    .with_hint(
                        "choose another model: docs/models.md says which kinds are supported",
                    )
                    .into()
            }
            other => Failure::from(other),
        })?;
        Ok(Self { path: path.to_path_buf(), checkpoint, hub_id: None })
    }

    fn of(found: &ResolvedModel, config: &Config) -> Result<Self> {
        let model = Self::open(&found.path)?.with_variables_of(config)?;
        Ok(Self { hub_id: found.hub_id().map(String::from), ..model })
    }

    /// The licence that the model declares, by the hub's identifier: in its card, or in the metadata of a `.gguf`
    /// file. A model without one, or whose declaration cannot be read, has none.
    pub(crate) fn license(&self) -> Option<String> {
        if self.path.is_dir() {
            let card = std::fs::read_to_string(self.path.join(MODEL_CARD)).ok()?;
            return declared_license(&card);
        }
        let file = GgufFile::open(&self.path).ok()?;
        file.metadata().text("general.license").ok()?.map(String::from)
    }

    /// The model with the variables of its chat template that the settings name.
    fn with_variables_of(self, config: &Config) -> Result<Self> {
        let checkpoint = self.checkpoint.with_template_variables(&config.template_variables_json());
        let checkpoint = checkpoint
            .map_err(|error| Error::configuration("template_variables", error.to_string()))?;
        Ok(Self { checkpoint, ..self })
    }

    /// Refuses a model that cannot render conversations: no row of a file is at fault then.
    ///
    /// # Errors
    /// When it has no chat template, or one that does not compile.
    pub(crate) fn require_template(&self) -> CoreResult<()> {
        match self.checkpoint.text().template_fault() {
            None => Ok(()),
            Some(fault) => Err(Error::input(&self.path, fault).with_hint(TEMPLATE_HINT)),
        }
    }

    /// Refuses prompts that the model cannot answer, before any work is done: those that its chat template
    /// refuses, and those that fill its context or `training.max_length`, where that is given. Returns the
    /// tokens of the longest.
    ///
    /// # Errors
    /// The first such prompt, with its line.
    pub(crate) fn check_prompts(
        &self,
        prompts: &[Prompt],
        file: Option<&Path>,
        max_length: Option<usize>,
    ) -> Result<usize> {
        /// Prompts below which another thread is not worth its start.
        const FEWEST_PER_THREAD: usize = 1000;
        /// Bytes of stack, as the main thread has: templates may call themselves.
        const STACK: usize = 8 << 20;
        self.require_template()?;
        let limits = PromptLimits {
            text: self.checkpoint.text(),
            context_length: self.checkpoint.config().context_length,
            max_length,
            file,
        };
        let characters = |prompt: &&Prompt| -> usize {
            prompt.messages.iter().map(|message| message.content.len()).sum()
        };
        // The largest text first: those with fewer characters than it has tokens need not be encoded.
        let largest = prompts.iter().max_by_key(characters);
        let bound = largest.map_or(Ok(0), |prompt| limits.tokens(prompt, 0)).unwrap_or(0);
        let check = &|prompts: &[Prompt]| {
            prompts
                .iter()
                .try_fold(bound, |longest, prompt| Ok(longest.max(limits.tokens(prompt, longest)?)))
        };
        let threads = available_parallelism().map_or(1, usize::from);
        let prompts_per_thread = prompts.len().div_ceil(threads).max(FEWEST_PER_THREAD);
        let checked: Vec<Result<usize>> = thread::scope(|scope| {
            let parts = prompts.chunks(prompts_per_thread);
            let start = |part| {
                let builder = thread::Builder::new().stack_size(STACK);
                builder.spawn_scoped(scope, move || check(part)).map_err(|_| check(part))
            };
            let running: Vec<_> = parts.map(start).collect();
            let joined = running.into_iter().map(|part| match part {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(checked_here) => checked_here,
            });
            joined.collect()
        });
        checked.into_iter().try_fold(bound, |longest, part| Ok(longest.max(part?)))
    }
}

/// The conditions under which a model can answer a prompt of a file.
struct PromptLimits<'a> {
    text: &'a TextCodec,
    context_length: usize,
    max_length: Option<usize>,
    file: Option<&'a Path>,
}

impl PromptLimits<'_> {
    /// The number of tokens of a prompt that can be answered; 0 for a text so short that it cannot have more
    /// than `longest`, which saves most of the time where prompts differ in length.
    fn tokens(&self, prompt: &Prompt, longest: usize) -> Result<usize> {
        let text = self.text.render(&prompt.messages, true).map_err(|error| {
            self.refused(
                prompt,
                format!("the model's chat template refuses this prompt: {error}"),
                "change the conversation's roles, or choose a model with another chat template",
            )
        })?;
        // No tokenizer makes more tokens of ASCII than it has characters, but for one at the beginning.
        if text.is_ascii() && text.len() < longest {
            return Ok(0);
        }
        let tokens = self.text.encode(&text, false)?.len();
        let context = self.context_length;
        if tokens >= context {
            return Err(self.refused(
                prompt,
                format!("this prompt has {tokens} tokens, and the model's context holds {context}"),
                "shorten it, or choose a model with a longer context",
            ));
        }
        if let Some(max_length) = self.max_length.filter(|max_length| tokens >= *max_length) {
            return Err(self.refused(
                prompt,
                format!(
                    "this prompt has {tokens} tokens, and no answer fits into `training.max_length` \
                     ({max_length}) beside it"
                ),
                "shorten it, leave it out, or raise --max-length",
            ));
        }
        Ok(tokens)
    }

    fn refused(&self, prompt: &Prompt, message: String, hint: &str) -> Failure {
        prompts::error_about(self.file, prompt.id, message).with_hint(hint).into()
    }
}

/// A model on this machine, which is fetched where that is needed and allowed.
fn found(
    model: &str,
    config: &Config,
    offline: bool,
    terminal: &Terminal,
) -> Result<ResolvedModel> {
    let options = ModelSourceOptions { offline, ..ModelSourceOptions::default() };
    let revision = config.revision.as_deref().filter(|_| model == config.model);
    let download = terminal.download();
    Ok(source::resolve(model, revision, &options, &|progress| download.show(&progress))?)
}
