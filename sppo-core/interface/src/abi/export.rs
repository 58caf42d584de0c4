//! An author's object behind an ABI trait: arguments are turned into std types, panics into errors.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use abi_stable::erased_types::TD_Opaque;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModuleResult};
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::std_types::{ROption, RResult, RSlice, RStr, RString, RVec};

use super::INTERFACE_VERSION;
use super::comparison::{AbiComparison, AbiMessage, AbiVerdict, ReceivedTexts};
use super::data::{
    AbiBatch, AbiGeneratedResponse, AbiGenerationRequest, AbiLoraSettings, AbiManifest,
    AbiMemoryEstimate, AbiMetric, AbiOptimizer, AbiPlannedWork, AbiPolicyInfo, AbiResult,
    AbiStepReport, AbiStepSettings,
};
use super::guard::{drop_guarded, guarded};
use super::import::HostBehindAbi;
use super::log::connect;
use super::modules::{BackendModule, BackendModuleRef, OracleModule, OracleModuleRef};
use super::traits::{
    AbiBackend, AbiBackend_TO, AbiHost, AbiOracle, AbiOracle_TO, AbiPolicy, AbiPolicy_TO,
    AbiScorer, AbiScorer_TO, BackendBox, HostRef, OracleBox, PolicyBox, ScorerBox,
};
use crate::{
    Backend, BackendPlugin, Host, Message, ModelSpec, Oracle, OraclePlugin, PluginError, Policy,
    Scorer, deserialize_config, schema_of,
};

/// An author's object, whose destructor may panic too.
struct Exported<T: ?Sized>(ManuallyDrop<Box<T>>);

impl<T: ?Sized> Exported<T> {
    fn new(object: Box<T>) -> Self {
        Self(ManuallyDrop::new(object))
    }
}

impl<T: ?Sized> Drop for Exported<T> {
    fn drop(&mut self) {
        // SAFETY: the box is taken once, here, and `self` is not used afterwards.
        drop_guarded(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

pub(super) fn export_oracle(oracle: Box<dyn Oracle>) -> OracleBox {
    AbiOracle_TO::from_value(Exported::new(oracle), TD_Opaque)
}

pub(super) fn export_scorer(scorer: Box<dyn Scorer>) -> ScorerBox {
    AbiScorer_TO::from_value(Exported::new(scorer), TD_Opaque)
}

pub(super) fn export_policy(policy: Box<dyn Policy>) -> PolicyBox {
    AbiPolicy_TO::from_value(Exported::new(policy), TD_Opaque)
}

fn export_backend(backend: Box<dyn Backend>) -> BackendBox {
    AbiBackend_TO::from_value(Exported::new(backend), TD_Opaque)
}

impl AbiOracle for Exported<dyn Oracle> {
    fn prepare(&mut self, host: HostRef<'_>) -> AbiResult<()> {
        guarded(|| self.0.prepare(&HostBehindAbi(host)))
    }

    fn identity(&self) -> AbiResult<ROption<RString>> {
        guarded(|| Ok(ROption::from(self.0.identity().map(RString::from))))
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>> {
        guarded(|| Ok(ROption::from(self.0.expected_requests(comparisons, candidates))))
    }

    fn preferences(
        &mut self,
        comparisons: RSlice<'_, AbiComparison<'_>>,
        host: HostRef<'_>,
    ) -> AbiResult<RVec<AbiVerdict>> {
        guarded(|| {
            let texts = ReceivedTexts::new(comparisons.as_slice());
            let comparisons = texts.comparisons();
            let verdicts = self.0.preferences(&comparisons, &HostBehindAbi(host))?;
            Ok(verdicts.into_iter().map(AbiVerdict::from).collect::<RVec<_>>())
        })
    }
}

impl AbiScorer for Exported<dyn Scorer> {
    fn score(&mut self, sequences: RSlice<'_, RSlice<'_, u32>>) -> AbiResult<RVec<f32>> {
        guarded(|| {
            let sequences: Vec<Vec<u32>> = sequences.iter().map(|tokens| tokens.to_vec()).collect();
            self.0.score(&sequences)
        })
    }
}

impl AbiBackend for Exported<dyn Backend> {
    fn load_policy(&self, model: RStr<'_>, host: HostRef<'_>) -> AbiResult<PolicyBox> {
        guarded(|| self.0.load_policy(&model_spec(model), &HostBehindAbi(host)).map(export_policy))
    }

    fn load_adapted_policy(
        &self,
        model: RStr<'_>,
        adapters: AbiLoraSettings<'_>,
        host: HostRef<'_>,
    ) -> AbiResult<PolicyBox> {
        guarded(|| {
            let (model, host) = (model_spec(model), HostBehindAbi(host));
            self.0.load_adapted_policy(&model, &adapters.into(), &host).map(export_policy)
        })
    }

    fn estimate_memory(
        &self,
        model: RStr<'_>,
        work: AbiPlannedWork<'_>,
    ) -> AbiResult<AbiMemoryEstimate> {
        guarded(|| {
            let estimate = self.0.estimate_memory(&model_spec(model), &work.into())?;
            Ok(AbiMemoryEstimate::from(estimate))
        })
    }

    fn load_scorer(&self, model: RStr<'_>, host: HostRef<'_>) -> AbiResult<ScorerBox> {
        guarded(|| self.0.load_scorer(&model_spec(model), &HostBehindAbi(host)).map(export_scorer))
    }

    fn matrix_product_rate(&self, rows: usize, inner: usize, columns: usize) -> AbiResult<f64> {
        guarded(|| self.0.matrix_product_rate(rows, inner, columns))
    }
}

fn model_spec(path: RStr<'_>) -> ModelSpec {
    ModelSpec { path: PathBuf::from(path.as_str()) }
}

impl AbiPolicy for Exported<dyn Policy> {
    fn info(&self) -> AbiResult<AbiPolicyInfo> {
        guarded(|| Ok(AbiPolicyInfo::from(self.0.info())))
    }

    fn render(
        &self,
        messages: RSlice<'_, AbiMessage<'_>>,
        add_generation_prompt: bool,
    ) -> AbiResult<RString> {
        guarded(|| {
            let messages: Vec<Message> = messages.iter().map(Message::from).collect();
            self.0.render(&messages, add_generation_prompt)
        })
    }

    fn encode(&self, text: RStr<'_>, add_special_tokens: bool) -> AbiResult<RVec<u32>> {
        guarded(|| self.0.encode(text.as_str(), add_special_tokens))
    }

    fn decode(&self, tokens: RSlice<'_, u32>) -> AbiResult<RString> {
        guarded(|| self.0.decode(tokens.as_slice()))
    }

    fn generate(
        &mut self,
        request: AbiGenerationRequest<'_>,
        host: HostRef<'_>,
    ) -> AbiResult<RVec<AbiGeneratedResponse>> {
        guarded(|| {
            let responses = self.0.generate(&request.into(), &HostBehindAbi(host))?;
            Ok(responses.into_iter().map(AbiGeneratedResponse::from).collect::<RVec<_>>())
        })
    }

    fn token_log_probs(&mut self, batch: AbiBatch<'_>) -> AbiResult<RVec<RVec<f32>>> {
        guarded(|| {
            let log_probs = self.0.token_log_probs(&batch.into())?;
            Ok(log_probs.into_iter().map(RVec::from).collect::<RVec<_>>())
        })
    }

    fn forward(&mut self, batch: AbiBatch<'_>) -> AbiResult<RVec<f64>> {
        guarded(|| self.0.forward(&batch.into()))
    }

    fn backward(&mut self, coefficients: RSlice<'_, f64>) -> AbiResult<()> {
        guarded(|| self.0.backward(coefficients.as_slice()))
    }

    fn recompute_activations(&mut self, recompute: bool) -> AbiResult<()> {
        guarded(|| self.0.recompute_activations(recompute))
    }

    fn begin_training(&mut self, optimizer: AbiOptimizer) -> AbiResult<()> {
        guarded(|| self.0.begin_training(&optimizer.into()))
    }

    fn step(&mut self, settings: AbiStepSettings) -> AbiResult<AbiStepReport> {
        guarded(|| self.0.step(&settings.into()).map(|report| AbiStepReport::from(&report)))
    }

    fn save(&self, directory: RStr<'_>) -> AbiResult<()> {
        guarded(|| self.0.save(Path::new(directory.as_str())))
    }

    fn save_optimizer_state(&self, file: RStr<'_>) -> AbiResult<()> {
        guarded(|| self.0.save_optimizer_state(Path::new(file.as_str())))
    }

    fn load_optimizer_state(&mut self, file: RStr<'_>) -> AbiResult<()> {
        guarded(|| self.0.load_optimizer_state(Path::new(file.as_str())))
    }
}

/// The program's host, as plugins reach it.
pub(super) struct ExportedHost<'a>(pub(super) &'a dyn Host);

impl AbiHost for ExportedHost<'_> {
    fn is_cancelled(&self) -> bool {
        // A host that panics is done with: the call ends as if the user had asked to stop.
        guarded(|| Ok(self.0.is_cancelled())).unwrap_or(true)
    }

    fn progress(&self, completed: u64, total: u64) {
        let _: AbiResult<()> = guarded(|| {
            self.0.progress(completed, total);
            Ok(())
        });
    }

    fn metrics(&self, values: RSlice<'_, AbiMetric<'_>>) {
        let _: AbiResult<()> = guarded(|| {
            let values: Vec<(&str, f64)> =
                values.iter().map(|metric| (metric.name.as_str(), metric.value)).collect();
            self.0.metrics(&values);
            Ok(())
        });
    }

    fn scorer(&self, model: RStr<'_>) -> AbiResult<ScorerBox> {
        guarded(|| self.0.scorer(&model_spec(model)).map(export_scorer))
    }

    fn scorer_on(&self, backend: RStr<'_>, model: RStr<'_>) -> AbiResult<ScorerBox> {
        guarded(|| self.0.scorer_on(backend.as_str(), &model_spec(model)).map(export_scorer))
    }

    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox> {
        guarded(|| self.0.oracle(name.as_str()).map(export_oracle))
    }
}

/// What the library of an oracle exports.
#[must_use]
pub const fn oracle_header<P: OraclePlugin>() -> LibHeader {
    // SAFETY: `oracle_module` makes an `OracleModuleRef`.
    unsafe {
        LibHeader::from_constructor::<OracleModuleRef>(oracle_module::<P>, CheckTypeLayout::Yes)
    }
}

/// What the library of a backend exports.
#[must_use]
pub const fn backend_header<P: BackendPlugin>() -> LibHeader {
    // SAFETY: `backend_module` makes a `BackendModuleRef`.
    unsafe {
        LibHeader::from_constructor::<BackendModuleRef>(backend_module::<P>, CheckTypeLayout::Yes)
    }
}

extern "C" fn oracle_module<P: OraclePlugin>() -> RootModuleResult {
    extern "C" fn manifest<P: OraclePlugin>() -> AbiManifest {
        manifest_of(P::NAME)
    }
    extern "C" fn config_schema<P: OraclePlugin>() -> AbiResult<RString> {
        guarded(|| Ok(schema_of::<P::Config>().to_string()))
    }
    extern "C" fn create<P: OraclePlugin>(settings: RStr<'_>) -> AbiResult<OracleBox> {
        guarded(|| {
            let oracle = P::create(parse_settings(settings.as_str())?)?;
            Ok(export_oracle(Box::new(oracle)))
        })
    }
    let module = OracleModule {
        manifest: manifest::<P>,
        connect,
        config_schema: config_schema::<P>,
        create: create::<P>,
    };
    // SAFETY: only the type of the reference is erased; `oracle_header` names it.
    RResult::ROk(unsafe { module.leak_into_prefix().to_prefix_ref().cast() })
}

extern "C" fn backend_module<P: BackendPlugin>() -> RootModuleResult {
    extern "C" fn manifest<P: BackendPlugin>() -> AbiManifest {
        manifest_of(P::NAME)
    }
    extern "C" fn config_schema<P: BackendPlugin>() -> AbiResult<RString> {
        guarded(|| Ok(schema_of::<P::Config>().to_string()))
    }
    extern "C" fn create<P: BackendPlugin>(settings: RStr<'_>) -> AbiResult<BackendBox> {
        guarded(|| {
            let backend = P::create(parse_settings(settings.as_str())?)?;
            Ok(export_backend(Box::new(backend)))
        })
    }
    let module = BackendModule {
        manifest: manifest::<P>,
        connect,
        config_schema: config_schema::<P>,
        create: create::<P>,
    };
    // SAFETY: only the type of the reference is erased; `backend_header` names it.
    RResult::ROk(unsafe { module.leak_into_prefix().to_prefix_ref().cast() })
}

fn manifest_of(name: &'static str) -> AbiManifest {
    AbiManifest { name: name.into(), interface_version: INTERFACE_VERSION }
}

fn parse_settings<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, PluginError> {
    let settings = serde_json::from_str(text)
        .map_err(|error| PluginError::configuration(error.to_string()))?;
    deserialize_config(settings)
}
