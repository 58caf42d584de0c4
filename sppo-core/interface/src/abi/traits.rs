//! Mirrors of the author-side traits. Every method returns instead of unwinding.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::sabi_trait;
use abi_stable::sabi_types::RRef;
use abi_stable::std_types::{RBox, ROption, RSlice, RStr, RString, RVec};

use super::comparison::{AbiComparison, AbiMessage, AbiVerdict};
use super::data::{
    AbiBatch, AbiGeneratedResponse, AbiGenerationRequest, AbiLoraSettings, AbiMemoryEstimate,
    AbiMetric, AbiOptimizer, AbiPlannedWork, AbiPolicyInfo, AbiResult, AbiStepReport,
    AbiStepSettings,
};

pub type OracleBox = AbiOracle_TO<'static, RBox<()>>;
pub type BackendBox = AbiBackend_TO<'static, RBox<()>>;
pub type PolicyBox = AbiPolicy_TO<'static, RBox<()>>;
pub type ScorerBox = AbiScorer_TO<'static, RBox<()>>;
pub type HostRef<'a> = AbiHost_TO<'a, RRef<'a, ()>>;

#[sabi_trait]
pub trait AbiHost {
    fn is_cancelled(&self) -> bool;
    fn progress(&self, completed: u64, total: u64);
    fn metrics(&self, values: RSlice<'_, AbiMetric<'_>>);
    fn scorer(&self, model: RStr<'_>) -> AbiResult<ScorerBox>;
    fn scorer_on(&self, backend: RStr<'_>, model: RStr<'_>) -> AbiResult<ScorerBox>;
    #[sabi(last_prefix_field)]
    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox>;
}

#[sabi_trait]
pub trait AbiOracle {
    fn prepare(&mut self, host: HostRef<'_>) -> AbiResult<()>;
    fn identity(&self) -> AbiResult<ROption<RString>>;
    fn expected_requests(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>>;
    #[sabi(last_prefix_field)]
    fn preferences(
        &mut self,
        comparisons: RSlice<'_, AbiComparison<'_>>,
        host: HostRef<'_>,
    ) -> AbiResult<RVec<AbiVerdict>>;
}

#[sabi_trait]
pub trait AbiScorer {
    #[sabi(last_prefix_field)]
    fn score(&mut self, sequences: RSlice<'_, RSlice<'_, u32>>) -> AbiResult<RVec<f32>>;
}

#[sabi_trait]
pub trait AbiBackend {
    fn load_policy(&self, model: RStr<'_>, host: HostRef<'_>) -> AbiResult<PolicyBox>;
    fn load_adapted_policy(
        &self,
        model: RStr<'_>,
        adapters: AbiLoraSettings<'_>,
        host: HostRef<'_>,
    ) -> AbiResult<PolicyBox>;
    fn estimate_memory(
        &self,
        model: RStr<'_>,
        work: AbiPlannedWork<'_>,
    ) -> AbiResult<AbiMemoryEstimate>;
    fn load_scorer(&self, model: RStr<'_>, host: HostRef<'_>) -> AbiResult<ScorerBox>;
    #[sabi(last_prefix_field)]
    fn matrix_product_rate(&self, rows: usize, inner: usize, columns: usize) -> AbiResult<f64>;
}

#[sabi_trait]
pub trait AbiPolicy {
    fn info(&self) -> AbiResult<AbiPolicyInfo>;
    fn render(
        &self,
        messages: RSlice<'_, AbiMessage<'_>>,
        add_generation_prompt: bool,
    ) -> AbiResult<RString>;
    fn encode(&self, text: RStr<'_>, add_special_tokens: bool) -> AbiResult<RVec<u32>>;
    fn decode(&self, tokens: RSlice<'_, u32>) -> AbiResult<RString>;
    fn generate(
        &mut self,
        request: AbiGenerationRequest<'_>,
        host: HostRef<'_>,
    ) -> AbiResult<RVec<AbiGeneratedResponse>>;
    fn token_log_probs(&mut self, batch: AbiBatch<'_>) -> AbiResult<RVec<RVec<f32>>>;
    fn forward(&mut self, batch: AbiBatch<'_>) -> AbiResult<RVec<f64>>;
    fn backward(&mut self, coefficients: RSlice<'_, f64>) -> AbiResult<()>;
    fn recompute_activations(&mut self, recompute: bool) -> AbiResult<()>;
    fn begin_training(&mut self, optimizer: AbiOptimizer) -> AbiResult<()>;
    fn step(&mut self, settings: AbiStepSettings) -> AbiResult<AbiStepReport>;
    fn save(&self, directory: RStr<'_>) -> AbiResult<()>;
    fn save_optimizer_state(&self, file: RStr<'_>) -> AbiResult<()>;
    #[sabi(last_prefix_field)]
    fn load_optimizer_state(&mut self, file: RStr<'_>) -> AbiResult<()>;
}
