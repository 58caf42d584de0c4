//! Plugins by name: searches libraries, reads their manifests, compares them with the added ones, opens
//! them, and checks settings.

mod added;
mod check_settings;
mod inspect;
mod kinds;
mod open;
mod registry;
mod search;
mod sections;

pub use added::{AddedPlugin, AddedPlugins};
pub use inspect::Trouble;
pub use kinds::all as kinds;
pub use registry::{PluginEntry, PluginRegistry, UsedPlugin, schema_of};
pub use search::SearchStep;
pub use sections::{BackendChoice, OracleChoice, PluginSearch, SamplerChoice, check_sections};

/// Looks for plugins in the file of a library, and says how many there are.
#[cfg(fuzzing)]
pub fn inspect_library(path: &std::path::Path) -> Option<usize> {
    inspect::inspect(path).map(|plugins| plugins.len()).ok()
}
