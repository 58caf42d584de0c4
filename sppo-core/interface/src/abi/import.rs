//! An ABI object behind an author-side trait, for the side that did not make it.

use std::path::Path;

use abi_stable::erased_types::TD_Opaque;
use abi_stable::std_types::{ROption, RResult, RSlice, RString, RVec};

use super::comparison::{AbiMessage, LentTexts};
use super::data::{AbiError, AbiMetric, AbiResult};
use super::export::ExportedHost;
use super::traits::{AbiHost_TO, BackendBox, HostRef, OracleBox, PolicyBox, ScorerBox};
use crate::calls::PluginCall;
use crate::{
    Backend, Comparison, GeneratedResponse, GenerationRequest, Host, LoraSettings, MemoryEstimate,
    Message, ModelSpec, Optimizer, Oracle, PlannedWork, PluginError, Policy, PolicyInfo, Scorer,
    SequenceBatch, StepReport, StepSettings, Verdict,
};

fn received<T, U: From<T>>(result: AbiResult<T>) -> Result<U, PluginError> {
    match result {
        RResult::ROk(value) => Ok(value.into()),
        RResult::RErr(error) => Err(received_error(error)),
    }
}

/// A text from a library.
pub fn received_text(result: AbiResult<RString>) -> Result<String, PluginError> {
    received(result)
}

fn received_error(error: AbiError) -> PluginError {
    error.into()
}

fn received_list<T, U: From<T>>(result: AbiResult<RVec<T>>) -> Result<Vec<U>, PluginError> {
    match result {
        RResult::ROk(values) => Ok(values.into_vec().into_iter().map(U::from).collect()),
        RResult::RErr(error) => Err(received_error(error)),
    }
}

fn path_text(path: &Path) -> Result<&str, PluginError> {
    path.to_str().ok_or_else(|| {
        PluginError::input(format!("{} is not UTF-8", path.display()))
            .with_hint("rename the file or directory; plugins take paths in UTF-8 only")
    })
}

/// An oracle from a library.
pub struct LoadedOracle {
    plugin: &'static str,
    oracle: OracleBox,
}

impl LoadedOracle {
    pub fn new(plugin: &'static str, made: AbiResult<OracleBox>) -> Result<Self, PluginError> {
        Ok(Self { plugin, oracle: received(made)? })
    }

    /// For questions to which an error is no answer.
    fn unknown<T>(&self, error: AbiError) -> ROption<T> {
        tracing::warn!("{}: {}", self.plugin, error.message);
        ROption::RNone
    }
}

impl Oracle for LoadedOracle {
    fn prepare(&mut self, host: &dyn Host) -> Result<(), PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        received(self.oracle.prepare(AbiHost_TO::from_ptr(&host, TD_Opaque)))
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        host: &dyn Host,
    ) -> Result<Vec<Verdict>, PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        let texts = LentTexts::new(comparisons);
        let comparisons = texts.comparisons();
        let host = AbiHost_TO::from_ptr(&host, TD_Opaque);
        received_list(self.oracle.preferences(RSlice::from(comparisons.as_slice()), host))
    }

    fn identity(&self) -> Option<String> {
        let identity = self.oracle.identity().into_result();
        identity.unwrap_or_else(|error| self.unknown(error)).map(String::from).into()
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        let expected = self.oracle.expected_requests(comparisons, candidates).into_result();
        expected.unwrap_or_else(|error| self.unknown(error)).into()
    }
}

/// A scorer from the other side.
struct ImportedScorer(ScorerBox);

impl Scorer for ImportedScorer {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError> {
        let sequences: Vec<RSlice<'_, u32>> =
            sequences.iter().map(|tokens| RSlice::from(tokens.as_slice())).collect();
        received(self.0.score(RSlice::from(sequences.as_slice())))
    }
}

fn import_scorer(made: AbiResult<ScorerBox>) -> Result<Box<dyn Scorer>, PluginError> {
    Ok(Box::new(ImportedScorer(received(made)?)))
}

/// A backend from a library.
pub struct LoadedBackend {
    plugin: &'static str,
    backend: BackendBox,
}

impl LoadedBackend {
    pub fn new(plugin: &'static str, made: AbiResult<BackendBox>) -> Result<Self, PluginError> {
        Ok(Self { plugin, backend: received(made)? })
    }
}

impl Backend for LoadedBackend {
    fn load_policy(
        &self,
        model: &ModelSpec,
        host: &dyn Host,
    ) -> Result<Box<dyn Policy>, PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        let host = AbiHost_TO::from_ptr(&host, TD_Opaque);
        let policy: PolicyBox =
            received(self.backend.load_policy(path_text(&model.path)?.into(), host))?;
        Ok(Box::new(LoadedPolicy::new(self.plugin, policy)?))
    }

    fn load_adapted_policy(
        &self,
        model: &ModelSpec,
        adapters: &LoraSettings,
        host: &dyn Host,
    ) -> Result<Box<dyn Policy>, PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        let host = AbiHost_TO::from_ptr(&host, TD_Opaque);
        let path = path_text(&model.path)?.into();
        let policy = received(self.backend.load_adapted_policy(path, adapters.into(), host))?;
        Ok(Box::new(LoadedPolicy::new(self.plugin, policy)?))
    }

    fn estimate_memory(
        &self,
        model: &ModelSpec,
        work: &PlannedWork,
    ) -> Result<MemoryEstimate, PluginError> {
        received(self.backend.estimate_memory(path_text(&model.path)?.into(), work.into()))
    }

    fn load_scorer(
        &self,
        model: &ModelSpec,
        host: &dyn Host,
    ) -> Result<Box<dyn Scorer>, PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        let host = AbiHost_TO::from_ptr(&host, TD_Opaque);
        import_scorer(self.backend.load_scorer(path_text(&model.path)?.into(), host))
    }

    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> Result<f64, PluginError> {
        received(self.backend.matrix_product_rate(rows, inner, columns))
    }
}

/// A policy from a library.
pub(super) struct LoadedPolicy {
    plugin: &'static str,
    policy: PolicyBox,
    info: PolicyInfo,
}

impl LoadedPolicy {
    pub(super) fn new(plugin: &'static str, policy: PolicyBox) -> Result<Self, PluginError> {
        let info = received(policy.info())?;
        Ok(Self { plugin, policy, info })
    }
}

impl Policy for LoadedPolicy {
    fn info(&self) -> &PolicyInfo {
        &self.info
    }

    fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, PluginError> {
        let messages: Vec<_> = messages.iter().map(AbiMessage::from).collect();
        received(self.policy.render(RSlice::from(messages.as_slice()), add_generation_prompt))
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, PluginError> {
        received(self.policy.encode(text.into(), add_special_tokens))
    }

    fn decode(&self, tokens: &[u32]) -> Result<String, PluginError> {
        received(self.policy.decode(tokens.into()))
    }

    fn generate(
        &mut self,
        request: &GenerationRequest,
        host: &dyn Host,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        let call = PluginCall::enter(self.plugin, host);
        let host = ExportedHost(&call);
        let host = AbiHost_TO::from_ptr(&host, TD_Opaque);
        received_list(self.policy.generate(request.into(), host))
    }

    fn token_log_probs(&mut self, batch: &SequenceBatch) -> Result<Vec<Vec<f32>>, PluginError> {
        received_list(self.policy.token_log_probs(batch.into()))
    }

    fn forward(&mut self, batch: &SequenceBatch) -> Result<Vec<f64>, PluginError> {
        received(self.policy.forward(batch.into()))
    }

    fn backward(&mut self, coefficients: &[f64]) -> Result<(), PluginError> {
        received(self.policy.backward(coefficients.into()))
    }

    fn recompute_activations(&mut self, recompute: bool) -> Result<(), PluginError> {
        received(self.policy.recompute_activations(recompute))
    }

    fn begin_training(&mut self, optimizer: &Optimizer) -> Result<(), PluginError> {
        received(self.policy.begin_training(optimizer.into()))
    }

    fn step(&mut self, settings: &StepSettings) -> Result<StepReport, PluginError> {
        received(self.policy.step(settings.into()))
    }

    fn save(&self, directory: &Path) -> Result<(), PluginError> {
        received(self.policy.save(path_text(directory)?.into()))
    }

    fn save_optimizer_state(&self, file: &Path) -> Result<(), PluginError> {
        received(self.policy.save_optimizer_state(path_text(file)?.into()))
    }

    fn load_optimizer_state(&mut self, file: &Path) -> Result<(), PluginError> {
        received(self.policy.load_optimizer_state(path_text(file)?.into()))
    }
}

/// The program's host, from within a plugin.
pub(super) struct HostBehindAbi<'a>(pub(super) HostRef<'a>);

impl Host for HostBehindAbi<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    fn progress(&self, completed: u64, total: u64) {
        self.0.progress(completed, total);
    }

    fn metrics(&self, values: &[(&str, f64)]) {
        let values: Vec<_> =
            values.iter().map(|&(name, value)| AbiMetric { name: name.into(), value }).collect();
        self.0.metrics(RSlice::from(values.as_slice()));
    }

    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(self.0.scorer(path_text(&model.path)?.into()))
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(self.0.scorer_on(backend.into(), path_text(&model.path)?.into()))
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        let made = self.0.oracle(name.into());
        Ok(Box::new(LoadedOracle::new("another oracle", made)?))
    }
}
