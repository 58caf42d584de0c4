//! The oracle `extra-field`: its manifest claims this program's interface, but a structure that crosses
//! the boundary has a field more. It stands for a plugin that was built with a changed `sppo-plugin`.

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RStr, RString};
use sppo_plugin::abi::log::AbiConnection;
use sppo_plugin::abi::mirror::{AbiResult, Crosses};
use sppo_plugin::abi::{self, INTERFACE_VERSION_TEXT, OracleBox};

/// As the program's `AbiManifest`, and a field.
#[repr(C)]
#[derive(StableAbi)]
pub struct AbiManifest {
    name: RStr<'static>,
    mood: u32,
    interface_version: u32,
}

/// As the program's `PluginModule`.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginModuleRef)))]
#[sabi(missing_field(panic))]
pub struct PluginModule<O> {
    pub manifest: extern "C" fn() -> AbiManifest,
    pub connect: extern "C" fn(AbiConnection),
    pub config_schema: extern "C" fn() -> AbiResult<RString>,
    #[sabi(last_prefix_field)]
    pub create: extern "C" fn(RStr<'_>) -> AbiResult<O>,
}

impl RootModule for PluginModuleRef<OracleBox> {
    abi_stable::declare_root_module_statics! {PluginModuleRef<OracleBox>}
    const BASE_NAME: &'static str = "sppo_oracle";
    const NAME: &'static str = "sppo_oracle";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}

extern "C" fn manifest() -> AbiManifest {
    AbiManifest { name: "extra-field".into(), mood: 7, interface_version: abi::INTERFACE_VERSION }
}

extern "C" fn connect(_connection: AbiConnection) {}

extern "C" fn config_schema() -> AbiResult<RString> {
    RResult::ROk("{}".into())
}

extern "C" fn create(_settings: RStr<'_>) -> AbiResult<OracleBox> {
    RResult::RErr(sppo_plugin::PluginError::failed("never called").cross())
}

extern "C" fn module() -> RootModuleResult {
    let module = PluginModule::<OracleBox> { manifest, connect, config_schema, create };
    // SAFETY: only the type of the reference is erased; `MODULE` names it.
    RResult::ROk(unsafe { module.leak_into_prefix().to_prefix_ref().cast() })
}

const PAIRS: &[(&str, &str)] = &[
    ("interface", INTERFACE_VERSION_TEXT),
    ("core", abi::CORE_VERSION),
    ("kind", "oracle"),
    ("name", "extra-field"),
    ("version", env!("CARGO_PKG_VERSION")),
    ("summary", "Has a field more than it should"),
];

#[used]
#[unsafe(export_name = "sppo_plugin_manifest.extra-field")]
pub static MANIFEST: [u8; abi::manifest_length(PAIRS)] = abi::manifest_bytes(PAIRS);

// SAFETY: `module` makes a `PluginModuleRef<OracleBox>`.
#[used]
#[unsafe(export_name = "sppo_plugin_module.extra-field")]
pub static MODULE: LibHeader = unsafe {
    LibHeader::from_constructor::<PluginModuleRef<OracleBox>>(module, CheckTypeLayout::Yes)
};
