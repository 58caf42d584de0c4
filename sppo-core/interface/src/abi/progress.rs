//! The watcher of a call, as it crosses to a plugin.

#![allow(non_local_definitions, reason = "`sabi_trait` expands to such code")]

use abi_stable::StableAbi;
use abi_stable::erased_types::TD_Opaque;
use abi_stable::sabi_trait;
use abi_stable::sabi_types::RRef;
use abi_stable::std_types::{RSlice, RStr};

use super::guard::guarded;
use super::mirror::AbiResult;
use crate::Progress;

pub type ProgressRef<'a> = AbiProgress_TO<'a, RRef<'a, ()>>;

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
