//! The watcher of a call and the program's services, as they cross to a plugin and back.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::StableAbi;
use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::RRef;
use abi_stable::std_types::{RSlice, RStr};

use super::backend::{ScorerBox, export_scorer, import_scorer};
use super::guard::guarded;
use super::mirror::{AbiPath, AbiResult, Crosses, path, received_object};
use super::module::Pluggable;
use super::oracle::OracleBox;
use crate::{ModelSpec, Oracle, PluginError, Progress, Scorer, Services};

pub type ProgressRef<'a> = AbiProgress_TO<'a, RRef<'a, ()>>;
pub type ServicesRef<'a> = AbiServices_TO<'a, RRef<'a, ()>>;

#[repr(C)]
#[derive(Clone, Copy, StableAbi)]
pub struct AbiMetric<'a> {
    pub name: RStr<'a>,
    pub value: f64,
}

#[sabi_trait]
pub trait AbiProgress {
    fn is_cancelled(&self) -> bool;
    fn progress(&self, completed: u64, total: u64);
    #[sabi(last_prefix_field)]
    fn metrics(&self, values: RSlice<'_, AbiMetric<'_>>);
}

#[sabi_trait]
pub trait AbiServices {
    fn scorer(&self, model: AbiPath) -> AbiResult<ScorerBox>;
    fn scorer_on(&self, backend: RStr<'_>, model: AbiPath) -> AbiResult<ScorerBox>;
    #[sabi(last_prefix_field)]
    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox>;
}

/// The program's watcher, for plugins to reach.
pub(super) struct ExportedProgress<'a>(pub(super) &'a dyn Progress);

impl ExportedProgress<'_> {
    pub(super) fn lend(&self) -> ProgressRef<'_> {
        AbiProgress_TO::from_ptr(self, TD_Opaque)
    }
}

impl AbiProgress for ExportedProgress<'_> {
    fn is_cancelled(&self) -> bool {
        // A watcher that panics is done with: the call ends as if the user had asked to stop.
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
}

/// The program's watcher, from within a plugin.
pub(super) struct ImportedProgress<'a>(pub(super) ProgressRef<'a>);

impl Progress for ImportedProgress<'_> {
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
}

/// The program's services, for plugins to reach.
pub(super) struct ExportedServices<'a>(pub(super) &'a dyn Services);

impl ExportedServices<'_> {
    pub(super) fn lend(&self) -> ServicesRef<'_> {
        AbiServices_TO::from_ptr(self, TD_Opaque)
    }
}

fn model_at(path: AbiPath) -> ModelSpec {
    ModelSpec { path: Crosses::receive(path) }
}

impl AbiServices for ExportedServices<'_> {
    fn scorer(&self, model: AbiPath) -> AbiResult<ScorerBox> {
        guarded(|| self.0.scorer(&model_at(model)).map(export_scorer))
    }

    fn scorer_on(&self, backend: RStr<'_>, model: AbiPath) -> AbiResult<ScorerBox> {
        guarded(|| self.0.scorer_on(backend.as_str(), &model_at(model)).map(export_scorer))
    }

    fn oracle(&self, name: RStr<'_>) -> AbiResult<OracleBox> {
        guarded(|| self.0.oracle(name.as_str()).map(Pluggable::export))
    }
}

/// Names in errors of objects that another plugin lends.
const LENT_SCORER: &str = "the scorer";
const LENT_ORACLE: &str = "another oracle";

/// The program's services, from within a plugin.
pub(super) struct ImportedServices<'a>(pub(super) ServicesRef<'a>);

impl Services for ImportedServices<'_> {
    fn scorer(&self, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(LENT_SCORER, self.0.scorer(path(&model.path)))
    }

    fn scorer_on(&self, backend: &str, model: &ModelSpec) -> Result<Box<dyn Scorer>, PluginError> {
        import_scorer(LENT_SCORER, self.0.scorer_on(backend.into(), path(&model.path)))
    }

    fn oracle(&self, name: &str) -> Result<Box<dyn Oracle>, PluginError> {
        <dyn Oracle>::import(LENT_ORACLE, received_object(LENT_ORACLE, self.0.oracle(name.into()))?)
    }
}
