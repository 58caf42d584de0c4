//! Sampling by another engine than the policy: the weights are handed over after every iteration, and
//! responses are only taken from an engine whose numbers are the policy's own.

mod verify;

use std::path::{Path, PathBuf};
use std::time::Instant;

use tempfile::TempDir;
use verify::{Measured, Mismatch, ProbeSet};

use crate::error::{Error, Result};
use crate::files::{create_directory, run_directory_error};
use crate::observer::{Event, Stage};
use crate::plugin::{
    Codec, EnginePlan, GeneratedResponse, GenerationRequest, Message, PluginError, Policy,
    PolicyInfo, Progress, RolloutEngine, Sampler, ServedWeights,
};
use crate::records::Prompt;
use crate::session::Session;
use crate::stages::{SamplingPass, tokenize_prompt};

/// Loads of the same weights before an engine that still has other numbers is given up.
const LOADS: u32 = 2;

/// Directory of weights that were written for the engine alone.
const WRITTEN: &str = "written";

/// The engine that samples in place of the policy, and what is known of the weights that it holds.
pub struct SamplingEngine {
    engine: Box<dyn RolloutEngine>,
    /// Directory of its own files, if they are to be kept.
    directory: Option<PathBuf>,
    /// The same, if they are not.
    temporary: Option<TempDir>,
    /// The work that the engine was prepared for.
    plan: Option<EnginePlan>,
    /// Probes of these weights, once the engine was prepared.
    probes: Option<ProbeSet>,
    held: Option<Held>,
}

/// Weights that were found to be the policy's.
struct Held {
    version: String,
    measured: Measured,
}

/// The work that an engine is prepared for.
#[derive(Clone, Copy)]
pub struct EngineWork<'a> {
    /// All prompts that it may be asked about.
    pub prompts: &'a [&'a [Prompt]],
    /// The way in which responses are drawn.
    pub pass: &'a SamplingPass,
    /// Whether the weights are trained, so that others follow.
    pub weights_change: bool,
}

impl Session<'_> {
    /// The engine that the settings name; `None` where the policy samples itself.
    ///
    /// # Errors
    /// When there is none of this name, or its settings are refused.
    pub fn sampling_engine(&self) -> Result<Option<SamplingEngine>> {
        let choice = &self.config.sampler;
        if choice.is_policy() {
            return Ok(None);
        }
        let engine = self.plugins.create_sampler(&choice.name, choice.chosen_settings())?;
        Ok(Some(SamplingEngine {
            engine,
            directory: None,
            temporary: None,
            plan: None,
            probes: None,
            held: None,
        }))
    }
}

impl Session<'_> {
    /// Samples from a policy: by itself, or by the engine, which is made to hold its weights first.
    ///
    /// # Errors
    /// As [`SamplingEngine::sampler`], or when `sample` fails.
    pub fn sampled_by<T, E: From<Error>>(
        &self,
        engine: Option<&mut SamplingEngine>,
        policy: &mut dyn Policy,
        weights: &ServedWeights,
        work: EngineWork<'_>,
        sample: impl FnOnce(&mut dyn Sampler) -> std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        match engine {
            None => sample(policy),
            Some(engine) => sample(&mut engine.sampler(self, policy, weights, work)?),
        }
    }
}

impl SamplingEngine {
    /// Keeps the engine's own files in this directory, for processes that go on with the same work.
    pub fn keep_files_in(&mut self, directory: PathBuf) {
        self.directory = Some(directory);
    }

    /// Absolute path of the directory for the engine's own files, which is there.
    fn own_directory(&mut self) -> Result<PathBuf> {
        let unusable = |path: &Path, error| run_directory_error(path, "make a directory", &error);
        if let Some(directory) = &self.directory {
            create_directory(directory)?;
            return std::path::absolute(directory).map_err(|error| unusable(directory, error));
        }
        if let Some(temporary) = &self.temporary {
            return Ok(temporary.path().to_path_buf());
        }
        let temporary = tempfile::Builder::new().prefix("sppo-sampler-").tempdir();
        let temporary = temporary.map_err(|error| unusable(&std::env::temp_dir(), error))?;
        Ok(self.temporary.insert(temporary).path().to_path_buf())
    }

    /// The engine as a sampler, once it is known to hold these weights, which are the policy's. They are loaded
    /// where that is needed.
    ///
    /// # Errors
    /// When the engine cannot do the work, cannot load the weights, or still has other numbers than the policy
    /// afterwards.
    pub fn sampler<'a>(
        &'a mut self,
        session: &Session<'_>,
        policy: &'a mut dyn Policy,
        weights: &ServedWeights,
        work: EngineWork<'_>,
    ) -> Result<EngineSampler<'a>> {
        let is_held = self.held.as_ref().is_some_and(|held| held.version == weights.version);
        if !is_held {
            self.hold(session, policy, weights, work)?;
        }
        Ok(EngineSampler { policy, engine: self.engine.as_mut() })
    }

    /// Mean difference per token between the engine's log-probabilities and the policy's, the largest of all
    /// endpoints, when the weights were compared last.
    #[must_use]
    pub fn log_prob_difference(&self) -> Option<f64> {
        self.held.as_ref().map(|held| held.measured.difference())
    }

    fn hold(
        &mut self,
        session: &Session<'_>,
        policy: &mut dyn Policy,
        weights: &ServedWeights,
        work: EngineWork<'_>,
    ) -> Result<()> {
        let meter = session.stage(Stage::Refresh, 1, "weights");
        let host = meter.host();
        let started = Instant::now();
        // Another model may end its responses in another way.
        let is_new = !self.plan.as_ref().is_some_and(|plan| suits(plan, policy.info()));
        if is_new {
            self.held = None;
            self.prepare(session, policy, work, &host)?;
        }
        let adopted = is_new && self.engine.adopt_weights(weights, &host)?;
        let measured = self.verified(session, policy, weights, adopted, &host)?;
        let difference = measured.difference();
        session.observer.event(Event::StageMetrics(&[
            ("refresh_seconds", started.elapsed().as_secs_f64()),
            ("log_prob_difference", difference),
        ]));
        meter.finish(format!("{} at {} endpoints", weights.version, measured.endpoints()));
        self.held = Some(Held { version: weights.version.clone(), measured });
        Ok(())
    }

    fn prepare(
        &mut self,
        session: &Session<'_>,
        policy: &mut dyn Policy,
        work: EngineWork<'_>,
        progress: &dyn Progress,
    ) -> Result<()> {
        let mut prompts = Vec::new();
        for prompt in work.prompts.iter().copied().flatten() {
            let (_, tokens) = tokenize_prompt(policy, &prompt.messages, work.pass.tokenization)?;
            prompts.push(tokens);
        }
        let info = policy.info();
        let plan = EnginePlan {
            stop_tokens: info.stop_tokens.clone(),
            context_length: info.context_length,
            vocabulary_size: info.vocabulary_size,
            longest_prompt: prompts.iter().map(Vec::len).max().unwrap_or(0),
            weights_change: work.weights_change,
            trains_adapters: session.config.training.lora.rank > 0,
            sampling: work.pass.parameters.clone(),
            directory: self.own_directory()?,
        };
        self.engine.prepare(&plan, progress)?;
        self.plan = Some(plan);
        self.probes = Some(ProbeSet::new(policy, prompts, work.pass)?);
        Ok(())
    }

    /// Numbers of the engine that are the policy's, after as many loads as it takes, within reason.
    fn verified(
        &mut self,
        session: &Session<'_>,
        policy: &mut dyn Policy,
        weights: &ServedWeights,
        adopted: bool,
        progress: &dyn Progress,
    ) -> Result<Measured> {
        let probes =
            self.probes.as_ref().ok_or_else(|| PluginError::failed("it is not prepared"))?;
        let limit = session.config.sampler.log_prob_limit;
        let before = self.held.as_ref().map(|held| &held.measured);
        let mut found: Option<Mismatch> = None;
        for load in u32::from(!adopted)..=LOADS {
            session.require_running()?;
            if load > 0
                && let Err(error) =
                    load_into(self.engine.as_mut(), self.plan.as_ref(), policy, weights, progress)
            {
                return Err(after_a_mismatch(error, found.as_ref()));
            }
            let endpoints = self.engine.probe(&probes.given, &probes.drawn, progress)?;
            let measured = Measured::new(policy, probes, endpoints)
                .map_err(|error| with_label(error, self.engine.as_ref()))?;
            match measured.check(limit, before) {
                Ok(()) => {
                    if let Some(mismatch) = found {
                        session.observer.event(Event::Notice(format!(
                            "{mismatch}; it was given the weights of {} and agrees now",
                            weights.path.display()
                        )));
                    }
                    return Ok(measured);
                }
                Err(mismatch) => found = Some(mismatch),
            }
        }
        let message = found.map_or_else(String::new, |mismatch| mismatch.to_string());
        let error =
            PluginError::failed(format!("{message}, after {LOADS} loads of {}", weights.version))
                .with_hint(verify::HINT);
        Err(error.of_plugin(self.engine.plugin()).into())
    }
}

/// Has the engine load the weights. Engines read directories, so those of a file are written into one first.
fn load_into(
    engine: &mut dyn RolloutEngine,
    plan: Option<&EnginePlan>,
    policy: &dyn Policy,
    weights: &ServedWeights,
    progress: &dyn Progress,
) -> std::result::Result<(), PluginError> {
    let plan = plan.filter(|plan| weights.path.is_file() && !plan.trains_adapters);
    let Some(plan) = plan else { return engine.load_weights(weights, progress) };
    let path = plan.directory.join(WRITTEN);
    let unusable = |error| PluginError::failed(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(&path).map_err(unusable)?;
    policy.save(&path)?;
    let written = ServedWeights { path: path.clone(), version: weights.version.clone() };
    engine.load_weights(&written, progress)?;
    std::fs::remove_dir_all(&path).map_err(unusable)
}

/// Whether the engine was prepared for a model like this.
fn suits(plan: &EnginePlan, info: &PolicyInfo) -> bool {
    plan.stop_tokens == info.stop_tokens
        && plan.context_length == info.context_length
        && plan.vocabulary_size == info.vocabulary_size
}

/// The error of a load that was to mend a mismatch.
fn after_a_mismatch(mut error: PluginError, found: Option<&Mismatch>) -> Error {
    if let Some(mismatch) = found {
        error.message = format!("{mismatch}, and the weights cannot be loaded: {}", error.message);
    }
    error.into()
}

fn with_label(error: Error, engine: &dyn RolloutEngine) -> Error {
    match error {
        Error::Plugin { source, .. } => source.of_plugin(engine.plugin()).into(),
        other => other,
    }
}

/// An engine that holds the policy's weights, with the policy's text side.
pub struct EngineSampler<'a> {
    policy: &'a dyn Policy,
    engine: &'a mut dyn RolloutEngine,
}

impl Codec for EngineSampler<'_> {
    fn info(&self) -> &PolicyInfo {
        self.policy.info()
    }

    fn plugin(&self) -> Option<&'static str> {
        self.engine.plugin()
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> std::result::Result<String, PluginError> {
        self.policy.render(messages, add_generation_prompt)
    }

    fn encode(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> std::result::Result<Vec<u32>, PluginError> {
        self.policy.encode(text, add_special_tokens)
    }

    fn decode(&self, tokens: &[u32]) -> std::result::Result<String, PluginError> {
        self.policy.decode(tokens)
    }
}

impl Sampler for EngineSampler<'_> {
    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> std::result::Result<Vec<GeneratedResponse>, PluginError> {
        self.engine.generate(request, progress)
    }
}
