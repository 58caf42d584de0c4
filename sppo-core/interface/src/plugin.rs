//! A plugin as its author declares it: kind, name, settings, and the function that makes it.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Backend, Oracle, PluginError};

#[doc(hidden)]
pub use inventory;

/// What a plugin is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum PluginKind {
    /// Holds and trains the policy.
    Backend,
    /// Judges answers.
    Oracle,
}

impl PluginKind {
    /// `backend` or `oracle`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Backend => "backend",
            Self::Oracle => "oracle",
        }
    }
}

/// Who a plugin is, known without running it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Manifest {
    /// What it is.
    pub kind: PluginKind,
    /// The name it is chosen by.
    pub name: Cow<'static, str>,
    /// Its own version.
    pub version: Cow<'static, str>,
    /// The version of the interface that it was built for.
    pub interface_version: u32,
    /// What it does, in one line.
    pub summary: Cow<'static, str>,
}

impl Manifest {
    /// As it is called in messages: ``oracle `rules` ``.
    #[must_use]
    pub fn label(&self) -> String {
        label(self.kind, &self.name)
    }
}

/// A plugin as it is called in messages: ``oracle `rules` ``.
#[must_use]
pub fn label(kind: PluginKind, name: &str) -> String {
    format!("{} `{name}`", kind.name())
}

/// For plugins that do not know better.
const MISSING_LIBRARY_HINT: &str =
    "install the libraries that it needs, or build it on this machine";

/// An oracle as its author writes it. Export it with [`export_oracle!`](crate::export_oracle).
pub trait OraclePlugin: Oracle + Sized + 'static {
    /// The table `[oracle.<name>]`: doc comments become the schema's descriptions; use
    /// `#[serde(default, deny_unknown_fields)]`.
    type Config: DeserializeOwned + JsonSchema;
    /// The name it is chosen by, for instance `rules`.
    const NAME: &'static str;
    /// What it does, in one line.
    const SUMMARY: &'static str;
    /// What to do, in one line, where its library cannot be opened for want of another that it needs.
    const MISSING_LIBRARY_HINT: &'static str = MISSING_LIBRARY_HINT;

    /// Makes the oracle from its settings.
    ///
    /// # Errors
    /// When a setting makes no sense.
    fn create(config: Self::Config) -> Result<Self, PluginError>;
}

/// A backend as its author writes it. Export it with [`export_backend!`](crate::export_backend).
pub trait BackendPlugin: Backend + Sized + 'static {
    /// The table `[backend.<name>]`.
    type Config: DeserializeOwned + JsonSchema;
    /// The name it is chosen by, for instance `candle`.
    const NAME: &'static str;
    /// What it does, in one line.
    const SUMMARY: &'static str;
    /// What to do, in one line, where its library cannot be opened for want of another that it needs.
    const MISSING_LIBRARY_HINT: &'static str = MISSING_LIBRARY_HINT;

    /// Makes the backend from its settings.
    ///
    /// # Errors
    /// When a setting makes no sense on this machine.
    fn create(config: Self::Config) -> Result<Self, PluginError>;
}

/// A built-in oracle.
#[doc(hidden)]
pub struct EmbeddedOracle {
    pub manifest: Manifest,
    pub config_schema: fn() -> Value,
    pub create: fn(Value) -> Result<Box<dyn Oracle>, PluginError>,
}

/// A built-in backend.
#[doc(hidden)]
pub struct EmbeddedBackend {
    pub manifest: Manifest,
    pub config_schema: fn() -> Value,
    pub create: fn(Value) -> Result<Box<dyn Backend>, PluginError>,
}

inventory::collect!(EmbeddedOracle);
inventory::collect!(EmbeddedBackend);

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

impl std::fmt::Debug for EmbeddedOracle {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.manifest.fmt(formatter)
    }
}

impl std::fmt::Debug for EmbeddedBackend {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.manifest.fmt(formatter)
    }
}

/// Makes an oracle that is linked into this program, without a registry: for authors' own tests.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_oracle(name: &str, settings: Value) -> Result<Box<dyn Oracle>, PluginError> {
    let found = inventory::iter::<EmbeddedOracle>().find(|oracle| oracle.manifest.name == name);
    let oracle = found.ok_or_else(|| not_linked(PluginKind::Oracle, name))?;
    (oracle.create)(settings)
}

/// Makes a backend that is linked into this program, as [`create_oracle`] does an oracle.
///
/// # Errors
/// When there is none of this name, or its settings are refused.
pub fn create_backend(name: &str, settings: Value) -> Result<Box<dyn Backend>, PluginError> {
    let found = inventory::iter::<EmbeddedBackend>().find(|backend| backend.manifest.name == name);
    let backend = found.ok_or_else(|| not_linked(PluginKind::Backend, name))?;
    (backend.create)(settings)
}

fn not_linked(kind: PluginKind, name: &str) -> PluginError {
    PluginError::configuration(format!("no {} named `{name}` is linked in", kind.name()))
}
