//! Oracles across the boundary, and the services that the program lends them.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use std::path::PathBuf;

use abi_stable::StableAbi;
use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::RRef;
use abi_stable::std_types::{RBox, ROption, RSlice, RStr, RString, RVec};

use super::backend::{AbiModelSpec, ScorerBox, export_scorer, import_scorer};
use super::guard::guarded;
use super::mirror::{AbiPath, AbiResult, Crosses, received, received_object};
use super::module::{Exported, IntoObject, Pluggable, root_module};
use super::progress::{ExportedProgress, ImportedProgress, ProgressRef};
use super::texts::{AbiComparison, BorrowedTexts, ReceivedTexts};
use crate::calls::WatchedCall;
use crate::plugin::PluginKind;
use crate::{Comparison, ModelSpec, Oracle, PluginError, Progress, Scorer, Services, Verdict};

pub type OracleBox = AbiOracle_TO<'static, RBox<()>>;
pub type ServicesRef<'a> = AbiServices_TO<'a, RRef<'a, ()>>;

#[sabi_trait]
pub trait AbiServices {
    fn scorer(&self, model: AbiModelSpec) -> AbiResult<ScorerBox>;
    fn scorer_on(&self, backend: RStr<'_>, model: AbiModelSpec) -> AbiResult<ScorerBox>;
    fn starting_model(&self) -> AbiResult<AbiPath>;
    fn policy_scorer(&self, next_tokens: RSlice<'_, u32>) -> AbiResult<ScorerBox>;
    #[sabi(last_prefix_field)]
    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox>;
}

#[sabi_trait]
pub trait AbiOracle {
    fn prepare(&mut self, services: ServicesRef<'_>, progress: ProgressRef<'_>) -> AbiResult<()>;
    fn identity(&self) -> AbiResult<ROption<RString>>;
    fn expected_requests(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>>;
    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>>;
    #[sabi(last_prefix_field)]
    fn preferences(
        &mut self,
        comparisons: RSlice<'_, AbiComparison<'_>>,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiVerdict>>;
}

#[repr(u8)]
#[derive(StableAbi)]
pub enum AbiVerdict {
    Probabilities(RVec<f64>),
    Orders(RVec<ROption<f64>>),
    Logits(RVec<f32>),
    Scores(RVec<f64>),
}

impl Crosses for Verdict {
    type Abi = AbiVerdict;

    fn cross(self) -> AbiVerdict {
        match self {
            Self::Probabilities(values) => AbiVerdict::Probabilities(values.into()),
            Self::Orders(values) => AbiVerdict::Orders(values.cross()),
            Self::Logits(values) => AbiVerdict::Logits(values.into()),
            Self::Scores(values) => AbiVerdict::Scores(values.into()),
        }
    }

    fn receive(abi: AbiVerdict) -> Self {
        match abi {
            AbiVerdict::Probabilities(values) => Self::Probabilities(values.into()),
            AbiVerdict::Orders(values) => Self::Orders(Crosses::receive(values)),
            AbiVerdict::Logits(values) => Self::Logits(values.into()),
            AbiVerdict::Scores(values) => Self::Scores(values.into()),
        }
    }
}

root_module!(OracleBox, "sppo_oracle");

impl PluginKind {
    /// Oracles, which judge responses.
    pub const ORACLE: Self = Self::new("oracle");
}

impl Pluggable for dyn Oracle {
    const KIND: PluginKind = PluginKind::ORACLE;
    type Abi = OracleBox;

    fn export(object: Box<Self>) -> OracleBox {
        AbiOracle_TO::from_value(Exported::new(object), TD_Opaque)
    }

    fn import(plugin: &'static str, object: OracleBox) -> Result<Box<Self>, PluginError> {
        Ok(Box::new(ImportedOracle { plugin, oracle: object }))
    }
}

impl<T: Oracle + 'static> IntoObject<dyn Oracle> for T {
    fn into_object(self) -> Box<dyn Oracle> {
        Box::new(self)
    }
}

impl AbiOracle for Exported<dyn Oracle> {
    fn prepare(&mut self, services: ServicesRef<'_>, progress: ProgressRef<'_>) -> AbiResult<()> {
        guarded(|| self.0.prepare(&ImportedServices(services), &ImportedProgress(progress)))
    }

    fn identity(&self) -> AbiResult<ROption<RString>> {
        guarded(|| Ok(self.0.identity().cross()))
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>> {
        guarded(|| Ok(self.0.expected_requests(comparisons, candidates).cross()))
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>> {
        guarded(|| Ok(self.0.expected_sequences(comparisons, candidates).cross()))
    }

    fn preferences(
        &mut self,
        comparisons: RSlice<'_, AbiComparison<'_>>,
        progress: ProgressRef<'_>,
    ) -> AbiResult<RVec<AbiVerdict>> {
        guarded(|| {
            let texts = ReceivedTexts::new(comparisons.as_slice());
            let comparisons = texts.comparisons();
            Ok(self.0.preferences(&comparisons, &ImportedProgress(progress))?.cross())
        })
    }
}

/// An oracle from the other side.
struct ImportedOracle {
    plugin: &'static str,
    oracle: OracleBox,
}

impl ImportedOracle {
    /// The reply to a question that has no error; one is logged.
    fn reply<T: Crosses>(&self, reply: AbiResult<ROption<T::Abi>>) -> Option<T> {
        received::<Option<T>>(self.plugin, reply).unwrap_or_else(|error| {
            tracing::warn!("{}: {error}", self.plugin);
            None
        })
    }
}

impl Oracle for ImportedOracle {
    fn prepare(
        &mut self,
        services: &dyn Services,
        progress: &dyn Progress,
    ) -> Result<(), PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let prepared =
            self.oracle.prepare(ExportedServices(services).lend(), ExportedProgress(&call).lend());
        received(self.plugin, prepared)
    }

    fn preferences(
        &mut self,
        comparisons: &[Comparison<'_>],
        progress: &dyn Progress,
    ) -> Result<Vec<Verdict>, PluginError> {
        let call = WatchedCall::enter(self.plugin, progress);
        let texts = BorrowedTexts::new(comparisons);
        let comparisons = texts.comparisons();
        let verdicts = self
            .oracle
            .preferences(RSlice::from(comparisons.as_slice()), ExportedProgress(&call).lend());
        received(self.plugin, verdicts)
    }

    fn plugin(&self) -> Option<&'static str> {
        Some(self.plugin)
    }

    fn identity(&self) -> Option<String> {
        self.reply(self.oracle.identity())
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        self.reply(self.oracle.expected_requests(comparisons, candidates))
    }

    fn expected_sequences(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        self.reply(self.oracle.expected_sequences(comparisons, candidates))
    }
}

/// The program's services, for plugins to reach.
pub(super) struct ExportedServices<'a>(pub(super) &'a dyn Services);

impl ExportedServices<'_> {
    pub(super) fn lend(&self) -> ServicesRef<'_> {
        AbiServices_TO::from_ptr(self, TD_Opaque)
    }
}

impl AbiServices for ExportedServices<'_> {
    fn scorer(&self, model: AbiModelSpec) -> AbiResult<ScorerBox> {
        guarded(|| self.0.scorer(&ModelSpec::receive(model)).map(export_scorer))
    }

    fn scorer_on(&self, backend: RStr<'_>, model: AbiModelSpec) -> AbiResult<ScorerBox> {
        let model = ModelSpec::receive(model);
        guarded(|| self.0.scorer_on(backend.as_str(), &model).map(export_scorer))
    }

    fn starting_model(&self) -> AbiResult<AbiPath> {
        guarded(|| Ok(self.0.starting_model()?.cross()))
    }

    fn policy_scorer(&self, next_tokens: RSlice<'_, u32>) -> AbiResult<ScorerBox> {
        guarded(|| self.0.policy_scorer(next_tokens.as_slice()).map(export_scorer))
    }

    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox> {
        guarded(|| self.0.oracle(name.as_str()).map(Pluggable::export))
    }
}

/// Names in errors of objects that another plugin lends.
const LENT_SCORER: &str = "the scorer";
const LENT_ORACLE: &str = "another oracle";
const PROGRAM: &str = "the program";

/// The program's services, from within a plugin.
pub(super) struct ImportedServices<'a>(pub(super) ServicesRef<'a>);

impl Services for ImportedServices<'_> {
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(LENT_SCORER, self.0.scorer(model.clone().cross()))
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(LENT_SCORER, self.0.scorer_on(backend.into(), model.clone().cross()))
    }

    fn starting_model(&self) -> Result<PathBuf, PluginError> {
        received(PROGRAM, self.0.starting_model())
    }

    fn policy_scorer(&self, next_tokens: &[u32]) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(LENT_SCORER, self.0.policy_scorer(next_tokens.into()))
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        <dyn Oracle>::import(LENT_ORACLE, received_object(LENT_ORACLE, self.0.oracle(name.into()))?)
    }
}

/// An oracle of this program behind its own ABI, as `sppo bench` times it.
///
/// # Errors
/// None that an oracle of this program causes.
pub fn oracle_across(oracle: Box<dyn Oracle>) -> Result<Box<dyn Oracle>, PluginError> {
    <dyn Oracle>::import("oracle", <dyn Oracle>::export(oracle))
}
