//! Functions that a library exports for each plugin in it, and what a kind of plugin must bring to cross.

use std::any::Any;
use std::mem::ManuallyDrop;

use abi_stable::StableAbi;
use abi_stable::library::{AbiHeaderRef, CheckTypeLayout, LibHeader, LibraryError};
use abi_stable::library::{RootModule, RootModuleResult};
use abi_stable::prefix_type::{PrefixRefTrait, PrefixTypeTrait};
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RStr, RString};

use super::INTERFACE_VERSION;
use super::guard::{drop_guarded, guarded};
use super::log::{AbiConnection, connect};
use super::mirror::{AbiResult, received, received_object};
use crate::PluginError;
use crate::plugin::{Plugin, PluginKind, deserialize_config, schema_of};

/// A kind of plugin, by the trait object that its plugins make. A new kind is one file that implements this.
pub trait Pluggable: 'static {
    /// Its name.
    const KIND: PluginKind;

    /// The object on its way.
    type Abi: StableAbi + 'static;

    /// Puts an object of this side behind its ABI trait.
    fn export(object: Box<Self>) -> Self::Abi;

    /// Puts an object of the other side behind the author's trait. Errors name `plugin`.
    ///
    /// # Errors
    /// When the object does not describe itself.
    fn import(plugin: &'static str, object: Self::Abi) -> Result<Box<Self>, PluginError>;
}

/// A plugin as the trait object of its kind. Every [`Oracle`](crate::Oracle), [`Backend`](crate::Backend) and
/// [`RolloutEngine`](crate::RolloutEngine) is one; a plugin that builds on another type's implementation says here which
/// object it makes.
pub trait IntoObject<K: ?Sized> {
    /// The object.
    fn into_object(self) -> Box<K>;
}

/// An author's object behind an ABI trait. Its destructor may panic too.
pub(super) struct Exported<T: ?Sized>(pub(super) ManuallyDrop<Box<T>>);

impl<T: ?Sized> Exported<T> {
    pub(super) fn new(object: Box<T>) -> Self {
        Self(ManuallyDrop::new(object))
    }
}

impl<T: ?Sized> Drop for Exported<T> {
    fn drop(&mut self) {
        // SAFETY: the box is taken once, here, and `self` is not used afterwards.
        drop_guarded(unsafe { ManuallyDrop::take(&mut self.0) });
    }
}

/// Name and interface of a plugin, as its code says; its file must say the same.
#[repr(C)]
#[derive(Clone, StableAbi)]
pub struct AbiManifest {
    pub name: RStr<'static>,
    pub interface_version: u32,
}

/// Functions of one plugin.
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

/// The program has compared interface versions before abi_stable looks at this, whose own comparison
/// accepts plugins that are newer than the program.
pub const VERSION: VersionStrings = VersionStrings::new("1.0.0");

/// Makes the module of a kind a root module of abi_stable.
macro_rules! root_module {
    ($object:ty, $name:literal) => {
        impl abi_stable::library::RootModule for $crate::abi::module::PluginModuleRef<$object> {
            abi_stable::declare_root_module_statics! {$crate::abi::module::PluginModuleRef<$object>}
            const BASE_NAME: &'static str = $name;
            const NAME: &'static str = $name;
            const VERSION_STRINGS: abi_stable::sabi_types::VersionStrings =
                $crate::abi::module::VERSION;
        }
    };
}
pub(super) use root_module;

/// The header that the library of a plugin exports.
#[must_use]
pub const fn plugin_header<K: Pluggable + ?Sized, P: Plugin + IntoObject<K>>() -> LibHeader
where
    PluginModuleRef<K::Abi>: RootModule,
{
    // SAFETY: `plugin_module` makes a `PluginModuleRef<K::Abi>`.
    unsafe {
        LibHeader::from_constructor::<PluginModuleRef<K::Abi>>(
            plugin_module::<K, P>,
            CheckTypeLayout::Yes,
        )
    }
}

extern "C" fn plugin_module<K: Pluggable + ?Sized, P: Plugin + IntoObject<K>>() -> RootModuleResult
where
    PluginModuleRef<K::Abi>: RootModule,
{
    extern "C" fn manifest<P: Plugin>() -> AbiManifest {
        AbiManifest { name: P::NAME.into(), interface_version: INTERFACE_VERSION }
    }
    extern "C" fn config_schema<P: Plugin>() -> AbiResult<RString> {
        guarded(|| Ok(RString::from(schema_of::<P::Config>().to_string())))
    }
    extern "C" fn create<K: Pluggable + ?Sized, P: Plugin + IntoObject<K>>(
        settings: RStr<'_>,
    ) -> AbiResult<K::Abi> {
        guarded(|| {
            let settings = serde_json::from_str(settings.as_str())
                .map_err(|error| PluginError::configuration(error.to_string()))?;
            Ok(K::export(P::create(deserialize_config(settings)?)?.into_object()))
        })
    }
    let module = PluginModule {
        manifest: manifest::<P>,
        connect,
        config_schema: config_schema::<P>,
        create: create::<K, P>,
    };
    // SAFETY: only the type of the reference is erased; `plugin_header` names it.
    RResult::ROk(unsafe { module.leak_into_prefix().to_prefix_ref().cast() })
}

/// The functions of a plugin from a library, whatever its kind.
pub trait OpenedModule: Send + Sync {
    /// Name and interface, as its code says.
    fn manifest(&self) -> AbiManifest;

    /// Hands the library its end of the log.
    fn connect(&self, connection: AbiConnection);

    /// JSON Schema of its settings, as text.
    ///
    /// # Errors
    /// When the plugin fails.
    fn config_schema(&self, plugin: &'static str) -> Result<String, PluginError>;

    /// Makes its object from settings in JSON: a `Box<K>` for the `K` of its kind.
    ///
    /// # Errors
    /// When the settings are refused.
    fn create(&self, plugin: &'static str, settings: &str) -> Result<Box<dyn Any>, PluginError>;
}

struct ModuleOf<K: Pluggable + ?Sized> {
    manifest: extern "C" fn() -> AbiManifest,
    connect: extern "C" fn(AbiConnection),
    config_schema: extern "C" fn() -> AbiResult<RString>,
    create: extern "C" fn(RStr<'_>) -> AbiResult<K::Abi>,
}

impl<K: Pluggable + ?Sized> OpenedModule for ModuleOf<K> {
    fn manifest(&self) -> AbiManifest {
        (self.manifest)()
    }

    fn connect(&self, connection: AbiConnection) {
        (self.connect)(connection);
    }

    fn config_schema(&self, plugin: &'static str) -> Result<String, PluginError> {
        received(plugin, (self.config_schema)())
    }

    fn create(&self, plugin: &'static str, settings: &str) -> Result<Box<dyn Any>, PluginError> {
        let object = received_object(plugin, (self.create)(settings.into()))?;
        Ok(Box::new(K::import(plugin, object)?))
    }
}

/// Reads a library's header as the module of a plugin of kind `K`.
///
/// # Errors
/// When its types are laid out in another way than in this program.
pub fn open_module<K: Pluggable + ?Sized>(
    header: AbiHeaderRef,
) -> Result<Box<dyn OpenedModule>, LibraryError>
where
    PluginModuleRef<K::Abi>: RootModule,
{
    let module = header.upgrade()?.init_root_module::<PluginModuleRef<K::Abi>>()?;
    Ok(Box::new(ModuleOf::<K> {
        manifest: module.manifest(),
        connect: module.connect(),
        config_schema: module.config_schema(),
        create: module.create(),
    }))
}

/// The object that [`OpenedModule::create`] or a built-in plugin made.
///
/// # Errors
/// When it is of another kind: a plugin lies about itself.
pub fn object_of<K: Pluggable + ?Sized>(made: Box<dyn Any>) -> Result<Box<K>, PluginError> {
    match made.downcast::<Box<K>>() {
        Ok(object) => Ok(*object),
        Err(_) => Err(PluginError::failed("it is not what it was found as")
            .with_hint("look at `sppo plugin list`")),
    }
}

/// Makes a built-in plugin from settings in JSON: a `Box<K>`, by the way that objects of libraries take. So
/// its errors name `plugin`, and a panic is an error.
///
/// # Errors
/// When the settings are refused.
pub fn create_embedded<K: Pluggable + ?Sized, P: Plugin + IntoObject<K>>(
    plugin: &'static str,
    settings: serde_json::Value,
) -> Result<Box<dyn Any>, PluginError> {
    let made = || P::create(deserialize_config(settings)?);
    let object = made().map_err(|error| error.of_plugin(plugin))?;
    Ok(Box::new(K::import(plugin, K::export(object.into_object()))?))
}
