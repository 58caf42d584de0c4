//! Plugins by name: searches libraries, reads their manifests, compares them with the added ones, opens
//! them, and checks settings.

mod added;
mod check_settings;
mod inspect;
mod kinds;
mod open;
mod registry;
mod search;

pub use added::{AddedPlugin, AddedPlugins};
pub use inspect::Trouble;
pub use kinds::all as kinds;
pub use registry::{PluginEntry, PluginRegistry, UsedPlugin};
pub use search::SearchStep;
