//! Plugins by name: where they are looked for, what their files say of them, whether they are as they
//! were when they were added, how they are opened, and whether their settings fit.

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
