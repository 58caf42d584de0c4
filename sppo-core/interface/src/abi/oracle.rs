//! Oracles across the boundary.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::StableAbi;
use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::std_types::{RBox, ROption, RSlice, RString, RVec};

use super::guard::guarded;
use super::host::{
    ExportedProgress, ExportedServices, ImportedProgress, ImportedServices, ProgressRef,
    ServicesRef,
};
use super::mirror::{AbiResult, Crosses, received};
use super::module::{Exported, IntoObject, Pluggable, root_module};
use super::texts::{AbiComparison, BorrowedTexts, ReceivedTexts};
use crate::calls::WatchedCall;
use crate::plugin::PluginKind;
use crate::{Comparison, Oracle, PluginError, Progress, Services, Verdict};

pub type OracleBox = AbiOracle_TO<'static, RBox<()>>;

#[sabi_trait]
pub trait AbiOracle {
    fn prepare(&mut self, services: ServicesRef<'_>, progress: ProgressRef<'_>) -> AbiResult<()>;
    fn identity(&self) -> AbiResult<ROption<RString>>;
    fn expected_requests(&self, comparisons: u64, candidates: u64) -> AbiResult<ROption<u64>>;
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
    Logits(RVec<f32>),
    Scores(RVec<f64>),
}

impl Crosses for Verdict {
    type Abi = AbiVerdict;

    fn cross(self) -> AbiVerdict {
        match self {
            Self::Probabilities(values) => AbiVerdict::Probabilities(values.into()),
            Self::Logits(values) => AbiVerdict::Logits(values.into()),
            Self::Scores(values) => AbiVerdict::Scores(values.into()),
        }
    }

    fn receive(abi: AbiVerdict) -> Self {
        match abi {
            AbiVerdict::Probabilities(values) => Self::Probabilities(values.into()),
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

    fn identity(&self) -> Option<String> {
        self.reply(self.oracle.identity())
    }

    fn expected_requests(&self, comparisons: u64, candidates: u64) -> Option<u64> {
        self.reply(self.oracle.expected_requests(comparisons, candidates))
    }
}

/// An oracle of this program behind its own ABI, as `sppo bench` times it.
///
/// # Errors
/// None that an oracle of this program causes.
pub fn oracle_across(oracle: Box<dyn Oracle>) -> Result<Box<dyn Oracle>, PluginError> {
    <dyn Oracle>::import("oracle", <dyn Oracle>::export(oracle))
}
