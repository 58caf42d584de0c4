//! The kinds of plugins that a library may hold.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::plugin::abi::{
    AbiHeaderRef, LibraryError, OpenedModule, Pluggable, PluginModuleRef, RootModule, open_module,
};
use crate::plugin::{Backend, Oracle, PluginKind, RolloutEngine};

/// A kind, and the reader of the modules of its plugins.
struct Kind {
    kind: PluginKind,
    open: fn(AbiHeaderRef) -> Result<Box<dyn OpenedModule>, LibraryError>,
}

impl Kind {
    const fn of<K: Pluggable + ?Sized>() -> Self
    where
        PluginModuleRef<K::Abi>: RootModule,
    {
        Self { kind: K::KIND, open: open_module::<K> }
    }
}

/// All kinds, in the order in which they are listed. A new kind is one more line.
const KINDS: [Kind; 3] =
    [Kind::of::<dyn Backend>(), Kind::of::<dyn RolloutEngine>(), Kind::of::<dyn Oracle>()];

/// All kinds, in the order in which they are listed.
pub fn all() -> impl DoubleEndedIterator<Item = PluginKind> {
    KINDS.iter().map(|kind| kind.kind)
}

/// The kind of this name.
pub(super) fn named(name: &str) -> Option<PluginKind> {
    all().find(|kind| kind.name() == name)
}

/// Reads a library's header as the module of a plugin of this kind; `None` when there is no such kind.
///
/// # Errors
/// When its types are laid out in another way than in this program.
pub(super) fn open(
    kind: PluginKind,
    header: AbiHeaderRef,
) -> Option<Result<Box<dyn OpenedModule>, LibraryError>> {
    KINDS.iter().find(|known| known.kind == kind).map(|known| (known.open)(header))
}

/// Reads a kind by its name.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<PluginKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    named(&name).ok_or_else(|| D::Error::custom(format!("`{name}` is no kind of plugin")))
}
