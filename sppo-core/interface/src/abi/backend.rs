//! Backends and scorers across the boundary.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RVec};

use super::guard::guarded;
use super::mirror::{
    AbiResult, AbiSequences, Crosses, lent_sequences, mirror, only, owned_sequences, received,
    received_each, received_object,
};
use super::module::{Exported, IntoObject, Pluggable, root_module};
use super::policy::{PolicyBox, export_policy, import_policy};
use super::progress::{ExportedProgress, ImportedProgress, ProgressRef};
use crate::calls::PluginCall;
use crate::plugin::PluginKind;
use crate::{
    Backend, DeviceMemory, FrozenWeights, GradientDtype, LoraSettings, MemoryEstimate, ModelSpec,
    PlannedSampling, PlannedTraining, PlannedWork, PluginError, Policy, PolicySpec, Progress,
    Scorer, Sharding, TeamPlace,
};

pub type BackendBox = AbiBackend_TO<'static, RBox<()>>;
pub type ScorerBox = AbiScorer_TO<'static, RBox<()>>;

#[sabi_trait]
pub trait AbiBackend {
    fn place(&self) -> AbiResult<TeamPlace>;
    fn serve(&self, progress: ProgressRef<'_>) -> AbiResult<()>;
    fn load_policy(&self, spec: AbiPolicySpec) -> AbiResult<PolicyBox>;
    fn estimate_memory(
        &self,
        spec: AbiPolicySpec,
        work: AbiPlannedWork,
    ) -> AbiResult<MemoryEstimate>;
    fn device_memory(&self) -> AbiResult<ROption<DeviceMemory>>;
    fn load_scorer(&self, model: AbiModelSpec) -> AbiResult<ScorerBox>;
    #[sabi(last_prefix_field)]
    fn matrix_product_rate(&self, rows: usize, inner: usize, columns: usize) -> AbiResult<f64>;
}

#[sabi_trait]
pub trait AbiScorer {
    fn replicas(&self) -> AbiResult<usize>;
    fn width(&self) -> AbiResult<usize>;
    #[sabi(last_prefix_field)]
    fn score_each(&mut self, batches: AbiSequences<'_>) -> AbiResult<RVec<RVec<f32>>>;
}

mirror!(AbiModelSpec of ModelSpec {
    path: std::path::PathBuf,
    next_tokens: Vec<u32>,
});
mirror!(AbiLoraSettings of LoraSettings {
    rank: usize,
    alpha: f64,
    dropout: f64,
    target_modules: Vec<String>,
    rank_stabilized: bool,
    seed: u64,
});
mirror!(AbiPolicySpec of PolicySpec {
    path: std::path::PathBuf,
    adapters: Option<LoraSettings>,
    recompute_activations: bool,
    sharding: Sharding,
    gradient_dtype: GradientDtype,
    frozen_weights: FrozenWeights,
    template_variables: String,
});
mirror!(AbiPlannedWork of PlannedWork {
    sampling: Vec<PlannedSampling>,
    training: Option<PlannedTraining>,
});

root_module!(BackendBox, "sppo_backend");

impl PluginKind {
    /// Backends, which hold and train the policy.
    pub const BACKEND: Self = Self::new("backend");
}

impl Pluggable for dyn Backend {
    const KIND: PluginKind = PluginKind::BACKEND;
    type Abi = BackendBox;

    fn export(object: Box<Self>) -> BackendBox {
        AbiBackend_TO::from_value(Exported::new(object), TD_Opaque)
    }

    fn import(plugin: &'static str, object: BackendBox) -> Result<Box<Self>, PluginError> {
        let place = received(plugin, object.place())?;
        Ok(Box::new(ImportedBackend { plugin, backend: object, place }))
    }
}

impl<T: Backend + 'static> IntoObject<dyn Backend> for T {
    fn into_object(self) -> Box<dyn Backend> {
        Box::new(self)
    }
}

impl AbiBackend for Exported<dyn Backend> {
    fn place(&self) -> AbiResult<TeamPlace> {
        guarded(|| Ok(self.0.place()))
    }

    fn serve(&self, progress: ProgressRef<'_>) -> AbiResult<()> {
        guarded(|| self.0.serve(&ImportedProgress(progress)))
    }

    fn load_policy(&self, spec: AbiPolicySpec) -> AbiResult<PolicyBox> {
        guarded(|| self.0.load_policy(&PolicySpec::receive(spec)).map(export_policy))
    }

    fn estimate_memory(
        &self,
        spec: AbiPolicySpec,
        work: AbiPlannedWork,
    ) -> AbiResult<MemoryEstimate> {
        guarded(|| self.0.estimate_memory(&PolicySpec::receive(spec), &PlannedWork::receive(work)))
    }

    fn device_memory(&self) -> AbiResult<ROption<DeviceMemory>> {
        guarded(|| Ok(self.0.device_memory()?.cross()))
    }

    fn load_scorer(&self, model: AbiModelSpec) -> AbiResult<ScorerBox> {
        guarded(|| self.0.load_scorer(&ModelSpec::receive(model)).map(export_scorer))
    }

    fn matrix_product_rate(&self, rows: usize, inner: usize, columns: usize) -> AbiResult<f64> {
        guarded(|| self.0.matrix_product_rate(rows, inner, columns))
    }
}

/// A backend from the other side.
struct ImportedBackend {
    plugin: &'static str,
    backend: BackendBox,
    place: TeamPlace,
}

impl Backend for ImportedBackend {
    fn place(&self) -> TeamPlace {
        self.place
    }

    fn serve(&self, progress: &dyn Progress) -> Result<(), PluginError> {
        received(self.plugin, self.backend.serve(ExportedProgress(progress).lend()))
    }

    fn load_policy(&self, spec: &PolicySpec) -> Result<Box<dyn Policy>, PluginError> {
        let _call = PluginCall::enter(self.plugin);
        let policy = self.backend.load_policy(spec.clone().cross());
        import_policy(self.plugin, received_object(self.plugin, policy)?)
    }

    fn estimate_memory(
        &self,
        spec: &PolicySpec,
        work: &PlannedWork,
    ) -> Result<MemoryEstimate, PluginError> {
        let (spec, work) = (spec.clone().cross(), work.clone().cross());
        received(self.plugin, self.backend.estimate_memory(spec, work))
    }

    fn device_memory(&self) -> Result<Option<DeviceMemory>, PluginError> {
        received(self.plugin, self.backend.device_memory())
    }

    fn load_scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        let _call = PluginCall::enter(self.plugin);
        import_scorer(self.plugin, self.backend.load_scorer(model.clone().cross()))
    }

    fn matrix_product_rate(
        &self,
        rows: usize,
        inner: usize,
        columns: usize,
    ) -> Result<f64, PluginError> {
        received(self.plugin, self.backend.matrix_product_rate(rows, inner, columns))
    }
}

pub(super) fn export_scorer(scorer: Box<dyn Scorer>) -> ScorerBox {
    AbiScorer_TO::from_value(Exported::new(scorer), TD_Opaque)
}

impl AbiScorer for Exported<dyn Scorer> {
    fn replicas(&self) -> AbiResult<usize> {
        guarded(|| Ok(self.0.replicas()))
    }

    fn width(&self) -> AbiResult<usize> {
        guarded(|| Ok(self.0.width()))
    }

    fn score_each(&mut self, batches: AbiSequences<'_>) -> AbiResult<RVec<RVec<f32>>> {
        guarded(|| Ok(self.0.score_each(&owned_sequences(&batches))?.cross()))
    }
}

/// A scorer from the other side.
struct ImportedScorer {
    plugin: &'static str,
    scorer: ScorerBox,
    replicas: usize,
    width: usize,
}

pub(super) fn import_scorer(
    plugin: &'static str,
    made: AbiResult<ScorerBox>,
) -> Result<Box<dyn Scorer>, PluginError> {
    let scorer = received_object(plugin, made)?;
    let replicas = received(plugin, scorer.replicas())?;
    let width = received(plugin, scorer.width())?;
    Ok(Box::new(ImportedScorer { plugin, scorer, replicas, width }))
}

impl Scorer for ImportedScorer {
    fn score(&mut self, sequences: &[Vec<u32>]) -> Result<Vec<f32>, PluginError> {
        let made = self.scorer.score_each(RVec::from(vec![lent_sequences(sequences)]));
        received_each(self.plugin, 1, made).and_then(|each| only(self.plugin, each))
    }

    fn width(&self) -> usize {
        self.width
    }

    fn replicas(&self) -> usize {
        self.replicas
    }

    fn score_each(&mut self, batches: &[Vec<Vec<u32>>]) -> Result<Vec<Vec<f32>>, PluginError> {
        let lent = batches.iter().map(|sequences| lent_sequences(sequences)).collect();
        received_each(self.plugin, batches.len(), self.scorer.score_each(lent))
    }
}
