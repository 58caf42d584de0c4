//! Mirrors of the author-side traits and their data in types of a stable layout: the form in which they cross
//! between the program and a plugin's library. Authors never see this module;
//! the macros such as [`export_oracle!`](crate::export_oracle) do.
//!
//! Both sides of the boundary are built from these files. Each file has one thing that crosses: its ABI
//! trait, the author's object behind it (`Exported`), and the ABI object behind the author's trait
//! (`Imported..`). Built-in plugins take the same way.

pub mod backend;
pub mod guard;
pub mod log;
mod manifest;
pub mod mirror;
pub mod module;
pub mod oracle;
pub mod policy;
pub mod progress;
pub mod sampler;
pub mod texts;

pub use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError, RootModule};
pub use backend::BackendBox;
pub use log::connection_for;
pub use manifest::{
    MANIFEST_SYMBOL_PREFIX, MODULE_SYMBOL_PREFIX, ManifestText, manifest_bytes, manifest_length,
};
pub use module::{
    AbiManifest, IntoObject, OpenedModule, Pluggable, PluginModuleRef, create_embedded, object_of,
    open_module, plugin_header,
};
pub use oracle::{OracleBox, oracle_across};
pub use policy::policy_across;
pub use sampler::SamplerBox;

/// Version of everything in this module. It changes with every change of layout or meaning, and a
/// plugin is only loaded by a program of the same version.
pub const INTERFACE_VERSION: u32 = 6;

/// The same, for the manifest.
pub const INTERFACE_VERSION_TEXT: &str = "6";

/// Version of this crate, for the manifest.
pub const CORE_VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests;
