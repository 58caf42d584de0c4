//! Samplers across the boundary: engines that draw responses in place of the policy.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, RVec};

use super::guard::guarded;
use super::mirror::{AbiResult, Crosses, mirror, received};
use super::module::{Exported, IntoObject, Pluggable, root_module};
use super::policy::{AbiBatch, AbiGeneratedResponse, AbiGenerationRequest};
use super::progress::{ExportedProgress, ImportedProgress, ProgressRef};
use crate::calls::WatchedCall;
use crate::plugin::PluginKind;
use crate::{
    EndpointProbe, EnginePlan, GeneratedResponse, GenerationRequest, PluginError, Progress,
    RolloutEngine, SamplingParameters, SequenceBatch, ServedWeights,
};

pub type SamplerBox = AbiSampler_TO<'static, RBox<()>>;

#[sabi_trait]
pub trait AbiSampler {
    fn prepare(&mut self, plan: AbiEnginePlan, progress: ProgressRef<'_>) -> AbiResult<()>;
    fn adopt_weights(
        &mut self,
        weights: AbiServedWeights,
        progress: ProgressRef<'_>,
    ) -> AbiResult<bool>;
    fn load_weights(
        &mut self,
        weights: AbiServedWeights,
        progress: ProgressRef<'_>,
    ) -> AbiResult<()>;
    fn probe(
        &mut self,
        given: AbiBatch<'_>,
        drawn: AbiGenerationRequest,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiEndpointProbe>>;
    #[sabi(last_prefix_field)]
    fn generate(
        &mut self,
        request: AbiGenerationRequest,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiGeneratedResponse>>;
}

mirror!(AbiEnginePlan of EnginePlan {
    stop_tokens: Vec<u32>,
    context_length: usize,
    vocabulary_size: usize,
    longest_prompt: usize,
    weights_change: bool,
    trains_adapters: bool,
    sampling: SamplingParameters,
    directory: std::path::PathBuf,
});
mirror!(AbiServedWeights of ServedWeights { path: std::path::PathBuf, version: String });
mirror!(AbiEndpointProbe of EndpointProbe {
    endpoint: String,
    number_format: String,
    given: Vec<Vec<f32>>,
    drawn: Vec<GeneratedResponse>,
});

root_module!(SamplerBox, "sppo_sampler");

impl PluginKind {
    /// Samplers, which draw responses in place of the policy.
    pub const SAMPLER: Self = Self::new("sampler");
}

impl Pluggable for dyn RolloutEngine {
    const KIND: PluginKind = PluginKind::SAMPLER;
    type Abi = SamplerBox;

    fn export(object: Box<Self>) -> SamplerBox {
        AbiSampler_TO::from_value(Exported::new(object), TD_Opaque)
    }

    fn import(plugin: &'static str, object: SamplerBox) -> Result<Box<Self>, PluginError> {
        Ok(Box::new(ImportedEngine { plugin, engine: object }))
    }
}

impl<T: RolloutEngine + 'static> IntoObject<dyn RolloutEngine> for T {
    fn into_object(self) -> Box<dyn RolloutEngine> {
        Box::new(self)
    }
}

impl AbiSampler for Exported<dyn RolloutEngine> {
    fn prepare(&mut self, plan: AbiEnginePlan, progress: ProgressRef<'_>) -> AbiResult<()> {
        guarded(|| self.0.prepare(&EnginePlan::receive(plan), &ImportedProgress(progress)))
    }

    fn adopt_weights(
        &mut self,
        weights: AbiServedWeights,
        progress: ProgressRef<'_>,
    ) -> AbiResult<bool> {
        let weights = ServedWeights::receive(weights);
        guarded(|| self.0.adopt_weights(&weights, &ImportedProgress(progress)))
    }

    fn load_weights(
        &mut self,
        weights: AbiServedWeights,
        progress: ProgressRef<'_>,
    ) -> AbiResult<()> {
        let weights = ServedWeights::receive(weights);
        guarded(|| self.0.load_weights(&weights, &ImportedProgress(progress)))
    }

    fn probe(
        &mut self,
        given: AbiBatch<'_>,
        drawn: AbiGenerationRequest,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiEndpointProbe>> {
        let (given, drawn) = (SequenceBatch::from(given), GenerationRequest::receive(drawn));
        guarded(|| Ok(self.0.probe(&given, &drawn, &ImportedProgress(progress))?.cross()))
    }

    fn generate(
        &mut self,
        request: AbiGenerationRequest,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiGeneratedResponse>> {
        let request = GenerationRequest::receive(request);
        guarded(|| Ok(self.0.generate(&request, &ImportedProgress(progress))?.cross()))
    }
}

/// An engine from the other side.
struct ImportedEngine {
    plugin: &'static str,
    engine: SamplerBox,
}

impl RolloutEngine for ImportedEngine {
    fn plugin(&self) -> Option<&'static str> {
        Some(self.plugin)
    }

    fn prepare(&mut self, plan: &EnginePlan, progress: &dyn Progress) -> Result<(), PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let prepared = self.engine.prepare(plan.clone().cross(), ExportedProgress(&call).lend());
        received(self.plugin, prepared)
    }

    fn adopt_weights(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<bool, PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let weights = weights.clone().cross();
        received(self.plugin, self.engine.adopt_weights(weights, ExportedProgress(&call).lend()))
    }

    fn load_weights(
        &mut self,
        weights: &ServedWeights,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let weights = weights.clone().cross();
        received(self.plugin, self.engine.load_weights(weights, ExportedProgress(&call).lend()))
    }

    fn probe(
        &mut self,
        given: &SequenceBatch,
        drawn: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<EndpointProbe>, PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let (given, drawn) = (AbiBatch::from(given), drawn.clone().cross());
        received(self.plugin, self.engine.probe(given, drawn, ExportedProgress(&call).lend()))
    }

    fn generate(
        &mut self,
        request: &GenerationRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<GeneratedResponse>, PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let request = request.clone().cross();
        received(self.plugin, self.engine.generate(request, ExportedProgress(&call).lend()))
    }
}
