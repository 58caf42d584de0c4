//! What a library exports: one module of functions for each plugin in it.

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RStr, RString};

use super::data::{AbiManifest, AbiResult};
use super::log::AbiConnection;
use super::traits::{BackendBox, OracleBox};

/// The program has compared interface versions before abi_stable looks at this, whose own comparison
/// accepts plugins that are newer than the program.
const VERSION: VersionStrings = VersionStrings::new("1.0.0");

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = OracleModuleRef)))]
#[sabi(missing_field(panic))]
pub struct OracleModule {
    pub manifest: extern "C" fn() -> AbiManifest,
    pub connect: extern "C" fn(AbiConnection),
    pub config_schema: extern "C" fn() -> AbiResult<RString>,
    #[sabi(last_prefix_field)]
    pub create: extern "C" fn(RStr<'_>) -> AbiResult<OracleBox>,
}

impl RootModule for OracleModuleRef {
    abi_stable::declare_root_module_statics! {OracleModuleRef}
    const BASE_NAME: &'static str = "sppo_oracle";
    const NAME: &'static str = "sppo_oracle";
    const VERSION_STRINGS: VersionStrings = VERSION;
}

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = BackendModuleRef)))]
#[sabi(missing_field(panic))]
pub struct BackendModule {
    pub manifest: extern "C" fn() -> AbiManifest,
    pub connect: extern "C" fn(AbiConnection),
    pub config_schema: extern "C" fn() -> AbiResult<RString>,
    #[sabi(last_prefix_field)]
    pub create: extern "C" fn(RStr<'_>) -> AbiResult<BackendBox>,
}

impl RootModule for BackendModuleRef {
    abi_stable::declare_root_module_statics! {BackendModuleRef}
    const BASE_NAME: &'static str = "sppo_backend";
    const NAME: &'static str = "sppo_backend";
    const VERSION_STRINGS: VersionStrings = VERSION;
}
