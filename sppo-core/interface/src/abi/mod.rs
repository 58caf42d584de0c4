//! What crosses between the program and a plugin's library: mirrors of the author-side traits and
//! their data in types of a stable layout. Nothing outside the plugin interface uses this module, and
//! authors never see it; [`export_oracle!`](crate::export_oracle) and
//! [`export_backend!`](crate::export_backend) do.
//!
//! Both sides of the boundary are built from these files. `export` puts an author's object behind an
//! ABI trait and turns its panics into errors, `import` puts an ABI object behind the author-side
//! trait. A host or scorer that is handed to a plugin crosses by the same two steps.

pub mod comparison;
mod crossing;
pub mod data;
mod export;
mod guard;
mod import;
pub mod log;
mod manifest;
pub mod modules;
pub mod traits;

pub use crossing::{oracle_across, policy_across};
pub use data::AbiManifest;
pub use export::{backend_header, oracle_header};
pub use guard::guarded;
pub use import::{LoadedBackend, LoadedOracle, received_text};
pub use manifest::{MANIFEST_SYMBOL_PREFIX, MODULE_SYMBOL_PREFIX, ManifestText};
pub use manifest::{manifest_bytes, manifest_length};
pub use modules::{BackendModule, BackendModuleRef, OracleModule, OracleModuleRef};

pub use abi_stable::library::LibHeader;
pub use log::connection_for;

/// The version of everything in this module. It changes with every change of layout or meaning, and a
/// plugin is only loaded by a program of the same version.
pub const INTERFACE_VERSION: u32 = 1;

/// The same, for the manifest.
pub const INTERFACE_VERSION_TEXT: &str = "1";

/// The version of this crate, for the manifest.
pub const CORE_VERSION: &str = env!("CARGO_PKG_VERSION");

#[cfg(test)]
mod tests;
