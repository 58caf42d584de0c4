//! A plugin as its author declares it: kind, name, settings, and the function that makes it.

use std::any::Any;
use std::borrow::Cow;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::abi::{Pluggable, object_of};
use crate::{Backend, Oracle, PluginError};

#[doc(hidden)]
pub use inventory;

/// A kind of plugin, by its name. The file of each kind names its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct PluginKind(&'static str);

impl PluginKind {
    pub(crate) const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Name in settings and messages: `backend`, `oracle` or `sampler`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// Identity of a plugin, known without running it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Kind.
    pub kind: PluginKind,
    /// Name that it is chosen by.
    pub name: Cow<'static, str>,
    /// Its own version.
    pub version: Cow<'static, str>,
    /// Version of the interface that it was built for.
    pub interface_version: u32,
    /// Purpose, in one line.
    pub summary: Cow<'static, str>,
}

impl Manifest {
    /// Label in messages: ``oracle `rules` ``.
    #[must_use]
    pub fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

/// Label of a plugin in messages: ``oracle `rules` ``.
#[must_use]
pub fn label(kind: PluginKind, name: &str) -> String {
    format!("{} `{name}`", kind.name())
}

/// A plugin as its author writes it: a type that implements [`Oracle`], [`Backend`] or
/// [`RolloutEngine`](crate::RolloutEngine), its settings and its name. Export it with
/// [`export_oracle!`](crate::export_oracle), [`export_backend!`](crate::export_backend) or
/// [`export_sampler!`](crate::export_sampler).
pub trait Plugin: Sized + 'static {
    /// The table `[oracle.<name>]`, or that of another kind: doc comments become the schema's descriptions;
    /// use `#[serde(default, deny_unknown_fields)]`.
    type Config: DeserializeOwned + JsonSchema;
    /// Name that it is chosen by, for instance `rules`.
    const NAME: &'static str;
    /// Purpose, in one line.
    const SUMMARY: &'static str;
    /// Advice, in one line, for a user whose system lacks a library that this plugin's library needs.
    const MISSING_LIBRARY_HINT: &'static str =
        "install the libraries that it needs, or build it on this machine";

    /// Makes the plugin from its settings.
    ///
    /// # Errors
    /// When a setting makes no sense, or not on this machine.
    fn create(config: Self::Config) -> Result<Self, PluginError>;
}

/// Maker of a plugin's object: a `Box<K>` for the `K` of its kind, whose errors name the plugin by the given
/// label.
#[doc(hidden)]
pub type CreateObject = fn(&'static str, Value) -> Result<Box<dyn Any>, PluginError>;

/// A built-in plugin of any kind.
#[doc(hidden)]
pub struct EmbeddedPlugin {
    pub manifest: Manifest,
    pub config_schema: fn() -> Value,
    pub create: CreateObject,
}

inventory::collect!(EmbeddedPlugin);

impl fmt::Debug for EmbeddedPlugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.manifest.fmt(formatter)
    }
}

#[doc(hidden)]
pub fn deserialize_config<T: DeserializeOwned>(config: Value) -> Result<T, PluginError> {
    serde_path_to_error::deserialize(config)
        .map_err(|error| PluginError::configuration(format!("{}: {}", error.path(), error.inner())))
}

/// JSON Schema of a settings type.
#[doc(hidden)]
#[must_use]
pub fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Makes an oracle that is linked into this program, without a registry: for authors' own tests.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_oracle(name: &str, settings: Value) -> Result<Box<dyn Oracle>, PluginError> {
    create(name, settings)
}

/// Makes a backend that is linked into this program, as [`create_oracle`] does an oracle.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_backend(name: &str, settings: Value) -> Result<Box<dyn Backend>, PluginError> {
    create(name, settings)
}

fn create<K: Pluggable + ?Sized>(name: &str, settings: Value) -> Result<Box<K>, PluginError> {
    let is_it =
        |plugin: &&EmbeddedPlugin| plugin.manifest.kind == K::KIND && plugin.manifest.name == name;
    let plugin = inventory::iter::<EmbeddedPlugin>().find(is_it).ok_or_else(|| {
        PluginError::configuration(format!("no {} named `{name}` is linked in", K::KIND.name()))
    })?;
    object_of((plugin.create)(label(K::KIND, name).leak(), settings)?)
}
