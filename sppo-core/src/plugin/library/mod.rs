//! Plugins in libraries: where they are looked for, what their files say of them, whether they are as
//! they were when they were added, and how they are opened.

mod added;
mod inspect;
mod open;
mod search;

pub use added::{AddedPlugin, AddedPlugins};
pub(super) use inspect::LibraryPlugin;
pub use inspect::Trouble;
pub(super) use open::{OpenedModule, open};
pub use search::SearchStep;
pub(super) use search::{Found, search};
